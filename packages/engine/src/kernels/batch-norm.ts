import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { call as callKernel, heapModule, type KernelCall, type OwnKernel, view, whole } from '../backend.ts';
import { isCurrent, type Native, native } from '../native.ts';

// y = (x − mean)·scale/√(variance + ε) + offset, the parameters repeated along other axes of x.

const size = tf.util.sizeFromShape;
const GRADIENT = 'MatforgeBatchNormGrad';
const DEFAULT_EPSILON = 1e-3;

type Layout = [outer: number, n: number, inner: number];

/** x as [outer, n, inner] and the parameters as [n]; null where the axes that they have are not neighbours in x. */
function layoutOf(x: number[], parameter: number[]): Layout | null {
  const lead = x.length - parameter.length;
  if (lead < 0) return null;
  const own = x.map((length, axis) => axis >= lead && length > 1 && parameter[axis - lead] === length);
  if (!parameter.every((length, axis) => length === x[axis + lead] || length === 1)) return null;
  const first = own.indexOf(true);
  if (first < 0) return [size(x), 1, 1];
  const last = own.lastIndexOf(true);
  if (x.slice(first, last + 1).some((length, i) => length > 1 && !own[first + i])) return null;
  return [size(x.slice(0, first)), size(x.slice(first, last + 1)), size(x.slice(last + 1))];
}

const isFloat = (tensor: tf.TensorInfo | undefined): boolean => !tensor || tensor.dtype === 'float32';

/** 1/√(variance + ε). */
function inverseRoots(variance: ArrayLike<number>, epsilon: number): Float64Array {
  return Float64Array.from(variance, (value) => 1 / Math.sqrt(value + epsilon));
}

function floatsAt(backend: BackendWasm, at: number, count: number): Float32Array {
  return new Float32Array(heapModule(backend).HEAPU8.buffer, at, count);
}

function scaleTo(to: Float32Array, roots: Float64Array, scale: ArrayLike<number> | null): void {
  roots.forEach((root, i) => {
    to[i] = scale ? root * scale[i] : root;
  });
}

/** tf.batchNorm. */
export const batchNorm: OwnKernel = (call) => {
  const { inputs, attrs, backend } = call;
  const { x, mean, variance, scale, offset } = inputs;
  const engine = native(backend);
  if (!engine || ![x, mean, variance, scale, offset].every(isFloat)) return null;
  const epsilon = (attrs.varianceEpsilon as number | undefined) ?? DEFAULT_EPSILON;
  const alike = [variance, scale, offset].every((tensor) => !tensor || tf.util.arraysEqual(tensor.shape, mean.shape));
  const layout = alike ? layoutOf(x.shape, mean.shape) : null;
  if (!layout) return composed(call, epsilon);
  const [outer, n, inner] = layout;
  const out = backend.makeOutput(x.shape, 'float32');
  if (size(x.shape) === 0) return out;
  const work = engine.work(8 * n);
  const [a, b] = [floatsAt(backend, work, n), floatsAt(backend, work + 4 * n, n)];
  const roots = inverseRoots(view(backend, variance), epsilon);
  scaleTo(a, roots, scale ? view(backend, scale) : null);
  if (offset) b.set(view(backend, offset));
  else b.fill(0);
  const [at, from, to] = [engine.at(mean), engine.at(x), engine.at(out)];
  if (inner === 1) engine.kernels.mf_affine(outer, n, from, at, work, work + 4 * n, to);
  else engine.kernels.mf_affine_planes(outer, n, inner, from, at, work, work + 4 * n, to);
  return out;
};

/** The same from other kernels, for any shapes that broadcast. */
function composed({ inputs, backend }: KernelCall, epsilon: number): tf.TensorInfo {
  const { x, mean, variance, scale, offset } = inputs;
  const spent: tf.TensorInfo[] = [];
  const run = (name: string, a: tf.TensorInfo, b: tf.TensorInfo): tf.TensorInfo => {
    const result = callKernel(backend, name, { a, b });
    spent.push(result);
    return result;
  };
  const small = backend.makeOutput([], 'float32');
  view(backend, small)[0] = epsilon;
  spent.push(small);
  const root = callKernel(backend, 'Rsqrt', { x: run('Add', variance, small) });
  spent.push(root);
  let y = run('Multiply', run('Sub', x, mean), scale ? run('Multiply', root, scale) : root);
  if (offset) y = run('Add', y, offset);
  for (const tensor of spent) if (tensor !== y) backend.disposeData(tensor.dataId);
  return y;
}

