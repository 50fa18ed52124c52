import * as tf from '@tensorflow/tfjs';
import { isCurrent } from '../native.ts';
import { repairTape } from '../tape.ts';
import { registerBatchNormGradient, repairBatchNormLayer } from './batch-norm.ts';

// Gradients that tfjs has wrong, or for operands of one shape only, on every backend; and those that it makes in many steps: a
// sum's is a tensor of ones from JavaScript times the upstream gradient. They stay as they are on other backends.

const STOCK = Symbol.for('matforge.engine.stockGradients');

/** The gradients as tfjs brings them; remembered once per tfjs, whoever asks. */
function stockGradient(kernelName: string): tf.GradConfig {
  const home = tf.engine() as unknown as { [STOCK]?: Map<string, tf.GradConfig> };
  home[STOCK] ??= new Map();
  const stock = home[STOCK].get(kernelName) ?? tf.getGradient(kernelName);
  home[STOCK].set(kernelName, stock);
  return stock;
}

type Gradient = (dy: tf.Tensor, x: tf.Tensor, attrs: Record<string, unknown>) => tf.Tensor;

function onWasm(kernelName: string, gradient: Gradient): void {
  const stock = stockGradient(kernelName);
  tf.registerGradient({
    ...stock,
    gradFunc: (dy, saved, attrs) =>
      tf.getBackend() === 'wasm'
        ? { x: () => gradient(dy as tf.Tensor, (saved as tf.Tensor[])[0], attrs as unknown as Record<string, unknown>) }
        : stock.gradFunc(dy, saved, attrs),
  });
}

/** A reduced tensor repeated along the axes that went. */
function spread(y: tf.Tensor, { shape }: tf.Tensor, attrs: Record<string, unknown>): tf.Tensor {
  const axes = tf.util.parseAxisParam(attrs.axis as number | number[], shape);
  const kept = shape.map((length, axis) => (axes.includes(axis) ? 1 : length));
  return shape.includes(0) ? tf.zeros(shape) : tf.broadcastTo(tf.reshape(y, kept), shape);
}

/** Sum over the axes along which an operand was repeated. */
function reduceTo(x: tf.Tensor, { shape }: tf.Tensor): tf.Tensor {
  const axes = tf.broadcast_util.getReductionAxes(shape, x.shape);
  return tf.reshape(axes.length > 0 ? tf.sum(x, axes) : x, shape);
}

type Slope = (a: tf.Tensor, b: tf.Tensor) => tf.Tensor;

/** A function of two tensors whose gradients in tfjs are those of equal shapes. */
function ofTwo(kernelName: string, toA: Slope, toB: Slope): void {
  tf.registerGradient({
    kernelName,
    inputsToSave: ['a', 'b'],
    gradFunc: (dy, saved) => {
      const [a, b] = saved as tf.Tensor[];
      const along = (slope: Slope, to: tf.Tensor) => () =>
        reduceTo(tf.mul(dy as tf.Tensor, tf.cast(slope(a, b), 'float32')), to);
      return { a: along(toA, a), b: along(toB, b) };
    },
  });
}

/** The gradient of a matrix product whose batches are repeated. */
function ofBatches(dy: tf.Tensor, a: tf.Tensor, b: tf.Tensor, transposeA: boolean, transposeB: boolean): Gradients {
  const { sizeFromShape: size } = tf.util;
  if (size(b.shape.slice(0, -2)) === 1 && !transposeA) {
    // One matrix on the right: all rows of all batches in a single product.
    const rows = (x: tf.Tensor): tf.Tensor => tf.reshape(x, [size(x.shape.slice(0, -1)), x.shape.at(-1)!]);
    const outer = (x: tf.Tensor, y: tf.Tensor): tf.Tensor => tf.matMul(rows(x), rows(y), true);
    return {
      a: () => tf.reshape(tf.matMul(rows(dy), rows(b), false, !transposeB), a.shape),
      b: () => tf.reshape(transposeB ? outer(dy, a) : outer(a, dy), b.shape),
    };
  }
  // Other kernels take the wrong batch where one is repeated between others.
  const whole = (x: tf.Tensor): tf.Tensor =>
    isCurrent() ? x : tf.broadcastTo(x, [...dy.shape.slice(0, -2), ...x.shape.slice(-2)]);
  const product = (x: tf.Tensor, y: tf.Tensor, transposeX: boolean, transposeY: boolean): tf.Tensor =>
    tf.matMul(whole(x), whole(y), transposeX, transposeY);
  return {
    a: () => reduceTo(transposeA ? product(b, dy, transposeB, true) : product(dy, b, false, !transposeB), a),
    b: () => reduceTo(transposeB ? product(dy, a, true, transposeA) : product(a, dy, !transposeA, false), b),
  };
}

