import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import type { OwnKernel } from '../backend.ts';
import { native } from '../native.ts';
import * as broadcast from './broadcast.ts';
import { identity } from './data.ts';
import { FUNCTIONS } from './matmul.ts';

const size = tf.util.sizeFromShape;
const isWord = ({ dtype }: tf.TensorInfo): boolean => dtype === 'float32' || dtype === 'int32';

/** An element-wise function of float32. */
export function unary(name: keyof typeof FUNCTIONS): OwnKernel {
  return ({ inputs: { x }, backend }) => {
    const engine = native(backend);
    if (!engine || x.dtype !== 'float32') return null;
    const out = backend.makeOutput(x.shape, 'float32');
    engine.kernels.mf_unary(FUNCTIONS[name], size(x.shape), engine.at(x), engine.at(out));
    return out;
  };
}

/** tf.step with a slope of 0 below zero. */
export const step: OwnKernel = (call) => (call.attrs.alpha ? null : STEP(call));
const STEP = unary('step');

/** Codes of the functions of two numbers in c/elementwise.c. */
const PAIRS = { add: 0, sub: 1, mul: 2, div: 3 } as const;

const ANY_SHAPES = { add: broadcast.add, sub: broadcast.sub, mul: broadcast.multiply, div: broadcast.divide };

/**
 * An element-wise function of two tensors. Those of float32 and one shape, or with the second one repeated along leading
 * axes of the first (a bias, a number), have the fastest kernel.
 */
export function binary(name: keyof typeof PAIRS): OwnKernel {
  const commutes = name === 'add' || name === 'mul';
  return (call) => {
    const { inputs, backend } = call;
    const { a, b } = inputs;
    const engine = native(backend);
    if (!engine || a.dtype !== 'float32' || b.dtype !== 'float32') return ANY_SHAPES[name](call);
    const swapped = commutes && size(a.shape) < size(b.shape);
    const [first, second] = swapped ? [b, a] : [a, b];
    const n = size(second.shape);
    // Axes of one element in front do not count where the result has the shape of the first all the same.
    const from = second.shape.findIndex((length) => length !== 1);
    const own = from < 0 ? [] : second.shape.slice(from);
    const lead = first.shape.length - own.length;
    if (first.shape.length < second.shape.length || !own.every((length, axis) => length === first.shape[axis + lead]))
      return ANY_SHAPES[name](call);
    const out = backend.makeOutput(first.shape, 'float32');
    const all = size(first.shape);
    const at = [first, second, out].map((tensor) => engine.at(tensor));
    if (all === n) engine.kernels.mf_binary(PAIRS[name], n, ...at);
    else if (n > 0) engine.kernels.mf_binary_row(PAIRS[name], all / n, n, ...at);
    return out;
  };
}

/** tf.softmax over the last axis. */
export const softmax: OwnKernel = ({ inputs: { logits }, attrs, backend }) => {
  const engine = native(backend);
  const dim = attrs.dim as number;
  if (!engine || logits.dtype !== 'float32' || (dim !== -1 && dim !== logits.shape.length - 1)) return null;
  const n = logits.shape.at(-1) ?? 1;
  const out = backend.makeOutput(logits.shape, 'float32');
  if (size(logits.shape) > 0) {
    engine.kernels.mf_softmax(size(logits.shape) / n, n, engine.at(logits), engine.at(out));
  }
  return out;
};

/** Sum or mean over any axes: one pass per run of neighbouring axes, the last run first. */
function reduce(mean: boolean): OwnKernel {
  return ({ inputs: { x }, attrs, backend }) => {
    const engine = native(backend);
    if (!engine || x.dtype !== 'float32') return null;
    const axes = tf.util.parseAxisParam(attrs.axis as number | number[], x.shape);
    const reduced = x.shape.map((_, axis) => axes.includes(axis));
    const kept = x.shape.filter((_, axis) => !reduced[axis]);
    const shape = attrs.keepDims ? x.shape.map((length, axis) => (reduced[axis] ? 1 : length)) : kept;
    const total = axes.reduce((product, axis) => product * x.shape[axis], 1);
    let current = x;
    const lengths = [...x.shape];
    for (let end = lengths.length; end > 0; ) {
      if (!reduced[end - 1]) {
        end--;
        continue;
      }
      let start = end - 1;
      while (start > 0 && reduced[start - 1]) start--;
      const n = size(lengths.slice(start, end));
      const outer = size(lengths.slice(0, start));
      const inner = size(lengths.slice(end));
      lengths.fill(1, start, end);
      const isLast = !reduced.slice(0, start).includes(true);
      const next = backend.makeOutput([outer, inner], 'float32');
      engine.kernels.mf_sum(outer, n, inner, engine.at(current), engine.at(next), isLast && mean ? 1 / total : 1);
      if (current !== x) backend.disposeData(current.dataId);
      current = next;
      end = start;
    }
    if (current === x) backend.incRef(x.dataId);
    return { dataId: current.dataId, shape, dtype: 'float32' };
  };
}

