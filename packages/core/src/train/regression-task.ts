import * as tf from '@tensorflow/tfjs';
import { toOptimizer } from '../optim/optimizer.ts';
import type { GradientTransformation } from '../optim/transformation.ts';
import { type Random, random } from '../tensors/random.ts';

/** Options of {@link learnRegression}. */
export interface RegressionOptions {
  seed: number;
  /** At the first step; falls linearly to 0. */
  learningRate: number;
  /** Default 1500. */
  steps?: number;
  /** Train a product A·B of this inner size, A of N(0, 1/in) and B of 0, in place of W. */
  factors?: number;
}

/**
 * A linear regression whose gradient has full rank: Y = X·W*, X [2048, 48] of N(0, 1), W* [48, 32] of N(0, 1/48). From
 * W = 0, each step minimizes the squared error per sample on 128 samples drawn without replacement.
 *
 * @returns the mean squared error over all samples and outputs at the end.
 */
export function learnRegression(transformation: GradientTransformation, options: RegressionOptions): number {
  const { seed, learningRate, steps = 1500, factors } = options;
  const [samples, inDim, outDim, batch] = [2048, 48, 32, 128];
  const stream = random(seed);
  const x = stream.normal([samples, inDim]) as tf.Tensor2D;
  const start = factors
    ? [stream.normal([inDim, factors], 0, inDim ** -0.5), tf.zeros([factors, outDim])]
    : [tf.zeros([inDim, outDim])];
  const variables = start.map((value) => tf.variable(value));
  const y = tf.tidy(() => tf.matMul(x, stream.normal([inDim, outDim], 0, inDim ** -0.5) as tf.Tensor2D)) as tf.Tensor2D;
  const [first, second] = variables as unknown as tf.Tensor2D[];
  const residual = (xs: tf.Tensor2D, ys: tf.Tensor2D): tf.Tensor2D => {
    const product = tf.matMul(xs, first);
    return tf.sub(second ? tf.matMul(product as tf.Tensor2D, second) : product, ys);
  };
  const optimizer = toOptimizer(transformation);
  const draw = sampler(stream.fork('batches'), samples, batch);
  for (let step = 0; step < steps; step++) {
    optimizer.setLearningRate(learningRate * (1 - step / steps));
    tf.tidy(() => {
      const rows = tf.tensor1d(draw(), 'int32');
      const [xs, ys] = [tf.gather(x, rows), tf.gather(y, rows)] as [tf.Tensor2D, tf.Tensor2D];
      // By hand, which takes half the time of tfjs's tape: the gradient of W is 2·Xᵀ·residual / batch.
      const G = tf.mul(tf.matMul(xs, residual(xs, ys), true), 2 / batch) as tf.Tensor2D;
      const gradients = second ? [tf.matMul(G, second, false, true), tf.matMul(first, G, true)] : [G];
      optimizer.applyGradients(variables.map(({ name }, i) => ({ name, tensor: gradients[i] })));
    });
  }
  const loss = tf.tidy(() => tf.mean(tf.square(residual(x, y))).dataSync()[0]);
  optimizer.dispose();
  tf.dispose([x, y, ...start, ...variables]);
  return loss;
}

/** Draws `size` of 0 … n-1 without replacement at each call: the first steps of a Fisher-Yates shuffle. */
function sampler(stream: Random, n: number, size: number): () => Int32Array {
  const order = Int32Array.from({ length: n }, (_, i) => i);
  return () => {
    for (let i = 0; i < size; i++) {
      const j = i + stream.integer(n - i);
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order.slice(0, size);
  };
}
