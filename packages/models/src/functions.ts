import { gelu } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** Added to a score that must not be attended to; its softmax weight is exactly 0 in float32. */
export const MASKED = -1e9;

/** x / sqrt(mean(x²) + ε) · w over the last axis (Zhang & Sennrich 2019, eq. 4). */
export function rmsNorm(x: tf.Tensor, weight: tf.Tensor, epsilon: number): tf.Tensor {
  const meanSquare = tf.mean(tf.square(x), -1, true);
  return tf.mul(tf.mul(x, tf.rsqrt(tf.add(meanSquare, epsilon))), weight);
}

/** (x - mean) / sqrt(variance + ε) · w + b over the last axis (Ba et al. 2016). */
export function layerNorm(x: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor, epsilon: number): tf.Tensor {
  const centered = tf.sub(x, tf.mean(x, -1, true));
  const variance = tf.mean(tf.square(centered), -1, true);
  return tf.add(tf.mul(tf.mul(centered, tf.rsqrt(tf.add(variance, epsilon))), weight), bias);
}

/** The activations of Hugging Face configurations that are supported, by their names there. */
export const activations = {
  relu: (x: tf.Tensor): tf.Tensor => tf.relu(x),
  tanh: (x: tf.Tensor): tf.Tensor => tf.tanh(x),
  silu: (x: tf.Tensor): tf.Tensor => tf.mul(x, tf.sigmoid(x)),
  gelu,
  /** The tanh approximation of GELU, as GPT-2 uses it. */
  gelu_new: (x: tf.Tensor): tf.Tensor => {
    const cubic = tf.mul(x, tf.add(tf.mul(tf.square(x), 0.044715), 1));
    return tf.mul(tf.mul(x, 0.5), tf.add(tf.tanh(tf.mul(cubic, Math.sqrt(2 / Math.PI))), 1));
  },
} as const;

/** Name of an activation. */
export type ActivationName = keyof typeof activations;

/** Names of all activations. */
export const activationNames = Object.keys(activations) as [ActivationName, ...ActivationName[]];

/** How the rotary frequencies are changed for contexts longer than the trained one. */
export type RopeScaling =
  | { type: 'linear'; factor: number }
  | { type: 'llama3'; factor: number; lowFreqFactor: number; highFreqFactor: number; originalMaxPositions: number };

/** Angular frequency of each pair of a head: θ^(-2i/d) (Su et al. 2021, eq. 15), scaled where asked. */
export function rotaryFrequencies(headDim: number, theta: number, scaling?: RopeScaling | null): Float64Array {
  const frequencies = Float64Array.from({ length: headDim / 2 }, (_, i) => theta ** ((-2 * i) / headDim));
  if (!scaling) return frequencies;
  if (scaling.type === 'linear') return frequencies.map((frequency) => frequency / scaling.factor);
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPositions } = scaling;
  return frequencies.map((frequency) => {
    const turns = (originalMaxPositions * frequency) / (2 * Math.PI);
    if (turns > highFreqFactor) return frequency;
    if (turns < lowFreqFactor) return frequency / factor;
    const smooth = (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
    return (1 - smooth) * (frequency / factor) + smooth * frequency;
  });
}

/**
 * Rotary position embedding in the half-split convention of LLaMA checkpoints: entry i turns with entry i + d/2.
 *
 * @param x [batch, heads, positions, d]
 * @param offset position of the first row
 */
export function rotate(x: tf.Tensor4D, frequencies: Float64Array, offset: number): tf.Tensor4D {
  const [batch, heads, positions, size] = x.shape;
  const half = size / 2;
  const cosine = new Float32Array(positions * half);
  const sine = new Float32Array(positions * half);
  for (let t = 0; t < positions; t++) {
    for (let i = 0; i < half; i++) {
      const angle = (t + offset) * frequencies[i];
      cosine[t * half + i] = Math.cos(angle);
      sine[t * half + i] = Math.sin(angle);
    }
  }
  const cos = tf.tensor4d(cosine, [1, 1, positions, half]);
  const sin = tf.tensor4d(sine, [1, 1, positions, half]);
  const first = tf.slice(x, [0, 0, 0, 0], [batch, heads, positions, half]);
  const second = tf.slice(x, [0, 0, 0, half], [batch, heads, positions, half]);
  return tf.concat(
    [tf.sub(tf.mul(first, cos), tf.mul(second, sin)), tf.add(tf.mul(second, cos), tf.mul(first, sin))],
    3,
  ) as tf.Tensor4D;
}

/** [queries, keys] scores to add: 0 where query i may see key j, i.e. i - window < j ≤ i counted from the last key. */
export function causalMask(queries: number, keys: number, window?: number | null): tf.Tensor2D {
  const mask = new Float32Array(queries * keys);
  for (let i = 0; i < queries; i++) {
    const position = keys - queries + i;
    mask.fill(MASKED, i * keys + position + 1, (i + 1) * keys);
    if (window) mask.fill(MASKED, i * keys, i * keys + Math.max(0, position - window + 1));
  }
  return tf.tensor2d(mask, [queries, keys]);
}