/** tf.sum. */
export const sum: OwnKernel = reduce(false);
/** tf.mean. */
export const mean: OwnKernel = reduce(true);

/** tf.gather. With batch dimensions, each batch has indices of its own. */
export const gather: OwnKernel = ({ inputs: { x, indices }, attrs, backend }) => {
  const engine = native(backend);
  if (!engine || !isWord(x) || indices.dtype !== 'int32') return null;
  const axis = tf.util.parseAxisParam(attrs.axis as number, x.shape)[0];
  const shared = (attrs.batchDims as number | undefined) ?? 0;
  const [batch, outer, row] = [x.shape.slice(0, shared), x.shape.slice(shared, axis), x.shape.slice(axis + 1)];
  const own = indices.shape.slice(shared);
  const out = backend.makeOutput([...batch, ...outer, ...own, ...row], x.dtype);
  const [count, rows, bytes] = [size(own), size(outer), 4 * size(row)];
  const [from, chosen, to] = [x, indices, out].map((tensor) => engine.at(tensor));
  let bad = -1;
  for (let b = 0; b < size(batch) && bad < 0; b++) {
    const place = engine.kernels.mf_gather(
      ...[rows, x.shape[axis], count, bytes],
      ...[from + b * rows * x.shape[axis] * bytes, chosen + 4 * b * count, to + b * rows * count * bytes],
    );
    if (place >= 0) bad = b * count + place;
  }
  if (bad < 0) return out;
  backend.disposeData(out.dataId);
  const index = (backend.readSync(indices.dataId) as Int32Array)[bad];
  throw new Error(`GatherV2: the index value ${index} is not in [0, ${x.shape[axis] - 1}]`);
};

/** Sums rows of `x` that carry the same segment number; rows with a number out of range are left out. */
export const segmentSum: OwnKernel = ({ inputs: { x, segmentIds }, attrs, backend }) => {
  const engine = native(backend);
  if (!engine || x.dtype !== 'float32' || segmentIds.dtype !== 'int32') return null;
  const segments = attrs.numSegments as number;
  const row = x.shape.slice(segmentIds.shape.length);
  const out = backend.makeOutput([segments, ...row], 'float32');
  const count = size(segmentIds.shape);
  engine.kernels.mf_segment_sum(count, segments, size(row), engine.at(x), engine.at(segmentIds), engine.at(out));
  return out;
};

/** tf.transpose, after merging axes that stay neighbours; no copy where the order stays. */
export const transpose: OwnKernel = ({ inputs: { x }, attrs, backend }) => {
  const engine = native(backend);
  if (!engine || !isWord(x)) return null;
  const perm = attrs.perm as number[];
  const shape = perm.map((axis) => x.shape[axis]);
  const strides = tf.util.computeStrides(x.shape).concat(1);
  const axes: { length: number; from: number }[] = [];
  perm.forEach((axis) => {
    const length = x.shape[axis];
    const before = axes.at(-1);
    if (length === 1) return;
    if (before && before.from === length * strides[axis])
      axes[axes.length - 1] = { length: before.length * length, from: strides[axis] };
    else axes.push({ length, from: strides[axis] });
  });
  if (axes.length <= 1) {
    backend.incRef(x.dataId);
    return { dataId: x.dataId, shape, dtype: x.dtype };
  }
  let stride = 1;
  const placed = axes.reverse().map((axis) => {
    const to = stride;
    stride *= axis.length;
    return { ...axis, to };
  });
  const [last, ...others] = placed;
  // The axis that is contiguous in x goes next to the one that is contiguous in the result.
  others.sort((one, two) => Number(two.from === 1) - Number(one.from === 1) || two.length - one.length);
  while (others.length < 3) others.push({ length: 1, from: 0, to: 0 });
  const [c, b, a, ...loops] = others;
  const out = backend.makeOutput(shape, x.dtype);
  const visit = (depth: number, from: number, to: number): void => {
    if (depth < loops.length) {
      const loop = loops[depth];
      for (let i = 0; i < loop.length; i++) visit(depth + 1, from + 4 * i * loop.from, to + 4 * i * loop.to);
      return;
    }
    engine.kernels.mf_transpose(
      ...[a.length, b.length, c.length, last.length],
      ...[a.from, b.from, c.from, last.from],
      ...[a.to, b.to, c.to, from, to],
    );
  };
  visit(0, engine.at(x), engine.at(out));
  return out;
};

