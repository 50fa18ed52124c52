/** Every refusal of bad input: `field` says where, the message says what was given, what is accepted and what to do. */
export class MatforgeError extends Error {
  override readonly name = 'MatforgeError';
  /** Dotted name of the offending option, tensor, layer or file. */
  readonly field: string;

  constructor(field: string, message: string, options?: ErrorOptions) {
    super(`${field}: ${message}`, options);
    this.field = field;
  }
}

/** Throws a {@link MatforgeError}; an expression, so that it can stand where a value is expected. */
export function refuse(field: string, message: string, options?: ErrorOptions): never {
  throw new MatforgeError(field, message, options);
}

/** Throws a {@link MatforgeError} unless `condition` holds. The message is built only when needed. */
export function ensure(condition: unknown, field: string, message: () => string): asserts condition {
  if (!condition) refuse(field, message());
}

/** The candidate nearest to `given` by edit distance, when near enough to be a slip: for "did you mean". */
export function didYouMean(given: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(given.length / 3)) + 1;
  for (const candidate of candidates) {
    const distance = editDistance(given.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return best;
}

/**
 * Refuses options that are not an object, and the first one that is not known, with the nearest known one: a slip would
 * otherwise pass for the default.
 */
export function ensureKnown(owner: string, options: unknown, known: readonly string[]): void {
  ensure(
    typeof options === 'object' && options !== null,
    owner,
    () => `${options} given; its options are an object of ${known.join(', ')}`,
  );
  const unknown = Object.keys(options).find((key) => !known.includes(key));
  if (unknown !== undefined) refuseUnknown(owner, unknown, known);
}

/** Refuses an option that is not known, with the nearest known one. */
export function refuseUnknown(owner: string, unknown: string, known: readonly string[]): never {
  const near = didYouMean(unknown, known);
  const hint = near ? `did you mean "${near}"?` : `known options: ${known.join(', ') || 'none'}`;
  refuse(`${owner}.${unknown}`, `unknown option; ${hint}`);
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitute = previous[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      current[j] = Math.min(substitute, previous[j] + 1, current[j - 1] + 1);
    }
    previous = current;
  }
  return previous[b.length];
}
