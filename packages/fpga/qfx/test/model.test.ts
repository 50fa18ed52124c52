import { ready } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { freeze, graphToJson, type QuantizeConfig, quantizeModel, simulate } from '../src/index.ts';

/** Uniform numbers in [low, high), seeded. */
function uniform(shape: number[], low: number, high: number, seed: number): tf.Tensor {
  return tf.randomUniform(shape, low, high, 'float32', seed);
}

/** Weights that are not what an untrained model would have: batch norms with real statistics, biases that matter. */
function scramble(model: tf.LayersModel, seed = 1): tf.LayersModel {
  for (const [i, layer] of model.layers.entries()) {
    const values = layer.getWeights().map((w, j) => {
      const positive = layer.getClassName() === 'BatchNormalization' && (j === 0 || j === 3);
      return positive ? uniform(w.shape, 0.4, 2, seed + 10 * i + j) : uniform(w.shape, -0.7, 0.7, seed + 10 * i + j);
    });
    layer.setWeights(values);
    tf.dispose(values);
  }
  return model;
}

const { layers } = tf;

function cnn(): tf.LayersModel {
  return tf.sequential({
    layers: [
      layers.conv2d({ inputShape: [8, 8, 1], filters: 4, kernelSize: 3, activation: 'relu' }),
      layers.maxPooling2d({ poolSize: 2 }),
      layers.flatten(),
      layers.dropout({ rate: 0.3 }),
      layers.dense({ units: 5 }),
    ],
  });
}

function residual(): tf.LayersModel {
  const x = tf.input({ shape: [6, 6, 3] });
  let y = layers.conv2d({ filters: 4, kernelSize: 3, padding: 'same', useBias: false }).apply(x) as tf.SymbolicTensor;
  y = layers.batchNormalization().apply(y) as tf.SymbolicTensor;
  y = layers.reLU().apply(y) as tf.SymbolicTensor;
  let z = layers.conv2d({ filters: 4, kernelSize: 3, padding: 'same' }).apply(y) as tf.SymbolicTensor;
  z = layers.batchNormalization().apply(z) as tf.SymbolicTensor;
  z = layers.add().apply([z, y]) as tf.SymbolicTensor;
  z = layers.activation({ activation: 'relu' }).apply(z) as tf.SymbolicTensor;
  const a = layers.averagePooling2d({ poolSize: 3, strides: 2, padding: 'same' }).apply(z) as tf.SymbolicTensor;
  const b = layers.depthwiseConv2d({ kernelSize: 3, strides: 2, padding: 'same', depthMultiplier: 2 }).apply(z);
  const c = layers.separableConv2d({ filters: 3, kernelSize: 2, strides: 2, padding: 'same' }).apply(z);
  const joined = layers.concatenate().apply([a, b as tf.SymbolicTensor, c as tf.SymbolicTensor]) as tf.SymbolicTensor;
  const padded = layers.zeroPadding2d({ padding: 1 }).apply(joined) as tf.SymbolicTensor;
  const pooled = layers.globalAveragePooling2d({}).apply(padded) as tf.SymbolicTensor;
  const logits = layers.dense({ units: 4, activation: 'softmax' }).apply(pooled) as tf.SymbolicTensor;
  return tf.model({ inputs: x, outputs: logits });
}

function sequence(): tf.LayersModel {
  return tf.sequential({
    layers: [
      layers.conv1d({
        inputShape: [12, 2],
        filters: 6,
        kernelSize: 3,
        strides: 2,
        padding: 'same',
        activation: 'relu',
      }),
      layers.conv1d({ filters: 3, kernelSize: 2 }),
      layers.batchNormalization(),
      layers.reshape({ targetShape: [15] }),
      layers.dense({ units: 8 }),
      layers.reLU(),
      layers.dense({ units: 3 }),
    ],
  });
}

