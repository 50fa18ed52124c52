import { linalg64 } from '@matforge/engine';
import { ensure, refuse } from '../errors.ts';
import { type Matrix, matrix } from './matrix.ts';

const EPSILON = 2 ** -52;

// ------------------------------------------------------------------------------------------------------------- checks

function checked(a: Matrix, name: string): Matrix {
  const { rows, cols, data } = a;
  ensure(
    typeof rows === 'number' && data !== undefined,
    name,
    () => 'is not a Matrix; matrix(rows, cols, entries) makes one, toMatrix(tensor) one of a tensor.',
  );
  ensure(
    data.length === rows * cols,
    name,
    () => `${rows} x ${cols} needs ${rows * cols} entries in data, got ${data.length}.`,
  );
  for (let i = 0; i < data.length; i++) {
    if (!Number.isFinite(data[i])) {
      refuse(name, `entries must be finite, got ${data[i]} at (${Math.floor(i / cols)}, ${i % cols}).`);
    }
  }
  return a;
}

function square(a: Matrix, name: string): Matrix {
  ensure(a.rows === a.cols, name, () => `must be square, got ${a.rows} x ${a.cols}.`);
  return checked(a, name);
}

function matching(a: Matrix, b: Matrix): void {
  ensure(b.rows === a.rows, 'b', () => `must have as many rows as a: ${a.rows}, got ${b.rows} x ${b.cols}.`);
}

function converged(failed: number, name: string, what: string): void {
  if (failed > 0)
    refuse(name, `${what} did not converge for ${failed} values; scale the matrix and look for denormals.`);
}

// -------------------------------------------------------------------------------------------------------------- basics

/** The n x n identity. */
export function identity(n: number): Matrix {
  return matrix(n, n, (i, j) => (i === j ? 1 : 0));
}

/** A square matrix with the given diagonal. */
export function diagonal(values: ArrayLike<number>): Matrix {
  return matrix(values.length, values.length, (i, j) => (i === j ? values[i] : 0));
}

/** aᵀ. */
export function transpose(a: Matrix): Matrix {
  const { rows, cols, data } = a;
  const t = new Float64Array(data.length);
  // By blocks, so that neither side walks through memory in long strides only.
  for (let ib = 0; ib < rows; ib += 32) {
    for (let jb = 0; jb < cols; jb += 32) {
      const [iEnd, jEnd] = [Math.min(ib + 32, rows), Math.min(jb + 32, cols)];
      for (let i = ib; i < iEnd; i++) for (let j = jb; j < jEnd; j++) t[j * rows + i] = data[i * cols + j];
    }
  }
  return { rows: cols, cols: rows, data: t };
}

/** a · b, either one transposed first where the option says so. */
export function matmul(
  a: Matrix,
  b: Matrix,
  { transposeA = false, transposeB = false }: { transposeA?: boolean; transposeB?: boolean } = {},
): Matrix {
  const inner = transposeA ? a.rows : a.cols;
  const given = transposeB ? b.cols : b.rows;
  ensure(inner === given, 'b', () => `must have ${inner} rows after transposition to follow a, got ${given}.`);
  const rows = transposeA ? a.cols : a.rows;
  const cols = transposeB ? b.rows : b.cols;
  return { rows, cols, data: linalg64.multiply({ ...a, transposed: transposeA }, { ...b, transposed: transposeB }) };
}

/** a + factor · b. */
export function add(a: Matrix, b: Matrix, factor = 1): Matrix {
  ensure(
    a.rows === b.rows && a.cols === b.cols,
    'b',
    () => `must be ${a.rows} x ${a.cols} like a, got ${b.rows} x ${b.cols}.`,
  );
  return { rows: a.rows, cols: a.cols, data: a.data.map((x, i) => x + factor * b.data[i]) };
}

/** factor · a. */
export function scale(a: Matrix, factor: number): Matrix {
  return { rows: a.rows, cols: a.cols, data: a.data.map((x) => factor * x) };
}

