import fc from 'fast-check';
import { linalg, type Matrix, matrix, random } from '../src/index.ts';

const { matmul, transpose } = linalg;

const normal = (m: number, n: number, seed: number): Matrix => {
  const stream = random(seed);
  return matrix(m, n, () => stream.gaussian());
};
const symmetric = (n: number, seed: number): Matrix => {
  const a = normal(n, n, seed);
  return linalg.add(a, transpose(a));
};
const distance = (a: Matrix, b: Matrix): number => linalg.maxNorm(linalg.add(a, b, -1));
const largest = (x: Float64Array): number => linalg.maxNorm(matrix(1, x.length, x));
/** The entries that `keep` selects, the others zero. */
const only = (a: Matrix, keep: (i: number, j: number) => boolean): Matrix =>
  matrix(a.rows, a.cols, (i, j) => (keep(i, j) ? a.data[i * a.cols + j] : 0));
const mainDiagonal = (a: Matrix): Float64Array =>
  Float64Array.from({ length: Math.min(a.rows, a.cols) }, (_, i) => a.data[i * a.cols + i]);
const orthonormality = (q: Matrix): number => distance(matmul(q, q, { transposeA: true }), linalg.identity(q.cols));
const rebuild = ({ u, s, v }: { u: Matrix; s: Float64Array; v: Matrix }): Matrix =>
  matmul(linalg.scaleColumns(u, s), v, { transposeB: true });
const pickColumns = (a: Matrix, order: ArrayLike<number>): Matrix =>
  matrix(a.rows, a.cols, (i, j) => a.data[i * a.cols + order[j]]);
const pickRows = (a: Matrix, order: ArrayLike<number>): Matrix =>
  matrix(a.rows, a.cols, (i, j) => a.data[order[i] * a.cols + j]);
const hilbert = (n: number): Matrix => matrix(n, n, (i, j) => 1 / (i + j + 1));
const secondDifference = (n: number): Matrix => matrix(n, n, (i, j) => (i === j ? 2 : Math.abs(i - j) === 1 ? -1 : 0));
const binomial = (n: number, k: number): number => {
  let value = 1;
  for (let i = 0; i < k; i++) value = (value * (n - i)) / (i + 1);
  return Math.round(value);
};
const pascal = (n: number): Matrix => matrix(n, n, (i, j) => binomial(i + j, j));

const size = fc.integer({ min: 1, max: 75 });
const seed = fc.integer({ min: 0, max: 1e6 });
const check = (property: (m: number, n: number, s: number) => void) =>
  fc.assert(fc.property(size, size, seed, property), {
    numRuns: 40,
    seed: 7,
    examples: [
      [1, 1, 0],
      [1, 40, 1],
      [70, 1, 2],
      [70, 33, 3],
      [33, 70, 4],
    ],
  });

/** The entry-by-entry product, as a reference for everything else. */
const slowProduct = (a: Matrix, b: Matrix): Matrix =>
  matrix(a.rows, b.cols, (i, j) => {
    let sum = 0;
    for (let p = 0; p < a.cols; p++) sum += a.data[i * a.cols + p] * b.data[p * b.cols + j];
    return sum;
  });

describe('products', () => {
  it('agree with the definition in every transposition', () => {
    check((m, n, s) => {
      const k = (s % 70) + 1;
      const [a, b] = [normal(m, k, s), normal(k, n, s + 1)];
      const expected = slowProduct(a, b);
      expect(distance(matmul(a, b), expected)).toBeLessThan(1e-12);
      expect(distance(matmul(transpose(a), b, { transposeA: true }), expected)).toBeLessThan(1e-12);
      expect(distance(matmul(a, transpose(b), { transposeB: true }), expected)).toBeLessThan(1e-12);
      expect(
        distance(matmul(transpose(a), transpose(b), { transposeA: true, transposeB: true }), expected),
      ).toBeLessThan(1e-12);
    });
  });

  it('beyond one cache block, where every block edge is met', () => {
    const [a, b] = [normal(133, 515, 1), normal(515, 521, 2)];
    expect(distance(matmul(a, b), slowProduct(a, b))).toBeLessThan(1e-11);
  });

  it('refuse operands that do not fit', () => {
    expect(() => matmul(matrix(2, 3), matrix(2, 3))).toThrow(/^b: must have 3 rows/);
    expect(() => linalg.add(matrix(2, 3), matrix(3, 2))).toThrow(/^b: must be 2 x 3/);
  });

  it('of empty matrices are zero', () => {
    expect(Array.from(matmul(matrix(2, 0), matrix(0, 2)).data)).toEqual([0, 0, 0, 0]);
  });
});

