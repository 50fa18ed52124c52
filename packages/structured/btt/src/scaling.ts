import { didYouMean, ensure, muPDeviation, refuse, type Widths } from '@matforge/core';
import { coreSizes, factorize } from './factors.ts';

/** A layer for which {@link structuredScaling} gives start and learning rates. */
export interface ScalingOptions {
  /** `'dense'`, `'lowRank'`, `'kron'`, `'tt'`, `'btt'` or `'monarch'`. */
  readonly structure: string;
  readonly inDim: number;
  readonly outDim: number;
  /** Of low rank, tt and btt. Default 1. */
  readonly rank?: number;
  /** Of kron, tt and btt. Default 2. */
  readonly cores?: number;
  /** Of monarch. Default 4. */
  readonly nblocks?: number;
  /** Width at which the base learning rate was tuned. Default `inDim`. */
  readonly baseInDim?: number;
}

/** One entry per factor, in order of application. */
export interface Scaling {
  readonly factorInDims: number[];
  readonly factorOutDims: number[];
  /** Standard deviation of the start. */
  readonly initStd: number[];
  /** Learning rate over that of a dense layer of input width `baseInDim`, for Adam and its kin. */
  readonly lrMultiplier: number[];
}

const FORMS: Record<string, (options: Required<Omit<ScalingOptions, 'baseInDim'>>) => Widths[]> = {
  dense: ({ inDim, outDim }) => [{ in: inDim, out: outDim }],
  lowRank: ({ inDim, outDim, rank }) => [
    { in: inDim, out: rank },
    { in: rank, out: outDim },
  ],
  kron: (options) => FORMS.btt({ ...options, rank: 1 }),
  tt: (options) => FORMS.btt(options),
  btt: ({ inDim, outDim, cores, rank }) =>
    coreSizes({ inFactors: factorize(inDim, cores), outFactors: factorize(outDim, cores), rank }),
  monarch({ inDim, outDim, nblocks }) {
    const [p, s] = [Math.ceil(inDim / nblocks), Math.ceil(outDim / nblocks)];
    const mid = Math.min(p, s);
    return [
      { in: p, out: mid },
      { in: mid, out: s },
    ];
  },
};

/**
 * How the factors of a structured layer must start and how fast they must learn, so that neither outputs nor updates
 * depend on the width (section 3.2): deviation √(1/d)·min(1, √(e/d)), rate baseInDim/(d·L) for in-width d, out-width e and
 * L factors.
 *
 * @throws MatforgeError for an unknown structure (lists the known ones) or a size that is no positive integer.
 */
export function structuredScaling(options: ScalingOptions): Scaling {
  const { structure, inDim, baseInDim = inDim } = options;
  const names = Object.keys(FORMS);
  if (!names.includes(structure)) {
    const near = didYouMean(structure, names);
    refuse(
      'structure',
      `"${structure}" is not known${near ? `; did you mean "${near}"?` : ''} Known: ${names.join(', ')}`,
    );
  }
  for (const [name, value] of Object.entries(options)) {
    const number = name === 'structure' || value === undefined || (Number.isInteger(value) && (value as number) >= 1);
    ensure(number, name, () => `must be a positive integer, got ${value}`);
  }
  const widths = FORMS[structure]({ rank: 1, cores: 2, nblocks: 4, ...options });
  return {
    factorInDims: widths.map((width) => width.in),
    factorOutDims: widths.map((width) => width.out),
    initStd: widths.map(muPDeviation),
    lrMultiplier: widths.map((width) => baseInDim / (width.in * widths.length)),
  };
}

/** loss = k·compute^(−alpha). */
export interface PowerLaw {
  readonly k: number;
  readonly alpha: number;
}

/**
 * The scaling law through measured points: least squares of log loss = log k − α·log compute.
 *
 * @throws MatforgeError for lists of different length, fewer than two points, or numbers that are not positive.
 */
export function fitPowerLaw(compute: readonly number[], loss: readonly number[]): PowerLaw {
  ensure(
    compute.length === loss.length && loss.length >= 2,
    'loss',
    () => `needs one value per compute and at least two, got ${loss.length} for ${compute.length}`,
  );
  ensure(
    [...compute, ...loss].every((value) => value > 0),
    'loss',
    () => 'and compute must be positive numbers',
  );
  const [x, y] = [compute.map(Math.log), loss.map(Math.log)];
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [centreX, centreY] = [mean(x), mean(y)];
  const covariance = mean(x.map((value, i) => (value - centreX) * (y[i] - centreY)));
  const variance = mean(x.map((value) => (value - centreX) ** 2));
  ensure(variance > 0, 'compute', () => 'is the same at every point');
  const alpha = -covariance / variance;
  return { k: Math.exp(centreY + alpha * centreX), alpha };
}