/** Column j of a multiplied by factors[j]: a · diag(factors). */
export function scaleColumns(a: Matrix, factors: ArrayLike<number>): Matrix {
  ensure(factors.length === a.cols, 'factors', () => `must be ${a.cols}, one per column, got ${factors.length}.`);
  return { rows: a.rows, cols: a.cols, data: a.data.map((x, i) => x * factors[i % a.cols]) };
}

/** Row i of a multiplied by factors[i]: diag(factors) · a. */
export function scaleRows(a: Matrix, factors: ArrayLike<number>): Matrix {
  ensure(factors.length === a.rows, 'factors', () => `must be ${a.rows}, one per row, got ${factors.length}.`);
  return { rows: a.rows, cols: a.cols, data: a.data.map((x, i) => x * factors[Math.floor(i / a.cols)]) };
}

/** Columns from … to-1 of a. */
export function columns(a: Matrix, from: number, to: number): Matrix {
  ensure(
    0 <= from && from <= to && to <= a.cols,
    'to',
    () => `columns ${from} to ${to} are not within 0 to ${a.cols}.`,
  );
  return matrix(a.rows, to - from, (i, j) => a.data[i * a.cols + from + j]);
}

/** Rows from … to-1 of a. */
export function rows(a: Matrix, from: number, to: number): Matrix {
  ensure(0 <= from && from <= to && to <= a.rows, 'to', () => `rows ${from} to ${to} are not within 0 to ${a.rows}.`);
  return { rows: to - from, cols: a.cols, data: a.data.slice(from * a.cols, to * a.cols) };
}

// --------------------------------------------------------------------------------------------------------------- norms

/** √Σ aᵢⱼ², without overflow. */
export function frobeniusNorm(a: Matrix): number {
  const largest = maxNorm(a);
  if (largest === 0 || !Number.isFinite(largest)) return largest;
  let sum = 0;
  for (const x of a.data) sum += (x / largest) ** 2;
  return largest * Math.sqrt(sum);
}

/** max |aᵢⱼ|. */
export function maxNorm(a: Matrix): number {
  let largest = 0;
  for (const x of a.data) largest = Math.max(largest, Math.abs(x));
  return largest;
}

/** Largest sum of magnitudes of a column: the operator norm for the 1-norm. */
export function oneNorm(a: Matrix): number {
  const sums = new Float64Array(a.cols);
  for (let i = 0; i < a.data.length; i++) sums[i % a.cols] += Math.abs(a.data[i]);
  return sums.reduce((x, y) => Math.max(x, y), 0);
}

/** Largest sum of magnitudes of a row: the operator norm for the maximum norm. */
export function infinityNorm(a: Matrix): number {
  return oneNorm(transpose(a));
}

/** Largest singular value. */
export function spectralNorm(a: Matrix): number {
  return singularValues(a)[0] ?? 0;
}

/** Sum of the singular values. */
export function nuclearNorm(a: Matrix): number {
  return singularValues(a).reduce((x, y) => x + y, 0);
}

/** σ₁ / σₖ; Infinity for a singular matrix, 1 for an empty one. */
export function conditionNumber(a: Matrix): number {
  const s = singularValues(a);
  return s.length === 0 ? 1 : s[0] / s[s.length - 1] || Number.POSITIVE_INFINITY;
}

/**
 * Number of singular values above `tolerance` · σ₁ (default max(rows, cols) · 2⁻⁵²).
 *
 * @throws MatforgeError when an entry is not finite.
 */
export function rank(a: Matrix, tolerance: number = defaultTolerance(a)): number {
  const s = singularValues(a);
  return s.filter((x) => x > tolerance * s[0]).length;
}

function defaultTolerance(a: Matrix): number {
  return Math.max(a.rows, a.cols) * EPSILON;
}

// ----------------------------------------------------------------------------------------------------------------- QR