describe('symmetric eigenproblem', () => {
  it('has a small residual and orthonormal vectors', () => {
    check((n, _, s) => {
      const a = symmetric(n, s);
      const { values, vectors } = linalg.eigh(a);
      expect(distance(matmul(a, vectors), linalg.scaleColumns(vectors, values))).toBeLessThan(1e-12 * (1 + n));
      expect(orthonormality(vectors)).toBeLessThan(1e-13 * (1 + n));
      expect(values).toEqual(values.slice().sort());
      expect(
        linalg.maxNorm(
          matrix(
            1,
            n,
            linalg.eigenvalues(a).map((x, i) => x - values[i]),
          ),
        ),
      ).toBeLessThan(1e-12 * n);
    });
  });

  it.each([1, 2, 3, 31, 32, 33, 150])('knows the second difference of size %i', (n) => {
    const { values, vectors } = linalg.eigh(secondDifference(n));
    const exact = Float64Array.from({ length: n }, (_, k) => 4 * Math.sin(((k + 1) * Math.PI) / (2 * n + 2)) ** 2);
    expect(largest(values.map((x, k) => x - exact[k]))).toBeLessThan(1e-13);
    const waves = matrix(n, n, (i, k) => Math.sqrt(2 / (n + 1)) * Math.sin(((k + 1) * (i + 1) * Math.PI) / (n + 1)));
    const sizes = (a: Matrix) => matrix(n, n, a.data.map(Math.abs));
    expect(distance(sizes(vectors), sizes(waves))).toBeLessThan(1e-10);
  });

  it('knows the Clement matrix: eigenvalues -n+1, -n+3, ..., n-1', () => {
    const n = 60;
    const a = matrix(n, n, (i, j) => (Math.abs(i - j) === 1 ? Math.sqrt(Math.max(i, j) * (n - Math.max(i, j))) : 0));
    const values = linalg.eigenvalues(a);
    for (let k = 0; k < n; k++) expect(Math.abs(values[k] - (2 * k - n + 1))).toBeLessThan(1e-11);
  });

  it('separates the close pairs of the Wilkinson matrix', () => {
    const n = 21;
    const a = matrix(n, n, (i, j) => (i === j ? Math.abs(i - 10) : Math.abs(i - j) === 1 ? 1 : 0));
    const values = linalg.eigenvalues(a);
    // The two largest, as Wilkinson (1965) tabulates them, agree to 13 decimals.
    expect(Math.abs(values[20] - 10.746194182903393)).toBeLessThan(1e-13);
    expect(Math.abs(values[19] - 10.746194182903322)).toBeLessThan(1e-13);
    expect(orthonormality(linalg.eigh(a).vectors)).toBeLessThan(1e-13);
  });

  it.each([1e-280, 1, 1e280])('is unaffected by the scale %d', (factor) => {
    const a = symmetric(20, 3);
    const [plain, scaled] = [linalg.eigh(a), linalg.eigh(linalg.scale(a, factor))];
    for (let i = 0; i < 20; i++) expect(Math.abs(scaled.values[i] / factor - plain.values[i])).toBeLessThan(1e-12);
    expect(orthonormality(scaled.vectors)).toBeLessThan(1e-13);
  });

  it('of zero, the identity and a matrix with multiple values', () => {
    for (const a of [matrix(40, 40), linalg.identity(40), matrix(40, 40, () => 1)]) {
      const { values, vectors } = linalg.eigh(a);
      expect(orthonormality(vectors)).toBeLessThan(1e-13);
      expect(distance(matmul(a, vectors), linalg.scaleColumns(vectors, values))).toBeLessThan(1e-12);
    }
    expect(linalg.eigenvalues(matrix(40, 40, () => 1))[39]).toBeCloseTo(40, 11);
  });

  it('of glued Wilkinson matrices, whose values come in clusters', () => {
    const [blocks, n] = [7, 21];
    const a = matrix(blocks * n, blocks * n, (i, j) => {
      if (i === j) return Math.abs((i % n) - 10);
      if (Math.abs(i - j) !== 1) return 0;
      return Math.max(i, j) % n === 0 ? 1e-9 : 1;
    });
    const { values, vectors } = linalg.eigh(a);
    expect(orthonormality(vectors)).toBeLessThan(1e-13);
    expect(distance(matmul(a, vectors), linalg.scaleColumns(vectors, values))).toBeLessThan(1e-13 * 20);
    // Each value of one block appears once per block, within the strength of the glue.
    const single = linalg.eigenvalues(matrix(n, n, (i, j) => a.data[i * a.cols + j]));
    expect(largest(values.map((x, i) => x - single[Math.floor(i / blocks)]))).toBeLessThan(2e-9);
  });

  it.each([
    ['few values many times', (i: number) => i % 5],
    ['one value but one', (i: number) => (i === 0 ? 7 : 1)],
    ['values over 14 orders of magnitude', (i: number) => 10 ** (-i / 12)],
    ['pairs that differ in the last digits', (i: number) => (i >> 1) + (i & 1) * 1e-14],
    ['two signs', (i: number) => (i - 85) ** 3],
  ])('recovers a prescribed spectrum: %s', (_, spectrum) => {
    const n = 170;
    const exact = Float64Array.from({ length: n }, (_x, i) => spectrum(i)).sort();
    const q = linalg.qr(normal(n, n, 21)).q;
    const a = matmul(linalg.scaleColumns(q, exact), q, { transposeB: true });
    const { values, vectors } = linalg.eigh(a);
    const scale = largest(exact);
    expect(largest(values.map((x, i) => x - exact[i]))).toBeLessThan(1e-13 * scale);
    expect(orthonormality(vectors)).toBeLessThan(1e-13);
    expect(distance(matmul(a, vectors), linalg.scaleColumns(vectors, values))).toBeLessThan(1e-13 * scale);
    const alone = linalg.eigenvalues(a);
    expect(largest(values.map((x, i) => x - alone[i]))).toBeLessThan(1e-13 * scale);
  });

  it('fixes the sign of each vector', () => {
    const { vectors } = linalg.eigh(symmetric(30, 9));
    for (let j = 0; j < 30; j++) {
      const column = Array.from({ length: 30 }, (_, i) => vectors.data[i * 30 + j]);
      expect(Math.max(...column)).toBeGreaterThanOrEqual(-Math.min(...column));
    }
  });

  it('reads the lower triangle only', () => {
    const a = symmetric(37, 4);
    const lower = matrix(37, 37, (i, j) => (i >= j ? a.data[i * 37 + j] : 123));
    expect(Array.from(linalg.eigenvalues(lower))).toEqual(Array.from(linalg.eigenvalues(a)));
  });
});

