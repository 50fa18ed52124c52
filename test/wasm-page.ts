// Runs in a page and in Node: a small training on wasm, returned as numbers.
import { adam, attach, detach, type ReadyOptions, random, ready, save, toOptimizer, train } from '@matforge/core';
import { engineInfo } from '@matforge/engine';
import { lora } from '@matforge/lora';
import * as tf from '@tensorflow/tfjs';

/** What a training came to. */
export interface Trained {
  losses: number[];
  weights: number[][];
  outputs: number[];
}

/** Trains a convolution and two dense layers, the first of them adapted, for a few steps. */
export async function trainSmall(options?: ReadyOptions): Promise<Trained> {
  await ready('wasm', options);
  const stream = random(3);
  const model = tf.sequential({
    layers: [
      tf.layers.conv2d({ name: 'conv', filters: 4, kernelSize: 3, inputShape: [8, 8, 2], activation: 'relu' }),
      tf.layers.flatten({ name: 'flat' }),
      tf.layers.dense({ name: 'up', units: 24, activation: 'tanh' }),
      tf.layers.dense({ name: 'down', units: 3 }),
    ],
  });
  const weights = model.getWeights().map(({ shape }) => stream.normal(shape, 0, 0.2));
  model.setWeights(weights);
  const [xs, ys] = [stream.normal([32, 8, 8, 2]), stream.normal([32, 3])];
  await attach(model, lora({ rank: 4 }), { targets: ['up'], modulesToSave: ['down'], seed: 5 });
  const losses: number[] = [];
  const optimizer = toOptimizer(adam({ learningRate: 0.02 }));
  await train(
    model,
    { xs, ys },
    {
      optimizer,
      loss: 'meanSquaredError',
      batchSize: 8,
      epochs: 3,
      seed: 1,
      onProgress: ({ loss }) => {
        losses.push(loss);
      },
    },
  );
  const outputs = Array.from(await tf.tidy(() => model.predict(xs) as tf.Tensor).data());
  const trained = await Promise.all(
    model.trainableWeights.map(async (weight) => Array.from(await weight.read().data())),
  );
  optimizer.dispose();
  detach(model);
  model.dispose();
  tf.dispose([xs, ys, ...weights]);
  return { losses, weights: trained, outputs };
}

/** The page's state beside the engine's. */
export const pageInfo = () => ({
  ...engineInfo(),
  isolated: (globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated,
});

/** What starting the engine says. */
export const start = (options?: ReadyOptions): Promise<string> =>
  ready('wasm', options).then(
    () => 'started',
    (error: Error) => error.message,
  );

/** Sums of the rows of a product that is large enough to be shared. */
export function product(): number[] {
  return tf.tidy(() => {
    const stream = random(11);
    const y = tf.matMul(stream.normal([150, 170]) as tf.Tensor2D, stream.normal([170, 190]) as tf.Tensor2D);
    return Array.from(tf.sum(y, 1).dataSync());
  });
}

/** What saving an adapter to a path says, where there are no paths. */
export async function saveToPath(): Promise<string> {
  const model = tf.sequential({ layers: [tf.layers.dense({ name: 'up', units: 2, inputShape: [2] })] });
  await attach(model, lora({ rank: 1 }));
  return save(model, 'adapter').then(
    () => 'saved',
    (error: Error) => `${error.name}: ${error.message}`,
  );
}