/**
 * Thin QR by blocked Householder reflections: a = q · r, q [rows, k] with orthonormal columns also when a is rank
 * deficient, r [k, cols] upper triangular with no negative diagonal entry (unique for full column rank).
 */
export function qr(a: Matrix): { q: Matrix; r: Matrix } {
  const { rows, cols, data } = checked(a, 'a');
  const k = Math.min(rows, cols);
  const { q, r } = linalg64.qr(rows, cols, data);
  return { q: { rows, cols: k, data: q }, r: { rows: k, cols, data: r } };
}

/**
 * Thin QR with column pivoting (Businger & Golub 1965): column `permutation[j]` of a is column j of q · r; the diagonal of r
 * is >= 0 and falls. Equal columns keep their order.
 */
export function qrPivoted(a: Matrix): { q: Matrix; r: Matrix; permutation: Int32Array } {
  const { rows, cols, data } = checked(a, 'a');
  const k = Math.min(rows, cols);
  const { q, r, order } = linalg64.qrPivoted(rows, cols, data);
  return { q: { rows, cols: k, data: q }, r: { rows: k, cols, data: r }, permutation: order };
}

// ----------------------------------------------------------------------------------------------------------------- LU

/**
 * LU with partial pivoting: row `permutation[i]` of a is row i of l · u; l [rows, k] unit lower trapezoidal, u [k, cols]
 * upper trapezoidal, `sign` the permutation's. A singular matrix has a zero on u's diagonal and is no error.
 */
export function lu(a: Matrix): { l: Matrix; u: Matrix; permutation: Int32Array; sign: number } {
  const { rows, cols, data } = checked(a, 'a');
  const k = Math.min(rows, cols);
  const { packed, order, sign } = linalg64.lu(rows, cols, data);
  return {
    l: matrix(rows, k, (i, j) => (i > j ? packed[i * cols + j] : i === j ? 1 : 0)),
    u: matrix(k, cols, (i, j) => (i <= j ? packed[i * cols + j] : 0)),
    permutation: order,
    sign,
  };
}

/**
 * LDU with partial pivoting: row `permutation[i]` of a is row i of l · diag(d) · u, both l and u with a unit diagonal.
 * Where d is 0 (rank deficient), the row of u beside it is that of the unit matrix when the pivot's row is zero.
 *
 * @throws MatforgeError when a pivot is zero while its row is not: then no such factors exist.
 */
export function ldu(a: Matrix): { l: Matrix; d: Float64Array; u: Matrix; permutation: Int32Array; sign: number } {
  const { l, u, permutation, sign } = lu(a);
  const d = Float64Array.from({ length: u.rows }, (_, i) => u.data[i * u.cols + i]);
  for (let i = 0; i < u.rows; i++) {
    for (let j = i; j < u.cols; j++) {
      const at = i * u.cols + j;
      if (d[i] !== 0) u.data[at] /= d[i];
      else if (j === i) u.data[at] = 1;
      else if (u.data[at] !== 0) refuse('a', `pivot ${i} is zero while its row is not: a has no LDU factors.`);
    }
  }
  return { l, d, u, permutation, sign };
}

/**
 * Determinant of a square matrix.
 *
 * @throws MatforgeError when a is not square or an entry is not finite.
 */
export function det(a: Matrix): number {
  const { sign, log } = logdet(a);
  return sign * Math.exp(log);
}

/** Sign and logarithm of the magnitude of the determinant: { sign: 0, log: -Infinity } for a singular matrix. */
export function logdet(a: Matrix): { sign: number; log: number } {
  const { rows: n, data } = square(a, 'a');
  const { packed, sign: permutationSign } = linalg64.lu(n, n, data);
  let [sign, log] = [permutationSign, 0];
  for (let i = 0; i < n; i++) {
    sign *= Math.sign(packed[i * n + i]);
    log += Math.log(Math.abs(packed[i * n + i]));
  }
  return { sign, log };
}

