import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  adapterTensors,
  attach,
  count,
  detach,
  load,
  random,
  readSafetensors,
  ready,
  save,
  setAdapterTensors,
} from '@matforge/core';
import { lora } from '@matforge/lora';
import { denseModel, testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { seal, setPassport, trainStepPassport } from '../src/index.ts';
import { suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

describe('the method', () => {
  beforeAll(async () => {
    await ready();
  });
  let before: number;
  beforeEach(() => {
    before = tf.memory().numTensors;
  });
  afterEach(() => {
    expect(tf.memory().numTensors).toBe(before);
  });

  const targets = ['layer0', 'layer1'];
  const dims = [6, 8, 5];
  const marked = async (options: object = {}) =>
    attach(denseModel(dims), seal({ rank: 3, alpha: 6, secret: 11, ...options }), { targets, seed: 1 });
  const outputs = (model: tf.LayersModel, x: tf.Tensor, training = false) =>
    tf.tidy(() => Array.from((model.apply(x, { training }) as tf.Tensor).dataSync()));
  const fillB = (model: tf.LayersModel) => {
    for (const [layer, { B }] of Object.entries(adapterTensors(model, 'default'))) {
      const value = random(8).normal(B.shape, 0, 0.3);
      setAdapterTensors(model, 'default', { [layer]: { B: value } });
      value.dispose();
    }
  };
  const close = (model: tf.LayersModel, ...tensors: tf.Tensor[]) => {
    detach(model);
    model.dispose();
    tf.dispose(tensors);
  };
  const largest = (a: number[], b: number[]) => Math.max(...a.map((value, i) => Math.abs(value - b[i])));

  test('with the identity for a passport it is plain LoRA', async () => {
    const [model, plain] = [await marked(), denseModel(dims)];
    await attach(plain, lora({ rank: 3, alpha: 6 }), { targets });
    fillB(model);
    const eye = tf.eye(3);
    for (const layer of targets) {
      setAdapterTensors(model, 'default', { [layer]: { C: eye } });
      const { A, B } = adapterTensors(model, 'default')[layer];
      setAdapterTensors(plain, 'default', { [layer]: { A, B } });
    }
    const x = random(2).normal([4, 6]);
    expect(largest(outputs(model, x), outputs(plain, x))).toBeLessThan(1e-5);
    expect(count(model).trainable).toBe(count(plain).trainable);
    close(plain);
    close(model, x, eye);
  });

  test('layers have passports of their own, and training moves neither', async () => {
    const model = await marked();
    const passports = () =>
      targets.flatMap((layer) => {
        const { C, Cp } = adapterTensors(model, 'default')[layer];
        return [C, Cp].map((passport) => Array.from(passport.dataSync()));
      });
    const start = passports();
    expect(new Set(start.map(String)).size).toBe(4);
    const [x, y] = [random(2).normal([8, 6]), random(3).normal([8, 5])];
    model.compile({ optimizer: tf.train.sgd(0.1), loss: 'meanSquaredError' });
    await model.fit(x, y, { epochs: 3, verbose: 0 });
    expect(passports()).toEqual(start);
    model.optimizer.dispose();
    close(model, x, y);
  });

  test.each(['alternate', 'random'] as const)('schedule %s: a passport per step, for all layers', async (schedule) => {
    const model = await marked({ schedule });
    fillB(model);
    const [x, y] = [random(2).normal([8, 6]), random(3).normal([8, 5])];
    model.compile({ optimizer: tf.train.sgd(0), loss: 'meanSquaredError' });
    const [first, second] = ([0, 1] as const).map((passport) => {
      setPassport(model, 'default', passport);
      return outputs(model, x);
    });
    setPassport(model, 'default', 0);
    expect(largest(first, second)).toBeGreaterThan(0.01);
    const used: number[] = [];
    for (let step = 1; step <= 8; step++) {
      const training = outputs(model, x, true);
      const expected = trainStepPassport(step, { secret: 11, schedule });
      expect(training).toEqual(expected === 0 ? first : second);
      expect(outputs(model, x)).toEqual(first);
      used.push(expected);
      tf.dispose(await model.trainOnBatch(x, y));
    }
    if (schedule === 'alternate') expect(used).toEqual([0, 1, 0, 1, 0, 1, 0, 1]);
    else expect(new Set(used)).toEqual(new Set([0, 1]));
    model.optimizer.dispose();
    close(model, x, y);
  });

  test('the random schedule takes each passport half of the time', () => {
    const steps = Array.from({ length: 2000 }, (_, i) => trainStepPassport(i + 1, { secret: 3, schedule: 'random' }));
    const share = steps.reduce<number>((sum, passport) => sum + passport, 0) / steps.length;
    expect(Math.abs(share - 0.5)).toBeLessThan(0.04);
  });

  test('the saved directory is plain LoRA: no passport, no secret, no trace of the method', async () => {
    const directory = join(await mkdtemp(join(tmpdir(), 'seal-')), 'released');
    const model = await marked({ secret: 918273645, rankPattern: { layer1: 2 } });
    fillB(model);
    // The release holds C whatever evaluation uses.
    const x = random(2).normal([4, 6]);
    const y = outputs(model, x);
    setPassport(model, 'default', 1);
    await save(model, directory);
    const config = await readFile(join(directory, 'adapter_config.json'), 'utf8');
    expect(config).not.toMatch(/918273645|seal|secret|passport|schedule/i);
    expect(JSON.parse(config)).toMatchObject({ peft_type: 'LORA', r: 3, lora_alpha: 6, rank_pattern: { layer1: 2 } });
    expect((await readdir(directory)).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
    const { tensors } = await readSafetensors(join(directory, 'adapter_model.safetensors'));
    expect(
      Object.entries(tensors)
        .map(([key, { shape }]) => `${key} ${shape}`)
        .sort(),
    ).toEqual([
      'base_model.model.layer0.lora_A.weight 3,6',
      'base_model.model.layer0.lora_B.weight 8,3',
      'base_model.model.layer1.lora_A.weight 2,8',
      'base_model.model.layer1.lora_B.weight 5,2',
    ]);
    tf.dispose(Object.values(tensors));
    const other = denseModel(dims);
    await load(other, directory, { methods: [seal, lora] });
    expect(largest(outputs(other, x), y)).toBeLessThan(1e-5);
    await rm(join(directory, '..'), { recursive: true });
    close(other);
    close(model, x);
  });
});
