import { ensure } from '@matforge/core';

/** Number of cores, factors of both widths and ranks: what a form of {@link btt} fixes. */
export interface BttShape {
  /** ms: Π = in; the first is the fastest part of the input index. */
  readonly inFactors: readonly number[];
  /** ns: Π = out; the first is the slowest part of the output index. */
  readonly outFactors: readonly number[];
  /** Rank r between neighbouring cores. */
  readonly rank: number;
}

/**
 * A width as a product of `count` numbers, as the official code finds them: prime factors, ascending, each to the number
 * that is smallest so far; then sorted. 64 → [8, 8], 768 → [16, 48], 12 → [2, 6].
 */
export function factorize(width: number, count: number): number[] {
  const parts = new Array<number>(count).fill(1);
  let rest = width;
  for (let prime = 2; rest > 1; prime = prime * prime > rest ? rest : prime + 1) {
    for (; rest % prime === 0; rest /= prime) parts[parts.indexOf(Math.min(...parts))] *= prime;
  }
  return parts.sort((a, b) => a - b);
}

/** Sizes of one core. */
export interface CoreSize {
  /** Shape of the tensor: `[ns_0 … ns_{t−1}, ms_{t+1} … ms_{c−1}, d, e]`. */
  readonly shape: number[];
  /** In-width d = rs_t·ms_t. */
  readonly in: number;
  /** Out-width e = rs_{t+1}·ns_t. */
  readonly out: number;
  /** ns_0·…·ns_{t−1}. */
  readonly done: number;
  /** ms_{t+1}·…·ms_{c−1}. */
  readonly left: number;
  /** Rank to the next core; 1 after the last. */
  readonly rank: number;
}

/** Sizes of every core, in order of application. */
export function coreSizes({ inFactors, outFactors, rank }: BttShape): CoreSize[] {
  const last = inFactors.length - 1;
  return inFactors.map((m, t) => {
    const [before, after] = [t === 0 ? 1 : rank, t === last ? 1 : rank];
    const widths = { in: before * m, out: after * outFactors[t] };
    const [done, left] = [outFactors.slice(0, t), inFactors.slice(t + 1)];
    return {
      ...widths,
      shape: [...done, ...left, widths.in, widths.out],
      done: product(done),
      left: product(left),
      rank: after,
    };
  });
}

export function product(values: readonly number[]): number {
  return values.reduce((result, value) => result * value, 1);
}

/** Options that say how the widths are cut. */
export interface FactorOptions {
  readonly cores?: number;
  readonly rank: number;
  readonly inFactors?: readonly number[];
  readonly outFactors?: readonly number[];
}

/** The form that options give a kernel of that size. */
export function bttShape(
  name: string,
  inDim: number,
  outDim: number,
  { cores, rank, inFactors, outFactors }: FactorOptions,
): BttShape {
  const count = cores ?? inFactors?.length ?? outFactors?.length ?? 2;
  const cut = (option: string, width: number, given: readonly number[] = factorize(width, count)) => {
    ensure(given.length === count, `${name}.${option}`, () => `has ${given.length} factors for ${count} cores`);
    ensure(
      product(given) === width,
      `${name}.${option}`,
      () => `the product of [${given}] is ${product(given)}, the width is ${width}`,
    );
    return given;
  };
  return { inFactors: cut('inFactors', inDim, inFactors), outFactors: cut('outFactors', outDim, outFactors), rank };
}