/** A batch norm on its own, a ReLU that two layers read, a model within the model, global and padded maximum pooling. */
function assorted(): tf.LayersModel {
  const x = tf.input({ shape: [6, 5, 2] });
  const normal = layers.batchNormalization().apply(x) as tf.SymbolicTensor;
  const y = layers.conv2d({ filters: 4, kernelSize: 3, padding: 'same' }).apply(normal) as tf.SymbolicTensor;
  const a = layers.activation({ activation: 'relu' }).apply(y) as tf.SymbolicTensor;
  const inner = tf.sequential({
    layers: [
      layers.maxPooling2d({ inputShape: [6, 5, 4], poolSize: 3, strides: 1, padding: 'same' }),
      layers.conv2d({ filters: 4, kernelSize: 1, useBias: false }),
    ],
  });
  const b = inner.apply(a) as tf.SymbolicTensor;
  const three = layers.add().apply([y, a, b]) as tf.SymbolicTensor;
  const pooled = layers.globalMaxPooling2d({}).apply(three) as tf.SymbolicTensor;
  return tf.model({ inputs: x, outputs: layers.dense({ units: 3 }).apply(pooled) as tf.SymbolicTensor });
}

/** The training-time forward pass and the integer simulator, on the same inputs. */
function compare(float: tf.LayersModel, config: QuantizeConfig, seed = 7): void {
  const shape = float.inputs[0].shape.slice(1) as number[];
  const x = uniform([16, ...shape], -1.5, 1.5, seed);
  const model = quantizeModel(float, { calibration: x, ...config });
  const graph = freeze(model);
  const fresh = uniform([9, ...shape], -2, 2, seed + 1);
  const trained = model.apply(fresh, { training: true }) as tf.Tensor;
  const predicted = model.predict(fresh) as tf.Tensor;
  const simulated = simulate(graph, fresh);
  expect(Array.from(predicted.dataSync())).toEqual(Array.from(simulated.values));
  expect(Array.from(trained.dataSync())).toEqual(Array.from(simulated.values));
  expect(new Set(simulated.values).size).toBeGreaterThan(3);
  expect(JSON.parse(graphToJson(graph))).toEqual(graph);
  tf.dispose([x, fresh, trained, predicted]);
  model.dispose();
}

describe.each(['cpu', 'wasm'])('the training forward pass is the integer program on %s', (backend) => {
  beforeAll(() => (backend === 'wasm' ? ready() : tf.setBackend(backend)));

  test.each<[string, () => tf.LayersModel, QuantizeConfig]>([
    ['a CNN at 8 bits', cnn, {}],
    ['a CNN at 3 bits, per channel', cnn, { bits: 3, perChannel: true }],
    ['a residual network at 8 bits', residual, {}],
    ['a residual network, batch norm unfolded', residual, { batchNorm: 'unfolded', bits: 6 }],
    ['a residual network, two ones a weight', residual, { multiplierFree: { k: 2 } }],
    [
      'a residual network, signed digits, unfolded',
      residual,
      { multiplierFree: { k: 1, digits: 'signed' }, batchNorm: 'unfolded' },
    ],
    ['1-D convolutions at 5 bits', sequence, { bits: 5 }],
    ['truncation and wrap-around', sequence, { modes: { Q: 'AP_TRN', O: 'AP_WRAP' } }],
    ['14 bits: products are split', residual, { bits: 14, biasBits: 24 }],
    ['20-bit activations: products are split', sequence, { activationBits: 20, weightBits: 16, biasBits: 25 }],
    ['an accumulator that wraps around at 1', sequence, { bits: 5, accumulator: 'ap_fixed<24,1>' }],
    ['tight accumulators', residual, { accumulator: 'tight' }],
    ['norms, sums of three and nested models at 7 bits', assorted, { bits: 7 }],
    ['the same, symmetric saturation, even rounding', assorted, { modes: { Q: 'AP_RND_CONV', O: 'AP_SAT_SYM' } }],
  ])('%s', (_, make, config) => {
    const float = scramble(make());
    compare(float, config);
    float.dispose();
  });
});

