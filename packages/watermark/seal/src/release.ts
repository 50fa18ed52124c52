import { ensure, linalg, type Matrix, refuse, toMatrix, toTensor } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { checkPassports } from './passport.ts';

/** A plain low-rank adapter of one layer: the kernel changes by scale·A·B. */
export interface ReleasedAdapter {
  /** `[in, r]` */
  readonly A: tf.Tensor2D;
  /** `[r, out]` */
  readonly B: tf.Tensor2D;
  readonly scale: number;
}

/** A marked adapter of one layer: the kernel changes by scale·A·C·B. */
export interface MarkedAdapter extends ReleasedAdapter {
  /** `[r, r]` */
  readonly C: tf.Tensor2D;
}

/**
 * Absorbs the passport into the factors: with C = U·S·Vᵀ, A' = A·U·√S and B' = √S·Vᵀ·B, so A'·B' = A·C·B and nothing of
 * a third matrix is left.
 *
 * @throws MatforgeError for a passport of another size than the rank, or one that is not invertible.
 */
export function release({ A, B, C, scale }: MarkedAdapter): ReleasedAdapter {
  const rank = A.shape[1];
  ensure(B.shape[0] === rank, 'B', () => `has ${B.shape[0]} rows, A has ${rank} columns; both must be the rank`);
  checkPassports('release', rank, C);
  const { u, s, v } = linalg.svd(toMatrix(C));
  const root = s.map(Math.sqrt);
  return {
    A: toTensor(linalg.matmul(toMatrix(A), linalg.scaleColumns(u, root))),
    B: toTensor(linalg.matmul(linalg.scaleColumns(v, root), toMatrix(B), { transposeA: true })),
    scale,
  };
}

/**
 * The forger's factors A' and F⁻¹·B' with the passport F: the published product, and an extraction without a wrong bit.
 * What a forger cannot make is a second passport that works as well.
 *
 * @param released the published factors.
 * @param F any invertible `[r, r]`.
 */
export function forgedFactors({ A, B, scale }: ReleasedAdapter, F: tf.Tensor2D): MarkedAdapter {
  checkPassports('forge', A.shape[1], F);
  return { A: tf.clone(A), B: toTensor(linalg.solve(toMatrix(F), toMatrix(B))), C: tf.clone(F), scale };
}

/**
 * Extracts the passport from a kernel change with the owner's factors of training: X = A⁺·(delta/s)·B⁺, in float64. Of a
 * clean release X is C; of an attacked one, C and noise that grows with the factors' {@link factorConditions}.
 *
 * @param factors the owner's A, B and scale, not the released ones.
 * @param delta the suspect's whole product `[in, out]`: its own scale·A·B, or merged kernel minus base.
 * @returns X `[r, r]`.
 * @throws MatforgeError for a delta of another shape, values that are not finite, or factors without full rank.
 */
export function extract(factors: ReleasedAdapter, delta: tf.Tensor2D): tf.Tensor2D {
  return toTensor(extraction(factors, delta).X);
}

/** {@link extract} in float64, with the larger condition number of the two factors. */
export function extraction(
  { A, B, scale }: ReleasedAdapter,
  delta: tf.Tensor2D,
  name = '',
): { X: Matrix; condition: number } {
  const prefix = name && `${name}.`;
  ensure(
    String(delta.shape) === String([A.shape[0], B.shape[1]]),
    `${prefix}delta`,
    () => `has shape [${delta.shape}], the factors make [${A.shape[0]}, ${B.shape[1]}]`,
  );
  const D = toMatrix(delta);
  ensure(D.data.every(Number.isFinite), `${prefix}delta`, () => 'has values that are not finite');
  const [left, right] = [pseudoInverse(A, 'A', prefix), pseudoInverse(B, 'B', prefix)];
  return {
    X: linalg.scale(linalg.matmul(linalg.matmul(left.inverse, D), right.inverse), 1 / scale),
    condition: Math.max(left.condition, right.condition),
  };
}

/** Condition numbers of the owner's factors: by their product, noise in a suspect can be larger in what is extracted. */
export function factorConditions({ A, B }: Pick<ReleasedAdapter, 'A' | 'B'>): { A: number; B: number } {
  return { A: linalg.conditionNumber(toMatrix(A)), B: linalg.conditionNumber(toMatrix(B)) };
}

function pseudoInverse(factor: tf.Tensor2D, field: string, prefix: string): { inverse: Matrix; condition: number } {
  const F = toMatrix(factor);
  ensure(F.data.every(Number.isFinite), `${prefix}${field}`, () => 'has values that are not finite');
  const rank = field === 'A' ? F.cols : F.rows;
  const { u, s, v } = linalg.svd(F);
  // What rounding to float32 leaves of a singular value that is zero.
  const numerical = s.filter((value) => value > 4 * 2 ** -23 * Math.sqrt(rank) * s[0]).length;
  if (numerical < rank)
    refuse(`${prefix}${field}`, `${field} has numerical rank ${numerical} < ${rank}; train the watermark for longer`);
  const inverse = linalg.matmul(
    linalg.scaleColumns(
      v,
      s.map((value) => 1 / value),
    ),
    u,
    { transposeB: true },
  );
  return { inverse, condition: s[0] / s[s.length - 1] };
}
