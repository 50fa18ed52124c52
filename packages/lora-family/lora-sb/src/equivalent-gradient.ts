import { linalg, linear, type Matrix, toMatrix, toTensor } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

const { inverse, matmul, scale: times } = linalg;

/** What {@link equivalentGradient} returns. */
export interface EquivalentGradient {
  /** dLoss/dR = s·Aᵀ·G·Bᵀ, `[r, r]`. */
  gradR: tf.Tensor2D;
  /** What a step along it does to the kernel: s·A·gradR·B, `[in, out]`. */
  equivalent: tf.Tensor2D;
  /** The step on R whose effect is nearest to G, (1/s²)·(AᵀA)⁻¹·gradR·(B·Bᵀ)⁻¹. */
  optimalGradR: tf.Tensor2D;
  /** s·A·optimalGradR·B = P_A·G·P_B, `[in, out]`. */
  optimalEquivalent: tf.Tensor2D;
}

/**
 * The gradient of the core R for a gradient G of the whole kernel, and the best one for the same A and B (theorem 3), in
 * float64. With orthonormal A, B and s = 1 they are equal.
 *
 * @param A `[in, r]`
 * @param B `[r, out]`
 * @param G dLoss/dKernel, `[in, out]`.
 * @throws MatforgeError when the columns of A or the rows of B are linearly dependent.
 */
export function equivalentGradient(
  A: tf.Tensor2D,
  B: tf.Tensor2D,
  G: tf.Tensor2D,
  { scale = 1 } = {},
): EquivalentGradient {
  const [a, b] = [toMatrix(A, 'A'), toMatrix(B, 'B')];
  const gradR = times(matmul(matmul(a, toMatrix(G, 'G'), { transposeA: true }), b, { transposeB: true }), scale);
  const effect = (step: Matrix) => times(matmul(matmul(a, step), b), scale);
  const optimal = times(matmul(matmul(inverse(gramOf(a)), gradR), inverse(gramOfRows(b))), 1 / scale ** 2);
  return {
    gradR: toTensor(gradR),
    equivalent: toTensor(effect(gradR)),
    optimalGradR: toTensor(optimal),
    optimalEquivalent: toTensor(effect(optimal)),
  };
}

/** R, with the gradient g replaced by (1/s²)·(AᵀA)⁻¹·g·(B·Bᵀ)⁻¹. */
export function optimalCore(R: tf.Tensor, A: tf.Tensor, B: tf.Tensor, scale: number): tf.Tensor {
  return tf.customGrad((core) => ({
    value: tf.clone(core as tf.Tensor),
    gradFunc: (g: tf.Tensor) => {
      const [left, right] = [inverseGram(A, gramOf), inverseGram(B, gramOfRows)].map(toTensor);
      return tf.div(linear(tf.matMul(left, g), right), scale ** 2);
    },
  }))(R);
}

// A and B are frozen: their inverse Gram matrices are computed once for as long as the tensors live.
const inverses = new WeakMap<tf.Tensor, Matrix>();

function inverseGram(factor: tf.Tensor, gram: (factor: Matrix) => Matrix): Matrix {
  const known = inverses.get(factor);
  if (known) return known;
  const result = inverse(gram(toMatrix(factor)));
  inverses.set(factor, result);
  return result;
}

function gramOf(a: Matrix): Matrix {
  return matmul(a, a, { transposeA: true });
}

function gramOfRows(b: Matrix): Matrix {
  return matmul(b, b, { transposeB: true });
}
