import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { type Kernel, type KernelCall, view, whole } from './backend.ts';

type Backend = tf.KernelBackend & {
  write(values: tf.backend_util.BackendValues, shape: number[], dtype: tf.DataType): object;
};
type Infos = tf.TensorInfo[] | Record<string, tf.TensorInfo | null | undefined>;

/** Runs the cpu backend's kernel on copies of tensors that live on the wasm heap, and copies the results back. */
export function viaCpu(name: string): Kernel {
  return ({ inputs, attrs, backend }) => {
    const cpu = tf.findBackend('cpu') as Backend;
    const kernel = tf.getKernel(name, 'cpu');
    if (!kernel) throw new Error(`engine: neither the wasm nor the cpu backend has a kernel '${name}'.`);
    const run = kernel.kernelFunc as unknown as (call: object) => tf.TensorInfo | tf.TensorInfo[];
    const lent: tf.TensorInfo[] = [];
    const lend = (tensor: tf.TensorInfo): tf.TensorInfo => {
      const info = lendToCpu(tensor, backend, cpu);
      lent.push(info);
      return info;
    };
    try {
      const result = run({ inputs: mapInfos(inputs, lend), attrs, backend: cpu });
      const results = Array.isArray(result) ? result : [result];
      lent.push(...results);
      const outputs = results.map((info) => takeFromCpu(info, backend, cpu));
      return Array.isArray(result) ? outputs : outputs[0];
    } finally {
      for (const { dataId } of lent) cpu.disposeData(dataId);
    }
  };
}

/** Stock kernels that move elements of one byte as well; others take them for floats, and write four bytes for each. */
const OF_BYTES = new Set([
  ...['All', 'Any', 'Concat', 'ExpandDims', 'Fill', 'GatherNd', 'GatherV2', 'LogicalAnd', 'LogicalNot', 'LogicalOr'],
  ...['LogicalXor', 'MirrorPad', 'OneHot', 'OnesLike', 'Pack', 'PadV2', 'Reshape', 'ScatterNd', 'SplitV', 'Transpose'],
  ...['Unpack', 'ZerosLike'],
]);

/** Stock kernels that take the bits of integers for floats. */
const OF_FLOATS = new Set([
  ...['Acos', 'Acosh', 'Asin', 'Asinh', 'Atan', 'Atanh', 'ClipByValue', 'IsFinite', 'IsInf', 'IsNan', 'Log1p', 'Prelu'],
  ...['Reciprocal', 'ResizeNearestNeighbor', 'StridedSlice'],
]);

/** What else stock kernels do wrong: most read or write outside of a tensor where an index lies there. */
const BEYOND: Record<string, (call: KernelCall) => boolean> = {
  Bincount: ({ inputs: { x } }) => x.shape.length !== 1,
  // The stock kernel takes the number of batches for that of indices in each.
  GatherV2: ({ attrs }) => Boolean(attrs.batchDims),
  GatherNd: (call) => !areInside(call, 'indices', call.inputs.params.shape),
  RotateWithOffset: ({ attrs }) => [attrs.fillValue].flat().some((value) => !Number.isInteger(value)),
  ScatterNd: (call) => !areInside(call, 'indices', call.attrs.shape as number[]),
  SparseToDense: (call) => !areInside(call, 'sparseIndices', call.attrs.outputShape as number[]),
  TensorScatterUpdate: (call) => !areInside(call, 'indices', call.inputs.tensor.shape),
};

/** Whether the rows of `name` are places in a tensor of `shape`. */
function areInside({ inputs, backend }: KernelCall, name: string, shape: number[]): boolean {
  const indices = inputs[name];
  const depth = indices.shape.length > 1 ? (indices.shape.at(-1) as number) : 1;
  const places = view(backend, indices);
  for (let i = 0, axis = 0; i < places.length; i++, axis = axis + 1 < depth ? axis + 1 : 0) {
    if (!(places[i] >= 0 && places[i] < shape[axis])) return false;
  }
  return true;
}

/** Whether the stock kernel is made for such inputs. Empty ones leave its result as the memory was. */
function isForStock(name: string, { inputs, attrs }: KernelCall): boolean {
  if (attrs?.dtype === 'complex64') return false;
  return Object.entries(inputs as Record<string, tf.TensorInfo | tf.TensorInfo[] | undefined>).every(([role, input]) =>
    [input].flat().every((tensor) => {
      if (!tensor) return true;
      // Where there are no weights, an empty tensor stands for them.
      if (tensor.shape.includes(0) && role !== 'weights') return false;
      if (tensor.dtype === 'bool') return OF_BYTES.has(name) || role === 'condition';
      if (tensor.dtype === 'int32') return !OF_FLOATS.has(name);
      return tensor.dtype === 'float32' || (tensor.dtype === 'string' && name === 'Reshape');
    }),
  );
}

/** `first`, unless its inputs are of a kind that only the cpu backend knows or it refuses them. */
export function orViaCpu(name: string, first: Kernel): Kernel {
  if (!tf.getKernel(name, 'cpu')) return first;
  const stock = whole(first);
  const second = viaCpu(name);
  return (args) => {
    if (!isForStock(name, args) || BEYOND[name]?.(args)) return second(args);
    try {
      return stock(args);
    } catch (error) {
      if (String(error).includes('out of memory')) throw error;
      return second(args);
    }
  };
}

function mapInfos(inputs: Infos, lend: (tensor: tf.TensorInfo) => tf.TensorInfo): Infos {
  if (Array.isArray(inputs)) return inputs.map(lend);
  const named: Record<string, tf.TensorInfo | null | undefined> = {};
  for (const [name, tensor] of Object.entries(inputs)) {
    named[name] = Array.isArray(tensor) ? (tensor.map(lend) as never) : tensor && lend(tensor);
  }
  return named;
}

function lendToCpu(tensor: tf.TensorInfo, wasm: BackendWasm, cpu: Backend): tf.TensorInfo {
  const { shape, dtype } = tensor;
  const values = wasm.readSync(tensor.dataId);
  // Some kernels of the cpu backend ask for rank and size, which a bare TensorInfo does not have.
  const more = { rank: shape.length, size: tf.util.sizeFromShape(shape) };
  if (dtype !== 'complex64') return { dataId: cpu.write(values, shape, dtype), shape, dtype, ...more };
  const pairs = values as Float32Array;
  const part = (offset: number): tf.TensorInfo => {
    const half = Float32Array.from({ length: more.size }, (_, i) => pairs[2 * i + offset]);
    return { dataId: cpu.write(half, shape, 'float32'), shape, dtype: 'float32' };
  };
  const [real, imag] = [part(0), part(1)];
  const complex = tf.getKernel('Complex', 'cpu').kernelFunc as unknown as (call: object) => tf.TensorInfo;
  const info = complex({ inputs: { real, imag }, backend: cpu });
  cpu.disposeData(real.dataId);
  cpu.disposeData(imag.dataId);
  return { ...info, ...more } as tf.TensorInfo;
}

function takeFromCpu(info: tf.TensorInfo, wasm: BackendWasm, cpu: Backend): tf.TensorInfo {
  const { shape, dtype } = info;
  const values = cpu.readSync(info.dataId);
  // Positions of maxima come as floats that are called integers.
  const isTyped = dtype === 'int32' ? values instanceof Int32Array : ArrayBuffer.isView(values);
  const typed = dtype === 'string' || isTyped ? values : tf.util.toTypedArray(values as never, dtype);
  return { dataId: wasm.write(typed as tf.backend_util.BackendValues, shape, dtype), shape, dtype };
}
