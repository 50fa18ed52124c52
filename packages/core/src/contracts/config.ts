import * as z from 'zod';
import { refuse, refuseUnknown } from '../errors.ts';

/** A method's configuration schema: a zod object. Unknown keys are refused with the nearest known one. */
export type ConfigSchema = z.ZodObject;

/**
 * Validates a configuration and fills in defaults.
 *
 * @throws MatforgeError naming `<owner>.<option>`, the value given and what is accepted.
 */
export function parseConfig<S extends ConfigSchema>(owner: string, schema: S, given: unknown): z.output<S> {
  const result = schema.strict().safeParse(given ?? {});
  if (result.success) return result.data as z.output<S>;
  const { issues } = result.error;
  // A misspelt option also shows as a missing one; the slip is what the user wants to hear of.
  const issue = issues.find(({ code, path }) => code === 'unrecognized_keys' && path.length === 0) ?? issues[0];
  if (issue.code === 'unrecognized_keys' && issue.path.length === 0) {
    refuseUnknown(owner, issue.keys[0], Object.keys(schema.shape));
  }
  const value = issue.path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown>)?.[key], given);
  refuse([owner, ...issue.path].join('.'), `${describe(issue)}, got ${show(value)}`);
}

function describe(issue: z.core.$ZodIssue): string {
  if (issue.code === 'invalid_value') return `must be one of ${issue.values.map((v) => JSON.stringify(v)).join(', ')}`;
  return issue.message;
}

function show(value: unknown): string {
  if (typeof value === 'number' || value === undefined) return String(value);
  return JSON.stringify(value) ?? String(value);
}

const positiveInteger = 'must be a positive integer';

/** The options that many methods share, each with the same name, range and wording everywhere. */
export const option = {
  /** Rank of a factorisation. */
  rank: () => z.number(positiveInteger).int(positiveInteger).min(1, positiveInteger),
  /** Positive whole number. */
  count: () => z.number(positiveInteger).int(positiveInteger).min(1, positiveInteger),
  /** Finite number > 0. */
  positive: () => z.number('must be a finite number > 0').positive('must be a finite number > 0'),
  /** Probability in [0, 1) that an input of the adapter path is dropped while training. */
  dropout: () => z.number('must be in [0, 1)').min(0, 'must be in [0, 1)').lt(1, 'must be in [0, 1)').default(0),
  /** Map from module name (exact or dotted suffix) to a value that overrides the default there; first match wins. */
  pattern: <T extends z.ZodType>(value: T) => z.record(z.string(), value).default({}),
  /** Seed of a random stream. */
  seed: () => z.number('must be an integer').int('must be an integer'),
};
