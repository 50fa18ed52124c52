// Runs in a browser: our kernels through gpu.js beside their own loops, returned as numbers.
import { cubicBSplineBasis, tableKernel } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** Largest |a-b|/(1+|b|); a NaN stays one. */
async function deviation(a: tf.Tensor, b: tf.Tensor): Promise<number> {
  const [x, y] = [await a.data(), await b.data()];
  if (x.length !== y.length || x.length === 0) return 1e9;
  return Array.from(x).reduce((worst, value, i) => Math.max(worst, Math.abs(value - y[i]) / (1 + Math.abs(y[i]))), 0);
}

/** Values and slopes of a table and of splines, by gpu.js in that mode against the loop. */
export async function compareKernels(mode: 'webgl2' | 'webasm'): Promise<Record<string, number | string>> {
  await tf.setBackend('webgl');
  const table = () => tableKernel([0.3, -1, 2, 0.5, 1.5, -0.7, 0.1], { low: -1, high: 1, interpolation: 'b-spline' });
  const splines = () => cubicBSplineBasis({ low: -1, high: 1, intervals: 5 });
  const options = { executor: 'gpu.js', modes: [mode] } as const;
  const [plain, basis] = [table(), splines()];
  const [fast, quick] = [await table().ready(options), await splines().ready(options)];
  const x = tf.randomUniform([20000], -1.2, 1.2, 'float32', 7);
  const slope = (f: (t: tf.Tensor) => tf.Tensor) => tf.grad((t) => tf.sum(tf.square(f(t))))(x);
  return {
    backend: tf.getBackend(),
    executor: String(fast.executor),
    values: await deviation(fast(x), plain(x)),
    slopes: await deviation(slope(fast), slope(plain)),
    basis: await deviation(quick(x), basis(x)),
    basisSlopes: await deviation(slope(quick), slope(basis)),
  };
}
