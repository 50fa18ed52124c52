import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  adapterTensors,
  attach,
  count,
  detach,
  functional,
  random,
  readSafetensors,
  ready,
  save,
  setAdapterTensors,
  thinSvd,
} from '@matforge/core';
import { type GoldenInputs, testGolden, testLinearMethod } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { denseLoraParameterCount, denselora } from '../src/index.ts';

const refused = [
  [{ rank: 0 }, /denselora\.rank: must be a positive integer, got 0/],
  [{ activation: 'swish' }, /denselora\.activation: must be one of "gelu", "relu", "tanh", "identity", got "swish"/],
  [{ activation: 'relu', decoderInit: 0 }, /layer0\.decoderInit: must be > 0 with activation "relu"/],
  [{ alpha: -1 }, /denselora\.alpha: must be a finite number > 0, got -1/],
] as const;

describe('gelu, one group of three layers', () => {
  testLinearMethod({
    configured: denselora({ rank: 3, alpha: 6, groupBy: 'shape' }),
    dims: [6, 6, 6, 6],
    parameters: () => 9,
    sharedParameters: 3 * 12,
    refused,
  });
});

describe('identity, groups of one layer', () => {
  testLinearMethod({
    configured: denselora({ rank: 3, alpha: 6, activation: 'identity' }),
    parameters: (inDim, outDim) => 3 * (inDim + outDim) + 9,
    refused: refused.slice(0, 1),
  });
});

/** One input and one dense layer `layers.<l>.proj` per kernel: a bank that shares. */
function bank(W: tf.Tensor, bias?: tf.Tensor): tf.LayersModel {
  const [count, inDim, units] = W.shape;
  const inputs = Array.from({ length: count }, () => tf.input({ shape: [inDim] }));
  const outputs = inputs.map((input, l) => {
    const weights = tf.tidy(() => [W, ...(bias ? [bias] : [])].map((all) => tf.keep(tf.unstack(all)[l])));
    const layer = tf.layers.dense({ name: `layers.${l}.proj`, units, useBias: Boolean(bias), weights });
    const output = layer.apply(input) as tf.SymbolicTensor;
    tf.dispose(weights);
    return output;
  });
  return tf.model({ inputs, outputs });
}

function apply(model: tf.LayersModel, x: tf.Tensor): tf.Tensor {
  return tf.stack([model.apply(tf.unstack(x))].flat() as tf.Tensor[]);
}

type Config = { r: number; alpha: number; activation: 'gelu' | 'relu' | 'tanh' | 'identity' };

/** The bank of a golden case with the case's adapter. */
async function goldenBank(inputs: GoldenInputs, { r, alpha, activation }: Config): Promise<tf.LayersModel> {
  const model = bank(inputs.tensor('W'), inputs.optional('bias'));
  await attach(model, denselora({ rank: r, alpha, activation }));
  const cores = tf.unstack(inputs.tensor('core'));
  const [encoder, decoder] = [inputs.tensor('encoder'), inputs.tensor('decoder')];
  setAdapterTensors(
    model,
    'default',
    Object.fromEntries(
      cores.map((core, l): [string, Record<string, tf.Tensor>] => [
        `layers.${l}.proj`,
        l === 0 ? { core, encoder, decoder } : { core },
      ]),
    ),
  );
  tf.dispose(cores);
  return model;
}

function close(model: tf.LayersModel): void {
  detach(model);
  model.dispose();
}

