import { adapterTensors, attach, detach, functional, lowRankProduct, random, ready } from '@matforge/core';
import { denseModel, testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { CovarianceCollector, contextError, corda, cordaDecompose, cordaInit, cordaTruncate } from '../src/index.ts';
import { collect, plainTruncation, suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

/** A kernel and the covariance of inputs with a falling spectrum. */
function example(inDim = 8, outDim = 6): { W: tf.Tensor2D; C: tf.Tensor2D } {
  const stream = random(9);
  const spread = tf.div(1, tf.range(1, inDim + 1));
  const x = tf.mul(stream.normal([40, inDim]), spread);
  return { W: stream.normal([inDim, outDim]) as tf.Tensor2D, C: collect([x], 'none') };
}

beforeAll(async () => {
  await ready();
});

const largest = (x: tf.Tensor): number => tf.max(tf.abs(x)).dataSync()[0];

describe('invariants', () => {
  test('P·diag(S)·Vᵀ is the kernel', () => {
    tf.tidy(() => {
      const { W, C } = example();
      const { P, S, V } = cordaDecompose(W, C);
      const product = tf.matMul(tf.mul(P, S) as tf.Tensor2D, V, false, true);
      expect(largest(tf.sub(product, W))).toBeLessThan(1e-4 * largest(W));
    });
  });

  test.each([
    [5, 8],
    [8, 5],
    [6, 6],
  ])('the largest r and the smallest k − r components of a [%i, %i] kernel add up to it', (inDim, outDim) => {
    tf.tidy(() => {
      const { W, C } = example(inDim, outDim);
      const k = Math.min(inDim, outDim);
      const [top, rest] = [
        cordaInit(W, C, { rank: 2, mode: 'ipm' }),
        cordaInit(W, C, { rank: k - 2, mode: 'kpm' }),
      ].map(({ A, B }) => lowRankProduct(A, B));
      expect(largest(tf.sub(tf.add(top, rest), W))).toBeLessThan(1e-4 * largest(W));
      for (const mode of ['ipm', 'kpm'] as const)
        expect(largest(cordaInit(W, C, { rank: k, mode }).residual)).toBeLessThan(1e-4 * largest(W));
    });
  });

  test('scaling the covariance scales S and changes nothing else', () => {
    tf.tidy(() => {
      const { W, C } = example();
      const [one, two] = [C, tf.mul(C, 7) as tf.Tensor2D].map((covariance) => cordaInit(W, covariance, { rank: 3 }));
      expect(largest(tf.sub(one.residual, two.residual))).toBeLessThan(1e-4);
      expect(largest(tf.sub(tf.div(two.S, one.S), 7))).toBeLessThan(1e-3);
    });
  });

  test.each(['ipm', 'kpm'] as const)('with white inputs %s is the plain SVD, whatever the damping', (mode) => {
    tf.tidy(() => {
      const { W } = example();
      const top = plainTruncation(W, mode === 'ipm' ? 2 : 4);
      const expected = mode === 'ipm' ? top : tf.sub(W, top);
      for (const damp of [0.01, 3]) {
        const { A, B } = cordaInit(W, tf.eye(8), { rank: 2, mode, damp });
        expect(largest(tf.sub(lowRankProduct(A, B), expected))).toBeLessThan(1e-4);
      }
    });
  });

  test('with a scale s the product s·A·B is the same', () => {
    tf.tidy(() => {
      const { W, C } = example();
      const [one, scaled] = [1, 2.5].map((scale) => cordaInit(W, C, { rank: 3, mode: 'kpm', scale }));
      expect(largest(tf.sub(one.residual, scaled.residual))).toBeLessThan(1e-5);
    });
  });

  test('one batch gives the same factors with every normalisation, up to the scale of the covariance', () => {
    tf.tidy(() => {
      const stream = random(4);
      const [x, W] = [stream.normal([20, 5]), stream.normal([5, 4]) as tf.Tensor2D];
      const residuals = (['none', 'absmax', 'official'] as const).map(
        (normalize) => cordaInit(W, collect([x], normalize), { rank: 2 }).residual,
      );
      for (const residual of residuals) expect(largest(tf.sub(residual, residuals[0]))).toBeLessThan(1e-4);
    });
  });

  test('a truncated kernel is nearer on the data than the plain SVD of the same rank', () => {
    const { W, C } = example();
    const [oriented, plain] = [cordaTruncate(W, C, { drop: 3 }), plainTruncation(W, 3)];
    expect(contextError(W, oriented, C)).toBeLessThan(0.9 * contextError(W, plain, C));
    // The dropped singular values are the error.
    const { P, S, V } = cordaDecompose(W, C);
    expect(contextError(W, oriented, C)).toBeCloseTo(Math.hypot(...S.dataSync().slice(3)), 3);
    tf.dispose([W, C, oriented, plain, P, S, V]);
  });
});

test('attaching uses the inputs of each layer', async () => {
  const model = denseModel([6, 8, 5]);
  const x = random(5).normal([9, 6]) as tf.Tensor2D;
  const [kernel, bias, W] = [...model.layers[0].getWeights(), ...model.layers[1].getWeights()] as tf.Tensor2D[];
  const hidden = tf.tidy(() => tf.tanh(tf.add(tf.matMul(x, kernel), bias)) as tf.Tensor2D);
  const expected = tf.tidy(() => {
    const { A, B } = cordaInit(W, tf.matMul(hidden, hidden, true), { rank: 3 });
    return lowRankProduct(A, B);
  });
  await attach(model, corda({ rank: 3, normalize: 'none' }), {
    calibration: { data: [{ xs: x }] },
    targets: ['layer1'],
  });
  const { A, B } = adapterTensors(model, 'default').layer1;
  expect(tf.tidy(() => largest(tf.sub(lowRankProduct(A, B), expected)))).toBeLessThan(1e-3);
  tf.dispose([x, hidden, expected]);
  detach(model);
  model.dispose();
});

describe('bad input', () => {
  test.each([
    ['another size', () => tf.eye(5), /kernel\.covariance: must be \[8, 8\] for a kernel of 8 rows, got \[5,5\]/],
    ['no symmetry', () => tf.add(tf.eye(8), tf.range(0, 8)), /must be symmetric/],
    ['NaN', () => tf.fill([8, 8], Number.NaN), /values that are not finite/],
    ['zeros', () => tf.zeros([8, 8]), /activations are all zero/],
  ])('a covariance with %s is refused', (_, make, message) => {
    tf.tidy(() => {
      const W = random(1).normal([8, 6]) as tf.Tensor2D;
      expect(() => cordaInit(W, make() as tf.Tensor2D, { rank: 2 })).toThrow(message);
    });
  });

  test('ranks, modes and numbers of components out of range are refused with the limit', () => {
    tf.tidy(() => {
      const { W, C } = example();
      expect(() => cordaInit(W, C, { rank: 7 })).toThrow(
        /kernel\.rank: must be a whole number from 1 to .* = 6, got 7/,
      );
      expect(() => cordaInit(W, C, { rank: 1, mode: 'other' as 'ipm' })).toThrow(/must be "ipm" or "kpm", got "other"/);
      expect(() => cordaTruncate(W, C, { drop: 7 })).toThrow(/drop: must be a whole number from 0 to .* = 6, got 7/);
      expect(() => functional(corda({ rank: 2 }), { kernel: W }).init()).toThrow(/kernel: covariance is empty/);
    });
  });

  test('the collector refuses no batch, zeros, NaN and another width, and holds what it had', () => {
    const collector = new CovarianceCollector();
    expect(() => collector.covariance()).toThrow(/covariance is empty/);
    const [ones, zero, broken, wide] = [
      tf.ones([2, 3]),
      tf.zeros([2, 3]),
      tf.fill([2, 3], Number.NaN),
      tf.ones([2, 4]),
    ];
    collector.add(ones);
    expect(() => collector.add(zero)).toThrow(/activations are all zero/);
    expect(() => collector.add(broken)).toThrow(/not finite/);
    expect(() => collector.add(wide)).toThrow(/have width 4, the batches before had 3/);
    const covariance = collector.covariance();
    expect(Array.from(covariance.dataSync())).toEqual(new Array(9).fill(2));
    collector.dispose();
    tf.dispose([ones, zero, broken, wide, covariance]);
  });

  test('a layer that sees only zeros is named', async () => {
    const model = denseModel([6, 8, 5]);
    const xs = tf.zeros([2, 6]);
    await expect(attach(model, corda({ rank: 2 }), { calibration: { data: [{ xs }] } })).rejects.toThrow(
      /layer0: activations are all zero/,
    );
    await expect(attach(model, corda({ rank: 2 }))).rejects.toThrow(/calibration: is missing/);
    xs.dispose();
    model.dispose();
  });
});
