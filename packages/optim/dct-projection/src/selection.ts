import { ensure, MatforgeError, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { checkBasis, type DctBasis, dctMatrix, fastDct, type Side } from './transform.ts';

/** Options of {@link selectColumns}. */
export interface SelectionOptions {
  /** Default dct3. */
  basis?: DctBasis;
  /** Score of a column of Q: 1 for the sum of magnitudes of its coefficients, 2 for their Euclidean norm. Default 1. */
  norm?: 1 | 2;
  /** How the coefficients are computed: a matrix product, or the fast transform (dct2 only). Default matmul. */
  similarity?: 'matmul' | 'fast';
  /** Q of the right size and basis, where it exists already. */
  Q?: tf.Tensor2D;
}

/** What {@link selectColumns} finds. */
export interface Selection {
  side: Side;
  /** The chosen columns of Q, rising [r]. */
  indices: Int32Array;
  /** Coefficients of A in the chosen columns: [r, out] for left, [in, r] for right. */
  lowRank: tf.Tensor2D;
  /** Score of every column of Q [min(in, out)]. */
  norms: tf.Tensor1D;
}

/** The cosine transform acts on the shorter axis of an [in, out] kernel; a square one counts as wide. */
export function sideOf([inDim, outDim]: readonly number[]): Side {
  return inDim <= outDim ? 'left' : 'right';
}

/**
 * Chooses the r columns of Q that hold most of A (section 3): with S = Qᵀ·A (left) or A·Q (right), the columns of the r
 * largest scores. The coefficients are a part of S, so no second product is needed; with `norm: 2` no other choice of
 * columns leaves a smaller residual.
 *
 * @param A matrix [in, out].
 * @param rank r, from 1 to min(in, out).
 * @throws MatforgeError for a rank out of range, an unknown basis or norm, the fast path with dct3, and A not finite.
 */
export function selectColumns(A: tf.Tensor2D, rank: number, options: SelectionOptions = {}): Selection {
  const { basis = 'dct3', norm = 1, similarity = 'matmul' } = options;
  checkRank(A.shape, rank);
  checkBasis(basis);
  ensure(norm === 1 || norm === 2, 'norm', () => `${norm} given; accepted are 1 and 2`);
  if (similarity === 'fast' && basis !== 'dct2') refuse('similarity', 'fast path needs basis dct2');
  const side = sideOf(A.shape);
  const [lowRank, norms] = tf.tidy(() => {
    const S = coefficients(A, side, basis, similarity, options.Q);
    const along = side === 'left' ? 1 : 0;
    const scores = norm === 1 ? tf.sum(tf.abs(S), along) : tf.sqrt(tf.sum(tf.square(S), along));
    return [S, scores as tf.Tensor1D];
  });
  try {
    const indices = largest(norms.dataSync(), rank);
    const chosen = tf.tidy(() => tf.gather(lowRank, tf.tensor1d(indices, 'int32'), side === 'left' ? 0 : 1));
    return { side, indices, lowRank: chosen, norms };
  } catch (cause) {
    norms.dispose();
    throw cause;
  } finally {
    lowRank.dispose();
  }
}

/** Coefficients of A in chosen columns of Q: Pᵀ·A (left) or A·P (right), P = Q[:, indices]. */
export function project(A: tf.Tensor2D, indices: Int32Array, Q: tf.Tensor2D): tf.Tensor2D {
  return tf.tidy(() => {
    const P = columnsOf(Q, indices);
    return sideOf(A.shape) === 'left' ? tf.matMul(P, A, true) : tf.matMul(A, P);
  });
}

/**
 * Back to [in, out]: P·a (left) or a·Pᵀ (right).
 *
 * @param lowRank a: [r, out] or [in, r].
 * @param indices the columns of Q.
 * @param options the side, and Q itself or its size with its basis (default dct3).
 */
export function reconstruct(
  lowRank: tf.Tensor2D,
  indices: Int32Array,
  options: { side: Side } & ({ Q: tf.Tensor2D } | { size: number; basis?: DctBasis }),
): tf.Tensor2D {
  return tf.tidy(() => {
    const P = columnsOf('Q' in options ? options.Q : dctMatrix(options.size, options.basis), indices);
    return options.side === 'left' ? tf.matMul(P, lowRank) : tf.matMul(lowRank, P, false, true);
  });
}

/**
 * Carries a state from one choice of columns to the next by R = Q[:, before]ᵀ·Q[:, now]. The columns of Q are orthogonal,
 * so R is 1 where an index stays and 0 elsewhere: it is built from the indices, since a product in float32 would leak old
 * state into fresh columns.
 *
 * @returns the state [r, out] or [in, r] with kept columns in their new places and zeros in fresh ones.
 */
export function rotate(state: tf.Tensor2D, before: Int32Array, now: Int32Array, side: Side): tf.Tensor2D {
  return tf.tidy(() => {
    const axis = side === 'left' ? 0 : 1;
    const fresh = tf.zeros(side === 'left' ? [1, state.shape[1]] : [state.shape[0], 1]);
    const places = now.map((index) => {
      const at = before.indexOf(index);
      return at < 0 ? before.length : at;
    });
    return tf.gather(tf.concat([state, fresh], axis), tf.tensor1d(places, 'int32'), axis) as tf.Tensor2D;
  });
}

function coefficients(
  A: tf.Tensor2D,
  side: Side,
  basis: DctBasis,
  similarity: 'matmul' | 'fast',
  given?: tf.Tensor2D,
): tf.Tensor2D {
  // With dct2, Q = Q_dct3ᵀ: A·Q is the fast transform of the rows, Qᵀ·A that of the columns.
  if (similarity === 'fast') return side === 'right' ? fastDct(A) : tf.transpose(fastDct(tf.transpose(A)));
  const Q = given ?? dctMatrix(Math.min(...A.shape), basis);
  return side === 'left' ? tf.matMul(Q, A, true) : tf.matMul(A, Q);
}

function columnsOf(Q: tf.Tensor2D, indices: Int32Array): tf.Tensor2D {
  return tf.gather(Q, tf.tensor1d(indices, 'int32'), 1);
}

/** Indices of the r largest scores, rising; of equal scores the first. */
function largest(scores: ArrayLike<number>, rank: number): Int32Array {
  const order = Array.from(scores, (score, index) => ({ score, index }));
  if (!order.every(({ score }) => Number.isFinite(score))) refuse('A', 'has entries that are not finite');
  order.sort((a, b) => b.score - a.score || a.index - b.index);
  return Int32Array.from(order.slice(0, rank), ({ index }) => index).sort();
}

export function checkRank([inDim, outDim]: readonly number[], rank: number, name?: string): void {
  if (Number.isInteger(rank) && rank >= 1 && rank <= Math.min(inDim, outDim)) return;
  throw new MatforgeError(
    name ? `dct-projection.rank (${name})` : 'rank',
    `${rank} given; accepted is an integer from 1 to min(in, out) = ${Math.min(inDim, outDim)}`,
  );
}