testGolden('denselora', __dirname, {
  async forward(inputs, config) {
    const model = await goldenBank(inputs, config);
    const y = tf.tidy(() => apply(model, inputs.tensor('x')));
    const trainableParams = count(model).adapters.default;
    const own = Object.values(adapterTensors(model, 'default'));
    const { r, alpha, activation } = config;
    const [layers, inDim, outDim] = inputs.tensor('W').shape;
    const merged =
      activation === 'identity'
        ? tf.tidy(() =>
            tf.stack(
              tf
                .unstack(inputs.tensor('W'))
                .map(
                  (kernel, l) =>
                    functional(denselora({ rank: r, alpha, activation }), { kernel: kernel as tf.Tensor2D }).dense(
                      own[l],
                    ).kernel,
                ),
            ),
          )
        : undefined;
    close(model);
    const { lora } = denseLoraParameterCount([{ in: inDim, out: outDim, layers }], r);
    return { y, trainableParams, loraParams: lora, ...(merged && { merged }) };
  },
  async gradients(inputs, config) {
    const model = await goldenBank(inputs, config);
    const [x, upstream] = [inputs.tensor('x'), inputs.tensor('upstream')];
    const loss = (at: tf.Tensor) => tf.sum(tf.mul(apply(model, at), upstream)) as tf.Scalar;
    const sites = Object.values(adapterTensors(model, 'default')) as Record<string, tf.Variable>[];
    const variables = [sites[0].encoder, sites[0].decoder, ...sites.map(({ core }) => core)];
    const { value, grads } = tf.variableGrads(() => loss(x), variables);
    const gradX = tf.tidy(() => tf.grad(loss)(x));
    const gradCore = tf.tidy(() => tf.stack(sites.map(({ core }) => grads[core.name])));
    const result = {
      loss: value,
      gradEncoder: tf.clone(grads[sites[0].encoder.name]),
      gradDecoder: tf.clone(grads[sites[0].decoder.name]),
      gradCore,
      gradX,
    };
    tf.dispose(grads);
    close(model);
    return result;
  },
  parameterCount: (_, { r, groups }) => denseLoraParameterCount(groups, r),
});

beforeAll(async () => {
  await ready();
});

const largest = (x: tf.Tensor): number => tf.tidy(() => tf.max(tf.abs(x)).dataSync()[0]);

describe('sharing', () => {
  test('the first step moves only the decoder', async () => {
    const W = random(1).normal([2, 5, 4]);
    const model = bank(W);
    await attach(model, denselora({ rank: 2 }));
    const x = random(2).normal([2, 3, 5]);
    const sites = Object.values(adapterTensors(model, 'default')) as Record<string, tf.Variable>[];
    const { value, grads } = tf.variableGrads(
      () => tf.sum(tf.square(apply(model, x))) as tf.Scalar,
      [sites[0].encoder, sites[0].decoder, sites[0].core, sites[1].core],
    );
    expect(largest(grads[sites[0].encoder.name])).toBe(0);
    for (const { core } of sites) expect(largest(grads[core.name])).toBe(0);
    expect(largest(grads[sites[0].decoder.name])).toBeGreaterThan(0.01);
    tf.dispose([W, x, value]);
    tf.dispose(grads);
    close(model);
  });

  test('layers of one module name and shape share, others do not, and the file holds each shared tensor once', async () => {
    const names = ['layers.0.q_proj', 'layers.1.q_proj', 'layers.0.k_proj', 'layers.2.q_proj'];
    const units = [5, 5, 5, 3];
    const inputs = names.map(() => tf.input({ shape: [4] }));
    const outputs = names.map(
      (name, i) => tf.layers.dense({ name, units: units[i] }).apply(inputs[i]) as tf.SymbolicTensor,
    );
    const model = tf.model({ inputs, outputs });
    await attach(model, denselora({ rank: 2 }));
    const [first, second, other, wide] = names.map((name) => adapterTensors(model, 'default')[name]);
    expect(second.encoder).toBe(first.encoder);
    expect(second.decoder).toBe(first.decoder);
    expect(second.core).not.toBe(first.core);
    expect(other.encoder).not.toBe(first.encoder);
    expect(wide.encoder).not.toBe(first.encoder);
    expect(count(model).adapters.default).toBe(2 * (9 + 9 + 7) + 4 * 4);
    const directory = await mkdtemp(join(tmpdir(), 'denselora-'));
    await save(model, join(directory, 'adapter'));
    const { tensors } = await readSafetensors(join(directory, 'adapter', 'adapter_model.safetensors'));
    const keys = Object.keys(tensors);
    expect(keys.filter((key) => key.includes('denselora_core'))).toHaveLength(4);
    expect(keys.filter((key) => key.startsWith('base_model.denselora_encoder.'))).toHaveLength(3);
    expect(keys).toContain('base_model.denselora_decoder.decoder.q_proj.4x5');
    expect(tensors['base_model.denselora_encoder.encoder.q_proj.4x5'].shape).toEqual([2, 4]);
    tf.dispose(tensors);
    await rm(directory, { recursive: true });
    close(model);
  });

  test('grouping by module alone refuses layers of different shapes and names both', async () => {
    const inputs = [4, 6].map((width) => tf.input({ shape: [width] }));
    const outputs = inputs.map(
      (input, i) => tf.layers.dense({ name: `blocks.${i}.proj`, units: 3 }).apply(input) as tf.SymbolicTensor,
    );
    const model = tf.model({ inputs, outputs });
    await expect(attach(model, denselora({ rank: 2, groupBy: 'module' }))).rejects.toThrow(
      /layers of different shapes: blocks\.0\.proj \[4, 3\] and blocks\.1\.proj \[6, 3\]/,
    );
    model.dispose();
  });
});

