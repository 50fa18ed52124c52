import { attach, detach, random } from '@matforge/core';
import { denseModel, testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  BTTDense,
  type BttShape,
  btt,
  bttApply,
  bttNormalize,
  bttProject,
  bttToDense,
  factorize,
  fitPowerLaw,
  structuredScaling,
} from '../src/index.ts';
import { family, suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

describe('invariants', () => {
  const shape: BttShape = { inFactors: [3, 4], outFactors: [4, 5], rank: 3 };

  test('two cores of rank min(ms₀, ns₁) are every kernel', () => {
    tf.tidy(() => {
      expect(bttProject(random(1).normal([12, 20]) as tf.Tensor2D, shape).relError).toBeLessThan(1e-6);
      expect(bttProject(random(1).normal([12, 20]) as tf.Tensor2D, { ...shape, rank: 2 }).relError).toBeGreaterThan(
        0.1,
      );
    });
  });

  test('at rank 1 it is a Monarch matrix with its outputs in another order', () => {
    tf.tidy(() => {
      const [ms, ns] = [4, 4];
      const [A, B] = [random(1).normal([ms, 4, ns]), random(2).normal([ns, ms, 4])];
      const W = bttToDense([A, B], { inFactors: [4, ms], outFactors: [ns, 4], rank: 1 });
      // Monarch: W[k·p + i, o·N + l] = A[k, i, l]·B[l, k, o].
      const monarch = tf.einsum('kil,lko->kiol', A, B);
      const reordered = tf.transpose(tf.reshape(monarch, [16, 4, 4]), [0, 2, 1]);
      expect(Array.from(W.dataSync())).toEqual(Array.from(reordered.dataSync(), (value) => expect.closeTo(value, 5)));
    });
  });

  test('cores that do not depend on their leading indices make a Kronecker product', () => {
    tf.tidy(() => {
      const [a, b] = [random(1).normal([3, 4]), random(2).normal([4, 5])];
      const repeat = (t: tf.Tensor, times: number) => tf.tile(tf.expandDims(t, 0), [times, 1, 1]);
      const W = bttToDense([repeat(a, 4), repeat(b, 4)], { ...shape, rank: 1 });
      const [first, second] = [a.arraySync(), b.arraySync()] as number[][][];
      const values = W.arraySync();
      for (let j1 = 0; j1 < 4; j1++)
        for (let j0 = 0; j0 < 3; j0++)
          for (let i0 = 0; i0 < 4; i0++)
            for (let i1 = 0; i1 < 5; i1++)
              expect(values[j1 * 3 + j0][i0 * 5 + i1]).toBeCloseTo(first[j0][i0] * second[j1][i1], 5);
    });
  });

  const drawCores = (scale: number) => [
    random(1).normal([4, 3, 12], 0, scale) as tf.Tensor,
    random(2).normal([4, 12, 5], 0, scale) as tf.Tensor,
  ];

  test('normalising small cores with gains of 1 changes nothing', () => {
    tf.tidy(() => {
      const cores = drawCores(0.01);
      const normalized = bttNormalize(cores, tf.ones([2]), shape);
      for (const t of [0, 1]) expect(Array.from(normalized[t].dataSync())).toEqual(Array.from(cores[t].dataSync()));
    });
  });

  test('normalising takes the scale off large cores', () => {
    tf.tidy(() => {
      const [once, thrice] = [1, 3].map((scale) =>
        bttToDense(bttNormalize(drawCores(5 * scale), tf.ones([2]), shape), shape),
      );
      expect(tf.max(tf.abs(tf.sub(once, thrice))).dataSync()[0]).toBeLessThan(1e-6);
    });
  });

  test('three cores find a kernel of their form again, and come near another', () => {
    const config = { cores: 3, rank: 2 };
    const W = random(5).normal([27, 27]) as tf.Tensor2D;
    const { kernel, relError, exact } = family.fromDense(W, config);
    const lower = family.fromDense(W, { ...config, rank: 1 });
    expect(exact).toBe(false);
    expect(relError).toBeLessThan(lower.relError);
    expect(lower.relError).toBeLessThan(1);
    W.dispose();
    kernel.dispose();
    lower.kernel.dispose();
  });
});

test('widths are cut greedily, as the official code cuts them', () => {
  expect([64, 768, 12, 7, 1].map((width) => factorize(width, 2))).toEqual([
    [8, 8],
    [16, 48],
    [2, 6],
    [1, 7],
    [1, 1],
  ]);
  expect(factorize(64, 3)).toEqual([4, 4, 4]);
  expect(factorize(360, 3)).toEqual([6, 6, 10]);
});

test('with normalize the projection keeps its map, and gains train at the base rate', async () => {
  const held = tf.memory().numTensors;
  const model = denseModel([8, 12]);
  const [kernel] = model.getWeights();
  const plain = bttProject(kernel as tf.Tensor2D, { inFactors: [2, 4], outFactors: [2, 6], rank: 1 });
  const P = bttToDense(plain.cores, { inFactors: [2, 4], outFactors: [2, 6], rank: 1 });
  await attach(model, btt({ normalize: true }), { targets: ['layer0'] });
  tf.tidy(() => {
    const zero = tf.sub(model.apply(tf.eye(8)) as tf.Tensor, model.apply(tf.zeros([1, 8])) as tf.Tensor);
    expect(tf.max(tf.abs(tf.sub(zero, P))).dataSync()[0]).toBeLessThan(1e-5);
  });
  const layer = new BTTDense({ units: 12, normalize: true });
  layer.build([null, 8]);
  expect(layer.lrMultipliers(64)).toEqual({ core0: 64 / (2 * 2), core1: 64 / (4 * 2), gamma: 1 });
  layer.dispose();
  detach(model);
  model.dispose();
  tf.dispose([P, ...plain.cores]);
  expect(tf.memory().numTensors).toBe(held);
});

describe('structuredScaling', () => {
  test.each(['lowRank', 'kron', 'tt', 'btt', 'monarch', 'dense'])(
    '%s: multiplier · in-width · factors = base width',
    (structure) => {
      const { factorInDims, lrMultiplier, initStd, factorOutDims } = structuredScaling({
        ...{ structure, inDim: 48, outDim: 96, rank: 3, cores: 3, nblocks: 5, baseInDim: 32 },
      });
      for (const [i, d] of factorInDims.entries()) {
        expect(lrMultiplier[i] * d * factorInDims.length).toBeCloseTo(32, 10);
        expect(initStd[i]).toBeCloseTo(Math.sqrt(1 / d) * Math.min(1, Math.sqrt(factorOutDims[i] / d)), 12);
      }
    },
  );

  test('agrees with what the layers declare', () => {
    const { factorInDims } = structuredScaling({ structure: 'btt', inDim: 24, outDim: 36, rank: 2, cores: 3 });
    const kernel = family.init({ inDim: 24, outDim: 36, rank: 2, cores: 3 });
    expect(Object.values(kernel.factorInDims())).toEqual(factorInDims);
    kernel.dispose();
  });

  test('names the structures that it knows', () => {
    const at = (options: object) => () => structuredScaling({ structure: 'btt', inDim: 4, outDim: 4, ...options });
    expect(at({ structure: 'mtt' })).toThrow(
      /structure: "mtt" is not known; did you mean ".*"\? Known: dense, lowRank/,
    );
    expect(at({ rank: 0 })).toThrow(/rank: must be a positive integer, got 0/);
  });
});

test('a power law is found from points on it', () => {
  const compute = [1e3, 1e4, 1e6];
  const { k, alpha } = fitPowerLaw(
    compute,
    compute.map((value) => 3 * value ** -0.25),
  );
  expect(alpha).toBeCloseTo(0.25, 10);
  expect(k).toBeCloseTo(3, 8);
  expect(() => fitPowerLaw([1, 2], [1])).toThrow(/one value per compute/);
  expect(() => fitPowerLaw([1, 1], [1, 2])).toThrow(/same at every point/);
});

test('cores that do not fit are refused by name with both shapes', () => {
  tf.tidy(() => {
    const shape = { inFactors: [2, 3], outFactors: [2, 2], rank: 1 };
    const [x, core0, core1] = [tf.zeros([1, 6]), tf.zeros([3, 2, 2]), tf.zeros([2, 3, 2])];
    expect(() => bttApply(x, [core1, core1], shape)).toThrow(/core0: has shape \[2,3,2\]; expected \[3,2,2\]/);
    expect(() => bttApply(x, [core0], shape)).toThrow(/1 cores, 2 input and 2 output factors/);
    expect(() => bttApply(tf.zeros([1, 5]), [core0, core1], shape)).toThrow(/expected inDim 6 on the last axis, got 5/);
    expect(() => bttApply(x, [core0], { inFactors: [6], outFactors: [4], rank: 1 })).toThrow(
      /at least 2 are needed, got 1/,
    );
    expect(() => bttProject(tf.zeros([5, 4]), shape)).toThrow(/the product of \[2,3\] is 6, the width is 5/);
  });
});
