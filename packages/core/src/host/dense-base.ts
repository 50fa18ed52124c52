import * as tf from '@tensorflow/tfjs';
import type { Base } from '../contracts/linear-method.ts';
import { linear } from '../ops/index.ts';

/** The map x·kernel + bias. */
export function denseBase(kernel: tf.Tensor2D, bias: tf.Tensor1D | null): Base {
  return {
    kernel,
    bias,
    linear: (x) => linear(x, kernel),
    apply: (x) => linear(x, kernel, bias),
    lookup: (indices) => tf.gather(kernel, indices),
  };
}