describe('quantizeModel', () => {
  beforeAll(() => ready());

  test('trains with learned positions, freezes, and simulates', async () => {
    const float = scramble(cnn());
    const x = uniform([64, 8, 8, 1], 0, 1, 3);
    const labels = tf.tidy(() => tf.oneHot(tf.argMax(float.predict(x) as tf.Tensor, 1), 5).toFloat());
    const model = quantizeModel(float, { bits: 4, calibration: x });
    model.compile({
      optimizer: tf.train.adam(2e-3),
      loss: (t, p) => tf.losses.softmaxCrossEntropy(t, p),
      metrics: ['accuracy'],
    });
    const before = tf.memory().numTensors;
    const first = await model.fit(x, labels, { epochs: 1, batchSize: 16, verbose: 0, shuffle: false });
    const kept = tf.memory().numTensors;
    const history = await model.fit(x, labels, { epochs: 8, batchSize: 16, verbose: 0, shuffle: false });
    expect(tf.memory().numTensors).toBe(kept);
    expect(kept - before).toBeLessThanOrEqual(2 * 4 + 2);
    expect(history.history.loss[7] as number).toBeLessThan(first.history.loss[0] as number);
    const graph = freeze(model, { head: 'argmax' });
    const predicted = tf.tidy(() => tf.argMax(model.predict(x) as tf.Tensor, 1).dataSync());
    expect(Array.from(simulate(graph, x).raw as Int32Array)).toEqual(Array.from(predicted));
    tf.dispose([x, labels]);
    model.dispose();
    float.dispose();
  });

  test.each(['folded', 'unfolded'] as const)('batch statistics, %s, then the moving ones', async (batchNorm) => {
    const float = scramble(residual());
    const x = uniform([64, 6, 6, 3], -1, 1, 3);
    const labels = tf.tidy(() => tf.oneHot(tf.argMax(float.predict(x) as tf.Tensor, 1), 4).toFloat());
    const model = quantizeModel(float, {
      batchNorm,
      batchNormFreezeAfter: 6,
      bits: 6,
      calibration: x,
      softmax: 'skip',
    });
    const statistics = (): number[] =>
      model.layers.flatMap(({ weights }) =>
        weights.filter(({ name }) => name.includes('moving_mean')).flatMap((w) => Array.from(w.read().dataSync())),
      );
    model.compile({ optimizer: tf.train.adam(1e-3), loss: (t, p) => tf.losses.softmaxCrossEntropy(t, p) });
    const start = statistics();
    await model.fit(x, labels, { epochs: 1, batchSize: 16, verbose: 0, shuffle: false });
    const early = statistics();
    await model.fit(x, labels, { epochs: 1, batchSize: 16, verbose: 0, shuffle: false });
    const late = statistics();
    await model.fit(x, labels, { epochs: 2, batchSize: 16, verbose: 0, shuffle: false });
    expect(start.length).toBe(8);
    start.forEach((value, i) => {
      expect(early[i]).not.toBe(value);
      expect(late[i]).not.toBe(early[i]);
    });
    // Steps 7 and on read the moving statistics and leave them alone.
    expect(statistics()).toEqual(late);
    const forward = model.apply(x, { training: true }) as tf.Tensor;
    expect(Array.from(forward.dataSync())).toEqual(Array.from(simulate(freeze(model), x).values));
    tf.dispose([x, labels, forward]);
    model.dispose();
    float.dispose();
  });

  test('trains batch norms, kernels and biases: every trainable weight gets a gradient', () => {
    const float = scramble(residual());
    const x = uniform([8, 6, 6, 3], -1, 1, 3);
    for (const batchNorm of ['folded', 'unfolded'] as const) {
      const model = quantizeModel(float, { batchNorm, calibration: x });
      const weights = model.trainableWeights.map((weight) => weight.read() as tf.Variable);
      const { value, grads } = tf.variableGrads(
        () => tf.sum(tf.square(model.apply(x, { training: true }) as tf.Tensor)) as tf.Scalar,
        weights,
      );
      const silent = weights.filter(({ name }) => {
        const gradient = grads[name];
        return !gradient || gradient.dataSync().every((g) => g === 0);
      });
      // A position whose tensor lies on its grid already has no error to learn from.
      expect(silent.map(({ name }) => name).filter((name) => !name.includes('position_'))).toEqual([]);
      expect(silent.length).toBeLessThan(weights.length / 4);
      tf.dispose([value, grads]);
      model.dispose();
    }
    x.dispose();
    float.dispose();
  });
});