/**
 * Solves a · x = b for a square a by LU; b [n, any].
 *
 * @throws MatforgeError when a is not square or singular (the pivot is named), or b has another number of rows.
 */
export function solve(a: Matrix, b: Matrix): Matrix {
  const { rows: n, data } = square(a, 'a');
  matching(a, b);
  checked(b, 'b');
  const { packed, order } = linalg64.lu(n, n, data);
  for (let i = 0; i < n; i++) {
    if (packed[i * n + i] === 0)
      refuse('a', `is singular: pivot ${i} is zero; use lstsq or pinv for a least-squares solution.`);
  }
  const permuted = matrix(n, b.cols, (i, j) => b.data[order[i] * b.cols + j]);
  const half = linalg64.triangularSolve(n, b.cols, packed, permuted.data, { upper: false, unit: true });
  return { rows: n, cols: b.cols, data: linalg64.triangularSolve(n, b.cols, packed, half, { upper: true }) };
}

/**
 * Inverse of a square matrix.
 *
 * @throws MatforgeError when a is not square or singular.
 */
export function inverse(a: Matrix): Matrix {
  return solve(a, identity(a.rows));
}

/**
 * Solves t · x = b (tᵀ · x = b with `transposed`) for a triangular t; only that triangle is read. `unit`: its diagonal is 1.
 *
 * @throws MatforgeError when t is not square, has a zero on its diagonal, or b has another number of rows.
 */
export function solveTriangular(
  t: Matrix,
  b: Matrix,
  { upper = false, transposed = false, unit = false }: { upper?: boolean; transposed?: boolean; unit?: boolean } = {},
): Matrix {
  const { rows: n, data } = square(t, 't');
  ensure(b.rows === n, 'b', () => `must have as many rows as t: ${n}, got ${b.rows} x ${b.cols}.`);
  checked(b, 'b');
  for (let i = 0; i < n && !unit; i++) {
    if (data[i * n + i] === 0) refuse('t', `is singular: diagonal entry ${i} is zero.`);
  }
  return {
    rows: n,
    cols: b.cols,
    data: linalg64.triangularSolve(n, b.cols, data, b.data, { upper, transposed, unit }),
  };
}

// ----------------------------------------------------------------------------------------------------------- Cholesky

/**
 * Cholesky factor: a = l · lᵀ, l lower triangular with a positive diagonal. Only the lower triangle of a is read.
 *
 * @throws MatforgeError when a is not square, not finite, or not positive definite (names the first pivot that is not).
 */
export function cholesky(a: Matrix): Matrix {
  const { rows: n, data } = square(a, 'a');
  const { l, failed } = linalg64.cholesky(n, data);
  if (failed >= 0) {
    refuse('a', `is not positive definite: pivot ${failed} (of ${n}) is not positive; add a multiple of the identity.`);
  }
  return { rows: n, cols: n, data: l };
}

/** Like {@link cholesky}, but null for a matrix that is not positive definite. */
export function tryCholesky(a: Matrix): Matrix | null {
  const { rows: n, data } = square(a, 'a');
  const { l, failed } = linalg64.cholesky(n, data);
  return failed >= 0 ? null : { rows: n, cols: n, data: l };
}

/**
 * Solves a · x = b for a symmetric positive definite a.
 *
 * @throws MatforgeError like {@link cholesky}, or when b has another number of rows.
 */
export function solvePositive(a: Matrix, b: Matrix): Matrix {
  const l = cholesky(a);
  matching(a, b);
  return solveTriangular(l, solveTriangular(l, b), { transposed: true });
}

// --------------------------------------------------------------------------------------------------- eigenvalues, SVD

/**
 * Symmetric eigenproblem: a = vectors · diag(values) · vectorsᵀ, values rising, vectors in columns, the entry of largest
 * magnitude of each vector positive. Only the lower triangle of a is read.
 *
 * @throws MatforgeError when a is not square or not finite.
 */
