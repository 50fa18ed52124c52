import * as tf from '@tensorflow/tfjs';
import { batchMatMul, cholesky, eigh, einsum, qr } from '../src/ops/index.ts';
import { backends, deviation, gradientError, leaked, useBackend, values } from './backends.ts';

const transposed = (x: tf.Tensor): tf.Tensor => einsum('...ij->...ji', x);
/** Symmetric with well separated eigenvalues, or positive definite with a shift. */
const symmetric = (n: number, lead: number[] = [], shift = 0): tf.Tensor =>
  tf.tidy(() => {
    const a = values([...lead, n, n], n);
    const spread = tf.mul(tf.eye(n), tf.add(tf.range(0, n), shift));
    return tf.add(tf.mul(tf.add(a, transposed(a)), 0.3), spread);
  });

describe.each(backends)('decompositions on %s', (backend) => {
  beforeAll(() => useBackend(backend));
  beforeEach(() => tf.engine().startScope());
  afterEach(() => tf.engine().endScope());

  test.each([[[4, 4]], [[5, 3]], [[3, 5]], [[2, 4, 3]], [[2, 1, 2, 3]], [[1, 1]]])('qr of %p', (shape) => {
    const x = tf.add(values(shape), tf.mul(1.5, tf.eye(shape.at(-2)!, shape.at(-1))));
    const { q, r } = qr(x);
    const k = Math.min(shape.at(-1)!, shape.at(-2)!);
    expect(deviation(batchMatMul(q, r), x)).toBeLessThan(1e-5);
    expect(deviation(batchMatMul(q, q, true), tf.add(tf.zeros([...shape.slice(0, -2), k, k]), tf.eye(k)))).toBeLessThan(
      1e-5,
    );
    expect(
      Math.max(
        ...tf
          .mul(r, tf.sub(1, tf.linalg.bandPart(tf.ones([k, shape.at(-1)!]), 0, -1)))
          .abs()
          .dataSync(),
      ),
    ).toBe(0);
    expect(gradientError((t) => qr(t).q, [x], 4e-3)).toBeLessThan(3e-3);
    expect(gradientError((t) => qr(t).r, [x], 4e-3)).toBeLessThan(3e-3);
    const both = (t: tf.Tensor): tf.Tensor => {
      const { q: p, r: s } = qr(t);
      return tf.mul(tf.sum(tf.square(p.slice([0], [1]))), tf.sum(tf.exp(s)));
    };
    expect(gradientError(both, [x], 4e-3)).toBeLessThan(5e-3);
    expect(leaked((t) => Object.values(qr(t)), [x])).toBe(0);
  });

  test.each([
    [4, []],
    [1, []],
    [3, [2]],
  ] as [number, number[]][])('cholesky of size %i, batch %p', (n, lead) => {
    const x = symmetric(n, lead, 2);
    const l = cholesky(x);
    expect(deviation(batchMatMul(l, l, false, true), x)).toBeLessThan(1e-5);
    expect(gradientError(cholesky, [x], 4e-3)).toBeLessThan(2e-3);
    expect(leaked(cholesky, [x])).toBe(0);
  });

  test.each([
    [4, []],
    [1, []],
    [3, [2]],
  ] as [number, number[]][])('eigh of size %i, batch %p', (n, lead) => {
    const x = symmetric(n, lead);
    const { values: w, vectors: v } = eigh(x);
    expect(deviation(einsum('...ik,...k,...jk->...ij', v, w, v), x)).toBeLessThan(1e-5);
    expect(gradientError((t) => eigh(t).values, [x], 4e-3)).toBeLessThan(2e-3);
    expect(gradientError((t) => eigh(t).vectors, [x], 4e-3)).toBeLessThan(3e-3);
    expect(leaked((t) => Object.values(eigh(t)), [x])).toBe(0);
  });

  test('a function of x through eigh is right where eigenvalues coincide', () => {
    // Σ w² = ‖x‖², and v·vᵀ does not depend on the choice of v within an eigenspace.
    const x = tf.eye(3);
    const square = tf.grad((t) => tf.sum(tf.square(eigh(t).values)))(x);
    expect(deviation(square, tf.mul(2, x))).toBeLessThan(1e-6);
    const projector = tf.grad((t) =>
      tf.sum(tf.mul(einsum('ik,jk->ij', eigh(t).vectors, eigh(t).vectors), values([3, 3]))),
    )(x);
    expect(deviation(projector, tf.zeros([3, 3]))).toBeLessThan(1e-6);
  });

  test('what cannot be decomposed is refused', () => {
    expect(() => cholesky(values([2, 3]))).toThrow('x: has shape [2,3]; square matrices');
    expect(() => cholesky(tf.neg(tf.eye(3)))).toThrow('not positive definite');
    expect(() => eigh(values([3]))).toThrow('square matrices');
    expect(() => qr(values([3]))).toThrow('matrices [..., m, n]');
    expect(() => tf.grad((t) => tf.sum(qr(t).r))(tf.zeros([2, 2]))).toThrow('r has a zero at [0, 0]');
  });
});