describe.each([true, false])('SVD, accurate: %s', (accurate) => {
  it('has a small residual and orthonormal factors for every shape', () => {
    check((m, n, s) => {
      const a = normal(m, n, s);
      const factors = linalg.svd(a, { accurate });
      const k = Math.min(m, n);
      expect([factors.u.rows, factors.u.cols, factors.s.length, factors.v.rows, factors.v.cols]).toEqual([
        m,
        k,
        k,
        n,
        k,
      ]);
      expect(distance(rebuild(factors), a)).toBeLessThan(1e-11);
      expect(orthonormality(factors.u)).toBeLessThan(accurate ? 1e-12 : 1e-8);
      expect(orthonormality(factors.v)).toBeLessThan(1e-12);
      expect(factors.s).toEqual(factors.s.slice().sort().reverse());
    });
  });

  it('beyond one block: 150 x 110 and 110 x 150', () => {
    for (const [m, n] of [
      [150, 110],
      [110, 150],
      [200, 110],
    ]) {
      const a = normal(m, n, 5);
      const factors = linalg.svd(a, { accurate });
      expect(distance(rebuild(factors), a)).toBeLessThan(1e-11);
      expect(orthonormality(factors.u)).toBeLessThan(1e-9);
      expect(orthonormality(factors.v)).toBeLessThan(1e-12);
    }
  });

  it('keeps its factors orthonormal when the rank is deficient', () => {
    const low = matmul(normal(60, 3, 1), normal(3, 45, 2));
    for (const a of [low, transpose(low), matrix(50, 7), matrix(7, 50), matrix(40, 40, () => 1)]) {
      const factors = linalg.svd(a, { accurate });
      expect(orthonormality(factors.u)).toBeLessThan(1e-12);
      expect(orthonormality(factors.v)).toBeLessThan(1e-12);
      expect(distance(rebuild(factors), a)).toBeLessThan(accurate ? 1e-12 : 1e-8);
    }
  });

  it('has left vectors whose largest entry is positive', () => {
    const { u } = linalg.svd(normal(40, 30, 6), { accurate });
    for (let j = 0; j < 30; j++) {
      const column = Array.from({ length: 40 }, (_, i) => u.data[i * 30 + j]);
      expect(Math.max(...column)).toBeGreaterThanOrEqual(-Math.min(...column));
    }
  });
});

