import { linalg, matrix, type Reproduction, random, ready, structuredFamily, toMatrix } from '@matforge/core';
import { mean } from '@matforge/core/tasks';
import * as tf from '@tensorflow/tfjs';
import { btt, bttProject } from './index.ts';

const WIDTHS = [64, 256, 1024, 4096];
const N = 64;

/** With the scaled learning rates a step moves the output alike at every width; BTT fits a kernel better than low rank. */
export async function reproduce(): Promise<Reproduction> {
  await ready();
  const updates = WIDTHS.map((width) => {
    const both = [0, 1, 2, 3, 4].map((seed) => updateSize(width, seed));
    return { width, scaled: mean(both.map(({ scaled }) => scaled)), plain: mean(both.map(({ plain }) => plain)) };
  });
  const kernels = Array.from({ length: 20 }, (_, seed) => exponentialKernel(seed));
  const nearer = kernels.filter((entry) => entry.btt < entry.lowRank).length;
  const errors = { btt: mean(kernels.map((entry) => entry.btt)), lowRank: mean(kernels.map((entry) => entry.lowRank)) };
  const scaled = updates.map((row) => row.scaled);
  const spread = Math.max(...scaled) / Math.min(...scaled);
  const fall = updates[0].plain / updates[updates.length - 1].plain;
  return {
    claim:
      'change of the output by one step, widths 64 to 4096: scaled rates max/min < 1.15, rates of a dense layer fall more than 5 times; exponential kernel: BTT of rank 1 nearer than low rank of the same size on the mean by 5 % and for at least 15 of 20 seeds',
    rows: [
      ...updates.map(({ width, scaled: ours, plain }) => row(`update at width ${width}`, ours, plain)),
      row('exponential kernel, 20 seeds', errors.btt, errors.lowRank),
    ],
    held: spread < 1.15 && fall > 5 && errors.btt < 0.95 * errors.lowRank && nearer >= 15,
    details: `Rows "update": rms change of y by one sign-gradient step of 1e-3, mean of 5 seeds; baseline: the rate 64/width of a dense layer. Scaled: max/min ${spread.toFixed(3)}; baseline falls ${fall.toFixed(1)} times. Row "kernel": relative error of the projection of exp(-40|t - s|) on 64 sorted uniform points, 1024 numbers each; baseline: truncated SVD of rank 8; nearer for ${nearer} of 20.`,
  };
}

function row(measured: string, ours: number, baseline: number): { measured: string; BTT: number; baseline: number } {
  return { measured, BTT: ours, baseline };
}

/** rms of the change of y = x·W by one step of 1e-3·multiplier along the sign of the gradient of Σ y∘g. */
function updateSize(width: number, seed: number): { scaled: number; plain: number } {
  const kernel = structuredFamily(btt).init({ inDim: width, outDim: width }, 'muP', seed);
  const stream = random(seed).fork(width);
  const multipliers = kernel.lrMultipliers(64);
  const result = tf.tidy(() => {
    const [x, g] = [stream.normal([1, width]), stream.normal([1, width])];
    const y = kernel.apply(x);
    const loss = () => tf.sum(tf.mul(kernel.apply(x), g)) as tf.Scalar;
    const { grads } = tf.variableGrads(loss, Object.values(kernel.factors));
    const start = kernel.state();
    const changeWith = (rate: (name: string) => number) => {
      for (const [name, factor] of Object.entries(kernel.factors)) {
        factor.assign(tf.sub(start[name], tf.mul(tf.sign(grads[factor.name]), 1e-3 * rate(name))));
      }
      return tf.sqrt(tf.mean(tf.square(tf.sub(kernel.apply(x), y)))).dataSync()[0];
    };
    return { scaled: changeWith((name) => multipliers[name]), plain: changeWith(() => 64 / width) };
  });
  kernel.dispose();
  return result;
}

function exponentialKernel(seed: number): { btt: number; lowRank: number } {
  const stream = random(seed).fork('points');
  const points = () => Array.from({ length: N }, () => stream.next()).sort((a, b) => a - b);
  const [t, s] = [points(), points()];
  const values = matrix(N, N, (i, j) => Math.exp(-40 * Math.abs(t[i] - s[j])));
  const W = tf.tensor2d(Float32Array.from(values.data), [N, N]);
  const { cores, relError } = bttProject(W, { inFactors: [8, 8], outFactors: [8, 8], rank: 1 });
  const squares = [...linalg.singularValues(toMatrix(W))].map((value) => value * value);
  const sum = (list: number[]) => list.reduce((total, value) => total + value, 0);
  tf.dispose([W, ...cores]);
  return { btt: relError, lowRank: Math.sqrt(sum(squares.slice(8)) / sum(squares)) };
}
