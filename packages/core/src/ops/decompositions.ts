import * as tf from '@tensorflow/tfjs';
import { ensure, refuse } from '../errors.ts';
import { linalg } from '../linalg/index.ts';
import { type Matrix, matrix } from '../linalg/matrix.ts';
import { defineOp } from './define-op.ts';
import { sizeOf } from './shapes.ts';

/** Eigenvalues closer than this, relative to the largest, count as equal: float32 cannot tell them apart. */
const DEGENERATE = 1e-6;

/**
 * Reduced QR decomposition of each matrix, computed in float64, with gradient: x = q·r, q with orthonormal columns, r upper
 * triangular with no negative diagonal entry.
 *
 * @param x `[..., m, n]`; the gradient needs its first min(m, n) columns to be independent.
 * @returns q `[..., m, k]` and r `[..., k, n]`, k = min(m, n)
 * @throws MatforgeError when x is no matrix or not finite; in the backward pass when r is singular.
 */
export function qr(x: tf.Tensor): { q: tf.Tensor; r: tf.Tensor } {
  ensure(x.rank >= 2, 'x', () => `has shape [${x.shape}]; matrices [..., m, n] are decomposed`);
  const [q, r] = qrOp({ x }, {});
  return { q, r };
}

/**
 * Cholesky factor of each matrix, computed in float64, with gradient: (x + xᵀ)/2 = l·lᵀ, l lower triangular.
 *
 * @param x `[..., n, n]`, symmetric positive definite
 * @returns l `[..., n, n]`
 * @throws MatforgeError when x is not square, not finite or not positive definite.
 */
export function cholesky(x: tf.Tensor): tf.Tensor {
  ensureSquare(x);
  return choleskyOp({ x }, {})[0];
}

/**
 * Eigenvalues (rising) and eigenvectors (columns; the entry of largest magnitude is positive) of (x + xᵀ)/2 for each
 * matrix, computed in float64, with gradient. Where eigenvalues coincide the eigenvectors are free to turn among
 * themselves; their gradient counts such turns as nothing.
 *
 * @param x `[..., n, n]`, symmetric
 * @returns values `[..., n]` and vectors `[..., n, n]`
 * @throws MatforgeError when x is not square or not finite.
 */
export function eigh(x: tf.Tensor): { values: tf.Tensor; vectors: tf.Tensor } {
  ensureSquare(x);
  const [values, vectors] = eighOp({ x }, {});
  return { values, vectors };
}

function ensureSquare(x: tf.Tensor): void {
  ensure(
    x.rank >= 2 && x.shape.at(-1) === x.shape.at(-2),
    'x',
    () => `has shape [${x.shape}]; square matrices [..., n, n] are decomposed`,
  );
}

/** The float64 matrices of a batch. */
function matrices(x: tf.Tensor): Matrix[] {
  const [rows, cols] = x.shape.slice(-2);
  const data = x.dataSync();
  return Array.from({ length: sizeOf(x.shape.slice(0, -2)) }, (_, i) => ({
    rows,
    cols,
    data: Float64Array.from(data.subarray(i * rows * cols, (i + 1) * rows * cols)),
  }));
}

function batchOf(lead: readonly number[], shape: readonly number[], parts: Float64Array[]): tf.Tensor {
  const size = sizeOf(shape);
  const data = new Float32Array(size * parts.length);
  parts.forEach((part, i) => {
    data.set(part, i * size);
  });
  return tf.tensor(data, [...lead, ...shape]);
}

const { add, columns, diagonal, matmul, solveTriangular, transpose } = linalg;

const symmetric = (a: Matrix): Matrix =>
  matrix(a.rows, a.cols, (i, j) => (a.data[i * a.cols + j] + a.data[j * a.cols + i]) / 2);

const qrOp = defineOp<Record<string, never>>({
  name: 'MatforgeQr',
  saveInputs: ['x'],
  saveOutputs: [true, true],
  forward({ x }) {
    const [lead, [m, n]] = [x.shape.slice(0, -2), x.shape.slice(-2)];
    const k = Math.min(m, n);
    const parts = matrices(x).map((a) => linalg.qr(a));
    return [
      batchOf(
        lead,
        [m, k],
        parts.map(({ q }) => q.data),
      ),
      batchOf(
        lead,
        [k, n],
        parts.map(({ r }) => r.data),
      ),
    ];
  },
  pullback: ([gq, gr], [x, q, r]) => ({
    x: () => {
      const [as, qs, rs, gqs, grs] = [x, q, r, gq, gr].map(matrices);
      const parts = as.map((a, i) => qrGradient(a, qs[i], rs[i], gqs[i], grs[i]).data);
      return batchOf(x.shape.slice(0, -2), x.shape.slice(-2), parts);
    },
  }),
});

