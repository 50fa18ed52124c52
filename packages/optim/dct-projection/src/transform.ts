import { ensure, rfft } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** `dct3`: rows are cosines (the official default); `dct2`: its transpose, which has a fast transform. */
export type DctBasis = 'dct3' | 'dct2';

/** Which axis of a kernel [in, out] the transform acts on: `left` on `in`, `right` on `out`. */
export type Side = 'left' | 'right';

/**
 * The orthogonal cosine matrix Q [n, n]: Q[i, j] = sqrt(2/n)·cos(π·i·(2j+1)/(2n)), row 0 times sqrt(1/2), for `dct3`;
 * its transpose for `dct2`.
 *
 * @throws MatforgeError for a size that is no positive integer or an unknown basis.
 */
export function dctMatrix(n: number, basis: DctBasis = 'dct3'): tf.Tensor2D {
  ensure(Number.isInteger(n) && n >= 1, 'n', () => `${n} given; accepted is an integer >= 1`);
  checkBasis(basis);
  const { cos, PI, sqrt } = Math;
  const values = new Float32Array(n * n);
  // The angles are multiples of π/(2n): one table of a full turn serves all.
  const table = Float64Array.from({ length: 4 * n }, (_, k) => cos((PI * k) / (2 * n)));
  for (let i = 0; i < n; i++) {
    const scale = i === 0 ? sqrt(1 / n) : sqrt(2 / n);
    for (let j = 0; j < n; j++) {
      const at = basis === 'dct3' ? i * n + j : j * n + i;
      values[at] = scale * table[(i * (2 * j + 1)) % (4 * n)];
    }
  }
  return tf.tensor2d(values, [n, n]);
}

/**
 * X·Q_dct3ᵀ, the orthonormal DCT-II of each row, by one real Fourier transform of the rows in the order 0, 2, 4, …, 5, 3, 1
 * (Makhoul 1980): O(n log n) a row.
 *
 * @param X rows [b, n].
 * @returns [b, n].
 */
export function fastDct(X: tf.Tensor2D): tf.Tensor2D {
  const n = X.shape[1];
  ensure(n >= 1, 'X', () => `has shape [${X.shape}]; rows with at least one entry are needed`);
  return tf.tidy(() => {
    const even = Array.from({ length: Math.ceil(n / 2) }, (_, i) => 2 * i);
    const odd = Array.from({ length: Math.floor(n / 2) }, (_, i) => 2 * i + 1).reverse();
    const { real, imag } = rfft(tf.gather(X, tf.tensor1d([...even, ...odd], 'int32'), 1));
    // A real row's spectrum is conjugate symmetric: the second half mirrors the first.
    const mirrored = Array.from({ length: n }, (_, k) => Math.min(k, n - k));
    const [re, im] = [real, imag].map((part) => tf.gather(part, tf.tensor1d(mirrored, 'int32'), 1));
    const weight = (k: number): number => 2 / Math.sqrt((k === 0 ? 4 : 2) * n);
    const angle = (k: number): number => (Math.PI * k) / (2 * n);
    const cosines = mirrored.map((_, k) => weight(k) * Math.cos(angle(k)));
    const sines = mirrored.map((mirror, k) => (mirror === k ? 1 : -1) * weight(k) * Math.sin(angle(k)));
    // Re((c - i·s)·(re + i·im)) = c·re + s·im.
    return tf.add(tf.mul(re, cosines), tf.mul(im, sines)) as tf.Tensor2D;
  });
}

export function checkBasis(basis: string): void {
  ensure(basis === 'dct3' || basis === 'dct2', 'basis', () => `"${basis}" given; accepted are dct3 and dct2`);
}
