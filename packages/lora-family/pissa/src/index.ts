import {
  defineLinearMethod,
  doubledRank,
  lowRankOptions,
  lowRankPlan,
  lowRankProduct,
  lowRankScale,
  option,
  plainLowRank,
  type Random,
  random,
  randomizedSvd,
  shiftedLowRank,
  thinSvd,
  validateRank,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';

export { type Nf4, nf4Dequantise, nf4Quantise } from './nf4.ts';
export { type QpissaInit, qpissaInit } from './qpissa.ts';

/**
 * PiSSA (Meng et al. 2024): LoRA whose factors start with the principal singular values and vectors of the kernel,
 * A = U_r·√(Σ_r/s), B = √(Σ_r/s)·V_rᵀ (eq. 2, 3), while the residual W − s·A·B is frozen (eq. 4). Training moves the
 * important directions from the first step.
 *
 * Starts as the base model. Trains r(in + out) numbers per layer. Stored as plain LoRA of rank 2r over the original
 * kernel.
 */
export const pissa = defineLinearMethod({
  info: {
    id: 'pissa',
    title: 'PiSSA',
    family: 'lora-family',
    kind: 'adapter',
    paper: {
      title: 'PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models',
      arxiv: '2404.02948',
      year: 2024,
    },
  },
  config: z.object({
    ...lowRankOptions,
    /** Absent: alpha = rank, so that s = 1. */
    alpha: option.positive().optional(),
    /** Power iterations of a randomized SVD; null for the exact one. 4 to 16 are the paper's fast start. */
    iterations: option.count().nullable().default(null),
  }),
  validate: validateRank,
  plan: lowRankPlan,
  tensors: shiftedLowRank.tensors,
  init({ kernel, config, random }) {
    const { A, B } = pissaInit(kernel, { ...config, scale: lowRankScale(config), random });
    return { A, B, A0: A, B0: B };
  },
  forward: shiftedLowRank.forward,
  kernel: shiftedLowRank.kernel,
  lookup: shiftedLowRank.lookup,
  peft: shiftedLowRank.peft,
});

/** Options of {@link pissaInit}. */
export interface PissaInitOptions {
  rank: number;
  /** s, by which A·B is multiplied in use. Default 1. */
  scale?: number;
  /** Power iterations of a randomized SVD; null for the exact one. Default null. */
  iterations?: number | null;
  random?: Random;
}

/** What {@link pissaInit} returns. */
export interface PissaInit {
  /** `[in, r]` */
  A: tf.Tensor2D;
  /** `[r, out]` */
  B: tf.Tensor2D;
  /** W − s·A·B, `[in, out]` */
  residual: tf.Tensor2D;
  /** Singular values of W: all of them, or the leading r from the randomized SVD. */
  S: tf.Tensor1D;
}

/**
 * Splits a kernel `[in, out]` into its principal part s·A·B and the residual (eq. 2-4).
 *
 * AᵀA = B·Bᵀ = diag(Σ_r)/s.
 */
export function pissaInit(
  W: tf.Tensor2D,
  { rank, scale = 1, iterations = null, random: source = random(0) }: PissaInitOptions,
): PissaInit {
  return tf.tidy(() => {
    const { u, s, v } = iterations === null ? thinSvd(W) : randomizedSvd(W, rank, { iterations, random: source });
    const root = tf.sqrt(tf.div(tf.slice(s, 0, rank), scale));
    const A = tf.mul(tf.slice(u, [0, 0], [-1, rank]), root) as tf.Tensor2D;
    const B = tf.mul(tf.transpose(tf.slice(v, [0, 0], [-1, rank])), tf.expandDims(root, 1)) as tf.Tensor2D;
    return { A, B, residual: tf.sub(W, lowRankProduct(A, B, scale)) as tf.Tensor2D, S: s };
  });
}

/** Start and trained factors of a PiSSA adapter. */
export interface PissaFactors {
  A0: tf.Tensor2D;
  B0: tf.Tensor2D;
  A1: tf.Tensor2D;
  B1: tf.Tensor2D;
  rank: number;
  alpha: number;
  useRslora?: boolean;
}

/**
 * A trained PiSSA adapter as plain LoRA over the original kernel: A' = [A₁, A₀], B' = [B₁; −B₀], rank 2r, alpha so that
 * the scale is unchanged.
 *
 * @throws MatforgeError when start and trained factors differ in shape.
 */
export function convertToLora({ A0, B0, A1, B1, rank, alpha, useRslora = false }: PissaFactors): {
  A: tf.Tensor2D;
  B: tf.Tensor2D;
  rank: number;
  alpha: number;
} {
  return { ...plainLowRank({ A: A1, B: B1, A0, B0 }), ...doubledRank(rank, alpha, useRslora) };
}