/**
 * m ≥ n (Walter & Lehmann 2010): ā = (q̄ + q·copyltu(r·r̄ᵀ - q̄ᵀ·q))·r⁻ᵀ. A wide a = [a₁ a₂] has r = [r₁ r₂] with
 * r₂ = qᵀ·a₂, so that ā₂ = q·r̄₂ and a₂·r̄₂ᵀ joins q̄ for the square part.
 */
function qrGradient(a: Matrix, q: Matrix, r: Matrix, gq: Matrix, gr: Matrix): Matrix {
  const k = q.cols;
  if (a.cols > k) {
    const rest = { a: columns(a, k, a.cols), gr: columns(gr, k, a.cols) };
    const joined = add(gq, matmul(rest.a, rest.gr, { transposeB: true }));
    const left = qrGradient(columns(a, 0, k), q, columns(r, 0, k), joined, columns(gr, 0, k));
    const right = matmul(q, rest.gr);
    return matrix(a.rows, a.cols, (i, j) => (j < k ? left.data[i * k + j] : right.data[i * (a.cols - k) + j - k]));
  }
  for (let i = 0; i < k; i++)
    if (r.data[i * k + i] === 0)
      refuse(
        'x',
        `its columns depend on each other (r has a zero at [${i}, ${i}]); the QR decomposition has no gradient there`,
      );
  const m = add(matmul(r, gr, { transposeB: true }), matmul(gq, q, { transposeA: true }), -1);
  const mirrored = matrix(k, k, (i, j) => m.data[Math.max(i, j) * k + Math.min(i, j)]);
  return transpose(solveTriangular(r, transpose(add(gq, matmul(q, mirrored))), { upper: true }));
}

const choleskyOp = defineOp<Record<string, never>>({
  name: 'MatforgeCholesky',
  saveOutputs: [true],
  forward: ({ x }) => [
    batchOf(
      x.shape.slice(0, -2),
      x.shape.slice(-2),
      matrices(x).map((a) => linalg.cholesky(symmetric(a)).data),
    ),
  ],
  // Murray 2016, eq. 9: ā is the symmetric part of l⁻ᵀ·Φ(lᵀ·l̄)·l⁻¹, Φ the lower triangle with its diagonal halved.
  pullback: ([gl], [l]) => ({
    x: () => {
      const gradients = matrices(gl);
      const parts = matrices(l).map((factor, b) => {
        const n = factor.rows;
        const product = matmul(factor, gradients[b], { transposeA: true });
        const phi = matrix(n, n, (i, j) => (i > j ? 1 : i === j ? 0.5 : 0) * product.data[i * n + j]);
        const left = solveTriangular(factor, phi, { transposed: true });
        return symmetric(solveTriangular(factor, transpose(left), { transposed: true })).data;
      });
      return batchOf(l.shape.slice(0, -2), l.shape.slice(-2), parts);
    },
  }),
});

const eighOp = defineOp<Record<string, never>>({
  name: 'MatforgeEigh',
  saveOutputs: [true, true],
  forward({ x }) {
    const [lead, n] = [x.shape.slice(0, -2), x.shape[x.rank - 1]];
    const parts = matrices(x).map((a) => linalg.eigh(symmetric(a)));
    return [
      batchOf(
        lead,
        [n],
        parts.map(({ values }) => values),
      ),
      batchOf(
        lead,
        [n, n],
        parts.map(({ vectors }) => vectors.data),
      ),
    ];
  },
  // Giles 2008, section 3.1: ā = v·(diag(w̄) + F∘(vᵀ·v̄))·vᵀ with F_ij = 1/(w_j - w_i).
  pullback: ([gw, gv], [w, v]) => ({
    x: () => {
      const n = v.shape[v.rank - 1];
      const [values, gValues, gVectors] = [w.dataSync<'float32'>(), gw.dataSync<'float32'>(), matrices(gv)];
      const parts = matrices(v).map((vectors, b) => {
        const own = values.subarray(b * n, (b + 1) * n);
        const smallest = DEGENERATE * own.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
        const turned = matmul(vectors, gVectors[b], { transposeA: true });
        const inner = matrix(n, n, (i, j) => {
          const gap = own[j] - own[i];
          return Math.abs(gap) <= smallest ? 0 : turned.data[i * n + j] / gap;
        });
        const middle = add(inner, diagonal(gValues.subarray(b * n, (b + 1) * n)));
        return symmetric(matmul(matmul(vectors, middle), vectors, { transposeB: true })).data;
      });
      return batchOf(v.shape.slice(0, -2), v.shape.slice(-2), parts);
    },
  }),
});
