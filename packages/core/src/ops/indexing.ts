import * as tf from '@tensorflow/tfjs';
import { stopGradient } from './define-op.ts';
import { repairGradients } from './gradients.ts';

/**
 * The k largest entries along the last axis. The gradient goes to the chosen entries alone.
 *
 * @param x `[..., n]`
 * @param k at most n
 * @param sorted largest first
 * @returns `values` (float32, differentiable) and `indices` (int32), both `[..., k]`
 */
export function topk(x: tf.Tensor, k = 1, sorted = true): { values: tf.Tensor; indices: tf.Tensor } {
  repairGradients();
  return tf.topk(x, k, sorted);
}

/** Running product along an axis; the gradient is exact with zeros among the factors. Options as in `tf.cumprod`. */
export function cumprod(x: tf.Tensor, axis = 0, exclusive = false, reverse = false): tf.Tensor {
  repairGradients();
  return tf.cumprod(x, axis < 0 ? axis + x.rank : axis, exclusive, reverse);
}

/** Entries (or slices) of `x` at the index tuples in the last axis of `indices` (int32). */
export function gatherNd(x: tf.Tensor, indices: tf.Tensor): tf.Tensor {
  repairGradients();
  return tf.gatherND(x, indices);
}

/** Zeros of the given shape with `updates` added at the index tuples; updates of one place add up. */
export function scatterNd(indices: tf.Tensor, updates: tf.Tensor, shape: number[]): tf.Tensor {
  repairGradients();
  return tf.scatterND(indices as tf.Tensor2D, updates, shape);
}

/** `tf.stridedSlice` with a gradient; begin, end, strides and masks as there. */
export function stridedSlice(
  x: tf.Tensor,
  begin: number[],
  end: number[],
  strides?: number[],
  beginMask = 0,
  endMask = 0,
  ellipsisMask = 0,
  newAxisMask = 0,
  shrinkAxisMask = 0,
): tf.Tensor {
  repairGradients();
  return tf.stridedSlice(x, begin, end, strides, beginMask, endMask, ellipsisMask, newAxisMask, shrinkAxisMask);
}

/** Moves blocks of depth into space: `[b, h, w, s²c]` to `[b, sh, sw, c]`. */
export function depthToSpace(x: tf.Tensor4D, blockSize: number, dataFormat: 'NHWC' | 'NCHW' = 'NHWC'): tf.Tensor4D {
  repairGradients();
  return tf.depthToSpace(x, blockSize, dataFormat);
}

/** `a` where the condition holds, `b` elsewhere (all three broadcast). The condition may depend on a variable. */
export function where(condition: tf.Tensor, a: tf.Tensor, b: tf.Tensor): tf.Tensor {
  repairGradients();
  return tf.tidy(() => tf.where(stopGradient(condition), a, b));
}