/** Gradients with respect to x, mean, variance, scale and offset. */
function gradients({ inputs, attrs, backend }: KernelCall): tf.TensorInfo[] {
  const { x, mean, variance, scale, dy } = inputs;
  const engine = native(backend) as Native;
  const [outer, n, inner] = layoutOf(x.shape, mean.shape) as Layout;
  const dx = backend.makeOutput(x.shape, 'float32');
  const small = Array.from({ length: 4 }, () => backend.makeOutput(mean.shape, 'float32'));
  const work = engine.work(4 * n);
  const roots = inverseRoots(view(backend, variance), attrs.varianceEpsilon as number);
  scaleTo(floatsAt(backend, work, n), roots, scale ? view(backend, scale) : null);
  const at = [x, dy, mean].map((tensor) => engine.at(tensor));
  const to = [dx, small[3], small[2]].map((tensor) => engine.at(tensor));
  if (inner === 1) engine.kernels.mf_batch_norm_back(outer, n, ...at, work, ...to);
  else engine.kernels.mf_batch_norm_back_planes(outer, n, inner, ...at, work, ...to);
  // The kernel gave Σ dy and Σ dy·(x − mean). It takes memory for that, with which views from before would be stale.
  const a = floatsAt(backend, work, n);
  const [dMean, dVariance, dScale, dOffset] = small.map((tensor) => view(backend, tensor));
  for (let i = 0; i < n; i++) {
    dMean[i] = -a[i] * dOffset[i];
    dVariance[i] = -0.5 * a[i] * roots[i] ** 2 * dScale[i];
    dScale[i] *= roots[i];
  }
  return [dx, ...small];
}

/** Sum over the axes along which a parameter of this shape was repeated. */
function reduceTo(x: tf.Tensor, shape: number[]): tf.Tensor {
  const axes = tf.broadcast_util.getReductionAxes(shape, x.shape);
  return tf.reshape(axes.length > 0 ? tf.sum(x, axes) : x, shape);
}

type Tensors = [x: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, scale: tf.Tensor | undefined];

/** The gradients in plain ops, each made when it is asked for. */
function plainGradients(dy: tf.Tensor, [x, mean, variance, scale]: Tensors, epsilon: number): Gradients {
  const root = (): tf.Tensor => tf.rsqrt(tf.add(variance, epsilon));
  const scaled = (): tf.Tensor => (scale ? tf.mul(root(), scale) : root());
  const dot = (): tf.Tensor => reduceTo(tf.mul(dy, tf.sub(x, mean)), mean.shape);
  return {
    x: () => tf.mul(dy, scaled()),
    mean: () => tf.neg(tf.mul(scaled(), reduceTo(dy, mean.shape))),
    variance: () => tf.mul(tf.mul(tf.mul(scaled(), tf.square(root())), -0.5), dot()),
    scale: () => tf.mul(root(), dot()),
    offset: () => reduceTo(dy, mean.shape),
  };
}

type Gradients = Record<string, () => tf.Tensor>;

interface Layer {
  gamma?: { read(): null };
  beta?: { read(): null };
  call(inputs: tf.Tensor | tf.Tensor[], kwargs: object): tf.Tensor;
}
const REPAIRED = Symbol.for('matforge.engine.batchNormLayer');

/** Lets layers without scale or center train: tfjs reads the parameters then whether they have them or not. */
export function repairBatchNormLayer(): void {
  const [layer] = tf.serialization.SerializationMap.getMap().classNameMap.BatchNormalization ?? [];
  const home = layer?.prototype as (Layer & { [REPAIRED]?: true }) | undefined;
  if (!home || home[REPAIRED]) return;
  home[REPAIRED] = true;
  const { call } = home;
  home.call = function (this: Layer, inputs, kwargs): tf.Tensor {
    this.gamma ??= { read: () => null };
    this.beta ??= { read: () => null };
    return call.call(this, inputs, kwargs);
  };
}

