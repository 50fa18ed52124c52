import { adam, type Reproduction, random, ready, schedules } from '@matforge/core';
import { trainFullBatch } from '@matforge/core/tasks';
import * as tf from '@tensorflow/tfjs';
import { MonarchDense, monarchParamCount, monarchProject } from './index.ts';

const N = 64;
const NBLOCKS = 8;
const RANK = 8;

/** A Monarch layer learns a fast transform that a low-rank layer of the same size cannot represent. */
export async function reproduce(): Promise<Reproduction> {
  await ready();
  const hadamard = tf.tidy(() => walshHadamard(N));
  const rows = [];
  for (const seed of [0, 1, 2]) {
    const input = { inputShape: [N], useBias: false };
    const layers = {
      Monarch: [new MonarchDense({ units: N, nblocks: NBLOCKS, kernelInitializer: 'muP', seed, ...input })],
      'low rank': [RANK, N].map((units, i) =>
        tf.layers.dense({ ...input, inputShape: [i ? RANK : N], units, kernelInitializer: normal(seed + i) }),
      ),
    };
    rows.push({
      seed,
      Monarch: learn(layers.Monarch, hadamard, seed),
      'low rank': learn(layers['low rank'], hadamard, seed),
    });
  }
  const { relError, blkdiag1, blkdiag2 } = monarchProject(hadamard, NBLOCKS);
  tf.dispose([hadamard, blkdiag1, blkdiag2]);
  return {
    claim:
      'relative test error of learning the 64×64 Hadamard transform: Monarch < 1e-4, low rank of the same size > 0.8',
    rows,
    held: rows.every((row) => row.Monarch < 1e-4 && row['low rank'] > 0.8) && relError < 1e-6,
    details: `Both layers have ${monarchParamCount(N, N, NBLOCKS)} numbers. Adam 1e-2 falling to 0 over 750 steps of 128 of 1024 Gaussian samples, mean squared error. Projecting the transform leaves ${relError.toExponential(1)}.`,
  };
}

/** Trains layers to x ↦ x·target and returns Σ(ŷ − y)²/Σy² on new samples. */
function learn(layers: tf.layers.Layer[], target: tf.Tensor2D, seed: number): number {
  const model = tf.sequential({ layers });
  const stream = random(seed).fork('samples');
  const samples = (rows: number) => {
    const x = stream.normal([rows, N]) as tf.Tensor2D;
    return { x, y: tf.matMul(x, target) };
  };
  const [train, test] = [samples(1024), samples(1024)];
  const steps = 750;
  const optimizer = adam({ learningRate: schedules.linear({ from: 1e-2, to: 0, steps }) });
  trainFullBatch(model, train, { steps, optimizer, batchSize: 128, seed });
  const error = tf.tidy(() => {
    const off = tf.sub(model.apply(test.x) as tf.Tensor, test.y);
    return tf.div(tf.sum(tf.square(off)), tf.sum(tf.square(test.y))).dataSync()[0];
  });
  model.dispose();
  tf.dispose([train.x, train.y, test.x, test.y]);
  return error;
}

function normal(seed: number): ReturnType<typeof tf.initializers.randomNormal> {
  return tf.initializers.randomNormal({ stddev: 1 / Math.sqrt(N), seed });
}

/** H/√n, orthonormal. */
function walshHadamard(n: number): tf.Tensor2D {
  const entries = Array.from({ length: n * n }, (_, index) => {
    let common = Math.floor(index / n) & (index % n);
    let sign = 1;
    for (; common; common &= common - 1) sign = -sign;
    return sign / Math.sqrt(n);
  });
  return tf.tensor2d(entries, [n, n]);
}
