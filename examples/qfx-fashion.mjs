// Accuracy on Fashion-MNIST: float, post-training quantization and QFX at 8, 6, 4 and 3 bits, and multiplier-free
// weights. Also checks that the training forward pass and the simulator agree on 1,000 test images.
// node examples/qfx-fashion.mjs [float epochs] [quantized epochs]   (after `pnpm build`)
import { ready } from '@matforge/core';
import { fashionMnist } from '@matforge/datasets';
import { estimate, freeze, quantizeModel, simulate } from '@matforge/qfx';
import * as tf from '@tensorflow/tfjs';

const floatEpochs = Number(process.argv[2] ?? 3);
const epochs = Number(process.argv[3] ?? 1);
await ready();
const { train, test } = await fashionMnist({ seed: 1 });
const { xs: testX, ys: testY } = await test.toTensors();
const labels = testY.dataSync();

const { layers } = tf;
const relu = { activation: 'relu' };
const seeded = (seed) => ({ kernelInitializer: tf.initializers.heNormal({ seed }) });
const models = {
  MLP: () =>
    tf.sequential({
      layers: [
        layers.flatten({ inputShape: [28, 28, 1] }),
        layers.dense({ units: 128, ...relu, ...seeded(1) }),
        layers.dense({ units: 64, ...relu, ...seeded(2) }),
        layers.dense({ units: 10, ...seeded(3) }),
      ],
    }),
  CNN: () =>
    tf.sequential({
      layers: [
        layers.conv2d({ inputShape: [28, 28, 1], filters: 8, kernelSize: 3, useBias: false, ...seeded(1) }),
        layers.batchNormalization(),
        layers.reLU(),
        layers.maxPooling2d({ poolSize: 2 }),
        layers.conv2d({ filters: 16, kernelSize: 3, useBias: false, ...seeded(2) }),
        layers.batchNormalization(),
        layers.reLU(),
        layers.maxPooling2d({ poolSize: 2 }),
        layers.flatten(),
        layers.dense({ units: 10, ...seeded(3) }),
      ],
    }),
};

async function fit(model, learningRate, count, seed) {
  const steps = Math.ceil(train.size / 64) * count;
  model.compile({ optimizer: tf.train.adam(learningRate), loss: (t, p) => tf.losses.softmaxCrossEntropy(t, p) });
  model.optimizer.schedule?.(steps);
  for (let epoch = 0; epoch < count; epoch++) {
    for await (const { xs, ys } of train.batches(64, { seed, epoch })) {
      const target = tf.tidy(() => tf.oneHot(ys, 10).toFloat());
      await model.trainOnBatch(xs, target);
      tf.dispose([xs, ys, target]);
    }
  }
}

function accuracy(model) {
  const predicted = tf.tidy(() => tf.argMax(model.predict(testX, { batchSize: 500 }), 1).dataSync());
  return predicted.reduce((sum, p, i) => sum + (p === labels[i] ? 1 : 0), 0) / labels.length;
}

const first = await train.take(256).toTensors();
const sample = tf.slice(testX, 0, 1000);
const rows = [];
for (const [name, make] of Object.entries(models)) {
  const float = make();
  await fit(float, 1e-3, floatEpochs, 1);
  const top = accuracy(float);
  const run = async (setting, config) => {
    const after = quantizeModel(float, { calibration: first.xs, ...config });
    const postTraining = accuracy(after);
    await fit(after, 1e-3, epochs, 2);
    const trained = accuracy(after);
    const graph = freeze(after);
    const forward = tf.tidy(() => after.predict(sample, { batchSize: 250 }).dataSync());
    const { values } = simulate(graph, sample);
    const { total } = estimate(graph);
    const differing = values.reduce((sum, value, i) => sum + (value === forward[i] ? 0 : 1), 0);
    after.dispose();
    rows.push({
      model: name,
      setting,
      float: top,
      postTraining,
      QFX: trained,
      differing,
      dsp: total.dsp,
      lut: total.lut,
    });
    console.log(JSON.stringify(rows.at(-1)));
  };
  for (const bits of [8, 6, 4, 3]) await run(`${bits} bits`, { bits });
  for (const k of [1, 2]) await run(`8 bits, k = ${k}`, { bits: 8, multiplierFree: { k } });
  float.dispose();
}
console.table(rows);
