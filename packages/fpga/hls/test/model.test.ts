import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { freeze, type QuantizeConfig, quantizeModel } from '@matforge/qfx';
import * as tf from '@tensorflow/tfjs';
import { compile, type Flavour, writeProject } from '../src/index.ts';
import { removeTemporary, temporary } from './units.ts';

const { layers } = tf;
const compilers: Record<Flavour, string> = { c: 'gcc', hls: 'g++' };
const present = (Object.keys(compilers) as Flavour[]).filter(
  (flavour) => spawnSync(compilers[flavour], ['--version']).status === 0,
);
const run = present.length === 2 ? test.each : test.skip.each;
const note = present.length === 2 ? '' : ' (skipped: needs gcc and g++)';

beforeAll(() => tf.setBackend('cpu'));
afterAll(removeTemporary);

/** Weights as training would leave them: biases and batch norms that matter. */
function scramble(model: tf.LayersModel): tf.LayersModel {
  for (const [i, layer] of model.layers.entries()) {
    const values = layer.getWeights().map((w, j) => {
      const positive = layer.getClassName() === 'BatchNormalization' && (j === 0 || j === 3);
      return tf.randomUniform(w.shape, positive ? 0.4 : -0.7, positive ? 2 : 0.7, 'float32', 31 + 10 * i + j);
    });
    layer.setWeights(values);
    tf.dispose(values);
  }
  return model;
}

function residual(): tf.LayersModel {
  const x = tf.input({ shape: [6, 6, 2] });
  const conv = (filters: number) => layers.conv2d({ filters, kernelSize: 3, padding: 'same' });
  let y = conv(4).apply(x) as tf.SymbolicTensor;
  y = layers.batchNormalization().apply(y) as tf.SymbolicTensor;
  y = layers.reLU().apply(y) as tf.SymbolicTensor;
  let z = conv(4).apply(y) as tf.SymbolicTensor;
  z = layers.batchNormalization().apply(z) as tf.SymbolicTensor;
  z = layers.add().apply([z, y]) as tf.SymbolicTensor;
  z = layers.averagePooling2d({ poolSize: 3, strides: 2, padding: 'same' }).apply(z) as tf.SymbolicTensor;
  z = layers.separableConv2d({ filters: 3, kernelSize: 2 }).apply(z) as tf.SymbolicTensor;
  z = layers.globalAveragePooling2d({}).apply(z) as tf.SymbolicTensor;
  z = layers.dense({ units: 4, activation: 'softmax' }).apply(z) as tf.SymbolicTensor;
  return tf.model({ inputs: x, outputs: z });
}

const sequence = (): tf.LayersModel =>
  tf.sequential({
    layers: [
      layers.conv1d({
        inputShape: [12, 2],
        filters: 6,
        kernelSize: 3,
        strides: 2,
        padding: 'same',
        activation: 'relu',
      }),
      layers.batchNormalization(),
      layers.flatten(),
      layers.dense({ units: 8, activation: 'relu' }),
      layers.dense({ units: 3 }),
    ],
  });

run<[string, () => tf.LayersModel, QuantizeConfig]>([
  ['a residual CNN at 8 bits', residual, { bits: 8 }],
  ['a residual CNN at 3 bits, per channel, unfolded', residual, { bits: 3, perChannel: true, batchNorm: 'unfolded' }],
  ['a residual CNN with two powers of two a weight', residual, { multiplierFree: { k: 2, digits: 'signed' } }],
  ['1-D convolutions, truncation and wrap-around', sequence, { bits: 5, modes: { Q: 'AP_TRN', O: 'AP_WRAP' } }],
])(
  `training forward, simulator, C99 and C++ agree: %s${note}`,
  async (_, make, config) => {
    const float = scramble(make());
    const shape = float.inputs[0].shape.slice(1) as number[];
    const x = tf.randomUniform([24, ...shape], -1.5, 1.5, 'float32', 3);
    const model = quantizeModel(float, { calibration: x, ...config });
    const trained = tf.tidy(() => (model.apply(x, { training: true }) as tf.Tensor).dataSync());
    const graph = freeze(model);
    const directory = join(temporary(), 'project');
    await writeProject(directory, graph, { samples: { values: x }, testbench: { draws: 0, random: 5 } });
    for (const flavour of ['c', 'hls'] as const) {
      const sim = await compile(directory, { flavour, flags: ['-O0'] });
      const report = await sim.compare(x);
      expect(report).toMatchObject({ samples: 24, mismatches: 0, passed: true });
      const { values } = await sim.predict(x);
      expect(Array.from(values)).toEqual(Array.from(trained));
    }
    expect(new Set(trained).size).toBeGreaterThan(3);
    x.dispose();
    model.dispose();
    float.dispose();
  },
  60_000,
);