describe('accurate singular values', () => {
  it('of the triangle of ones: 1 / (2 cos(k pi / (2n + 1)))', () => {
    const n = 100;
    const s = linalg.singularValues(matrix(n, n, (i, j) => (i >= j ? 1 : 0)));
    for (let k = 1; k <= n; k++) {
      const expected = 1 / (2 * Math.cos((k * Math.PI) / (2 * n + 1)));
      expect(Math.abs(s[n - k] - expected)).toBeLessThan(1e-13 * s[0]);
    }
  });

  it('of a graded bidiagonal matrix, relatively, over 120 orders of magnitude', () => {
    const n = 40;
    const a = matrix(n, n, (i, j) => (i === j ? 10 ** (-3 * i) : j === i + 1 ? 0.5 * 10 ** (-3 * i) : 0));
    for (const x of [a, transpose(a)]) {
      const s = linalg.singularValues(x);
      // The product of the singular values is the determinant; each one is near its diagonal entry.
      const logarithm = s.reduce((sum, value) => sum + Math.log(value), 0);
      expect(Math.abs(logarithm / ((-3 * Math.log(10) * n * (n - 1)) / 2) - 1)).toBeLessThan(1e-13);
      for (let i = 0; i < n; i++) expect(Math.abs(Math.log10(s[i]) + 3 * i)).toBeLessThan(0.2);
    }
    // The smallest: 1 / |last row of the inverse| to first order; |U^-1 e_n| = 10^117 exactly, its row adds 1e-6 parts.
    const inverse = linalg.solveTriangular(a, linalg.identity(n), { upper: true });
    const last = linalg.spectralNorm(inverse);
    expect(Math.abs(linalg.singularValues(a)[n - 1] * last - 1)).toBeLessThan(1e-12);
  });

  it('of the Hilbert matrix of order 8', () => {
    // Symmetric positive definite: the singular values are the eigenvalues; trace and determinant are known exactly.
    const s = linalg.singularValues(hilbert(8));
    const trace = Array.from({ length: 8 }, (_, i) => 1 / (2 * i + 1)).reduce((x, y) => x + y);
    expect(Math.abs(s.reduce((x, y) => x + y) - trace)).toBeLessThan(1e-14);
    // det H_8 = 2.73705011379151e-33 (Cauchy's formula below).
    let determinant = 1;
    for (let i = 1; i < 8; i++) determinant /= (2 * i + 1) * binomial(2 * i, i) ** 2;
    expect(Math.abs(s.reduce((x, y) => x * y) / determinant - 1)).toBeLessThan(1e-5);
  });

  it('resolve what the Gram path cannot', () => {
    const q = linalg.qr(normal(30, 30, 8)).q;
    const r = linalg.qr(normal(30, 30, 9)).q;
    const spectrum = Array.from({ length: 30 }, (_, i) => 10 ** (-i / 2.5));
    const a = matmul(linalg.scaleColumns(q, spectrum), r);
    const s = linalg.singularValues(a);
    for (let i = 0; i < 30; i++) expect(Math.abs(s[i] - spectrum[i])).toBeLessThan(1e-15);
    const fast = linalg.svd(a, { accurate: false });
    expect(distance(rebuild(fast), a)).toBeLessThan(1e-8);
    expect(orthonormality(fast.u)).toBeLessThan(1e-12);
    for (let i = 0; i < 15; i++) expect(Math.abs(fast.s[i] / spectrum[i] - 1)).toBeLessThan(1e-4);
  });

  it.each([1e-290, 1e290])('do not mind the scale %d', (factor) => {
    const a = normal(30, 20, 10);
    const [plain, scaled] = [linalg.svd(a), linalg.svd(linalg.scale(a, factor))];
    for (let i = 0; i < 20; i++) expect(Math.abs(scaled.s[i] / factor / plain.s[i] - 1)).toBeLessThan(1e-12);
    expect(orthonormality(scaled.u)).toBeLessThan(1e-13);
  });
});

