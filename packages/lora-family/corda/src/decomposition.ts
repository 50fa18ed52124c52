import { ensure, linalg, lowRankProduct, type Matrix, refuse, toMatrix, toTensor } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

const { add, columns, frobeniusNorm, identity, inverse, matmul, maxNorm, scaleColumns, scaleRows, svd, transpose } =
  linalg;

/** Largest ‖F·F⁻¹ − I‖ that counts as an inverse. */
const INVERSE_TOLERANCE = 0.05;

interface Damped {
  readonly F: Matrix;
  readonly inverseF: Matrix;
  readonly dampUsed: number;
}

/** F = C + damp·mean(diag C)·I and its inverse; damp doubles until ‖F·F⁻¹ − I‖ < 0.05. */
function dampedCovariance(covariance: tf.Tensor2D, size: number, damp: number, name: string): Damped {
  ensure(
    covariance.rank === 2 && covariance.shape[0] === size && covariance.shape[1] === size,
    `${name}.covariance`,
    () => `must be [${size}, ${size}] for a kernel of ${size} rows, got [${covariance.shape}]`,
  );
  ensure(damp > 0, 'damp', () => `must be a finite number > 0, got ${damp}`);
  const C = toMatrix(covariance);
  ensure(C.data.every(Number.isFinite), `${name}.covariance`, () => 'has values that are not finite');
  const asymmetry = maxNorm(add(C, transpose(C), -1));
  ensure(
    asymmetry <= 1e-4 * maxNorm(C),
    `${name}.covariance`,
    () => `must be symmetric, but entries across the diagonal differ by up to ${asymmetry}`,
  );
  const I = identity(size);
  const meanDiagonal = C.data.reduce((sum, value, i) => (i % (size + 1) === 0 ? sum + value : sum), 0) / size;
  ensure(meanDiagonal > 0, `${name}.covariance`, () => 'has no positive diagonal: activations are all zero');
  for (let dampUsed = damp; Number.isFinite(dampUsed); dampUsed *= 2) {
    const F = add(C, I, dampUsed * meanDiagonal);
    const inverseF = tryInverse(F);
    if (inverseF && frobeniusNorm(add(matmul(F, inverseF), I, -1)) < INVERSE_TOLERANCE)
      return { F, inverseF, dampUsed };
  }
  return refuse(`${name}.covariance`, 'cannot be inverted, however strongly it is damped');
}

function tryInverse(F: Matrix): Matrix | undefined {
  try {
    return inverse(F);
  } catch {
    return undefined;
  }
}

interface Oriented extends Damped {
  /** F⁻¹·U. */
  readonly P: Matrix;
  readonly S: Float64Array;
  readonly V: Matrix;
}

/** F·W = U·diag(S)·Vᵀ and P = F⁻¹·U, so that W = P·diag(S)·Vᵀ. */
function orient(W: tf.Tensor2D, covariance: tf.Tensor2D, damp: number, name: string): Oriented {
  const damped = dampedCovariance(covariance, W.shape[0], damp, name);
  const { u, s, v } = svd(matmul(damped.F, toMatrix(W)));
  return { ...damped, P: matmul(damped.inverseF, u), S: s, V: v };
}

/** What {@link cordaDecompose} returns. */
export interface CordaDecomposition {
  /** F⁻¹·U, `[in, k]`, k = min(in, out). */
  P: tf.Tensor2D;
  /** Singular values of F·W, falling, `[k]`. */
  S: tf.Tensor1D;
  /** `[out, k]` */
  V: tf.Tensor2D;
  /** The damping with which F could be inverted. */
  dampUsed: number;
}

/**
 * Context-oriented decomposition W = P·diag(S)·Vᵀ (eq. 2, 3), in float64.
 *
 * @param W kernel `[in, out]`.
 * @param C covariance of the layer's inputs, `[in, in]`.
 * @param options `damp`: F = C + damp·mean(diag C)·I. Default 0.01.
 * @throws MatforgeError for a covariance of another size, not symmetric, not finite or all zero.
 */
export function cordaDecompose(W: tf.Tensor2D, C: tf.Tensor2D, { damp = 0.01 } = {}): CordaDecomposition {
  const { P, S, V, dampUsed } = orient(W, C, damp, 'kernel');
  return { P: toTensor(P), S: tf.tensor1d(Float32Array.from(S)), V: toTensor(V), dampUsed };
}

