import { attach, detach, functional, predictMixed, random } from '@matforge/core';
import { denseModel, testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { applyRoad, composeRoad, road, roadColumns } from '../src/index.ts';
import { suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

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
