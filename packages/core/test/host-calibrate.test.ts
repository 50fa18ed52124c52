import * as tf from '@tensorflow/tfjs';
import { z } from 'zod';
import {
  adapterTensors,
  attach,
  type Batch,
  count,
  defineLinearMethod,
  detach,
  frozen,
  random,
  ready,
  setAdapterTensors,
  trainable,
  zeros,
} from '../src/index.ts';

const info = (id: string) => ({
  id,
  title: id,
  family: 'test',
  kind: 'adapter' as const,
  paper: { title: id, year: 2024 },
});

/** Keeps the statistics it is given. */
const recorder = defineLinearMethod({
  info: info('recorder'),
  config: z.object({}),
  needs: ['activations', 'gradients'],
  tensors: ({ inDim, outDim }) => ({ C: frozen([inDim, inDim]), G: frozen([inDim, outDim]) }),
  init: ({ activations, gradients }) => ({ C: activations as tf.Tensor, G: gradients as tf.Tensor }),
  forward: (x, _, { base }) => base.apply(x),
  kernel: (_, { base }) => base.kernel,
});

const loss = (y: tf.Tensor, prediction: tf.Tensor) => tf.losses.meanSquaredError(y, prediction);

function* batches(count: number, inputShape: number[], outputShape: number[]): Generator<Batch> {
  const stream = random(5);
  for (let i = 0; i < count; i++) {
    const [xs, ys] = [stream.normal(inputShape), stream.normal(outputShape)];
    try {
      yield { xs, ys };
    } finally {
      tf.dispose([xs, ys]);
    }
  }
}

let before: number;
beforeAll(async () => {
  await ready();
});
beforeEach(() => {
  before = tf.memory().numTensors;
});
afterEach(() => {
  expect(tf.memory().numTensors).toBe(before);
});

test('activations are the mean and gradients the sum over the batches that are read', async () => {
  const model = tf.sequential({ layers: [tf.layers.dense({ name: 'head', units: 3, inputShape: [4] })] });
  await attach(model, recorder(), { calibration: { data: batches(5, [6, 4], [6, 3]), loss, maxBatches: 2 } });
  const { C, G } = adapterTensors(model, 'default').head;
  const off = tf.tidy(() => {
    const [kernel, bias] = model.layers[0].getWeights() as [tf.Tensor2D, tf.Tensor1D];
    const read = 2;
    const stream = random(5);
    let [gram, gradient]: tf.Tensor[] = [tf.zeros([4, 4]), tf.zeros([4, 3])];
    for (let i = 0; i < read; i++) {
      const [x, y] = [stream.normal([6, 4]), stream.normal([6, 3])] as tf.Tensor2D[];
      gram = tf.add(gram, tf.div(tf.matMul(x, x, true), read));
      const residual = tf.sub(tf.add(tf.matMul(x, kernel), bias), y) as tf.Tensor2D;
      gradient = tf.add(gradient, tf.mul(tf.matMul(x, residual, true), 2 / residual.size));
    }
    return [tf.sub(C, gram), tf.sub(G, gradient)].map((error) => tf.max(tf.abs(error)).dataSync()[0]);
  });
  expect(Math.max(...off)).toBeLessThan(1e-5);
  detach(model);
  model.dispose();
});

test.each([
  ['valid', 2],
  ['same', 1],
] as const)('the rows of a convolution are its patches (padding %s, stride %i)', async (padding, strides) => {
  const layer = tf.layers.conv2d({
    name: 'conv',
    filters: 3,
    kernelSize: [3, 2],
    strides,
    padding,
    inputShape: [7, 6, 2],
  });
  const model = tf.sequential({ layers: [layer, tf.layers.flatten(), tf.layers.dense({ name: 'head', units: 2 })] });
  await attach(model, recorder(), {
    targets: ['conv'],
    calibration: { data: batches(1, [2, 7, 6, 2], [2, 2]), loss },
  });
  const { C } = adapterTensors(model, 'default').conv;
  const off = tf.tidy(() => {
    // ‖conv(x)‖² without a bias is tr(WᵀCW).
    const x = random(5).normal([2, 7, 6, 2]);
    const kernel = layer.getWeights()[0];
    const y = tf.conv2d(x as tf.Tensor4D, kernel as tf.Tensor4D, strides, padding);
    const W = tf.reshape(kernel, [12, 3]) as tf.Tensor2D;
    const expected = tf.sum(tf.square(y)).dataSync()[0];
    const got = tf.sum(tf.mul(W, tf.matMul(C as tf.Tensor2D, W))).dataSync()[0];
    return Math.abs(got / expected - 1);
  });
  expect(off).toBeLessThan(1e-5);
  detach(model);
  model.dispose();
});

