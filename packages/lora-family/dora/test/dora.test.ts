import { attach, detach, functional, random } from '@matforge/core';
import { denseModel, testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { columnNorms, dora } from '../src/index.ts';
import { suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

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
