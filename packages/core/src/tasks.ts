/**
 * Small tasks with known answers, on which the methods' claims are measured: fast to train, the same for every method.
 *
 * @module
 */
import * as tf from '@tensorflow/tfjs';
import type { AnyConfiguredMethod } from './contracts/linear-method.ts';
import { attach } from './host/attach.ts';
import { thinSvd } from './linalg/index.ts';
import { toOptimizer } from './optim/optimizer.ts';
import type { GradientTransformation } from './optim/transformation.ts';
import { adam } from './optim/transformations.ts';
import { type Random, random } from './tensors/random.ts';

/** Inputs and targets. */
export interface Samples {
  readonly x: tf.Tensor2D;
  readonly y: tf.Tensor;
}

/** How {@link trainFullBatch} trains. */
export interface FullBatchOptions {
  readonly steps: number;
  /** Default Adam with `learningRate`. */
  readonly optimizer?: GradientTransformation;
  readonly learningRate?: number;
  /** Default: mean squared error, or cross-entropy when y holds int32 labels. */
  readonly loss?: (y: tf.Tensor, prediction: tf.Tensor) => tf.Scalar;
  /** Rows per step, drawn without replacement by `seed`; default all. */
  readonly batchSize?: number;
  readonly seed?: number;
  readonly onStep?: (step: number) => void;
}

/** Trains the trainable weights of a model for a number of steps. Returns the loss at the last step. */
export function trainFullBatch(model: tf.LayersModel, { x, y }: Samples, options: FullBatchOptions): number {
  const {
    steps,
    learningRate = 1e-2,
    optimizer = adam({ learningRate }),
    loss = defaultLoss(y),
    batchSize,
    seed = 0,
    onStep,
  } = options;
  const made = toOptimizer(optimizer);
  // Compiling lets schedules of attached methods see the gradients.
  model.compile({ optimizer: made, loss: 'meanSquaredError' });
  const stream = random(seed);
  let last = Number.NaN;
  for (let step = 1; step <= steps; step++) {
    tf.tidy(() => {
      const rows =
        batchSize === undefined
          ? undefined
          : tf.tensor1d(stream.permutation(x.shape[0]).subarray(0, batchSize), 'int32');
      const [xs, ys] = rows ? [tf.gather(x, rows), tf.gather(y, rows)] : [x, y];
      const variables = model.trainableWeights.map((weight) => weight.read() as tf.Variable);
      const cost = made.minimize(() => loss(ys, model.apply(xs, { training: true }) as tf.Tensor), true, variables);
      if (step === steps) last = (cost as tf.Scalar).dataSync()[0];
    });
    onStep?.(step);
  }
  made.dispose();
  return last;
}

function defaultLoss(y: tf.Tensor): (y: tf.Tensor, prediction: tf.Tensor) => tf.Scalar {
  return y.dtype === 'int32'
    ? (labels, logits) =>
        tf.losses.softmaxCrossEntropy(tf.oneHot(labels as tf.Tensor1D, logits.shape[1] as number), logits)
    : (targets, prediction) => tf.losses.meanSquaredError(targets, prediction);
}

/** Share of rows whose largest logit is at the label. */
export function accuracy(model: tf.LayersModel, { x, y }: Samples): number {
  return tf.tidy(() => {
    const hit = tf.equal(tf.argMax(model.apply(x) as tf.Tensor, 1), y);
    return tf.mean(tf.cast(hit, 'float32')).dataSync()[0];
  });
}

/** A pretrained classifier and a shifted task to adapt it to. */
export interface TransferTask {
  /** A new copy of the pretrained model; its owner disposes it. Layers `layer0`, `layer1`, …. */
  model(): tf.Sequential;
  readonly train: Samples;
  readonly test: Samples;
  dispose(): void;
}

/** A ReLU MLP with layers `layer0`, `layer1`, … and Kaiming-uniform start. */
export function reluMlp(dims: readonly number[], stream: Random, useBias = true): tf.Sequential {
  const model = tf.sequential();
  dims.slice(1).forEach((units, i) => {
    const limit = 1 / Math.sqrt(dims[i]);
    const weights = [
      stream.uniform([dims[i], units], -limit, limit),
      ...(useBias ? [stream.uniform([units], -limit, limit)] : []),
    ];
    model.add(
      tf.layers.dense({
        name: `layer${i}`,
        units,
        useBias,
        activation: i < dims.length - 2 ? 'relu' : 'linear',
        ...(i === 0 && { inputShape: [dims[0]] }),
        weights,
      }),
    );
    tf.dispose(weights);
  });
  return model;
}

/**
 * "Blob transfer": 16 Gaussian classes in 32 dimensions; an MLP 32-64-64-16 is pretrained on them, then the class means
 * are rotated by a random orthogonal matrix and the labels permuted. 1,024 rows to train on, 2,048 to test.
 */
