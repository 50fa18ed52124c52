import {
  defineStructuredLayer,
  defineStructuredMethod,
  ensure,
  ensureInput,
  factor,
  normal,
  option,
  structuredOptions,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { type BlastFactors, blastFactorize, ensureBlocks, ensureFactors } from './factorize.ts';

export {
  type BlastFactorization,
  type BlastFactors,
  blastFactorize,
  blastSweep,
  type FactorizeOptions,
  type SweepOptions,
} from './factorize.ts';

const integerOrFraction = 'must be a positive integer, or a fraction of min(in, out) below 1';

/**
 * BLAST kernels (Lee et al. 2024): a grid of blocks of low rank that share their bases. Block (j, i) of the kernel is
 * V_j·diag(S[j, i])·U_i with `inBasis` V `[a, in/a, r]`, `coupling` S `[a, c, r]` and `outBasis` U `[c, r, out/c]` (eq. 3).
 * Low rank, block diagonal, block low rank and mixtures are couplings of this one form.
 *
 * Attached, it takes the place of the dense kernel. Trains r·(in + out + a·c) numbers per layer.
 */
export const blast = defineStructuredMethod({
  info: {
    id: 'blast',
    title: 'BLAST',
    family: 'structured',
    kind: 'structured',
    paper: {
      title: 'BLAST: Block-Level Adaptive Structured Matrices for Efficient Deep Neural Network Inference',
      arxiv: '2410.21262',
      year: 2024,
    },
  },
  config: z.object({
    ...structuredOptions,
    /** Rows a of the grid; divides in. */
    inBlocks: option.count().default(4),
    /** Columns c of the grid; divides out. */
    outBlocks: option.count().default(4),
    /** Rank r of the bases, or below 1 the share of min(in, out). Default min(in, out). */
    rank: z
      .number(integerOrFraction)
      .positive(integerOrFraction)
      .refine((value) => value < 1 || Number.isInteger(value), integerOrFraction)
      .optional(),
    /** Sweeps of the factorisation of a kernel. */
    iterations: option.count().default(300),
    /** Its first step size; falls linearly. */
    learningRate: option.positive().default(1),
    /** Share of the step size that is left at the end. */
    endFactor: z.number('must be in [0, 1]').min(0, 'must be in [0, 1]').max(1, 'must be in [0, 1]').default(0),
    /** Its damping relative to the norm of the residual. */
    delta: z.number('must be a number >= 0').min(0, 'must be a number >= 0').default(0.1),
    /** Its gradient is that of the squared error (2) or of half of it (1). */
    gradScale: z.union([z.literal(1), z.literal(2)], 'must be 1 or 2').default(2),
    /** False for plain gradient steps. */
    precondition: z.boolean().default(true),
  }),
  validate({ name, inDim, outDim }, { inBlocks, outBlocks }) {
    ensureBlocks(name, inDim, outDim, inBlocks, outBlocks);
  },
  tensors({ inDim, outDim, config: { inBlocks: a, outBlocks: c, rank } }) {
    const r = blastRank(inDim, outDim, rank);
    const [q, p] = [inDim / a, outDim / c];
    return {
      inBasis: factor([a, q, r], { in: q, out: r }, normal(Math.sqrt(3 / (4 * inDim)))),
      coupling: factor([a, c, r], { in: a, out: c }, (shape, random) => random.uniform(shape, 0, 2)),
      outBasis: factor([c, r, p], { in: r, out: p }, normal(1 / Math.sqrt(r))),
    };
  },
  apply: (x, factors, { inDim, outDim }) => applyBlast(x, factors, inDim, outDim),
  project(W, { inDim, outDim, config, random }) {
    const rank = blastRank(inDim, outDim, config.rank);
    return { ...blastFactorize(W, { ...config, init: undefined, rank, seed: random.seed }).factors };
  },
  exact: () => false,
  ladder: function* ({ inDim, outDim, config: { inBlocks, outBlocks } }) {
    const dense = blastRankForBudget(inDim, outDim, inBlocks, outBlocks, 1);
    for (let rank = 1; rank <= Math.max(dense, Math.min(inDim, outDim)); rank++) yield { rank };
  },
});

/** A dense layer with a BLAST kernel: `{ units, inBlocks, outBlocks, rank, useBias, activation, … }`. */
export const BlastDense = defineStructuredLayer(blast, 'BlastDense');

/** The rank that an option stands for. */
export function blastRank(inDim: number, outDim: number, rank: number | undefined): number {
  const full = Math.min(inDim, outDim);
  if (rank === undefined) return full;
  return rank < 1 ? Math.max(1, Math.floor(rank * full)) : rank;
}

/** The largest rank whose factors have at most `fraction`·in·out numbers: ⌊fraction·n·m/(n + m + a·c)⌋. */
export function blastRankForBudget(n: number, m: number, a: number, c: number, fraction: number): number {
  ensure(fraction > 0, 'blast.fraction', () => `must be > 0, got ${fraction}`);
  return Math.floor((fraction * n * m) / (n + m + a * c));
}

/**
 * x·W for a BLAST W, without forming it: every block row makes r numbers, the coupling mixes them for every block column.
 *
 * @param x `[..., in]`
 * @returns `[..., out]`
 * @throws MatforgeError when x or a factor does not fit.
 */
export function blastApply(x: tf.Tensor, factors: BlastFactors): tf.Tensor {
  return applyBlast(x, factors, ...sizeOf(factors));
}

function applyBlast(x: tf.Tensor, factors: BlastFactors, inDim: number, outDim: number): tf.Tensor {
  ensureInput(x, inDim);
  ensureFactors(factors, inDim, outDim);
  return tf.tidy(() => {
    const { inBasis, coupling, outBasis } = factors;
    const [a] = coupling.shape;
    const lead = x.shape.slice(0, -1);
    const rows = tf.util.sizeFromShape(lead);
    // Features come first and the rows of x last, so that the moves between the products are of whole rows of numbers.
    const columns = tf.reshape(tf.transpose(tf.reshape(x, [rows, inDim])), [a, inDim / a, rows]);
    const z = tf.matMul(inBasis, columns, true, false);
    const mixed = tf.matMul(tf.transpose(coupling, [2, 1, 0]), tf.transpose(z, [1, 0, 2]));
    const y = tf.matMul(outBasis, tf.transpose(mixed, [1, 0, 2]), true, false);
    return tf.reshape(tf.transpose(tf.reshape(y, [outDim, rows])), [...lead, outDim]);
  });
}

/** W `[in, out]` of BLAST factors. */
export function blastToDense(factors: BlastFactors): tf.Tensor2D {
  return tf.tidy(() => blastApply(tf.eye(sizeOf(factors)[0]), factors) as tf.Tensor2D);
}

function sizeOf({ inBasis, outBasis }: BlastFactors): [inDim: number, outDim: number] {
  return [inBasis.shape[0] * (inBasis.shape[1] ?? 0), outBasis.shape[0] * (outBasis.shape[2] ?? 0)];
}