describe('QR', () => {
  it('is a factorisation with orthonormal columns and a positive diagonal for every shape', () => {
    check((m, n, s) => {
      const a = normal(m, n, s);
      const k = Math.min(m, n);
      const plain = linalg.qr(a);
      const pivoted = linalg.qrPivoted(a);
      expect([plain.q.rows, plain.q.cols, plain.r.rows, plain.r.cols]).toEqual([m, k, k, n]);
      expect(distance(matmul(plain.q, plain.r), a)).toBeLessThan(1e-12);
      expect(distance(matmul(pivoted.q, pivoted.r), pickColumns(a, pivoted.permutation))).toBeLessThan(1e-12);
      for (const { q, r } of [plain, pivoted]) {
        expect(orthonormality(q)).toBeLessThan(1e-13);
        expect(Math.min(...mainDiagonal(r))).toBeGreaterThanOrEqual(0);
        expect(linalg.maxNorm(only(r, (i, j) => j < i))).toBe(0);
      }
      const falling = mainDiagonal(pivoted.r);
      expect(Math.max(...falling.map((x, i) => x / (falling[i - 1] ?? x)))).toBeLessThanOrEqual(1 + 1e-12);
      expect(Array.from(pivoted.permutation).sort((x, y) => x - y)).toEqual(Array.from({ length: n }, (_, i) => i));
    });
  });

  it('leaves an orthonormal matrix alone', () => {
    const q = linalg.qr(normal(50, 20, 1)).q;
    expect(distance(linalg.qr(q).q, q)).toBeLessThan(1e-13);
  });

  it('completes the basis of a rank-deficient matrix', () => {
    const a = matmul(normal(50, 2, 1), normal(2, 40, 2));
    for (const { q, r } of [
      linalg.qr(a),
      linalg.qrPivoted(a),
      linalg.qr(matrix(9, 4)),
      linalg.qrPivoted(matrix(4, 9)),
    ]) {
      expect(orthonormality(q)).toBeLessThan(1e-13);
      expect(r.rows).toBe(q.cols);
    }
    const diagonal = linalg.qrPivoted(a).r;
    expect(diagonal.data[2 * 40 + 2]).toBeLessThan(1e-12);
    expect(diagonal.data[40 + 1]).toBeGreaterThan(0.1);
  });

  it('takes the largest column first and, among equal ones, the first', () => {
    const a = matrix(3, 4, [
      [1, 0, 0, 0],
      [0, 2, 0, 2],
      [0, 0, 3, 0],
    ]);
    expect(Array.from(linalg.qrPivoted(a).permutation)).toEqual([2, 1, 0, 3]);
    expect(Array.from(linalg.qrPivoted(linalg.identity(5)).permutation)).toEqual([0, 1, 2, 3, 4]);
  });

  it('picks pivots that follow the residual norms where running norms would cancel', () => {
    // Columns that differ by 1e-9 only: after the first pivot the rest is known to 1e-7 relative at best from norms alone.
    const base = normal(20, 1, 3);
    const noise = normal(20, 6, 4);
    const a = matrix(20, 6, (i, j) => base.data[i] + 1e-9 * (j + 1) * noise.data[i * 6 + j]);
    const { r } = linalg.qrPivoted(a);
    for (let i = 1; i + 1 < 6; i++) {
      for (let j = i + 1; j < 6; j++) {
        let tail = 0;
        for (let p = i; p <= j; p++) tail += r.data[p * 6 + j] ** 2;
        expect(Math.sqrt(tail)).toBeLessThanOrEqual(r.data[i * 6 + i] * (1 + 1e-5));
      }
    }
  });
});

