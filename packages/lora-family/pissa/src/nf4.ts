import { ensure } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** The 16 levels of 4-bit NormalFloat (Dettmers et al. 2023): quantiles of the normal distribution, scaled to [-1, 1]. */
const LEVELS = [
  -1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0, 0.0795803, 0.1609302, 0.2461123,
  0.3379152, 0.4407098, 0.562617, 0.7229568, 1,
];
const MIDPOINTS = LEVELS.slice(1).map((level, i) => (level + LEVELS[i]) / 2);

/** A tensor in 4-bit NormalFloat. */
export interface Nf4 {
  /** One code in 0 … 15 per entry, row-major. */
  readonly codes: Uint8Array;
  /** Largest magnitude of each block. */
  readonly scales: Float32Array;
  readonly shape: number[];
  readonly blockSize: number;
}

/**
 * Quantises block by block: each run of `blockSize` entries (row-major) is divided by its largest magnitude and rounded
 * to the nearest level. A block of zeros has scale 0.
 *
 * @throws MatforgeError when `blockSize` does not divide the number of entries.
 */
export function nf4Quantise(W: tf.Tensor, blockSize = 64): Nf4 {
  ensure(
    blockSize >= 1 && W.size % blockSize === 0,
    'blockSize',
    () => `${blockSize} does not divide the ${W.size} entries of [${W.shape}]; choose a divisor`,
  );
  const values = W.dataSync();
  const codes = new Uint8Array(W.size);
  const scales = new Float32Array(W.size / blockSize);
  for (let block = 0; block < scales.length; block++) {
    const start = block * blockSize;
    let largest = 0;
    for (let i = start; i < start + blockSize; i++) largest = Math.max(largest, Math.abs(values[i]));
    scales[block] = largest;
    for (let i = start; i < start + blockSize; i++) codes[i] = nearest(largest === 0 ? 0 : values[i] / largest);
  }
  return { codes, scales, shape: W.shape, blockSize };
}

/** The tensor that the codes stand for. */
export function nf4Dequantise({ codes, scales, shape, blockSize }: Nf4): tf.Tensor {
  const values = Float32Array.from(codes, (code, i) => LEVELS[code] * scales[Math.floor(i / blockSize)]);
  return tf.tensor(values, shape);
}

function nearest(value: number): number {
  let code = 0;
  while (code < MIDPOINTS.length && value > MIDPOINTS[code]) code++;
  return code;
}
