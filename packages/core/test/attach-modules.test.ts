import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import {
  type AttachOptions,
  attach,
  count,
  detach,
  disable,
  list,
  load,
  merge,
  mergeAndUnload,
  predictMixed,
  readSafetensors,
  save,
  setActive,
  unmerge,
} from '../src/index.ts';
import {
  additive,
  discard,
  expectClose,
  expectDifferent,
  kernelOf,
  moved,
  noise,
  numbers,
  outputs,
  randomise,
  scaling,
  snapshot,
  threeLayers,
  watchLeaks,
} from './attach-methods.ts';

watchLeaks();

async function fit(model: tf.LayersModel, seed = 4): Promise<void> {
  const [x, y] = [noise([8, ...(model.inputs[0].shape.slice(1) as number[])]), noise([8, 3], seed)];
  const optimizer = tf.train.sgd(0.2);
  model.compile({ optimizer, loss: 'meanSquaredError' });
  for (let i = 0; i < 3; i++) tf.dispose(await model.trainOnBatch(x, y));
  optimizer.dispose();
  tf.dispose([x, y]);
}

async function inDirectory(body: (directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'matforge-'));
  try {
    await body(join(directory, 'adapter'));
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

describe('bias', () => {
  test.each<[AttachOptions['bias'], string[]]>([
    ['none', []],
    ['all', ['a/bias', 'b/bias', 'c/bias']],
    ['adapterOnly', ['b/bias']],
  ])('%s trains these biases and no others; detaching restores them', async (bias, expected) => {
    const model = threeLayers();
    const x = noise([3, 4]);
    const [before, start] = [snapshot(model), outputs(model, x)];
    await attach(model, additive(), { targets: ['b'], bias });
    expect(count(model).trainable).toBe(22 + (bias === 'all' ? 14 : bias === 'none' ? 0 : 6));
    const attached = snapshot(model);
    await fit(model);
    expect(moved(model, attached).sort()).toEqual([...expected, 'default/A', 'default/B'].sort());
    // As in PEFT, disabling leaves trained biases as they are.
    if (bias !== 'none')
      expectDifferent(
        disable(model, () => outputs(model, x)),
        start,
      );
    detach(model);
    expect(snapshot(model)).toEqual(before);
    x.dispose();
    discard(model);
  });

  test('one adapter of a model may train biases; the next may when it is gone', async () => {
    const model = threeLayers();
    await attach(model, additive(), { name: 'one', bias: 'all' });
    await expect(attach(model, additive(), { name: 'two', bias: 'adapterOnly' })).rejects.toThrow(
      /bias: adapter "one" trains biases already; only one adapter of a model may/,
    );
    await attach(model, additive(), { name: 'two' });
    detach(model, 'one');
    await attach(model, additive(), { name: 'three', bias: 'adapterOnly' });
    detach(model);
    discard(model);
  });

  test.each(['all', 'adapterOnly'] as const)(
    '%s: trained biases are stored and loaded, also while merged',
    async (bias) => {
      const [model, other] = [threeLayers(), threeLayers()];
      const x = noise([3, 4]);
      await attach(model, scaling(), { name: 'mine', targets: ['b'], bias });
      await fit(model);
      const y = outputs(model, x);
      await inDirectory(async (directory) => {
        merge(model);
        await save(model, directory, { name: 'mine' });
        unmerge(model);
        const { tensors } = await readSafetensors(join(directory, 'adapter_model.safetensors'));
        const own = ['base_model.model.b.base_layer.bias', 'base_model.model.b.scaling_c'];
        const rest = ['base_model.model.a.bias', 'base_model.model.c.bias'];
        expect(Object.keys(tensors).sort()).toEqual([...own, ...(bias === 'all' ? rest : [])].sort());
        expect(numbers(tensors[own[0]])).toEqual(numbers(kernelOf(model, 'b')[1]));
        tf.dispose(tensors);
        await load(other, directory, { methods: [scaling], name: 'theirs' });
      });
      expect(outputs(other, x)).toEqual(y);
      detach(model);
      detach(other);
      expect(outputs(other, x)).toEqual(outputs(model, x));
      x.dispose();
      discard(model, other);
    },
  );
});

describe('modules to save', () => {
  test('train in full, are not adapted, belong to their adapter and go with it', async () => {
    const model = threeLayers();
    const x = noise([3, 4]);
    const [before, start] = [snapshot(model), outputs(model, x)];
    await attach(model, additive(), { name: 'one', modulesToSave: ['c'], seed: 1 });
    expect(list(model)[0].sites).toEqual(['a', 'b']);
    const attached = snapshot(model);
    await fit(model);
    expect(moved(model, attached).sort()).toEqual(['c/bias', 'c/kernel', 'one/A', 'one/A', 'one/B', 'one/B']);
    const one = outputs(model, x);
    expect(disable(model, () => outputs(model, x))).toEqual(start);
    expect(outputs(model, x)).toEqual(one);
    setActive(model, []);
    expect(outputs(model, x)).toEqual(start);

    // A second one starts from the model's own module.
    await attach(model, additive(), { name: 'two', targets: ['a'], modulesToSave: ['c'], seed: 2 });
    const fresh = outputs(model, x);
    await fit(model, 9);
    const two = outputs(model, x);
    expectDifferent(two, fresh);
    setActive(model, 'one');
    expect(outputs(model, x)).toEqual(one);
    setActive(model, 'two');
    expect(outputs(model, x)).toEqual(two);

    const mixed = predictMixed(model, x, ['one', '__base__', 'two']) as tf.Tensor;
    expectClose(numbers(mixed), [...one.slice(0, 3), ...start.slice(3, 6), ...two.slice(6)]);
    expect(outputs(model, x)).toEqual(two);
    mixed.dispose();

    merge(model, 'one');
    expectClose(outputs(model, x), one);
    unmerge(model);
    expect(outputs(model, x)).toEqual(two);
    detach(model, 'two');
    expect(outputs(model, x)).toEqual(start);
    setActive(model, 'one');
    expect(outputs(model, x)).toEqual(one);
    detach(model);
    expect(snapshot(model)).toEqual(before);
    x.dispose();
    discard(model);
  });

  test('remain in the ordinary model that mergeAndUnload leaves', async () => {
    const model = threeLayers();
    const x = noise([3, 4]);
    const held = tf.memory().numTensors;
    await attach(model, additive(), { name: 'one', targets: ['a'], modulesToSave: ['c'], bias: 'all' });
    await attach(model, additive(), { name: 'two', targets: ['a'], modulesToSave: ['c'], seed: 2 });
    setActive(model, 'one');
    await fit(model);
    const y = outputs(model, x);
    mergeAndUnload(model);
    expectClose(outputs(model, x), y);
    expect(tf.memory().numTensors).toBe(held);
    x.dispose();
    discard(model);
  });

  /** Everything that a module may be: convolution, normalisation, embedding's kin, recurrent cells. */
  function mixture(): tf.LayersModel {
    return randomise(
      tf.sequential({
        layers: [
          tf.layers.conv2d({ name: 'conv', filters: 4, kernelSize: [2, 3], inputShape: [4, 5, 2] }),
          tf.layers.batchNormalization({ name: 'norm' }),
          tf.layers.reshape({ targetShape: [3, 12] }),
          tf.layers.gru({ name: 'gru', units: 3, recurrentInitializer: 'glorotNormal' }),
          tf.layers.dense({ name: 'dense', units: 4 }),
          tf.layers.dense({ name: 'head', units: 3 }),
        ],
      }),
    );
  }

  test('are stored under the names and shapes of PyTorch and loaded, whatever the adapter is called', async () => {
    const [model, other] = [mixture(), mixture()];
    const x = noise([2, 4, 5, 2]);
    const modulesToSave = ['conv', 'norm', 'gru', 'head'];
    await attach(model, additive(), { name: 'default', targets: ['head'], seed: 2 });
    await attach(model, additive(), { name: 'style.v2', targets: ['dense'], modulesToSave });
    await fit(model);
    const y = outputs(model, x);
    await inDirectory(async (directory) => {
      await save(model, directory, { name: 'style.v2' });
      const json = JSON.parse(await readFile(join(directory, 'adapter_config.json'), 'utf8'));
      expect(json.modules_to_save).toEqual(modulesToSave);
      const { tensors } = await readSafetensors(join(directory, 'adapter_model.safetensors'));
      const shapes = Object.fromEntries(
        Object.entries(tensors).map(([key, { shape }]) => [key.replace('base_model.model.', ''), shape]),
      );
      expect(shapes).toEqual({
        'conv.weight': [4, 2, 2, 3],
        'conv.bias': [4],
        'norm.weight': [4],
        'norm.bias': [4],
        'norm.running_mean': [4],
        'norm.running_var': [4],
        'gru.kernel': [12, 9],
        'gru.recurrent_kernel': [3, 9],
        'gru.bias': [9],
        'dense.additive_A': [2, 3],
        'dense.additive_B': [4, 2],
        'head.weight': [3, 4],
        'head.bias': [3],
      });
      const [conv] = kernelOf(model, 'conv') as unknown as [tf.Tensor4D];
      expect(tensors['base_model.model.conv.weight'].arraySync()).toEqual(
        tf.tidy(() => tf.transpose(conv, [3, 2, 0, 1]).arraySync()),
      );
      tf.dispose(tensors);
      setActive(model, 'default');
      await save(model, `${directory}-2`, { name: 'style.v2' });
      expect(await readFile(`${directory}-2/adapter_model.safetensors`)).toEqual(
        await readFile(`${directory}/adapter_model.safetensors`),
      );
      await load(other, directory, { methods: [additive], name: 'loaded' });
    });
    expectClose(outputs(other, x), y, 1e-6);
    detach(other);
    detach(model);
    expect(outputs(other, x)).toEqual(outputs(model, x));
    x.dispose();
    discard(model, other);
  });
});