describe('LU and LDU', () => {
  it('factor every shape with multipliers of at most 1', () => {
    check((m, n, s) => {
      const a = normal(m, n, s);
      const { l, u, permutation } = linalg.lu(a);
      expect(distance(matmul(l, u), pickRows(a, permutation))).toBeLessThan(1e-11);
      expect(linalg.maxNorm(l)).toBe(1);
      const parts = linalg.ldu(a);
      expect(
        distance(matmul(linalg.scaleColumns(parts.l, parts.d), parts.u), pickRows(a, parts.permutation)),
      ).toBeLessThan(1e-11);
      expect(mainDiagonal(parts.u)).toEqual(new Float64Array(Math.min(m, n)).fill(1));
    });
  });

  it('of a singular matrix', () => {
    const { d, u } = linalg.ldu(matrix(3, 3, [1, 2, 3, 2, 4, 6, 1, 2, 3]));
    expect(Array.from(d)).toEqual([2, 0, 0]);
    expect(u.data[4]).toBe(1);
    expect(() => linalg.ldu(matrix(2, 2, [0, 1, 0, 0]))).toThrow(/^a: pivot 0 is zero/);
  });

  it('knows determinants', () => {
    expect(linalg.det(pascal(8))).toBeCloseTo(1, 8);
    expect(linalg.det(matrix(2, 2, [0, 1, 1, 0]))).toBe(-1);
    expect(linalg.det(matrix(0, 0))).toBe(1);
    const n = 300;
    const { sign, log } = linalg.logdet(secondDifference(n));
    expect([sign, log]).toEqual([1, expect.closeTo(Math.log(n + 1), 9)]);
    expect(linalg.logdet(matrix(3, 3, () => 1))).toEqual({ sign: 0, log: Number.NEGATIVE_INFINITY });
    expect(() => linalg.det(matrix(2, 3))).toThrow(/^a: must be square, got 2 x 3/);
  });

  it('solves and inverts', () => {
    check((n, k, s) => {
      const a = linalg.add(normal(n, n, s), linalg.identity(n), 3 * Math.sqrt(n));
      const x = normal(n, k, s + 1);
      expect(distance(linalg.solve(a, matmul(a, x)), x)).toBeLessThan(1e-9);
      expect(distance(matmul(a, linalg.inverse(a)), linalg.identity(n))).toBeLessThan(1e-9);
    });
    // The inverse of a Pascal matrix is whole.
    const inverse = linalg.inverse(pascal(6));
    for (const x of inverse.data) expect(Math.abs(x - Math.round(x))).toBeLessThan(1e-8);
    expect(Math.round(inverse.data[0])).toBe(6);
  });

  it('refuses singular systems and names the pivot', () => {
    expect(() => linalg.solve(matrix(2, 2, [1, 2, 2, 4]), matrix(2, 1))).toThrow(/^a: is singular: pivot 1 is zero/);
    expect(() => linalg.inverse(matrix(3, 3))).toThrow(/^a: is singular: pivot 0/);
    expect(() => linalg.solve(linalg.identity(2), matrix(3, 1))).toThrow(/^b: must have as many rows as a: 2/);
  });
});

describe('Cholesky and triangles', () => {
  it('factors and solves positive definite systems', () => {
    check((n, k, s) => {
      const g = normal(n + 5, n, s);
      const a = linalg.add(matmul(g, g, { transposeA: true }), linalg.identity(n));
      const l = linalg.cholesky(a);
      expect(distance(matmul(l, l, { transposeB: true }), a)).toBeLessThan(1e-11);
      expect(linalg.maxNorm(only(l, (i, j) => j > i))).toBe(0);
      const x = normal(n, k, s + 1);
      expect(distance(linalg.solvePositive(a, matmul(a, x)), x)).toBeLessThan(1e-9);
    });
  });

  it('of the Pascal matrix is the Pascal triangle', () => {
    const l = linalg.cholesky(pascal(12));
    for (let i = 0; i < 12; i++)
      for (let j = 0; j <= i; j++) expect(Math.abs(l.data[i * 12 + j] - binomial(i, j))).toBeLessThan(1e-6);
  });

  it('names the pivot of a matrix that is not positive definite', () => {
    const a = matrix(50, 50, (i, j) => (i === j ? (i === 40 ? -1 : 2) : 0));
    expect(() => linalg.cholesky(a)).toThrow(/^a: is not positive definite: pivot 40 \(of 50\)/);
    expect(linalg.tryCholesky(a)).toBeNull();
    expect(() => linalg.cholesky(matrix(2, 2))).toThrow(/pivot 0/);
  });

  it('solves with every triangle', () => {
    for (const upper of [false, true]) {
      for (const transposed of [false, true]) {
        for (const unit of [false, true]) {
          const n = 70;
          const full = linalg.add(linalg.scale(normal(n, n, 3), 0.1), linalg.identity(n), 2);
          const triangle = matrix(n, n, (i, j) =>
            i === j ? (unit ? 1 : full.data[i * n + i]) : i < j === upper ? full.data[i * n + j] : 0,
          );
          const x = normal(n, 9, 4);
          const b = matmul(triangle, x, { transposeA: transposed });
          expect(distance(linalg.solveTriangular(full, b, { upper, transposed, unit }), x)).toBeLessThan(1e-8);
        }
      }
    }
    expect(() => linalg.solveTriangular(matrix(2, 2), matrix(2, 1))).toThrow(/^t: is singular: diagonal entry 0/);
  });
});