test('under relu the decoder starts small and learns from the first step', async () => {
  const W = random(1).normal([2, 5, 4]);
  const model = bank(W);
  await attach(model, denselora({ rank: 8, activation: 'relu' }));
  const x = random(2).normal([2, 16, 5]);
  const { decoder } = Object.values(adapterTensors(model, 'default'))[0] as Record<string, tf.Variable>;
  expect(largest(decoder)).toBeGreaterThan(1e-3);
  expect(largest(decoder)).toBeLessThanOrEqual(0.01);
  const { value, grads } = tf.variableGrads(() => tf.sum(tf.square(apply(model, x))) as tf.Scalar, [decoder]);
  expect(largest(grads[decoder.name])).toBeGreaterThan(0.01);
  tf.dispose([W, x, value]);
  tf.dispose(grads);
  close(model);
});

test('with identity activation the change has rank r at most', () => {
  tf.tidy(() => {
    const method = functional(denselora({ rank: 2, activation: 'identity', decoderInit: 0.5 }), {
      kernel: tf.zeros([6, 5]),
    });
    const { s } = thinSvd(method.dense(method.init()).kernel);
    const [, second, third] = s.dataSync();
    expect(second).toBeGreaterThan(1e-3);
    expect(third).toBeLessThan(1e-6 * second + 1e-7);
  });
});

test('a core of another shape is refused with both shapes', async () => {
  const W = random(1).normal([1, 5, 4]);
  const model = bank(W);
  await attach(model, denselora({ rank: 2 }));
  const core = tf.ones([3, 3]);
  expect(() => setAdapterTensors(model, 'default', { 'layers.0.proj': { core } })).toThrow(
    /core: has shape \[2,2\], got a value of shape \[3,3\]/,
  );
  tf.dispose([core, W]);
  close(model);
});

test('a convolution is refused unless the activation is the identity', async () => {
  const model = tf.sequential({
    layers: [tf.layers.conv2d({ name: 'conv', filters: 3, kernelSize: 2, inputShape: [5, 5, 2] })],
  });
  await expect(attach(model, denselora({ rank: 2 }), { targets: ['conv'] })).rejects.toThrow(
    /conv: denselora cannot be applied to a convolution in this configuration/,
  );
  await attach(model, denselora({ rank: 2, activation: 'identity' }), { targets: ['conv'] });
  expect(count(model).adapters.default).toBe(2 * (8 + 3) + 4);
  close(model);
});