export function eigh(a: Matrix): { values: Float64Array; vectors: Matrix } {
  const { rows: n, data } = square(a, 'a');
  if (n === 0) return { values: new Float64Array(0), vectors: matrix(0, 0) };
  const { values, vectors, failed } = linalg64.eigh(n, data);
  converged(failed, 'a', 'the symmetric eigenproblem');
  const result = { rows: n, cols: n, data: vectors };
  orient(result);
  return { values, vectors: result };
}

/** Eigenvalues of a symmetric matrix, rising, without the vectors. */
export function eigenvalues(a: Matrix): Float64Array {
  const { rows: n, data } = square(a, 'a');
  if (n === 0) return new Float64Array(0);
  const { values, failed } = linalg64.eigh(n, data, false);
  converged(failed, 'a', 'the symmetric eigenproblem');
  return values;
}

/**
 * Thin SVD: a = u · diag(s) · vᵀ, u [rows, k], s [k] falling, v [cols, k], k = min(rows, cols). The entry of largest
 * magnitude of each left vector is positive. u and v have orthonormal columns also when a is rank deficient.
 *
 * `accurate` (default) reduces to bidiagonal form (Golub & Kahan 1965, zero-shift QR of Demmel & Kahan 1990): absolute
 * error about 1e-16 σ₁. Without it the eigenproblem of aᵀa is solved, about 1.6 times as fast: values below 1e-8 σ₁ are
 * noise, which float32 data does not show.
 *
 * @throws MatforgeError when an entry is not finite.
 */
export function svd(
  a: Matrix,
  { accurate = true }: { accurate?: boolean } = {},
): { u: Matrix; s: Float64Array; v: Matrix } {
  const wide = a.cols > a.rows;
  const { rows: m, cols: n, data } = wide ? transpose(checked(a, 'a')) : checked(a, 'a');
  if (n === 0) return { u: matrix(a.rows, 0), s: new Float64Array(0), v: matrix(a.cols, 0) };
  const { u, s, v, failed } = linalg64.svd(m, n, data, { gram: !accurate });
  converged(failed, 'a', 'the SVD');
  const [long, short] = [
    { rows: m, cols: n, data: u },
    { rows: n, cols: n, data: v },
  ];
  const [left, right] = wide ? [short, long] : [long, short];
  orient(left, right);
  return { u: left, s, v: right };
}

/** Singular values, falling, to full accuracy, without the vectors. */
export function singularValues(a: Matrix): Float64Array {
  const { rows: m, cols: n, data } = a.cols > a.rows ? transpose(checked(a, 'a')) : checked(a, 'a');
  if (n === 0) return new Float64Array(0);
  const { s, failed } = linalg64.svd(m, n, data, { vectors: false });
  converged(failed, 'a', 'the SVD');
  return s;
}

/**
 * Fixes the sign of each column of `left`: its entry of largest magnitude is positive (the first one among entries that
 * are equal to 1e-9, so that rounding does not choose). `right` flips along.
 */
export function orient(left: Matrix, right?: Matrix): void {
  const { rows: m, cols: n, data } = left;
  const largest = new Float64Array(n);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) largest[j] = Math.max(largest[j], Math.abs(data[i * n + j]));
  }
  const sign = new Float64Array(n);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      const x = data[i * n + j];
      if (sign[j] === 0 && Math.abs(x) >= largest[j] * (1 - 1e-9)) sign[j] = Math.sign(x);
    }
  }
  for (const flipped of right ? [left, right] : [left]) {
    for (let i = 0; i < flipped.rows; i++) {
      for (let j = 0; j < n; j++) if (sign[j] < 0) flipped.data[i * n + j] *= -1;
    }
  }
}

// -------------------------------------------------------------------------------------------------------- least squares

