import { attach, detach, functional, lowRankProduct, lowRankScale, random } from '@matforge/core';
import { denseModel, type GoldenInputs, lossAndGradients, testGolden, testLinearMethod } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { columnNorms, dora, magnitudeDirection } from '../src/index.ts';

testLinearMethod({
  configured: dora({ rank: 2, alpha: 4, detachNorm: false }),
  parameters: (inDim, outDim) => 2 * (inDim + outDim) + outDim,
  refused: [
    [{ rank: -1 }, /dora\.rank: must be a positive integer, got -1/],
    [{ detachNorm: 'yes' }, /dora\.detachNorm: .*got "yes"/],
  ],
});

interface Config {
  r: number;
  alpha: number;
  useRslora?: boolean;
  detachNorm?: boolean;
}

function onKernel(inputs: GoldenInputs, { r, alpha, useRslora, detachNorm }: Config) {
  const configured = dora({ rank: r, alpha, useRslora, detachNorm });
  return functional(configured, { kernel: inputs.matrix('W'), bias: inputs.vector('bias') });
}

testGolden('dora', __dirname, {
  forward: (inputs, config: Config) =>
    tf.tidy(() => {
      const method = onKernel(inputs, config);
      const tensors = { A: inputs.tensor('A'), B: inputs.tensor('B'), magnitude: inputs.tensor('magnitude') };
      const start = method.init();
      const merged = method.dense(tensors).kernel;
      const V = tf.add(
        inputs.tensor('W'),
        lowRankProduct(tensors.A, tensors.B, lowRankScale({ ...config, rank: config.r })),
      );
      return {
        initialMagnitude: start.magnitude,
        directionNorm: columnNorms(V),
        y: method.forward(inputs.tensor('x'), tensors),
        merged,
        delta: tf.sub(merged, inputs.tensor('W')),
        trainableParams: tf.scalar(Object.values(start).reduce((sum, { size }) => sum + size, 0)),
      };
    }),
  gradients: (inputs, config: Config) =>
    tf.tidy(() => {
      const method = onKernel(inputs, config);
      const { loss, gradients } = lossAndGradients(
        ({ x, ...tensors }) => method.forward(x, tensors),
        { x: inputs.tensor('x'), A: inputs.tensor('A'), B: inputs.tensor('B'), magnitude: inputs.tensor('magnitude') },
        inputs.tensor('upstream'),
      );
      return { loss, gradA: gradients.A, gradB: gradients.B, gradMagnitude: gradients.magnitude, gradX: gradients.x };
    }),
  decomposition: (inputs) => ({ ...magnitudeDirection(inputs.matrix('W0'), inputs.matrix('W1')) }),
});

describe('invariants', () => {
  const kernel = () => random(5).normal([6, 4]) as tf.Tensor2D;

  test('the norms of the merged columns are |magnitude|', () => {
    tf.tidy(() => {
      const method = functional(dora({ rank: 2 }), { kernel: kernel() });
      const tensors = { ...method.init(), B: random(1).normal([2, 4]), magnitude: tf.tensor1d([1, -2, 0.5, 3]) };
      expect(Array.from(columnNorms(method.dense(tensors).kernel).dataSync())).toEqual(
        [1, 2, 0.5, 3].map((value) => expect.closeTo(value, 5)),
      );
    });
  });

  test('scaling the magnitude scales the output but not the bias', () => {
    tf.tidy(() => {
      const bias = tf.tensor1d([1, 2, 3, 4]);
      const method = functional(dora({ rank: 2 }), { kernel: kernel(), bias });
      const start = method.init();
      const x = random(2).normal([3, 6]);
      const y = tf.sub(method.forward(x, start), bias).dataSync();
      const tripled = tf.sub(method.forward(x, { ...start, magnitude: tf.mul(start.magnitude, 3) }), bias).dataSync();
      for (let i = 0; i < y.length; i++) expect(tripled[i]).toBeCloseTo(3 * y[i], 4);
    });
  });

  test('dropout leaves the base output whole: at the start it changes nothing', async () => {
    const model = denseModel([6, 4]);
    await attach(model, dora({ rank: 2, dropout: 0.5 }), { targets: ['layer0'] });
    tf.tidy(() => {
      const x = random(3).normal([8, 6]);
      const [trained, plain] = [true, false].map((training) => (model.apply(x, { training }) as tf.Tensor).dataSync());
      for (let i = 0; i < plain.length; i++) expect(trained[i]).toBeCloseTo(plain[i], 5);
    });
    detach(model);
    model.dispose();
  });
});

test('refuses a kernel with a zero column and names it', async () => {
  const model = denseModel([3, 2]);
  const weights = [
    tf.tensor2d([
      [1, 0],
      [2, 0],
      [3, 0],
    ]),
    tf.zeros([2]),
  ];
  model.layers[0].setWeights(weights);
  await expect(attach(model, dora({ rank: 1 }), { targets: ['layer0'] })).rejects.toThrow(
    /layer0: zero-norm output: column 1/,
  );
  tf.dispose(weights);
  model.dispose();
});

test('refuses a magnitude of the wrong length', () => {
  tf.tidy(() => {
    const method = functional(dora({ rank: 1 }), { kernel: tf.ones([3, 2]) });
    const tensors = { ...method.init(), magnitude: tf.ones([3]) };
    expect(() => method.forward(tf.ones([1, 3]), tensors)).toThrow(/shape|incompatible|broadcast/i);
  });
});
