import * as tf from '@tensorflow/tfjs';
import { during } from '../blocking.ts';
import { ensure, refuse } from '../errors.ts';
import { random as openRandom, type Random } from '../tensors/random.ts';
import { columns, identity, orient, qr, scaleRows, solveTriangular, svd, tryCholesky } from './dense.ts';
import { type Matrix, toMatrix, toTensor } from './matrix.ts';

/** kernel ≈ u · diag(s) · vᵀ as float32 tensors: u [m, k], s [k] falling, v [n, k]. The caller disposes them. */
export type ThinSvd = { u: tf.Tensor2D; s: tf.Tensor1D; v: tf.Tensor2D };

/** Options of {@link thinSvd}. */
export interface ThinSvdOptions {
  /** Bidiagonal SVD with exact small singular values instead of the faster one through the Gram matrix. Default false. */
  accurate?: boolean;
}

/** Options of {@link randomizedSvd}. */
export interface RandomizedSvdOptions {
  /** Extra columns of the sketch beside `rank`. Default 10. */
  oversampling?: number;
  /** Power iterations: more of them for spectra that fall slowly. Default 4. */
  iterations?: number;
  /** Where the sketch's numbers come from. Default `random(0)`: the same kernel gives the same factors. */
  random?: Random;
}

/** Kernels with a smaller side up to this are cheaper to decompose exactly than to sketch. */
const EXACT_UP_TO = 96;

/**
 * Thin SVD of a kernel [m, n] in float64, k = min(m, n). The entry of largest magnitude of each left vector is positive.
 * Singular values below about 1e-8 of the largest, less than float32 resolves, are noise unless `accurate`.
 *
 * @throws MatforgeError (`kernel`) when it is not a matrix or an entry is not finite.
 */
export function thinSvd(kernel: tf.Tensor2D, { accurate = false }: ThinSvdOptions = {}): ThinSvd {
  return during('thinSvd', () => toTensors(decompose(kernel, accurate)));
}

/**
 * The `rank` leading singular triplets of a kernel [m, n] by a randomized range finder with power iterations (Halko,
 * Martinsson & Tropp 2011, algorithms 4.4 and 5.1). The products with the kernel run on the device; orthonormalisation is
 * CholeskyQR on a small Gram matrix in float64 (Fukaya et al. 2014), Householder QR where that is too ill-conditioned. A
 * kernel whose smaller side is at most 96, or not above rank + oversampling, is decomposed exactly.
 *
 * @returns u [m, rank], s [rank] falling, v [n, rank]; the entry of largest magnitude of each left vector is positive.
 * @throws MatforgeError naming `rank`, `oversampling`, `iterations`, or `kernel` (not a matrix, not finite).
 */
export function randomizedSvd(
  kernel: tf.Tensor2D,
  rank: number,
  { oversampling = 10, iterations = 4, random = openRandom(0) }: RandomizedSvdOptions = {},
): ThinSvd {
  if (kernel.rank !== 2) refuse('kernel', `must be a matrix, got shape [${kernel.shape}].`);
  const [m, n] = kernel.shape;
  const small = Math.min(m, n);
  ensure(
    Number.isInteger(rank) && rank >= 1 && rank <= small,
    'rank',
    () => `must be a whole number from 1 to ${small}, the smaller side of [${m}, ${n}]; got ${rank}.`,
  );
  for (const [name, value] of Object.entries({ oversampling, iterations })) {
    ensure(Number.isInteger(value) && value >= 0, name, () => `must be a whole number >= 0, got ${value}.`);
  }
  const width = rank + oversampling;
  if (small <= Math.max(width, EXACT_UP_TO)) {
    const { u, s, v } = decompose(kernel, false);
    return toTensors({ u: columns(u, 0, rank), s: s.slice(0, rank), v: columns(v, 0, rank) });
  }
  return tf.tidy(() => {
    const sketch = random.normal([n, width]) as tf.Tensor2D;
    let q = orthonormalise(tf.matMul(kernel, sketch), 1);
    for (let i = 0; i < iterations; i++) {
      const z = orthonormalise(tf.matMul(kernel, q, true, false), 1);
      q = orthonormalise(tf.matMul(kernel, z), 1);
    }
    q = orthonormalise(q, 1);
    // kernelᵀ q = v s wᵀ, so kernel ≈ q (q^T kernel) = (q w) s vᵀ.
    const { u: v, s, v: w } = svd(finite(tf.matMul(kernel, q, true, false)));
    const u = toMatrix(tf.matMul(q, toTensor(columns(w, 0, rank))));
    const right = columns(v, 0, rank);
    orient(u, right);
    return toTensors({ u, s: s.slice(0, rank), v: right });
  });
}

function decompose(kernel: tf.Tensor2D, accurate: boolean): { u: Matrix; s: Float64Array; v: Matrix } {
  if (kernel.rank !== 2) refuse('kernel', `must be a matrix, got shape [${kernel.shape}].`);
  return svd(finite(kernel), { accurate });
}

function toTensors({ u, s, v }: { u: Matrix; s: Float64Array; v: Matrix }): ThinSvd {
  return { u: toTensor(u), s: tf.tensor1d(Float32Array.from(s), 'float32'), v: toTensor(v) };
}

/** Reads what was computed from the kernel; an entry that is not finite spoils every product with it. */
function finite(tensor: tf.Tensor2D): Matrix {
  const values = toMatrix(tensor, 'kernel');
  if (!values.data.every(Number.isFinite))
    refuse('kernel', 'has entries that are not finite (NaN, infinity, or overflow).');
  return values;
}

/** An orthonormal basis of the columns of a tall y, by `passes` of CholeskyQR: y := y R⁻¹ with yᵀ y = Rᵀ R. */
function orthonormalise(y: tf.Tensor2D, passes: number): tf.Tensor2D {
  let basis = y;
  for (let pass = 0; pass < passes; pass++) {
    const inverse = inverseFactor(toMatrix(tf.matMul(basis, basis, true, false)));
    if (!inverse) return toTensor(qr(finite(basis)).q);
    basis = tf.matMul(basis, toTensor(inverse));
  }
  return basis;
}

/** R⁻¹ of a Gram matrix that came out of float32 products, or null where its rounding would spoil the result. */
function inverseFactor(gram: Matrix): Matrix | null {
  const n = gram.rows;
  const inverseLengths = Float64Array.from({ length: n }, (_, i) => 1 / Math.sqrt(gram.data[i * n + i]));
  const unit: Matrix = { rows: n, cols: n, data: new Float64Array(n * n) };
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) unit.data[i * n + j] = gram.data[i * n + j] * inverseLengths[i] * inverseLengths[j];
  }
  if (!unit.data.every(Number.isFinite)) return null;
  const l = tryCholesky(unit);
  if (!l) return null;
  for (let i = 0; i < n; i++) if (l.data[i * n + i] < 1e-2) return null;
  return scaleRows(solveTriangular(l, identity(n), { transposed: true }), inverseLengths);
}
