import { attach, detach, functional } from '@matforge/core';
import { denseModel, lossAndGradients, testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { vera } from '../src/index.ts';
import { suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

describe('several adapters on one model', () => {
  test('must use the same key', async () => {
    const model = denseModel([6, 8, 5]);
    await attach(model, vera({ rank: 2 }), { name: 'a' });
    await expect(attach(model, vera({ rank: 2, projectionPrngKey: 1 }), { name: 'b' })).rejects.toThrow(
      /projectionPrngKey: must be the same for all adapters/,
    );
    await expect(attach(model, vera({ rank: 2, saveProjection: false }), { name: 'b' })).rejects.toThrow(
      /saveProjection: must be the same/,
    );
    detach(model);
    model.dispose();
  });

  test('the first must be the largest', async () => {
    const model = denseModel([6, 4, 9]);
    await attach(model, vera({ rank: 2 }), { name: 'small', targets: ['layer0'] });
    await attach(model, vera({ rank: 2 }), { name: 'another', targets: ['layer0'] });
    await expect(attach(model, vera({ rank: 2 }), { name: 'large' })).rejects.toThrow(
      /has a size of 4 but 9 or greater is required/,
    );
    detach(model);
    model.dispose();
  });
});

test('on the first step only lambdaB has a gradient', () => {
  tf.tidy(() => {
    const method = functional(vera({ rank: 3 }), { kernel: tf.ones([4, 2]) });
    const { A, B, ...own } = method.init() as Record<'A' | 'B' | 'lambdaD' | 'lambdaB', tf.Tensor>;
    const { gradients } = lossAndGradients(
      (at) => method.forward(tf.ones([2, 4]), { A, B, ...at }),
      own,
      tf.ones([2, 2]),
    );
    expect(Array.from(gradients.lambdaD.dataSync())).toEqual([0, 0, 0]);
    expect(tf.max(tf.abs(gradients.lambdaB)).dataSync()[0]).toBeGreaterThan(1e-3);
  });
});
