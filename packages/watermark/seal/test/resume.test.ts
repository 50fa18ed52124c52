import { adam, attach, detach, memoryStorage, random, ready, train } from '@matforge/core';
import { denseModel } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { seal } from '../src/index.ts';

test('a run that was stopped goes on with the passport that was due', async () => {
  await ready();
  const stream = random(4);
  const [xs, ys] = [stream.normal([24, 6]), stream.normal([24, 5])];
  const trained = async (stops: number[]): Promise<number[][]> => {
    const storage = memoryStorage();
    let weights: number[][] = [];
    for (const [i, steps] of [...stops, 12].entries()) {
      const model = await attach(denseModel([6, 8, 5]), seal({ rank: 4, secret: 9 }), {
        seed: 1,
        targets: ['layer0', 'layer1'],
      });
      await train(
        model,
        { xs, ys },
        {
          optimizer: adam({ learningRate: 0.05 }),
          loss: 'meanSquaredError',
          batchSize: 8,
          steps,
          checkpoint: { storage, resume: i > 0 },
        },
      );
      weights = model.trainableWeights.map((weight) => Array.from(weight.read().dataSync()));
      detach(model);
      model.dispose();
    }
    return weights;
  };
  const whole = await trained([]);
  for (const stop of [1, 2, 3, 5, 8]) expect(await trained([stop])).toEqual(whole);
  tf.dispose([xs, ys]);
});
