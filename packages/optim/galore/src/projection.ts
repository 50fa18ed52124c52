import { ensure, MatforgeError, randomizedSvd, random as seeded, thinSvd } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** Which side of a gradient is compressed; `std` takes the shorter one, `reverse_std` the longer. */
export type ProjectionType = 'std' | 'reverse_std' | 'left' | 'right' | 'full';

/** Sides of a kernel [in, out]: `left` compresses `in`, `right` compresses `out`, `full` both. */
export type Side = 'left' | 'right' | 'full';

/** An orthonormal basis of a gradient's leading subspace: P [in, r] for left and full, Q [out, r] for right and full. */
export interface Basis {
  side: Side;
  P?: tf.Tensor2D;
  Q?: tf.Tensor2D;
}

/** How the projector is decomposed. */
export interface SvdOptions {
  /** `exact` in float64 on the CPU, or `randomized` with the products on the device. Default exact. */
  svd?: 'exact' | 'randomized';
  /** Power iterations of the randomized SVD. Default 4. */
  iterations?: number;
  /** Seed of the randomized SVD. Default 0. */
  seed?: number;
}

/** The side that `projType` compresses of an [in, out] kernel; a square one counts as wide. */
export function sideOf([inDim, outDim]: readonly number[], projType: ProjectionType): Side {
  if (projType === 'std') return inDim <= outDim ? 'left' : 'right';
  if (projType === 'reverse_std') return inDim <= outDim ? 'right' : 'left';
  return projType;
}

/**
 * The leading subspace of a gradient and the gradient's coordinates in it (section 4.1, eq. 5-7, transposed to kernels
 * [in, out]): P and Q are the top-r left and right singular vectors of G.
 *
 * @param G gradient [in, out].
 * @param rank r, from 1 to min(in, out).
 * @param projType default `std`.
 * @returns side, basis, singularValues [r] and R = Pᵀ G [r, out], G Q [in, r] or Pᵀ G Q [r, r]. The caller disposes.
 * @throws MatforgeError when the rank exceeds min(in, out), the type is unknown or G is not finite.
 */
export function galoreProject(
  G: tf.Tensor2D,
  rank: number,
  projType: ProjectionType = 'std',
  { svd = 'exact', iterations = 4, seed = 0 }: SvdOptions = {},
): Basis & { R: tf.Tensor2D; singularValues: tf.Tensor1D } {
  checkRank(G.shape, rank);
  ensure(
    ['std', 'reverse_std', 'left', 'right', 'full'].includes(projType),
    'projType',
    () => `"${projType}" given; accepted are std, reverse_std, left, right, full`,
  );
  const side = sideOf(G.shape, projType);
  return tf.tidy(() => {
    const { u, s, v } =
      svd === 'randomized' ? randomizedSvd(G, rank, { iterations, random: seeded(seed) }) : thinSvd(G);
    const top = (vectors: tf.Tensor2D): tf.Tensor2D => tf.slice(vectors, [0, 0], [-1, rank]);
    const basis: Basis = {
      side,
      ...(side !== 'right' && { P: top(u) }),
      ...(side !== 'left' && { Q: top(v) }),
    };
    return { ...basis, R: project(G, basis), singularValues: tf.slice(s, [0], [rank]) };
  });
}

/** Coordinates of any matrix [in, out] in a basis: Pᵀ G, G Q or Pᵀ G Q. */
export function project(G: tf.Tensor2D, { P, Q }: Basis): tf.Tensor2D {
  return tf.tidy(() => {
    const left = P ? tf.matMul(P, G, true) : G;
    return Q ? tf.matMul(left as tf.Tensor2D, Q) : (left as tf.Tensor2D);
  });
}

/** Back to [in, out]: P R, R Qᵀ or P R Qᵀ. */
export function galoreBack(R: tf.Tensor2D, { P, Q }: Basis): tf.Tensor2D {
  return tf.tidy(() => {
    const left = P ? tf.matMul(P, R) : R;
    return Q ? tf.matMul(left as tf.Tensor2D, Q, false, true) : (left as tf.Tensor2D);
  });
}

/** The basis with each vector flipped, where needed, to the side of the old basis's vector of the same index. */
export function alignSigns(basis: Basis, old: Basis): Basis {
  const align = (now?: tf.Tensor2D, before?: tf.Tensor2D): tf.Tensor2D | undefined =>
    now && before && tf.tidy(() => tf.mul(now, flips(now, before)));
  const [P, Q] = [align(basis.P, old.P), align(basis.Q, old.Q)];
  return { side: basis.side, ...(P && { P }), ...(Q && { Q }) };
}

function flips(now: tf.Tensor2D, before: tf.Tensor2D): tf.Tensor {
  const agreement = tf.sum(tf.mul(now, before), 0, true);
  return tf.sub(tf.mul(tf.cast(tf.greaterEqual(agreement, 0), 'float32'), 2), 1);
}

/** Shape of the projected gradient. */
export function projectedShape([inDim, outDim]: readonly number[], rank: number, side: Side): [number, number] {
  return side === 'left' ? [rank, outDim] : side === 'right' ? [inDim, rank] : [rank, rank];
}

/**
 * Numbers that an optimizer keeps for matrices of these shapes: GaLore-Adam with the projector (r·lo + 2·r·hi), Adam on
 * everything (2·lo·hi), Adam on LoRA factors of the same rank (2·r·(lo + hi)), with lo = min(in, out), hi = max.
 *
 * @param shapes [in, out] of each matrix.
 * @throws MatforgeError when the rank exceeds min(in, out) of one of them.
 */
export function galoreMemory(
  shapes: readonly (readonly number[])[],
  rank: number,
): { galoreStates: number; adamStates: number; loraStates: number } {
  const total = { galoreStates: 0, adamStates: 0, loraStates: 0 };
  for (const shape of shapes) {
    checkRank(shape, rank);
    const [lo, hi] = [Math.min(shape[0], shape[1]), Math.max(shape[0], shape[1])];
    total.galoreStates += rank * lo + 2 * rank * hi;
    total.adamStates += 2 * lo * hi;
    total.loraStates += 2 * rank * (lo + hi);
  }
  return total;
}

export function checkRank([inDim, outDim]: readonly number[], rank: number, name?: string): void {
  const field = name ? `galore.rank (${name})` : 'galore.rank';
  if (!Number.isInteger(rank) || rank < 1) throw new MatforgeError(field, `must be a positive integer, got ${rank}`);
  if (rank > Math.min(inDim, outDim)) {
    throw new MatforgeError(
      field,
      `rank ${rank} exceeds min(in, out) = ${Math.min(inDim, outDim)} of [${inDim}, ${outDim}]`,
    );
  }
}
