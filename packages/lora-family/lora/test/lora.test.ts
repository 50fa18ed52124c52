import { attach, setActive } from '@matforge/core';
import { denseModel, testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { combineAdapters, lora, loraPlus } from '../src/index.ts';
import { suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

test('LoRA+ refuses a ratio below 1', () => {
  expect(() => loraPlus({ learningRate: 1e-3, ratio: 0.5 })).toThrow(/loraPlus\.ratio: must be >= 1, got 0\.5/);
});

test('"linear" combination refuses different ranks', () => {
  const factors = (rank: number) => ({
    A: tf.ones([4, rank]) as tf.Tensor2D,
    B: tf.ones([rank, 3]) as tf.Tensor2D,
    scale: 1,
  });
  const [a, b] = [factors(2), factors(3)];
  expect(() => combineAdapters([a, b], [1, 1], 'linear')).toThrow(/same rank, got 2, 3/);
  tf.dispose([a.A, a.B, b.A, b.B]);
});

test('several active adapters add up', async () => {
  const model = denseModel([4, 3]);
  await attach(model, lora({ rank: 1 }), { targets: ['layer0'], name: 'a', seed: 1 });
  await attach(model, lora({ rank: 2 }), { targets: ['layer0'], name: 'b', seed: 2 });
  for (const w of model.layers[0].weights) if (w.originalName.endsWith('/B')) w.write(tf.ones(w.shape as number[]));
  const x = tf.ones([1, 4]);
  const y = (names: string[]) => {
    setActive(model, names);
    return tf.tidy(() => (model.apply(x) as tf.Tensor).dataSync());
  };
  const [none, a, b, both] = [y([]), y(['a']), y(['b']), y(['a', 'b'])];
  for (let i = 0; i < 3; i++) expect(both[i]).toBeCloseTo(a[i] + b[i] - none[i], 5);
  expect(Math.abs(a[0] - none[0])).toBeGreaterThan(1e-3);
  x.dispose();
});
