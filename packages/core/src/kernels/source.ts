import { ensure, refuse } from '../errors.ts';

/**
 * What a kernel computes for one element: the body of a function as text, or a function whose parameters are named
 * after the inputs, tables, constants and `channel` that it uses, in any order. It must stand alone: numbers, `Math`,
 * `let`/`const`, conditions, `for` loops with constant bounds, `table[index]`, `return`. A minifier that renames
 * parameters or a coverage tool that rewrites functions breaks the second form; text is safe.
 *
 * The text is compiled as code: never build it from input that is not trusted.
 */
export type KernelBody = string | ((...values: never[]) => number);

/** An element-wise computation, ready to be compiled for any executor. */
export interface KernelSource {
  readonly name: string;
  /** Arrays read at the element's own index; those in `wide` hold one value per element and channel. */
  readonly inputs: readonly string[];
  readonly wide: ReadonlySet<string>;
  readonly constants: Readonly<Record<string, number>>;
  readonly tables: Readonly<Record<string, Float32Array>>;
  /** Results per element. */
  readonly channels: number;
  /** Statements ending in `return`, over the names above and `channel`. */
  readonly body: string;
}

const IDENTIFIER = /^(?!mf_)[A-Za-z_][A-Za-z0-9_]*$/;
const RESERVED = new Set(['channel', 'Math', 'this', 'return', 'const', 'let', 'var', 'for', 'if', 'else', 'function']);

/** Checks names and numbers and brings the body to text. */
export function kernelSource(definition: {
  name: string;
  inputs: readonly string[];
  wide?: Iterable<string>;
  constants?: Record<string, number>;
  tables?: Record<string, ArrayLike<number>>;
  channels?: number;
  body: KernelBody;
}): KernelSource {
  const { name, inputs, constants = {}, channels = 1 } = definition;
  const names = [...inputs, ...Object.keys(constants), ...Object.keys(definition.tables ?? {})];
  ensure(inputs.length > 0, `${name}.inputs`, () => 'is empty; a kernel reads at least one tensor');
  names.forEach((identifier, i) => {
    if (!IDENTIFIER.test(identifier) || RESERVED.has(identifier))
      refuse(
        name,
        `'${identifier}' cannot name a value; letters, digits and '_' can, no keyword, not beginning with mf_`,
      );
    if (names.indexOf(identifier) !== i) refuse(name, `'${identifier}' names two values; names must differ`);
  });
  ensure(
    Number.isInteger(channels) && channels > 0,
    `${name}.channels`,
    () => `is ${channels}; a positive integer is needed`,
  );
  for (const [key, value] of Object.entries(constants))
    ensure(Number.isFinite(value), `${name}.constants.${key}`, () => `is ${value}; a finite number is needed`);
  const tables: Record<string, Float32Array> = {};
  for (const [key, table] of Object.entries(definition.tables ?? {})) {
    tables[key] = Float32Array.from(table);
    ensure(
      tables[key].length > 0 && tables[key].every(Number.isFinite),
      `${name}.tables.${key}`,
      () => 'is empty or holds entries that are not finite numbers',
    );
  }
  const body = bodyText(name, definition.body, new Set([...names, 'channel']));
  return { name, inputs, wide: new Set(definition.wide), constants, tables, channels, body };
}

const FUNCTION = /^(?:function\b\s*)?[\w$]*\s*\(([^)]*)\)\s*(?:=>\s*)?([\s\S]*)$/;
const SHORT_ARROW = /^([\w$]+)\s*=>\s*([\s\S]*)$/;

function bodyText(name: string, body: KernelBody, known: Set<string>): string {
  if (typeof body === 'string') {
    const text = body.trim();
    return /\breturn\b/.test(text) ? text : `return (${text.replace(/;$/, '')});`;
  }
  const match = FUNCTION.exec(String(body)) ?? SHORT_ARROW.exec(String(body));
  if (!match || match[2].includes('[native code]'))
    refuse(`${name}.body`, 'is a function whose text cannot be read; give the body as a string');
  for (const parameter of match[1].split(',').map((p) => p.trim()))
    if (parameter && !known.has(parameter))
      refuse(
        `${name}.body`,
        `has a parameter '${parameter}'; parameters are named after ${[...known].join(', ')} (if a minifier renamed it, give the body as a string)`,
      );
  const text = match[2].trim();
  return text.startsWith('{') ? text.slice(1, text.lastIndexOf('}')).trim() : `return (${text.replace(/;$/, '')});`;
}

/** Whether the body mentions a name. */
export const mentions = (body: KernelBody, identifier: string): boolean =>
  new RegExp(`\\b${identifier}\\b`).test(String(body));
