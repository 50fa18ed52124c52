import { ready } from '@matforge/engine';
import * as tf from '@tensorflow/tfjs';
import { linalg, type Matrix, matrix, random, randomizedSvd, thinSvd, toMatrix, toTensor } from '../src/index.ts';

/** m x n with orthonormal factors from a seed and the given singular values. */
function withSpectrum(m: number, n: number, s: number[], seed = 1): Matrix {
  const stream = random(seed);
  const left = linalg.qr(matrix(m, s.length, () => stream.gaussian())).q;
  const right = linalg.qr(matrix(n, s.length, () => stream.gaussian())).q;
  return linalg.matmul(linalg.scaleColumns(left, s), right, { transposeB: true });
}

const rebuild = ({ u, s, v }: { u: tf.Tensor2D; s: tf.Tensor1D; v: tf.Tensor2D }) =>
  linalg.matmul(linalg.scaleColumns(toMatrix(u), s.dataSync()), toMatrix(v), { transposeB: true });

const orthonormality = (q: tf.Tensor2D) => {
  const a = toMatrix(q);
  return linalg.maxNorm(linalg.add(linalg.matmul(a, a, { transposeA: true }), linalg.identity(a.cols), -1));
};

const use = (backend: string) => async () => {
  if (backend === 'wasm') await ready();
  else await tf.setBackend(backend);
};

describe('tensors and matrices', () => {
  beforeAll(use('cpu'));

  it('round trip', () => {
    tf.tidy(() => {
      const a = toMatrix(tf.tensor2d([1, 2, 3, 4, 5, 6], [2, 3]));
      expect([a.rows, a.cols, ...a.data]).toEqual([2, 3, 1, 2, 3, 4, 5, 6]);
      expect(toMatrix(tf.tensor1d([1, 2])).cols).toBe(1);
      expect(Array.from(toTensor(a).dataSync())).toEqual([1, 2, 3, 4, 5, 6]);
      expect(() => toMatrix(tf.zeros([1, 2, 3]), 'weights')).toThrow(/weights: .*rank 2.*1,2,3/);
    });
  });
});

describe.each([true, false])('thinSvd, accurate: %s', (accurate) => {
  beforeAll(use('cpu'));

  it.each([
    [1, 1],
    [40, 17],
    [17, 40],
    [128, 128],
  ])('rebuilds a %i x %i kernel and leaks nothing', (m, n) => {
    const kernel = random(3).normal([m, n]) as tf.Tensor2D;
    const before = tf.memory().numTensors;
    const factors = thinSvd(kernel, { accurate });
    expect(tf.memory().numTensors).toBe(before + 3);
    const k = Math.min(m, n);
    expect([factors.u.shape, factors.s.shape, factors.v.shape]).toEqual([[m, k], [k], [n, k]]);
    expect(linalg.maxNorm(linalg.add(rebuild(factors), toMatrix(kernel), -1))).toBeLessThan(3e-6);
    expect(orthonormality(factors.u)).toBeLessThan(1e-6);
    expect(orthonormality(factors.v)).toBeLessThan(1e-6);
    tf.dispose([kernel, ...Object.values(factors)]);
  });

  it('gives orthonormal factors of zero and of rank-deficient kernels', () => {
    const deficient = toTensor(withSpectrum(30, 20, [3, 2, 1]));
    for (const kernel of [tf.zeros([6, 4]) as tf.Tensor2D, deficient]) {
      const factors = thinSvd(kernel, { accurate });
      expect(orthonormality(factors.u)).toBeLessThan(1e-6);
      expect(orthonormality(factors.v)).toBeLessThan(1e-6);
      expect(linalg.maxNorm(linalg.add(rebuild(factors), toMatrix(kernel), -1))).toBeLessThan(1e-6);
      tf.dispose([kernel, ...Object.values(factors)]);
    }
  });
});

