import * as tf from '@tensorflow/tfjs';
import { attach, detach, merge, setActive, sgd, toOptimizer, unmerge } from '../src/index.ts';
import {
  additive,
  bent,
  discard,
  expectClose,
  expectDifferent,
  noise,
  outputs,
  randomise,
  scaling,
  snapshot,
  threeLayers,
  watchLeaks,
} from './attach-methods.ts';

watchLeaks();

/** What tfjs reads back from what it writes. */
async function reload(model: tf.LayersModel, config?: tf.io.SaveConfig): Promise<tf.LayersModel> {
  let artifacts: tf.io.ModelArtifacts | undefined;
  const handler = tf.io.withSaveHandler(async (given) => {
    artifacts = given;
    return { modelArtifactsInfo: { dateSaved: new Date(), modelTopologyType: 'JSON' } };
  });
  await model.save(handler, config);
  // Also through JSON, as a file would.
  const { weightData, ...rest } = artifacts as tf.io.ModelArtifacts;
  return tf.loadLayersModel(tf.io.fromMemory({ ...JSON.parse(JSON.stringify(rest)), weightData }));
}

function nested(): tf.LayersModel {
  const input = tf.input({ shape: [4] });
  const block = tf.sequential({
    name: 'block',
    layers: [
      tf.layers.dense({ name: 'inner', units: 5, inputShape: [4], activation: 'relu' }),
      tf.layers.dense({ name: 'second', units: 4, useBias: false }),
    ],
  });
  const head = tf.layers.dense({ name: 'head', units: 3, activation: 'softmax' });
  return tf.model({ inputs: input, outputs: head.apply(block.apply(input)) as tf.SymbolicTensor });
}

function pictures(): tf.LayersModel {
  return tf.sequential({
    layers: [
      tf.layers.conv2d({
        name: 'conv',
        filters: 3,
        kernelSize: 2,
        strides: 2,
        inputShape: [6, 6, 2],
        activation: 'relu',
      }),
      tf.layers.batchNormalization({ name: 'norm' }),
      tf.layers.flatten(),
      tf.layers.dense({ name: 'head', units: 2 }),
    ],
  });
}

const models: Record<string, [() => tf.LayersModel, number[]]> = {
  'a Sequential': [threeLayers, [3, 4]],
  'a functional model around a Sequential': [nested, [3, 4]],
  'convolution and normalisation': [pictures, [2, 6, 6, 2]],
};

describe.each(Object.entries(models))('%s', (_, [make, shape]) => {
  test.each([
    ['adds to kernels', additive()],
    ['changes biases', scaling()],
  ])('saved with an adapter that %s, it loads with the same outputs', async (__, configured) => {
    const model = randomise(make());
    const x = noise(shape);
    const start = outputs(model, x);
    await attach(model, configured, { targets: () => true, seed: 3 });
    const y = outputs(model, x);
    expectDifferent(y, start);
    const held = tf.memory().numTensors;
    const attached = await reload(model);
    expectClose(outputs(attached, x), y);
    discard(attached);
    expect(tf.memory().numTensors).toBe(held);
    // Saving changes nothing in the model.
    expect(outputs(model, x)).toEqual(y);
    merge(model);
    const merged = await reload(model);
    expect(outputs(merged, x)).toEqual(outputs(model, x));
    unmerge(model);
    setActive(model, []);
    const base = await reload(model);
    expect(outputs(base, x)).toEqual(start);
    detach(model);
    const plain = await reload(model);
    expect(outputs(plain, x)).toEqual(start);
    x.dispose();
    discard(model, merged, base, plain);
  });
});

test('several active adapters are saved together, inactive ones are not', async () => {
  const model = threeLayers();
  const x = noise([3, 4]);
  await attach(model, additive(), { name: 'one', targets: ['a', 'b'], seed: 1 });
  await attach(model, scaling(), { name: 'two', targets: ['b'], seed: 2 });
  await attach(model, additive(), { name: 'three', targets: ['c'], seed: 3 });
  setActive(model, ['one', 'two']);
  const saved = await reload(model);
  expectClose(outputs(saved, x), outputs(model, x));
  detach(model);
  x.dispose();
  discard(model, saved);
});

test('where a method has no kernel, the base model is saved with a warning that says what to do', async () => {
  const model = threeLayers();
  const x = noise([3, 4]);
  const start = outputs(model, x);
  await attach(model, bent(), { targets: ['b'] });
  const warn = jest.spyOn(console, 'warn').mockImplementation(() => undefined);
  const saved = await reload(model);
  expect(warn.mock.calls.map(String).filter((text) => text.includes('matforge'))).toEqual([
    'matforge: adapter default has no dense kernel, so the base model is saved; store the adapter with save(model, directory).',
  ]);
  warn.mockRestore();
  expect(outputs(saved, x)).toEqual(start);
  detach(model);
  x.dispose();
  discard(model, saved);
});

test.each<[string, () => tf.Optimizer]>([
  ['adam', () => tf.train.adam(0.01)],
  ['a transformation', () => toOptimizer(sgd({ learningRate: 0.1 }))],
])('asked for the optimizer as well (%s), it saves a model that loads and trains', async (_, make) => {
  const model = threeLayers();
  const optimizer = make();
  const [x, y] = [noise([8, 4]), noise([8, 3], 4)];
  await attach(model, additive(), { targets: ['b'] });
  model.compile({ optimizer, loss: 'meanSquaredError' });
  tf.dispose(await model.trainOnBatch(x, y));
  const warn = jest.spyOn(console, 'warn').mockImplementation(() => undefined);
  const saved = await reload(model, { includeOptimizer: true });
  expect(warn.mock.calls.map(String).join()).toContain('the optimizer is not saved');
  warn.mockRestore();
  expectClose(outputs(saved, x), outputs(model, x));
  const other = tf.train.sgd(0.1);
  saved.compile({ optimizer: other, loss: 'meanSquaredError' });
  tf.dispose(await saved.trainOnBatch(x, y));
  detach(model);
  optimizer.dispose();
  other.dispose();
  tf.dispose([x, y]);
  discard(model, saved);
});

test('of the trainable weights only, those that were trainable before attaching are saved', async () => {
  const model = threeLayers();
  model.layers[0].trainable = false;
  const names = async (): Promise<string[]> => {
    let found: string[] = [];
    const handler = tf.io.withSaveHandler(async ({ weightSpecs }) => {
      found = (weightSpecs ?? []).map(({ name }) => name).sort();
      return { modelArtifactsInfo: { dateSaved: new Date(), modelTopologyType: 'JSON' } };
    });
    await model.save(handler, { trainableOnly: true });
    return found;
  };
  const before = await names();
  expect(before).toEqual(['b/bias', 'b/kernel', 'c/bias', 'c/kernel']);
  await attach(model, additive());
  expect(await names()).toEqual(before);
  detach(model);
  expect(await names()).toEqual(before);
  expect(Object.keys(snapshot(model))).toHaveLength(6);
  discard(model);
});