test.each([
  ['no batches', { data: [], loss }, /calibration\.data: has no batches/],
  ['no loss', { data: [] }, /calibration\.loss: is missing/],
])('calibration with %s is refused and leaves nothing behind', async (_, calibration, message) => {
  const model = tf.sequential({ layers: [tf.layers.dense({ name: 'head', units: 3, inputShape: [4] })] });
  await expect(attach(model, recorder(), { calibration })).rejects.toThrow(message);
  model.dispose();
});

test('data with NaN is refused by layer and leaves nothing behind', async () => {
  const model = tf.sequential({ layers: [tf.layers.dense({ name: 'head', units: 3, inputShape: [4] })] });
  const [xs, ys] = [tf.fill([2, 4], Number.NaN), tf.zeros([2, 3])];
  await expect(attach(model, recorder(), { calibration: { data: [{ xs, ys }], loss } })).rejects.toThrow(
    /head: the activations of the calibration data are not finite/,
  );
  tf.dispose([xs, ys]);
  model.dispose();
});

test('a tensor that layers share can be replaced through any of them', async () => {
  const sharing = defineLinearMethod({
    info: info('sharing'),
    config: z.object({}),
    tensors: ({ outDim }) => ({ shift: trainable([outDim], zeros, 'shift'), still: frozen([outDim], zeros, 'still') }),
    forward: (x, { shift, still }, { base }) => tf.add(base.apply(x), tf.add(shift, still)),
  });
  const model = tf.sequential({
    layers: ['a', 'b'].map((name) => tf.layers.dense({ name, units: 3, inputShape: [3], kernelInitializer: 'zeros' })),
  });
  await attach(model, sharing());
  const ones = tf.ones([3]);
  setAdapterTensors(model, 'default', { b: { shift: ones, still: ones } });
  expect(tf.tidy(() => Array.from((model.apply(tf.ones([1, 3])) as tf.Tensor).dataSync()))).toEqual([2, 2, 2]);
  expect(adapterTensors(model, 'default').a.shift.dataSync()[0]).toBe(1);
  expect(count(model)).toMatchObject({ trainable: 3, adapters: { default: 3 } });
  ones.dispose();
  detach(model);
  model.dispose();
});

test('the base of a Sequential stays frozen when the model runs for the first time', async () => {
  const model = tf.sequential({ layers: [tf.layers.dense({ name: 'head', units: 3, inputShape: [4] })] });
  await attach(model, recorder(), { calibration: { data: batches(1, [6, 4], [6, 3]), loss } });
  tf.tidy(() => void model.apply(tf.ones([1, 4])));
  expect(model.trainableWeights).toEqual([]);
  detach(model);
  expect(model.trainableWeights).toHaveLength(2);
  model.dispose();
});

test('the data are read once, batch after batch, by an asynchronous source as well', async () => {
  const model = tf.sequential({ layers: [tf.layers.dense({ name: 'head', units: 3, inputShape: [4] })] });
  let [opened, alive, most] = [0, 0, 0];
  const data = {
    async *[Symbol.asyncIterator](): AsyncGenerator<Batch> {
      opened++;
      for (const batch of batches(3, [6, 4], [6, 3])) {
        most = Math.max(most, ++alive);
        yield batch;
        alive--;
      }
    },
  };
  await attach(model, recorder(), { calibration: { data, loss } });
  expect([opened, alive, most]).toEqual([1, 0, 1]);
  detach(model);
  model.dispose();
});

test('batches without targets, data that fail and embeddings are refused and leave nothing behind', async () => {
  const model = tf.sequential({
    layers: [
      tf.layers.embedding({ name: 'words', inputDim: 5, outputDim: 4, inputLength: 2 }),
      tf.layers.dense({ name: 'head', units: 3 }),
    ],
  });
  const xs = tf.zeros([2, 2]);
  const options = { targets: ['head'] };
  await expect(attach(model, recorder(), { ...options, calibration: { data: [{ xs }], loss } })).rejects.toThrow(
    /calibration\.data: has batches without ys/,
  );
  const ys = tf.zeros([2, 2, 3]);
  const source = (function* () {
    yield { xs, ys };
    throw new Error('the disk is gone');
  })();
  await expect(attach(model, recorder(), { ...options, calibration: { data: source, loss } })).rejects.toThrow(
    'the disk is gone',
  );
  await expect(attach(model, recorder(), { ...options })).rejects.toThrow(/calibration: is missing: recorder needs/);
  const looking = defineLinearMethod({ ...recorder, lookup: (indices, _, { base }) => base.lookup(indices) });
  await expect(
    attach(model, looking(), { targets: ['words'], calibration: { data: [{ xs, ys }], loss } }),
  ).rejects.toThrow(/words: recorder needs activations, which an embedding does not have/);
  tf.dispose([xs, ys]);
  model.dispose();
});