describe.each(['cpu', 'wasm'])('randomizedSvd on %s', (backend) => {
  beforeAll(use(backend));

  const spectrum = Array.from({ length: 120 }, (_, i) => 2 ** (-i / 8));

  it.each([
    [200, 150],
    [150, 200],
  ])('finds the leading triplets of a %i x %i kernel', (m, n) => {
    const exact = withSpectrum(m, n, spectrum);
    const kernel = toTensor(exact);
    const before = tf.memory().numTensors;
    const factors = randomizedSvd(kernel, 16);
    expect(tf.memory().numTensors).toBe(before + 3);
    expect([factors.u.shape, factors.s.shape, factors.v.shape]).toEqual([[m, 16], [16], [n, 16]]);
    const s = factors.s.dataSync();
    for (let i = 0; i < 16; i++) expect(Math.abs(s[i] / spectrum[i] - 1)).toBeLessThan(1e-4);
    expect(orthonormality(factors.u)).toBeLessThan(2e-6);
    expect(orthonormality(factors.v)).toBeLessThan(2e-6);
    // Eckart-Young: the residual's spectral norm is the next singular value.
    const residual = linalg.spectralNorm(linalg.add(exact, rebuild(factors), -1));
    expect(Math.abs(residual / spectrum[16] - 1)).toBeLessThan(1e-2);
    tf.dispose([kernel, ...Object.values(factors)]);
  });

  it('has left vectors whose largest entry is positive', () => {
    const kernel = toTensor(withSpectrum(150, 140, spectrum, 5));
    const factors = randomizedSvd(kernel, 8);
    const u = toMatrix(factors.u);
    for (let j = 0; j < 8; j++) {
      let largest = 0;
      for (let i = 0; i < 150; i++) {
        const x = u.data[i * 8 + j];
        if (Math.abs(x) > Math.abs(largest)) largest = x;
      }
      expect(largest).toBeGreaterThan(0);
    }
    tf.dispose([kernel, ...Object.values(factors)]);
  });

  it('repeats itself for a seed', () => {
    const kernel = toTensor(withSpectrum(130, 120, spectrum, 7));
    const runs = [1, 1, 2].map((seed) => randomizedSvd(kernel, 4, { iterations: 0, random: random(seed) }));
    const [a, b, c] = runs.map((run) => Array.from(run.u.dataSync()));
    expect(a).toEqual(b);
    expect(a).not.toEqual(c);
    for (const run of runs) tf.dispose([run.u, run.s, run.v]);
    kernel.dispose();
  });

  it.each([1, 1e25, 1e-25])('survives rank deficiency at scale %d', (size) => {
    const exact = linalg.scale(withSpectrum(160, 140, [5, 3, 2]), size);
    const kernel = toTensor(exact);
    const factors = randomizedSvd(kernel, 8);
    expect(linalg.maxNorm(linalg.add(rebuild(factors), exact, -1)) / size).toBeLessThan(1e-5);
    expect(orthonormality(factors.u)).toBeLessThan(2e-6);
    expect(orthonormality(factors.v)).toBeLessThan(2e-6);
    tf.dispose([kernel, ...Object.values(factors)]);
  });

  it('decomposes the zero kernel', () => {
    const kernel = tf.zeros([120, 130]) as tf.Tensor2D;
    const factors = randomizedSvd(kernel, 3);
    expect(Array.from(factors.s.dataSync())).toEqual([0, 0, 0]);
    expect(orthonormality(factors.u)).toBeLessThan(1e-6);
    tf.dispose([kernel, ...Object.values(factors)]);
  });

  it('refuses bad input and leaks nothing', () => {
    const kernel = random(1).normal([120, 110]) as tf.Tensor2D;
    const spoiled = tf.tidy(() => tf.where(tf.greater(kernel, 3), Number.NaN, kernel)) as tf.Tensor2D;
    const column = tf.tensor1d([1]);
    const before = tf.memory().numTensors;
    expect(() => randomizedSvd(kernel, 0)).toThrow(/^rank: .*1 to 110.*got 0/);
    expect(() => randomizedSvd(kernel, 111)).toThrow(/^rank: .*1 to 110.*got 111/);
    expect(() => randomizedSvd(kernel, 4, { iterations: -1 })).toThrow(/^iterations: /);
    expect(() => randomizedSvd(kernel, 4, { oversampling: 1.5 })).toThrow(/^oversampling: /);
    expect(() => randomizedSvd(spoiled, 4)).toThrow(/^kernel: .*finite/);
    expect(() => thinSvd(spoiled)).toThrow(/^kernel: .*finite/);
    expect(() => thinSvd(column as unknown as tf.Tensor2D)).toThrow(/^kernel: must be a matrix/);
    expect(tf.memory().numTensors).toBe(before);
    tf.dispose([kernel, spoiled, column]);
  });
});
