import { option, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { checkRank } from './selection.ts';
import { type DctBasis, dctMatrix } from './transform.ts';

export const fraction = () => z.number('must be in [0, 1)').min(0, 'must be in [0, 1)').lt(1, 'must be in [0, 1)');
export const nonNegative = () => z.number('must be a finite number >= 0').min(0, 'must be a finite number >= 0');

/** Options that DCT-AdamW and Trion share. */
export const shared = {
  /** r: columns of Q that are kept. */
  rank: option.rank().default(128),
  beta1: fraction().default(0.9),
  beta2: fraction().default(0.999),
  epsilon: nonNegative().default(1e-8),
  /** Decoupled, for every variable. */
  weightDecay: nonNegative().default(0),
  /** Score of a column: l1 or l2 norm of its coefficients. */
  norm: z.union([z.literal(1), z.literal(2)], 'must be 1 or 2').default(1),
  basis: z.enum(['dct3', 'dct2']).default('dct3'),
  /** How coefficients are computed: a matrix product, or the fast transform (dct2 only; pays from about 256 on). */
  similarity: z.enum(['matmul', 'fast']).default('matmul'),
  /** Matrices with a side of this size or more are trained by AdamW. */
  maxShape: option.count().default(32000),
  /**
   * The matrices to project. Default: all of rank 2 or 4 (a convolution counts as [kh·kw·in, out]) with min(in, out)
   * above the rank. What is not projected is trained by AdamW.
   */
  include: z
    .custom<(name: string, shape: number[]) => boolean>((value) => typeof value === 'function', 'must be a function')
    .optional(),
};

interface Listed {
  rank: number;
  maxShape: number;
  include?: (name: string, shape: number[]) => boolean;
}

/** Whether a variable is projected; a rank that does not fit a matrix listed by name is refused. */
export function isProjected(param: tf.Tensor, name: string, { rank, maxShape, include }: Listed): boolean {
  if (include ? !include(name, param.shape) : param.rank !== 2 && param.rank !== 4) return false;
  if (param.rank < 2)
    refuse('dct-projection.include', `"${name}" of shape [${param.shape}] is no matrix; list kernels only`);
  const shape = matrixShape(param.shape);
  if (Math.max(...shape) >= maxShape) return false;
  if (include) checkRank(shape, rank, name);
  return include !== undefined || Math.min(...shape) > rank;
}

/** A kernel as a matrix: all axes but the last, which counts the outputs, are joined. */
export function matrixShape(shape: number[]): [number, number] {
  const out = shape[shape.length - 1];
  return [shape.slice(0, -1).reduce((a, b) => a * b, 1), out];
}

export function asMatrix(tensor: tf.Tensor): tf.Tensor2D {
  return tf.reshape(tensor, matrixShape(tensor.shape));
}

/** The cosine matrices in use, one of each size, shared by all layers of that size. */
export type Bases = Record<string, tf.Tensor2D>;

export function withBasis(bases: Bases, shape: number[], basis: DctBasis): Bases {
  const size = Math.min(...matrixShape(shape));
  return bases[size] ? bases : { ...bases, [size]: dctMatrix(size, basis) };
}

export function basisOf(bases: Bases, shape: number[]): tf.Tensor2D {
  return bases[Math.min(...matrixShape(shape))];
}

/** Adam's moments of one variable, or of its projection. */
export interface Moments {
  /** t: updates made. */
  step: number;
  m: tf.Tensor;
  v: tf.Tensor;
}

export interface AdamOptions {
  learningRate: number;
  beta1: number;
  beta2: number;
  epsilon: number;
}

/** The next moments, and learningRate·√(1-β₂ᵗ)/(1-β₁ᵗ) · m/(ε·√(1-β₂ᵗ) + √v), which is to be subtracted. */
export function adam(
  a: tf.Tensor,
  { step, m, v }: Moments,
  options: AdamOptions,
): { direction: tf.Tensor; moments: Moments } {
  const { learningRate, beta1, beta2, epsilon } = options;
  const t = step + 1;
  const root = Math.sqrt(1 - beta2 ** t);
  const moments: Moments = {
    step: t,
    m: tf.add(tf.mul(m, beta1), tf.mul(a, 1 - beta1)),
    v: tf.add(tf.mul(v, beta2), tf.mul(tf.square(a), 1 - beta2)),
  };
  const u = tf.div(moments.m, tf.add(tf.sqrt(moments.v), epsilon * root));
  return { direction: tf.mul(u, (learningRate * root) / (1 - beta1 ** t)), moments };
}

/** AdamW on a whole variable: the update to be added. */
export function adamw(
  G: tf.Tensor,
  W: tf.Tensor,
  state: Moments,
  options: AdamOptions & { weightDecay: number },
): { update: tf.Tensor; state: Moments } {
  const { direction, moments } = adam(G, state, options);
  return { update: decayed(tf.neg(direction), W, options), state: moments };
}

/** The update with the decay of W as it was before: -learningRate·weightDecay·W. */
export function decayed(
  update: tf.Tensor,
  W: tf.Tensor,
  { learningRate, weightDecay }: { learningRate: number; weightDecay: number },
): tf.Tensor {
  return weightDecay === 0 ? update : tf.sub(update, tf.mul(W, learningRate * weightDecay));
}

/** Selection refuses what is not finite; the message is to name the variable. */
export function named<T>(name: string, select: () => T): T {
  try {
    return select();
  } catch (cause) {
    if ((cause as { field?: string }).field !== 'A') throw cause;
    refuse(`dct-projection (${name})`, `gradient of ${name} is not finite`, { cause });
  }
}