/** Which components train: the first r (instruction-previewed) or the last r (knowledge-preserved). */
export type CordaMode = 'ipm' | 'kpm';

/** Options of {@link cordaInit}. */
export interface CordaInitOptions {
  rank: number;
  /** Default `'ipm'`. */
  mode?: CordaMode;
  /** Default 0.01. */
  damp?: number;
  /** s, by which A·B is multiplied in use. Default 1. */
  scale?: number;
  /** The layer, for errors. Default `'kernel'`. */
  name?: string;
}

/** What {@link cordaInit} returns. */
export interface CordaInit {
  /** `[in, r]` */
  A: tf.Tensor2D;
  /** `[r, out]`; B·Bᵀ = diag(S_J)/s. */
  B: tf.Tensor2D;
  /** W − s·A·B, `[in, out]` */
  residual: tf.Tensor2D;
  /** All k singular values of F·W, falling. */
  S: tf.Tensor1D;
  dampUsed: number;
}

/**
 * Splits a kernel `[in, out]` into s·A·B, the components that train, and the residual: A = P_J·√(S_J/s),
 * B = √(S_J/s)·V_Jᵀ.
 *
 * @throws MatforgeError for a rank outside 1 … min(in, out), an unknown mode, or as {@link cordaDecompose}.
 */
export function cordaInit(
  W: tf.Tensor2D,
  C: tf.Tensor2D,
  { rank, mode = 'ipm', damp = 0.01, scale: s = 1, name = 'kernel' }: CordaInitOptions,
): CordaInit {
  const k = Math.min(...W.shape);
  ensure(
    Number.isInteger(rank) && rank >= 1 && rank <= k,
    `${name}.rank`,
    () => `must be a whole number from 1 to min(in, out) = ${k}, got ${rank}`,
  );
  ensure(mode === 'ipm' || mode === 'kpm', `${name}.mode`, () => `must be "ipm" or "kpm", got "${mode}"`);
  const { P, S, V, dampUsed } = orient(W, C, damp, name);
  const first = mode === 'ipm' ? 0 : k - rank;
  const root = S.slice(first, first + rank).map((value) => Math.sqrt(value / s));
  const A = toTensor(scaleColumns(columns(P, first, first + rank), root));
  const B = toTensor(scaleRows(transpose(columns(V, first, first + rank)), root));
  // From the rounded factors, so that the parts add up to W in float32.
  const residual = tf.tidy(() => tf.sub(W, lowRankProduct(A, B, s)) as tf.Tensor2D);
  return { A, B, residual, S: tf.tensor1d(Float32Array.from(S)), dampUsed };
}

/**
 * The kernel without the `drop` components that act least on the data: among all matrices of rank k − drop the nearest to
 * W in ‖F·(W − ·)‖.
 *
 * @throws MatforgeError for a `drop` outside 0 … k, or as {@link cordaDecompose}.
 */
export function cordaTruncate(
  W: tf.Tensor2D,
  C: tf.Tensor2D,
  { drop, damp = 0.01 }: { drop: number; damp?: number },
): tf.Tensor2D {
  const k = Math.min(...W.shape);
  ensure(
    Number.isInteger(drop) && drop >= 0 && drop <= k,
    'drop',
    () => `must be a whole number from 0 to min(in, out) = ${k}, got ${drop}`,
  );
  const { P, S, V } = orient(W, C, damp, 'kernel');
  const kept = k - drop;
  return toTensor(
    matmul(scaleColumns(columns(P, 0, kept), S.slice(0, kept)), columns(V, 0, kept), { transposeB: true }),
  );
}

/**
 * ‖F·(W − approximation)‖: how far an approximation of a kernel is off on the data behind C.
 *
 * @throws MatforgeError for an approximation of another shape, or as {@link cordaDecompose}.
 */
export function contextError(W: tf.Tensor2D, approximation: tf.Tensor2D, C: tf.Tensor2D, { damp = 0.01 } = {}): number {
  ensure(
    String(W.shape) === String(approximation.shape),
    'approximation',
    () => `must be [${W.shape}] as the kernel, got [${approximation.shape}]`,
  );
  const { F } = dampedCovariance(C, W.shape[0], damp, 'kernel');
  return frobeniusNorm(matmul(F, add(toMatrix(W), toMatrix(approximation), -1)));
}
