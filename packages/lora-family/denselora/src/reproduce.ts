import {
  type AnyConfiguredMethod,
  adam,
  attach,
  gelu,
  type Random,
  type Reproduction,
  random,
  ready,
  toOptimizer,
} from '@matforge/core';
import { lora } from '@matforge/lora';
import * as tf from '@tensorflow/tfjs';
import { denselora } from './index.ts';

const LAYERS = 16;
const SIZE = 32;
const ROWS = 128;

/** Sixteen layers whose changes share an encoder and a decoder: DenseLoRA learns them with a quarter of LoRA's numbers. */
export async function reproduce(): Promise<Reproduction> {
  await ready();
  const rows = [];
  for (const seed of [0, 1, 2]) {
    const bank = makeBank(random(seed).fork('bank'));
    rows.push({
      seed,
      'DenseLoRA rank 4 (512 parameters)': await learn(bank, denselora({ rank: 4, alpha: 8, groupBy: 'shape' }), seed),
      'LoRA rank 2 (2048 parameters)': await learn(bank, lora({ rank: 2, alpha: 4 }), seed),
    });
    tf.dispose(Object.values(bank));
  }
  return {
    claim: 'test error relative to the base: DenseLoRA < 0.1, LoRA with four times the numbers > 0.5',
    rows,
    held: rows.every(
      (row) => row['DenseLoRA rank 4 (512 parameters)'] < 0.1 && row['LoRA rank 2 (2048 parameters)'] > 0.5,
    ),
    details:
      '16 layers 32x32, targets x·W + act(act(x·E*)·M*·D*) with E*, D* in common, r* = 4: the teacher is of the family of DenseLoRA itself. 128 rows per layer, Adam 1e-2, 400 full-batch steps; mean squared error on fresh rows.',
  };
}

/** Kernels `[layers, in, out]`; inputs and targets `[layers, rows, in]` to train and to test on. */
type Bank = Record<'W' | 'x' | 'y' | 'freshX' | 'freshY', tf.Tensor3D>;

function makeBank(stream: Random): Bank {
  return tf.tidy(() => {
    const draw = (shape: number[], deviation: number) => stream.normal(shape, 0, deviation) as tf.Tensor3D;
    const W = draw([LAYERS, SIZE, SIZE], 0.2);
    const repeated = (shared: tf.Tensor) => tf.tile(shared, [LAYERS, 1, 1]) as tf.Tensor3D;
    const [E, M, D] = [repeated(draw([1, SIZE, 4], 0.3)), draw([LAYERS, 4, 4], 0.7), repeated(draw([1, 4, SIZE], 0.5))];
    const target = (x: tf.Tensor3D) => {
      const code = tf.matMul(gelu(tf.matMul(x, E)) as tf.Tensor3D, M);
      return tf.add(tf.matMul(x, W), gelu(tf.matMul(code, D))) as tf.Tensor3D;
    };
    const [x, freshX] = [draw([LAYERS, ROWS, SIZE], 1), draw([LAYERS, ROWS, SIZE], 1)];
    return { W, x, y: target(x), freshX, freshY: target(freshX) };
  });
}

/** Trains a method on all layers together; mean squared error on fresh rows relative to the base's. */
async function learn({ W, x, y, freshX, freshY }: Bank, method: AnyConfiguredMethod, seed: number): Promise<number> {
  const inputs = Array.from({ length: LAYERS }, () => tf.input({ shape: [SIZE] }));
  const kernels = tf.unstack(W);
  const outputs = inputs.map((input, l) => {
    const layer = tf.layers.dense({ name: `layer${l}`, units: SIZE, useBias: false, weights: [kernels[l]] });
    return layer.apply(input) as tf.SymbolicTensor;
  });
  tf.dispose(kernels);
  const model = tf.model({ inputs, outputs });
  const error = (at: tf.Tensor, target: tf.Tensor) =>
    tf.losses.meanSquaredError(target, tf.stack(model.apply(tf.unstack(at)) as tf.Tensor[])) as tf.Scalar;
  const test = () => tf.tidy(() => error(freshX, freshY).dataSync()[0]);
  const before = test();
  await attach(model, method, { seed });
  const variables = model.trainableWeights.filter(({ trainable }) => trainable).map((weight) => weight.read());
  const optimizer = toOptimizer(adam({ learningRate: 1e-2 }));
  for (let step = 0; step < 400; step++) optimizer.minimize(() => error(x, y), false, variables as tf.Variable[]);
  const after = test();
  optimizer.dispose();
  model.dispose();
  return after / before;
}