describe('least squares and pseudo-inverse', () => {
  it('meets the four conditions of Moore and Penrose', () => {
    check((m, n, s) => {
      const rank = 1 + (s % Math.min(m, n));
      const a = matmul(normal(m, rank, s), normal(rank, n, s + 1));
      const p = linalg.pinv(a);
      const [ap, pa] = [matmul(a, p), matmul(p, a)];
      const tolerance = 1e-9 * Math.max(1, linalg.maxNorm(p));
      expect(distance(matmul(ap, a), a)).toBeLessThan(tolerance);
      expect(distance(matmul(pa, p), p)).toBeLessThan(tolerance * Math.max(1, linalg.maxNorm(p)));
      expect(distance(ap, transpose(ap))).toBeLessThan(tolerance);
      expect(distance(pa, transpose(pa))).toBeLessThan(tolerance);
    });
  });

  it('solves over- and underdetermined systems', () => {
    check((m, n, s) => {
      const [a, b] = [normal(m, n, s), normal(m, 3, s + 1)];
      const { x, rank } = linalg.lstsq(a, b);
      expect(rank).toBe(Math.min(m, n));
      const residual = linalg.add(matmul(a, x), b, -1);
      const size = Math.max(1, linalg.maxNorm(x));
      // The residual is orthogonal to the columns of a; among all solutions x is in the row space of a.
      expect(linalg.maxNorm(matmul(a, residual, { transposeA: true }))).toBeLessThan(1e-9 * size);
      expect(distance(matmul(linalg.pinv(a), matmul(a, x)), x)).toBeLessThan(1e-8 * size);
    });
  });

  it('finds the rank and the solution of smallest norm', () => {
    const a = matrix(3, 2, [1, 1, 1, 1, 1, 1]);
    const { x, rank } = linalg.lstsq(a, matrix(3, 1, [1, 2, 3]));
    expect(rank).toBe(1);
    expect(Array.from(x.data)).toEqual([expect.closeTo(1, 12), expect.closeTo(1, 12)]);
    expect(linalg.rank(matmul(normal(40, 7, 1), normal(7, 30, 2)))).toBe(7);
    expect(linalg.rank(matrix(4, 5))).toBe(0);
    expect(
      Array.from(
        linalg.lstsq(
          matrix(4, 2),
          matrix(4, 1, () => 1),
        ).x.data,
      ),
    ).toEqual([0, 0]);
    expect(linalg.rank(linalg.diagonal([1, 1e-3, 1e-6]), 1e-4)).toBe(2);
  });
});

describe('norms', () => {
  const a = matrix(2, 3, [3, 0, -4, 0, 5, 12]);
  it('agree with their definitions', () => {
    expect(linalg.frobeniusNorm(a)).toBeCloseTo(Math.sqrt(194), 12);
    expect([linalg.oneNorm(a), linalg.infinityNorm(a), linalg.maxNorm(a)]).toEqual([16, 17, 12]);
    expect(linalg.spectralNorm(linalg.diagonal([2, -7, 3]))).toBeCloseTo(7, 12);
    expect(linalg.nuclearNorm(linalg.diagonal([2, -7, 3]))).toBeCloseTo(12, 12);
    expect(linalg.conditionNumber(linalg.diagonal([2, -8, 4]))).toBeCloseTo(4, 12);
    expect(linalg.conditionNumber(matrix(2, 2))).toBe(Number.POSITIVE_INFINITY);
    // Todd's table: the condition of the Hilbert matrix of order 6 is 1.4951e7.
    expect(linalg.conditionNumber(hilbert(6))).toBeCloseTo(14951058.6, 0);
    expect(linalg.frobeniusNorm(matrix(1, 2, [3e300, 4e300]))).toBeCloseTo(5e300, -288);
  });
});