/**
 * Moore-Penrose pseudo-inverse through the SVD; singular values up to `tolerance` · σ₁ (default max(rows, cols) · 2⁻⁵²)
 * count as zero.
 *
 * @throws MatforgeError when an entry is not finite.
 */
export function pinv(a: Matrix, tolerance: number = defaultTolerance(a)): Matrix {
  const { u, s, v } = svd(a);
  const inverses = s.map((x) => (x > tolerance * s[0] ? 1 / x : 0));
  return matmul(scaleColumns(v, inverses), u, { transposeB: true });
}

/**
 * Least squares: the x of smallest norm among those that minimise ‖a · x - b‖ for each column of b. A tall matrix of full
 * rank is solved by pivoted QR, anything else by the SVD.
 *
 * @returns x [a.cols, b.cols] and the numerical rank of a.
 * @throws MatforgeError when b has another number of rows or an entry is not finite.
 */
export function lstsq(a: Matrix, b: Matrix, tolerance: number = defaultTolerance(a)): { x: Matrix; rank: number } {
  matching(a, checked(b, 'b'));
  const n = a.cols;
  if (a.rows >= n && n > 0) {
    const { q, r, permutation } = qrPivoted(a);
    // The diagonal of a pivoted r estimates the singular values within a modest factor; near the limit the SVD decides.
    if (r.data[n * n - 1] > 100 * tolerance * r.data[0]) {
      const y = solveTriangular(r, matmul(q, b, { transposeA: true }), { upper: true });
      const x = matrix(n, b.cols);
      for (let i = 0; i < n; i++) x.data.set(y.data.subarray(i * b.cols, (i + 1) * b.cols), permutation[i] * b.cols);
      return { x, rank: n };
    }
  }
  const { u, s, v } = svd(a);
  const kept = s.filter((value) => value > tolerance * s[0]).length;
  const coefficients = scaleRows(
    matmul(u, b, { transposeA: true }),
    s.map((value, i) => (i < kept ? 1 / value : 0)),
  );
  return { x: matmul(v, coefficients), rank: kept };
}

// ----------------------------------------------------------------------------------------------------------------- DCT

/**
 * The orthonormal DCT-II matrix (type 2): entry (k, j) is c_k cos(π (2j + 1) k / 2n) with c_0 = √(1/n), c_k = √(2/n). Its
 * transpose, which is its inverse, is the DCT-III matrix (type 3). Times a column it transforms that column.
 */
export function dctMatrix(n: number, type: 2 | 3 = 2): Matrix {
  ensure(Number.isInteger(n) && n > 0, 'n', () => `must be a whole number > 0, got ${n}.`);
  ensure(type === 2 || type === 3, 'type', () => `must be 2 or 3, got ${type}.`);
  // The argument is reduced in whole numbers, so that large k lose no digits.
  const cosines = Float64Array.from({ length: 4 * n }, (_, i) => cosine(i, n));
  const entry = (k: number, j: number) => Math.sqrt((k === 0 ? 1 : 2) / n) * cosines[((2 * j + 1) * k) % (4 * n)];
  return matrix(n, n, (i, j) => (type === 2 ? entry(i, j) : entry(j, i)));
}

/** cos(π i / 2n) for 0 <= i < 4n, exact at its zeros. */
function cosine(i: number, n: number): number {
  const folded = i > 2 * n ? 4 * n - i : i;
  if (folded === n) return 0;
  return folded > n ? -Math.cos((Math.PI * (2 * n - folded)) / (2 * n)) : Math.cos((Math.PI * folded) / (2 * n));
}

/** Orthonormal DCT-II of each column of a. */
export function dct2(a: Matrix): Matrix {
  return a.rows === 0 ? a : matmul(dctMatrix(a.rows, 2), a);
}

/** Orthonormal DCT-III, the inverse of {@link dct2}, of each column of a. */
export function dct3(a: Matrix): Matrix {
  return a.rows === 0 ? a : matmul(dctMatrix(a.rows, 3), a);
}