/** Copies the part [begin, begin + length) of one axis. */
function cut(backend: BackendWasm, x: tf.TensorInfo, axis: number, begin: number, length: number): tf.TensorInfo {
  const engine = native(backend)!;
  const inner = (x.dtype === 'bool' ? 1 : 4) * size(x.shape.slice(axis + 1));
  const shape = x.shape.map((whole, i) => (i === axis ? length : whole));
  const out = backend.makeOutput(shape, x.dtype);
  const [bytes, step] = [length * inner, x.shape[axis] * inner];
  const rows = size(x.shape.slice(0, axis));
  engine.kernels.mf_copy_rows(rows, bytes, engine.at(x) + begin * inner, step, engine.at(out), bytes);
  return out;
}

/** tf.slice along one axis. */
export const slice: OwnKernel = (args) => {
  const { inputs, attrs, backend } = args;
  const { x } = inputs;
  if (!native(backend) || !(isWord(x) || x.dtype === 'bool')) return null;
  const [begin, lengths] = tf.slice_util.parseSliceParams(
    x as tf.Tensor,
    attrs.begin as number[],
    attrs.size as number[],
  );
  tf.slice_util.assertParamsValid(x as tf.Tensor, begin, lengths);
  const partial = lengths.flatMap((length, axis) => (length === x.shape[axis] ? [] : [axis]));
  if (partial.length === 0) return identity(args);
  if (partial.length > 1) return broadcast.slice(args);
  const [axis] = partial;
  return cut(backend, x, axis, begin[axis], lengths[axis]);
};

/** tf.split. */
export const split: OwnKernel = ({ inputs: { x }, attrs, backend }) => {
  if (!native(backend) || !isWord(x)) return null;
  const axis = tf.util.parseAxisParam(attrs.axis as number, x.shape)[0];
  const lengths = tf.backend_util.prepareSplitSize(x as tf.Tensor, attrs.numOrSizeSplits as number | number[], axis);
  let begin = 0;
  return lengths.map((length) => {
    const part = cut(backend, x, axis, begin, length);
    begin += length;
    return part;
  });
};

/** tf.concat. */
export const concat: OwnKernel = ({ inputs, attrs, backend }) => {
  const engine = native(backend);
  const parts = Object.values(inputs);
  if (!engine || !parts.every((part) => isWord(part) && part.dtype === parts[0].dtype)) return null;
  const axis = tf.util.parseAxisParam(attrs.axis as number, parts[0].shape)[0];
  const shapes = parts.map(({ shape }) => shape);
  tf.backend_util.assertParamsConsistent(shapes, axis);
  const shape = tf.backend_util.computeOutShape(shapes, axis);
  const out = backend.makeOutput(shape, parts[0].dtype);
  const inner = 4 * size(shape.slice(axis + 1));
  const rows = size(shape.slice(0, axis));
  let to = engine.at(out);
  for (const part of parts) {
    const bytes = part.shape[axis] * inner;
    engine.kernels.mf_copy_rows(rows, bytes, engine.at(part), bytes, to, shape[axis] * inner);
    to += bytes;
  }
  return out;
};

/** tf.unstack: the parts of an axis, which disappears. */
export const unpack: OwnKernel = ({ inputs: { value }, attrs, backend }) => {
  if (!native(backend) || !isWord(value)) return null;
  const axis = tf.util.parseAxisParam(attrs.axis as number, value.shape)[0];
  const shape = value.shape.filter((_, i) => i !== axis);
  return Array.from({ length: value.shape[axis] }, (_, i) => ({ ...cut(backend, value, axis, i, 1), shape }));
};

/** tf.stack: equal tensors along a new axis. */
export const pack: OwnKernel = ({ inputs, attrs, backend }) => {
  const parts = Object.values(inputs);
  const { shape } = parts[0];
  const axis = (attrs.axis as number) < 0 ? (attrs.axis as number) + shape.length + 1 : (attrs.axis as number);
  if (!parts.every((part) => tf.util.arraysEqual(part.shape, shape) && part.dtype === parts[0].dtype)) return null;
  const thick = parts.map((part) => ({ ...part, shape: [...shape.slice(0, axis), 1, ...shape.slice(axis)] }));
  return concat({ inputs: thick as never, attrs: { axis }, backend });
};
