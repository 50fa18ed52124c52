import { attach, detach, functional, predictMixed, random, setActive } from '@matforge/core';
import { denseModel, type GoldenInputs, lossAndGradients, testGolden, testLinearMethod } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { applyRoad, composeRoad, road, roadColumns } from '../src/index.ts';

testLinearMethod({
  configured: road({ variant: 'road_2', groupSize: 2 }),
  dims: [6, 8, 4],
  parameters: (_, outDim) => 2 * outDim,
  refused: [
    [{ groupSize: 3 }, /road\.groupSize: must be divisible by 2, got 3/],
    [{ groupSize: 6 }, /layer0\.groupSize: out = 8 must be divisible by the group size 6/],
    [{ variant: 'road_3' }, /road\.variant: must be one of "road_1", "road_2", "road_4", got "road_3"/],
    [{ activePairs: [4] }, /layer0\.activePairs: pair 4 does not exist; out = 8 has 4 pairs/],
  ],
});

interface Config {
  variant: 'road_1' | 'road_2' | 'road_4';
  groupSize: number;
}

const onKernel = (inputs: GoldenInputs, { variant, groupSize }: Config) =>
  functional(road({ variant, groupSize }), { kernel: inputs.matrix('W'), bias: inputs.vector('bias') });

testGolden('road', __dirname, {
  forward: (inputs, config: Config) =>
    tf.tidy(() => {
      const tensors = { theta: inputs.tensor('theta'), alpha: inputs.tensor('alpha') };
      const method = onKernel(inputs, config);
      const { kernel, bias } = method.dense(tensors);
      const { c1, c2 } = roadColumns(config.variant, config.groupSize, tensors.theta, tensors.alpha);
      return {
        y: method.forward(inputs.tensor('x'), tensors),
        R: applyRoad(tf.eye(kernel.shape[1]), c1, c2, config.groupSize),
        mergedW: kernel,
        mergedBias: bias as tf.Tensor1D,
        trainableParams: tf.scalar(Object.values(method.init()).reduce((sum, { size }) => sum + size, 0)),
      };
    }),
  gradients: (inputs, config: Config) =>
    tf.tidy(() => {
      const method = onKernel(inputs, config);
      const { loss, gradients } = lossAndGradients(
        ({ x, ...tensors }) => method.forward(x, tensors),
        { x: inputs.tensor('x'), theta: inputs.tensor('theta'), alpha: inputs.tensor('alpha') },
        inputs.tensor('upstream'),
      );
      return { loss, gradTheta: gradients.theta, gradAlpha: gradients.alpha, gradX: gradients.x };
    }),
  async mixedBatch(inputs, { adapterNames, composeOrder, ...config }) {
    const W = inputs.matrix('W');
    const model = tf.sequential({
      layers: [
        tf.layers.dense({
          name: 'layer0',
          units: W.shape[1],
          inputShape: [W.shape[0]],
          weights: [W, inputs.tensor('bias')],
        }),
      ],
    });
    for (const name of composeOrder as string[]) {
      await attach(model, road(config), { targets: ['layer0'], name });
      for (const weight of model.layers[0].trainableWeights) {
        const [adapter, tensor] = weight.originalName.split('/');
        if (adapter === name) weight.write(inputs.tensor(`${tensor}_${name}`));
      }
    }
    const x = inputs.tensor('x');
    const y = predictMixed(model, x, adapterNames) as tf.Tensor;
    setActive(model, composeOrder);
    const composedY = model.predictOnBatch(x) as tf.Tensor;
    detach(model);
    model.dispose();
    return { y, composedY };
  },
});

describe('invariants', () => {
  const draw = (size: number, seed = 1) => random(seed).normal([size]);

  test('road_1 with unit scales keeps the norm of h', () => {
    tf.tidy(() => {
      const { c1, c2 } = roadColumns('road_1', 4, draw(4), tf.ones([4]));
      const h = random(2).normal([3, 8]);
      const norms = (t: tf.Tensor) => Array.from(tf.norm(t, 2, 1).dataSync());
      expect(norms(applyRoad(h, c1, c2, 4))).toEqual(norms(h).map((value) => expect.closeTo(value, 5)));
    });
  });

  test('road_1 adapters compose to one whose angles add and scales multiply', () => {
    tf.tidy(() => {
      const adapters = [1, 2].map((seed) => ({ theta: draw(4, seed), alpha: draw(4, seed + 5) }));
      const h = random(3).normal([2, 8]);
      const through = (at: tf.Tensor, { theta, alpha }: (typeof adapters)[0]) => {
        const { c1, c2 } = roadColumns('road_1', 4, theta, alpha);
        return applyRoad(at, c1, c2, 4);
      };
      const oneByOne = adapters.reduce(through, h as tf.Tensor).dataSync();
      const atOnce = through(h, composeRoad(adapters)).dataSync();
      for (let i = 0; i < oneByOne.length; i++) expect(atOnce[i]).toBeCloseTo(oneByOne[i], 4);
    });
  });

  test('pairs that are not active stay as they are', () => {
    tf.tidy(() => {
      const kernel = random(4).normal([3, 4]) as tf.Tensor2D;
      const method = functional(road({ groupSize: 4, activePairs: [1] }), { kernel });
      const turned = method.dense({ theta: tf.tensor1d([1, 1]), alpha: tf.tensor1d([2, 2]) }).kernel;
      const change = tf.max(tf.abs(tf.sub(turned, kernel)), 0).dataSync();
      expect(change[0]).toBe(0);
      expect(change[2]).toBe(0);
      expect(Math.min(change[1], change[3])).toBeGreaterThan(0.1);
    });
  });
});

test('a batch of another adapter in every row runs in one pass', async () => {
  const model = denseModel([6, 8]);
  const names = ['a', 'b', 'c', 'd'];
  for (const [seed, name] of names.entries()) {
    await attach(model, road({ groupSize: 8 }), { name, targets: ['layer0'] });
    for (const weight of model.layers[0].trainableWeights) {
      if (weight.originalName.startsWith(`${name}/`)) weight.write(random(seed).normal(weight.read().shape));
    }
  }
  const x = random(9).normal([4, 6]);
  const profile = await tf.profile(() => predictMixed(model, x, names) as tf.Tensor);
  expect(profile.kernels.filter(({ name }) => /MatMul/.test(name)).length).toBe(1);
  tf.dispose([x, profile.result as tf.Tensor]);
  detach(model);
  model.dispose();
});
