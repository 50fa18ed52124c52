import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  adapterTensors,
  attach,
  count,
  functional,
  random,
  readSafetensors,
  ready,
  save,
  setAdapterTensors,
  thinSvd,
} from '@matforge/core';
import { testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { denselora } from '../src/index.ts';
import { apply, bank, close, suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

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
