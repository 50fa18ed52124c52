import * as tf from '@tensorflow/tfjs';
import { defineOp } from './define-op.ts';

/** GELU with the exact Gaussian distribution function, x·Φ(x) (Hendrycks & Gimpel 2016), not its tanh approximation. */
export function gelu(x: tf.Tensor): tf.Tensor {
  return geluOp({ x }, {})[0];
}

const normalDistribution = (x: tf.Tensor): tf.Tensor => tf.mul(tf.add(tf.erf(tf.mul(x, Math.SQRT1_2)), 1), 0.5);

const geluOp = defineOp<Record<string, never>>({
  name: 'MatforgeGelu',
  saveInputs: ['x'],
  forward: ({ x }) => [tf.mul(x, normalDistribution(x))],
  // Φ(x) + x·φ(x)
  pullback: ([dy], [x]) => ({
    x: () => {
      const density = tf.mul(tf.exp(tf.mul(tf.square(x), -0.5)), 1 / Math.sqrt(2 * Math.PI));
      return tf.mul(dy, tf.add(normalDistribution(x), tf.mul(x, density)));
    },
  }),
});
