import { spawnSync } from 'node:child_process';
import { ready } from '@matforge/core';
import { fashionMnist } from '@matforge/datasets';
import { freeze, isMac, quantizeModel } from '@matforge/qfx';
import * as tf from '@tensorflow/tfjs';
import { agree, networks, prove } from '../fpga-proof/proof.ts';

const compilers = ['gcc', 'g++'].every((compiler) => spawnSync(compiler, ['--version']).status === 0);

const note = compilers ? '' : ' (skipped: needs gcc and g++)';
const run = compilers ? test : test.skip;

run(`training forward, simulator, C99 and C++ agree on 100 images${note}`, async () => {
  await ready();
  const { train, test: unseen } = await fashionMnist({ seed: 1 });
  const before = tf.memory().numTensors;
  const result = await prove({
    name: 'CNN with batch norm',
    make: () => networks.cnn([28, 28, 1], [4, 8]),
    train: train.take(4000),
    test: unseen.take(300),
    floatSteps: 40,
    steps: 25,
    learningRate: 8e-3,
    samples: 100,
    settings: [{ bits: 4, k: 2 }],
    flags: ['-O0'],
  });
  expect(tf.memory().numTensors - before).toBe(0);
  const [{ agreement, trained, dsp, lut }] = result.rows;
  expect(agreement).toMatchObject({
    samples: 100,
    outputs: 1000,
    differing: { simulator: 0, c: 0, cpp: 0 },
    layers: { c: 0, cpp: 0 },
  });
  // 40 images: input, first layer, its pooling, second layer, its pooling twice (flat), logits.
  expect(agreement.layers.compared).toBe(40 * (784 + 26 * 26 * 4 + 13 * 13 * 4 + 11 * 11 * 8 + 2 * 5 * 5 * 8 + 10));
  expect(agreement.classes).toBeGreaterThan(5);
  expect(result.macs).toBe(26 * 26 * 36 + 11 * 11 * 9 * 4 * 8 + 2000);
  // Chance is 0.1.
  expect(trained).toBeGreaterThan(0.5);
  expect(dsp).toBe(0);
  expect(lut).toBeGreaterThan(0);
});

run(`all three programs show one weight that differs from training${note}`, async () => {
  await ready();
  const x = tf.randomUniform([30, 2, 3], 0, 1, 'float32', 5);
  const float = networks.mlp([2, 3], [5]);
  const model = quantizeModel(float, { bits: 6, calibration: x });
  const graph = structuredClone(freeze(model));
  const last = graph.nodes.filter(isMac).at(-1)!;
  const data = last.weights.data as number[];
  data[0] = data[0] > 0 ? data[0] - 1 : data[0] + 1;
  const { agreement } = await agree(model, graph, x, { flags: ['-O0'] });
  const { simulator, c, cpp } = agreement.differing;
  expect(simulator).toBeGreaterThan(0);
  // One weight belongs to one of the ten outputs.
  expect(simulator).toBeLessThanOrEqual(30);
  expect([c, cpp]).toEqual([simulator, simulator]);
  tf.dispose(x);
  model.dispose();
  float.dispose();
});