describe('DCT', () => {
  it.each([1, 2, 7, 64])('of size %i is orthogonal, type 3 its inverse', (n) => {
    const c = linalg.dctMatrix(n);
    expect(orthonormality(c)).toBeLessThan(1e-14 * n + 1e-15);
    expect(distance(linalg.dctMatrix(n, 3), transpose(c))).toBe(0);
    const x = normal(n, 3, 1);
    expect(distance(linalg.dct3(linalg.dct2(x)), x)).toBeLessThan(1e-13);
  });

  it('is the definition', () => {
    const n = 5;
    const y = linalg.dct2(matrix(n, 1, [1, 2, 0, -1, 4]));
    for (let k = 0; k < n; k++) {
      const sum = [1, 2, 0, -1, 4].reduce((s, x, j) => s + x * Math.cos((Math.PI * (j + 0.5) * k) / n), 0);
      expect(y.data[k]).toBeCloseTo(Math.sqrt((k ? 2 : 1) / n) * sum, 12);
    }
    expect(linalg.dct2(matrix(4, 1, () => 1)).data[0]).toBeCloseTo(2, 14);
    expect(() => linalg.dctMatrix(0)).toThrow(/^n: /);
  });
});

describe('bad input', () => {
  it('is refused by the name of the argument', () => {
    const spoiled = matrix(2, 2, [1, 2, Number.NaN, 4]);
    for (const f of [
      linalg.eigh,
      linalg.svd,
      linalg.qr,
      linalg.qrPivoted,
      linalg.lu,
      linalg.cholesky,
      linalg.pinv,
      linalg.inverse,
      linalg.det,
    ]) {
      expect(() => f(spoiled)).toThrow(/^a: entries must be finite, got NaN at \(1, 0\)/);
    }
    expect(() => linalg.svd({ shape: [2, 2] } as never)).toThrow(/^a: is not a Matrix; .* toMatrix\(tensor\)/);
    expect(() => linalg.lstsq(linalg.identity(2), spoiled)).toThrow(/^b: entries must be finite/);
    expect(() => linalg.eigh(matrix(2, 3))).toThrow(/^a: must be square, got 2 x 3/);
    expect(() => linalg.svd({ rows: 2, cols: 2, data: new Float64Array(3) })).toThrow(/^a: 2 x 2 needs 4 entries/);
    expect(() => matrix(-1, 2)).toThrow(/^matrix: /);
    expect(() => matrix(2, 2, [1, 2, 3])).toThrow(/^matrix: 2 x 2 needs 4 entries, got 3/);
    expect(() => matrix(2, 2, [[1, 2], [3]])).toThrow(/^matrix: row 1 has 1 entries/);
  });

  it('arguments are never changed', () => {
    const a = symmetric(20, 1);
    const copy = a.data.slice();
    for (const f of [linalg.eigh, linalg.svd, linalg.qr, linalg.qrPivoted, linalg.lu, linalg.pinv]) f(a);
    linalg.solve(a, a);
    expect(a.data).toEqual(copy);
  });

  it('empty matrices are no special case', () => {
    for (const a of [matrix(0, 0), matrix(3, 0), matrix(0, 3)]) {
      expect(linalg.svd(a).s.length).toBe(0);
      expect(linalg.qr(a).q.rows).toBe(a.rows);
      expect(linalg.qrPivoted(a).permutation.length).toBe(a.cols);
      expect(linalg.pinv(a).rows).toBe(a.cols);
      expect(linalg.rank(a)).toBe(0);
      expect(linalg.lstsq(a, matrix(a.rows, 2)).x.cols).toBe(2);
    }
    expect(linalg.eigh(matrix(0, 0)).values.length).toBe(0);
  });
});
