import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import type { KernelCall, OwnKernel } from '../backend.ts';
import { native } from '../native.ts';
import { identity, cast as portableCast } from './data.ts';

// Complex tensors lie on the heap as interleaved pairs. What moves or adds elements takes them for float32 tensors with
// one more axis of two; the rest is in c/fft.c.

const size = tf.util.sizeFromShape;

/** Real and imaginary parts to one complex tensor. */
export const complex: OwnKernel = ({ inputs: { real, imag }, backend }) => {
  const engine = native(backend);
  if (!engine || real.dtype !== 'float32' || imag.dtype !== 'float32') return null;
  const out = backend.makeOutput(real.shape, 'complex64');
  engine.kernels.mf_complex(size(real.shape), engine.at(real), engine.at(imag), engine.at(out));
  return out;
};

function part(offset: 0 | 1): OwnKernel {
  return ({ inputs: { input }, backend }) => {
    const engine = native(backend);
    if (!engine || input.dtype !== 'complex64') return null;
    const out = backend.makeOutput(input.shape, 'float32');
    engine.kernels.mf_complex_part(size(input.shape), offset, engine.at(input), engine.at(out));
    return out;
  };
}

/** Real part. */
export const real: OwnKernel = part(0);
/** Imaginary part. */
export const imag: OwnKernel = part(1);

/** Modulus. */
export const complexAbs: OwnKernel = ({ inputs: { x }, backend }) => {
  const engine = native(backend);
  if (!engine || x.dtype !== 'complex64') return null;
  const out = backend.makeOutput(x.shape, 'float32');
  engine.kernels.mf_complex_abs(size(x.shape), engine.at(x), engine.at(out));
  return out;
};

/** Cast between float32 and complex64; the others as before. */
export const cast: OwnKernel = (call) => {
  const { x } = call.inputs;
  const { backend } = call;
  const engine = native(backend);
  const to = call.attrs.dtype;
  if (engine && to === 'complex64' && x.dtype === 'float32') {
    const out = backend.makeOutput(x.shape, 'complex64');
    engine.kernels.mf_complex(size(x.shape), engine.at(x), 0, engine.at(out));
    return out;
  }
  if (to === 'float32' && x.dtype === 'complex64') return real({ ...call, inputs: { input: x } });
  return portableCast(call);
};

/** The product of two complex tensors: of one shape, or the second one repeated along leading axes of the first. */
function multiply({ inputs: { a, b }, backend }: KernelCall): tf.TensorInfo | null {
  const engine = native(backend);
  if (!engine) return null;
  const [first, second] = size(a.shape) < size(b.shape) ? [b, a] : [a, b];
  const lead = first.shape.length - second.shape.length;
  if (lead < 0 || !second.shape.every((length, axis) => length === first.shape[axis + lead])) return null;
  const out = backend.makeOutput(first.shape, 'complex64');
  const n = size(second.shape);
  if (n > 0) {
    const at = [first, second, out].map((tensor) => engine.at(tensor));
    engine.kernels.mf_complex_mul(size(first.shape) / n, n, ...at);
  }
  return out;
}

/** `kernel`, and the product of complex tensors. */
export function orProduct(kernel: OwnKernel): OwnKernel {
  return (call) => {
    const { a, b } = call.inputs;
    return a.dtype === 'complex64' && b.dtype === 'complex64' ? multiply(call) : kernel(call);
  };
}

type Attributes = Record<string, unknown>;

/**
 * `kernel`, a function of float32 tensors, for complex tensors too: each is given to it with a last axis of two, and
 * `attributes` says what becomes of the attributes then. It must leave that axis where it is.
 */
export function orPairs(
  kernel: OwnKernel,
  attributes: (attrs: Attributes, shape: number[]) => Attributes = (attrs) => attrs,
): OwnKernel {
  return (call) => {
    const { backend } = call;
    const values = Object.values(call.inputs);
    if (!values.some(({ dtype }) => dtype === 'complex64')) return kernel(call);
    if (!native(backend)) return null;
    const inputs: Record<string, tf.TensorInfo> = {};
    for (const [name, tensor] of Object.entries(call.inputs)) {
      inputs[name] = tensor.dtype === 'complex64' ? toPairs(tensor) : tensor;
    }
    const result = kernel({ inputs, attrs: attributes(call.attrs, values[0].shape), backend });
    if (!result) return null;
    return Array.isArray(result) ? result.map((x) => fromPairs(backend, x)) : fromPairs(backend, result);
  };
}

function toPairs({ dataId, shape }: tf.TensorInfo): tf.TensorInfo {
  return { dataId, shape: [...shape, 2], dtype: 'float32' };
}

function fromPairs(backend: BackendWasm, { dataId, shape }: tf.TensorInfo): tf.TensorInfo {
  const data = backend.dataIdMap.get(dataId);
  data.dtype = 'complex64';
  data.shape = shape.slice(0, -1);
  return { dataId, shape: shape.slice(0, -1), dtype: 'complex64' };
}

/** For an attribute that names an axis. */
export const withAxis = (attrs: Attributes, { length }: number[]): Attributes => ({
  ...attrs,
  axis: (attrs.axis as number) < 0 ? (attrs.axis as number) + length : attrs.axis,
});

/** For tf.stack, whose axis counts one more than the shapes have. */
export const withNewAxis = (attrs: Attributes, shape: number[]): Attributes => withAxis(attrs, [...shape, 1]);

/** For tf.transpose. */
export const withPermutation = (attrs: Attributes, { length }: number[]): Attributes => ({
  ...attrs,
  perm: [...(attrs.perm as number[]), length],
});

/** For tf.slice. */
export const withSlice = (attrs: Attributes, shape: number[]): Attributes => {
  const x = { shape, rank: shape.length } as tf.Tensor;
  const [begin, lengths] = tf.slice_util.parseSliceParams(x, attrs.begin as number[], attrs.size as number[]);
  return { begin: [...begin, 0], size: [...lengths, 2] };
};

/** Only where both are complex and of one shape: a number next to pairs is not a pair. */
export function orSamePairs(kernel: OwnKernel): OwnKernel {
  const pairs = orPairs(kernel);
  return (call) => {
    const { a, b } = call.inputs;
    const complexes = [a, b].filter(({ dtype }) => dtype === 'complex64').length;
    if (complexes === 0) return kernel(call);
    return complexes === 2 && tf.util.arraysEqual(a.shape, b.shape) ? pairs(call) : null;
  };
}

/** tf.reshape of complex tensors: the same data. */
export const reshape: OwnKernel = (call) => {
  const { x } = call.inputs;
  if (x.dtype !== 'complex64') return null;
  const shape = tf.util.inferFromImplicitShape(call.attrs.shape as number[], size(x.shape));
  if (size(shape) !== size(x.shape)) return null;
  return { ...(identity(call) as tf.TensorInfo), shape };
};