/** The gradient of tf.batchNorm: one kernel on the wasm backend with our module, plain ops elsewhere. */
export function registerBatchNormGradient(): void {
  tf.registerGradient({
    kernelName: 'FusedBatchNorm',
    inputsToSave: ['x', 'mean', 'variance', 'scale'],
    gradFunc: (upstream, saved, attrs) => {
      const dy = upstream as tf.Tensor;
      const [x, mean, variance, scale] = saved as Tensors;
      const varianceEpsilon = (attrs?.varianceEpsilon as number | undefined) ?? DEFAULT_EPSILON;
      const floats = [x, mean, variance, scale, dy].every(isFloat);
      const fused =
        isCurrent() &&
        floats &&
        [variance, scale].every((tensor) => !tensor || tf.util.arraysEqual(tensor.shape, mean.shape)) &&
        x.size > 0 &&
        layoutOf(x.shape, mean.shape) !== null;
      if (!fused) return plainGradients(dy, [x, mean, variance, scale], varianceEpsilon);
      // All at once: they share the pass over x.
      const [dx, dMean, dVariance, dScale, dOffset] = tf
        .engine()
        .runKernel(GRADIENT, { x, mean, variance, scale, dy } as tf.NamedTensorMap, {
          varianceEpsilon,
        }) as unknown as tf.Tensor[];
      return { x: () => dx, mean: () => dMean, variance: () => dVariance, scale: () => dScale, offset: () => dOffset };
    },
  });
}

/** Brings that kernel to the wasm backend. */
export function registerBatchNormKernel(): void {
  if (tf.getKernel(GRADIENT, 'wasm')) tf.unregisterKernel(GRADIENT, 'wasm');
  tf.registerKernel({
    kernelName: GRADIENT,
    backendName: 'wasm',
    kernelFunc: whole(gradients) as unknown as tf.KernelFunc,
  });
  // With r = 1/√(variance + ε), d = x − mean and k = r·e − ½·s·r³·c, where a, b, c, e, f are the cotangents of dx, dmean,
  // dvariance, dscale and doffset, the sum of all products is Σ dy·(s·r·(a − b) + k·d + f).
  tf.registerGradient({
    kernelName: GRADIENT,
    inputsToSave: ['x', 'mean', 'variance', 'scale', 'dy'],
    gradFunc: (upstream, saved, attrs) => {
      const [a, b, c, e, f] = upstream as tf.Tensor[];
      const [x, mean, variance, scale, dy] = saved as [...Tensors, tf.Tensor];
      const scaled = (t: tf.Tensor): tf.Tensor => (scale ? tf.mul(scale, t) : t);
      const root = (): tf.Tensor => tf.rsqrt(tf.add(variance, attrs?.varianceEpsilon as number));
      const cube = (): tf.Tensor => tf.mul(tf.square(root()), root());
      const centred = (): tf.Tensor => tf.sub(x, mean);
      const along = (): tf.Tensor => tf.sub(tf.mul(root(), e), tf.mul(tf.mul(scaled(cube()), c), 0.5));
      const sum = (t: tf.Tensor): tf.Tensor => reduceTo(t, mean.shape);
      const difference = (): tf.Tensor => sum(tf.mul(dy, tf.sub(a, b)));
      const dot = (): tf.Tensor => sum(tf.mul(dy, centred()));
      return {
        x: () => tf.mul(dy, along()),
        mean: () => tf.neg(tf.mul(along(), sum(dy))),
        // r′ = −½r³ and (r³)′ = −3/2·r⁵.
        variance: () => {
          const first = tf.mul(tf.add(scaled(difference()), tf.mul(e, dot())), -0.5);
          const second = tf.mul(tf.mul(tf.mul(scaled(c), dot()), tf.square(root())), 0.75);
          return tf.mul(cube(), tf.add(first, second));
        },
        scale: () => tf.sub(tf.mul(root(), difference()), tf.mul(tf.mul(tf.mul(cube(), c), dot()), 0.5)),
        dy: () => tf.add(tf.add(tf.mul(scaled(root()), tf.sub(a, b)), tf.mul(along(), centred())), f),
      };
    },
  });
}
