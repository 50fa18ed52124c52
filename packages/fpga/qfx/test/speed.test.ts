import { ready } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { buildGraph, quantizeModel, simulate } from '../src/index.ts';

/** Least processor time of several runs in milliseconds: what other processes do does not count. */
async function processorTime(run: () => unknown, repeats: number): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < repeats; i++) {
    const start = process.cpuUsage();
    await run();
    const { user, system } = process.cpuUsage(start);
    least = Math.min(least, (user + system) / 1000);
  }
  return least;
}

test('the simulator does 20 million multiply-accumulates a second', async () => {
  const weights = Array.from({ length: 9 * 16 * 16 }, (_, i) => ((i * 37) % 255) - 127);
  const graph = buildGraph({
    nodes: [
      { op: 'input', shape: [28, 28, 16], type: 'ap_ufixed<8,0,AP_RND,AP_SAT>' },
      {
        op: 'conv2d',
        weights: { shape: [3, 3, 16, 16], data: weights },
        weightType: 'ap_fixed<8,1>',
        padding: 'same',
        activation: 'relu',
        type: 'ap_ufixed<8,4,AP_RND,AP_SAT>',
      },
    ],
  });
  const x = Float32Array.from({ length: 4 * 28 * 28 * 16 }, (_, i) => ((i * 7919) % 256) / 256);
  const time = await processorTime(() => simulate(graph, x), 5);
  expect((4 * 28 * 28 * 9 * 16 * 16) / 1000 / time).toBeGreaterThan(20);
});

test('a quantized training step costs at most 2.5 float steps', async () => {
  await ready();
  const float = tf.sequential({
    layers: [
      tf.layers.conv2d({ inputShape: [28, 28, 1], filters: 8, kernelSize: 3, activation: 'relu' }),
      tf.layers.maxPooling2d({ poolSize: 2 }),
      tf.layers.conv2d({ filters: 16, kernelSize: 3, activation: 'relu' }),
      tf.layers.maxPooling2d({ poolSize: 2 }),
      tf.layers.flatten(),
      tf.layers.dense({ units: 64, activation: 'relu' }),
      tf.layers.dense({ units: 10 }),
    ],
  });
  const x = tf.randomUniform([64, 28, 28, 1], 0, 1, 'float32', 1);
  const y = tf.tidy(() => tf.oneHot(tf.range(0, 64, 1, 'int32').mod(tf.scalar(10, 'int32')), 10).toFloat());
  const model = quantizeModel(float, { bits: 8, calibration: x });
  const step = async (trained: tf.LayersModel): Promise<number> => {
    trained.compile({ optimizer: tf.train.adam(1e-3), loss: (t, p) => tf.losses.softmaxCrossEntropy(t, p) });
    return processorTime(() => trained.trainOnBatch(x, y), 8);
  };
  const [floatStep, quantizedStep] = [await step(float), await step(model)];
  expect(quantizedStep / floatStep).toBeLessThan(2.5);
  tf.dispose([x, y]);
  model.dispose();
  float.dispose();
  await tf.setBackend('cpu');
});