type Gradients = Record<string, () => tf.Tensor>;

/** The sum of all copies of a tensor of this shape. */
function sumCopies(y: tf.Tensor, shape: number[], reps: number[]): tf.Tensor {
  const split: number[] = [];
  const copies: number[] = [];
  shape.forEach((length, axis) => {
    if (reps[axis] !== 1) copies.push(split.push(reps[axis]) - 1);
    split.push(length);
  });
  return tf.reshape(copies.length > 0 ? tf.sum(tf.reshape(y, split), copies) : y, shape);
}

/**
 * Mends gradients that TensorFlow.js has wrong or refuses, on every backend: of `maximum`, `minimum` and
 * `squaredDifference` for operands that are repeated, of `matMul` for batches that are, of `cumsum` along any axis, of `tile`
 * of any rank, of `batchNorm` for parameters along any axes and without scale or offset (layers too); and gradients of
 * gradients through results of ops (exp, tanh, sigmoid, softmax). `ready` calls it; calling it again changes nothing.
 */
export function mendGradients(): void {
  repairTape();
  repairBatchNormLayer();
  registerBatchNormGradient();
  ofTwo('Maximum', tf.greaterEqual, tf.less);
  ofTwo('Minimum', tf.lessEqual, tf.greater);
  const twice: Slope = (a, b) => tf.mul(tf.sub(a, b), 2);
  ofTwo('SquaredDifference', twice, (a, b) => twice(b, a));
  // The stock one brings the axis to the end once more, the kernel has done so already.
  tf.registerGradient({
    ...stockGradient('Cumsum'),
    gradFunc: (dy, _, attrs) => {
      const { axis, exclusive, reverse } = attrs as unknown as { axis: number; exclusive: boolean; reverse: boolean };
      return { x: () => tf.cumsum(dy as tf.Tensor, axis, exclusive, !reverse) };
    },
  });
  const product = stockGradient('BatchMatMul');
  tf.registerGradient({
    ...product,
    gradFunc: (dy, saved, attrs) => {
      const [a, b] = saved as tf.Tensor[];
      if (tf.util.arraysEqual(a.shape.slice(0, -2), b.shape.slice(0, -2))) return product.gradFunc(dy, saved, attrs);
      const { transposeA, transposeB } = attrs as unknown as { transposeA: boolean; transposeB: boolean };
      return ofBatches(dy as tf.Tensor, a, b, transposeA, transposeB);
    },
  });
  tf.registerGradient({
    ...stockGradient('Tile'),
    gradFunc: (dy, saved, attrs) => {
      const [{ shape }] = saved as tf.Tensor[];
      const { reps } = attrs as unknown as { reps: number[] };
      return { x: () => sumCopies(dy as tf.Tensor, shape, reps) };
    },
  });
}

/** The gradients of tf.sum and tf.mean on the wasm backend. */
export function registerGradients(): void {
  onWasm('Sum', spread);
  onWasm('Mean', (dy, x, attrs) => {
    const axes = tf.util.parseAxisParam(attrs.axis as number | number[], x.shape);
    const count = axes.reduce((product, axis) => product * x.shape[axis], 1);
    return spread(tf.div(dy, count), x, attrs);
  });
}
