import { ensure, random as openRandom, type Random, randomizedSvd, thinSvd } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** What {@link firstUpdateSize} needs. */
export interface UpdateSize {
  eta?: number;
  learningRate: number;
  warmupRatio: number;
  totalSteps?: number;
}

/**
 * η: as given, or the learning rate at the first of warmupRatio·totalSteps warm-up steps; without a warm-up the learning
 * rate itself.
 */
export function firstUpdateSize({ eta, learningRate, warmupRatio, totalSteps = 0 }: UpdateSize): number {
  return eta ?? learningRate / Math.max(1, warmupRatio * totalSteps);
}

/** Options of {@link loraSbInit}. */
export interface LoraSbInitOptions {
  rank: number;
  /** Size of the first step. */
  eta: number;
  /** s, by which A·R·B is multiplied in use. Default 1. */
  scale?: number;
  /** Power iterations of a randomized SVD; null for the exact one. Default null. */
  iterations?: number | null;
  random?: Random;
  /** The layer, for errors. Default `'gradients'`. */
  name?: string;
}

/** What {@link loraSbInit} returns. */
export interface LoraSbInit {
  /** `[in, r]`, AᵀA = I. */
  A: tf.Tensor2D;
  /** `[r, r]`, diagonal: S/s. */
  R: tf.Tensor2D;
  /** `[r, out]`, B·Bᵀ = I. */
  B: tf.Tensor2D;
  /** D = −η·sign(G), `[in, out]`. */
  update: tf.Tensor2D;
  /** Singular values of D: all of them, or the leading r from the randomized SVD. */
  singularValues: tf.Tensor1D;
}

/**
 * Start of LoRA-SB from the sum of gradients of the kernel, G `[in, out]`: D = −η·sign(G), the first step of an optimizer
 * like Adam, and its best approximation s·A·R·B of rank r (section 3.3).
 *
 * @throws MatforgeError when G is all zero or not finite, or the rank, η or s is out of range.
 */
export function loraSbInit(
  G: tf.Tensor2D,
  { rank, eta, scale = 1, iterations = null, random = openRandom(0), name = 'gradients' }: LoraSbInitOptions,
): LoraSbInit {
  for (const [option, value] of Object.entries({ eta, scale }))
    ensure(value > 0 && Number.isFinite(value), option, () => `must be a finite number > 0, got ${value}`);
  ensureRank(rank, G, name);
  const [finite, empty] = tf.tidy(() => [
    tf.all(tf.isFinite(G)).dataSync()[0],
    !tf.any(tf.cast(G, 'bool')).dataSync()[0],
  ]);
  ensure(finite, name, () => 'the gradient estimate is non-finite; look for NaN or infinity in loss and data');
  ensure(!empty, name, () => 'the gradient estimate is empty (all zero): the loss does not depend on this layer');
  return tf.tidy(() => {
    const update = tf.mul(tf.sign(G), -eta) as tf.Tensor2D;
    const { u, s, v } = leading(update, rank, iterations, random);
    return {
      A: tf.slice(u, [0, 0], [-1, rank]),
      R: tf.diag(tf.div(tf.slice(s, 0, rank), scale)) as tf.Tensor2D,
      B: tf.transpose(tf.slice(v, [0, 0], [-1, rank])) as tf.Tensor2D,
      update,
      singularValues: s,
    };
  });
}

/**
 * Start of LoRA-XS from a kernel W `[in, out]`: A = U_r·diag(S_r), B = V_rᵀ, R ~ N(0, (1e-5)²).
 *
 * @throws MatforgeError for a rank outside 1 … min(in, out).
 */
export function loraXsInit(
  W: tf.Tensor2D,
  { rank, iterations = null, random = openRandom(0) }: Pick<LoraSbInitOptions, 'rank' | 'iterations' | 'random'>,
): { A: tf.Tensor2D; R: tf.Tensor2D; B: tf.Tensor2D } {
  ensureRank(rank, W, 'kernel');
  return tf.tidy(() => {
    const { u, s, v } = leading(W, rank, iterations, random);
    return {
      A: tf.mul(tf.slice(u, [0, 0], [-1, rank]), tf.slice(s, 0, rank)) as tf.Tensor2D,
      R: random.fork('R').normal([rank, rank], 0, 1e-5) as tf.Tensor2D,
      B: tf.transpose(tf.slice(v, [0, 0], [-1, rank])) as tf.Tensor2D,
    };
  });
}

function leading(matrix: tf.Tensor2D, rank: number, iterations: number | null, random: Random) {
  return iterations === null ? thinSvd(matrix) : randomizedSvd(matrix, rank, { iterations, random });
}

function ensureRank(rank: number, { shape }: tf.Tensor2D, name: string): void {
  const limit = Math.min(...shape);
  ensure(
    Number.isInteger(rank) && rank >= 1 && rank <= limit,
    `${name}.rank`,
    () => `must be a whole number from 1 to min(in, out) = ${limit}, got ${rank}`,
  );
}