export function blobTransfer(seed: number): TransferTask {
  const [dim, classes] = [32, 16];
  const stream = random(seed).fork('blobs');
  const means = stream.normal([classes, dim]);
  const rotated = tf.tidy(() => {
    const { u, v } = thinSvd(stream.normal([dim, dim]) as tf.Tensor2D);
    return tf.matMul(means as tf.Tensor2D, tf.matMul(u, v, false, true));
  });
  const permutation = stream.permutation(classes);
  const draw = (centres: tf.Tensor, rows: number, label: (index: number) => number): Samples => {
    const indices = Int32Array.from({ length: rows }, () => stream.integer(classes));
    const x = tf.tidy(
      () => tf.add(tf.gather(centres, tf.tensor1d(indices, 'int32')), stream.normal([rows, dim])) as tf.Tensor2D,
    );
    return { x, y: tf.tensor1d(indices.map(label), 'int32') };
  };
  const source = draw(means, 1024, (index) => index);
  const train = draw(rotated, 1024, (index) => permutation[index]);
  const test = draw(rotated, 2048, (index) => permutation[index]);
  const pretrained = reluMlp([dim, 64, 64, classes], stream);
  trainFullBatch(pretrained, source, { steps: 200, learningRate: 5e-3 });
  const weights = pretrained.getWeights().map((weight) => weight.clone());
  pretrained.dispose();
  tf.dispose([means, rotated, source.x, source.y]);
  return {
    model: () => {
      const copy = reluMlp([dim, 64, 64, classes], random(0));
      copy.setWeights(weights);
      return copy;
    },
    train,
    test,
    dispose: () => tf.dispose([...weights, train.x, train.y, test.x, test.y]),
  };
}

/** How {@link adaptAndTest} trains. Default as in {@link blobTransfer}: Adam, 300 full-batch steps. */
export interface AdaptOptions extends Partial<FullBatchOptions> {
  readonly targets?: readonly string[];
  readonly seed?: number;
}

/** Attaches a method to the pretrained model, trains it on the shifted task and returns the test accuracy. */
export async function adaptAndTest(
  task: TransferTask,
  method: AnyConfiguredMethod,
  { targets = ['layer0', 'layer1', 'layer2'], seed = 0, steps = 300, ...options }: AdaptOptions = {},
): Promise<number> {
  const model = await attach(task.model(), method, { targets, seed });
  trainFullBatch(model, task.train, { steps, ...options });
  const result = accuracy(model, task.test);
  model.dispose();
  return result;
}

/** A kernel to start from and one to reach, with samples of the latter. */
export interface LinearTeacher {
  /** `[n, n]`, singular values top·decayⁱ. */
  readonly W: tf.Tensor2D;
  /** The kernel to learn, `[n, n]`. */
  readonly target: tf.Tensor2D;
  readonly samples: Samples;
  readonly random: Random;
  dispose(): void;
}

/** A kernel with singular values `top·decayⁱ` and random singular vectors. */
export function kernelWithSpectrum(
  n: number,
  { top, decay }: { top: number; decay: number },
  stream: Random,
): tf.Tensor2D {
  return tf.tidy(() => {
    const { u } = thinSvd(stream.normal([n, n]) as tf.Tensor2D);
    const { v } = thinSvd(stream.normal([n, n]) as tf.Tensor2D);
    const spectrum = tf.mul(top, tf.pow(decay, tf.range(0, n)));
    return tf.matMul(tf.mul(u, spectrum) as tf.Tensor2D, v, false, true) as tf.Tensor2D;
  });
}

/**
 * "Linear teacher": W `[48, 48]` with singular values top·decayⁱ, `target` made from it, 256 Gaussian samples of
 * y = x·target.
 */
export function linearTeacher(
  seed: number,
  { n = 48, rows = 256, top = 2, decay = 0.9 }: { n?: number; rows?: number; top?: number; decay?: number },
  makeTarget: (W: tf.Tensor2D, stream: Random) => tf.Tensor2D,
): LinearTeacher {
  const stream = random(seed).fork('teacher');
  const W = kernelWithSpectrum(n, { top, decay }, stream);
  const target = tf.tidy(() => makeTarget(W, stream));
  const x = stream.normal([rows, n]) as tf.Tensor2D;
  const y = tf.matMul(x, target);
  return { W, target, samples: { x, y }, random: stream, dispose: () => tf.dispose([W, target, x, y]) };
}

/** A model of one dense layer `layer0` without bias whose kernel is W. */
export function linearModel(W: tf.Tensor2D): tf.Sequential {
  const [inDim, outDim] = W.shape;
  const model = tf.sequential({
    layers: [tf.layers.dense({ name: 'layer0', units: outDim, useBias: false, inputShape: [inDim], weights: [W] })],
  });
  return model;
}

/** ‖W_eff − target‖/‖W − target‖ of a trained model, where W_eff is its map of the identity. */
export function teacherError(model: tf.LayersModel, { W, target }: LinearTeacher): number {
  return tf.tidy(() => {
    const reached = model.apply(tf.eye(W.shape[0])) as tf.Tensor;
    return tf.div(tf.norm(tf.sub(reached, target)), tf.norm(tf.sub(W, target))).dataSync()[0];
  });
}

/** Trains a method on a linear teacher and returns {@link teacherError}. */
export async function learnTeacher(
  teacher: LinearTeacher,
  method: AnyConfiguredMethod,
  options: FullBatchOptions & { seed?: number },
): Promise<number> {
  const model = await attach(linearModel(teacher.W), method, { targets: ['layer0'], seed: options.seed ?? 0 });
  trainFullBatch(model, teacher.samples, options);
  const error = teacherError(model, teacher);
  model.dispose();
  return error;
}

/** Arithmetic mean. */
export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

export { learnRegression, type RegressionOptions } from './train/regression-task.ts';
