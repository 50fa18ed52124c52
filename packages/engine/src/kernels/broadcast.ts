import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { call as callKernel, heapModule, type OwnKernel, view } from '../backend.ts';
import { type Native, native } from '../native.ts';
import { identity } from './data.ts';

const size = tf.util.sizeFromShape;

/** Codes of the functions of two tensors in c/broadcast.c. */
const OPS = {
  add: 0,
  sub: 1,
  mul: 2,
  div: 3,
  maximum: 4,
  minimum: 5,
  squaredDifference: 6,
  prelu: 7,
  intAdd: 8,
  intSub: 9,
  intMul: 10,
  intMaximum: 11,
  intMinimum: 12,
  equal: 13,
  notEqual: 14,
  greater: 15,
  greaterEqual: 16,
  less: 17,
  lessEqual: 18,
  intEqual: 19,
  intNotEqual: 20,
  intGreater: 21,
  intGreaterEqual: 22,
  intLess: 23,
  intLessEqual: 24,
  and: 25,
  or: 26,
  xor: 27,
  boolEqual: 28,
  copy: 29,
  copyBytes: 30,
} as const;
type Op = keyof typeof OPS;

/** One axis of a result, and the strides at which the operands are read along it, in elements. */
interface Axis {
  length: number;
  a: number;
  b: number;
}

/** Axes without those of one element, and neighbours that are one axis for both operands taken together. */
function merge(axes: Axis[]): Axis[] {
  const merged: Axis[] = [];
  for (const axis of axes) {
    if (axis.length === 1) continue;
    const before = merged.at(-1);
    if (before && before.a === axis.a * axis.length && before.b === axis.b * axis.length) {
      merged[merged.length - 1] = { ...axis, length: before.length * axis.length };
    } else merged.push(axis);
  }
  return merged;
}

const BYTES = { float32: 4, int32: 4, bool: 1 } as const;
type Plain = keyof typeof BYTES;

const STRIDES_BYTES = 48;

/** Runs one function over the axes of a result; a and b are addresses. */
function run(
  backend: BackendWasm,
  engine: Native,
  op: Op,
  axes: Axis[],
  [a, b, out]: number[],
  [bytesIn, bytesOut]: [number, number],
): void {
  const merged = merge(axes);
  while (merged.length < 4) merged.unshift({ length: 1, a: 0, b: 0 });
  const inner = merged.slice(-4);
  const outer = merged.slice(0, -4);
  const at = engine.work(STRIDES_BYTES);
  const numbers = [
    ...inner.map(({ length }) => length),
    ...inner.map((axis) => axis.a),
    ...inner.map((axis) => axis.b),
  ];
  new Int32Array(heapModule(backend).HEAPU8.buffer, at, 12).set(numbers);
  const block = bytesOut * inner.reduce((product, { length }) => product * length, 1);
  let to = out;
  const visit = (depth: number, fromA: number, fromB: number): void => {
    if (depth === outer.length) {
      engine.kernels.mf_broadcast(OPS[op], at, bytesIn, bytesOut, fromA, fromB, to);
      to += block;
      return;
    }
    const axis = outer[depth];
    for (let i = 0; i < axis.length; i++) visit(depth + 1, fromA + i * bytesIn * axis.a, fromB + i * bytesIn * axis.b);
  };
  visit(0, a, b);
}

/** Strides of a shape lined up at the right with `rank` axes; 0 along axes of one element. */
export function stridesOf(shape: number[], rank: number): number[] {
  const strides = new Array<number>(rank).fill(0);
  let stride = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] !== 1) strides[axis + rank - shape.length] = stride;
    stride *= shape[axis];
  }
  return strides;
}

/** A function of two tensors of any shapes that broadcast. */
function combine(
  backend: BackendWasm,
  engine: Native,
  op: Op,
  a: tf.TensorInfo,
  b: tf.TensorInfo,
  dtype: Plain,
): tf.TensorInfo {
  const shape = tf.broadcast_util.assertAndGetBroadcastShape(a.shape, b.shape);
  const out = backend.makeOutput(shape, dtype);
  if (size(shape) === 0) return out;
  const [stridesA, stridesB] = [a, b].map((tensor) => stridesOf(tensor.shape, shape.length));
  const axes = shape.map((length, i) => ({ length, a: stridesA[i], b: stridesB[i] }));
  const bytes: [number, number] = [BYTES[a.dtype as Plain], BYTES[dtype]];
  run(backend, engine, op, axes, [engine.at(a), engine.at(b), engine.at(out)], bytes);
  return out;
}

type PerType = Partial<Record<Plain, Op>>;

function binary(ops: PerType, result?: 'bool'): OwnKernel {
  return ({ inputs: { a, b }, backend }) => {
    const engine = native(backend);
    const op = a.dtype === b.dtype ? ops[a.dtype as Plain] : undefined;
    if (!engine || op === undefined) return null;
    return combine(backend, engine, op, a, b, result ?? (a.dtype as Plain));
  };
}

export const add: OwnKernel = binary({ float32: 'add', int32: 'intAdd' });
export const sub: OwnKernel = binary({ float32: 'sub', int32: 'intSub' });
export const multiply: OwnKernel = binary({ float32: 'mul', int32: 'intMul' });
export const divide: OwnKernel = binary({ float32: 'div' });
export const maximum: OwnKernel = binary({ float32: 'maximum', int32: 'intMaximum' });
export const minimum: OwnKernel = binary({ float32: 'minimum', int32: 'intMinimum' });
export const squaredDifference: OwnKernel = binary({ float32: 'squaredDifference' });
export const equal: OwnKernel = binary({ float32: 'equal', int32: 'intEqual', bool: 'boolEqual' }, 'bool');
export const notEqual: OwnKernel = binary({ float32: 'notEqual', int32: 'intNotEqual', bool: 'xor' }, 'bool');
export const greater: OwnKernel = binary({ float32: 'greater', int32: 'intGreater' }, 'bool');
export const greaterEqual: OwnKernel = binary({ float32: 'greaterEqual', int32: 'intGreaterEqual' }, 'bool');
export const less: OwnKernel = binary({ float32: 'less', int32: 'intLess' }, 'bool');
export const lessEqual: OwnKernel = binary({ float32: 'lessEqual', int32: 'intLessEqual' }, 'bool');
export const logicalAnd: OwnKernel = binary({ bool: 'and' }, 'bool');
export const logicalOr: OwnKernel = binary({ bool: 'or' }, 'bool');

/** tf.prelu: slopes of any shape that broadcasts. */
export const prelu: OwnKernel = ({ inputs: { x, alpha }, backend }) => {
  const engine = native(backend);
  if (!engine || x.dtype !== 'float32' || alpha.dtype !== 'float32') return null;
  return combine(backend, engine, 'prelu', x, alpha, 'float32');
};

/** A function of a tensor and a number. */
function withNumber(backend: BackendWasm, op: Op, x: tf.TensorInfo, number: number, dtype: Plain): tf.TensorInfo {
  const engine = native(backend) as Native;
  const scalar = backend.makeOutput([], x.dtype);
  view(backend, scalar)[0] = number;
  const out = combine(backend, engine, op, x, scalar, dtype);
  backend.disposeData(scalar.dataId);
  return out;
}

/** tf.leakyRelu. */
export const leakyRelu: OwnKernel = ({ inputs: { x }, attrs, backend }) => {
  if (!native(backend) || x.dtype !== 'float32') return null;
  return withNumber(backend, 'prelu', x, attrs.alpha as number, 'float32');
};

/** tf.clipByValue; what is not a number stays so. */
export const clip: OwnKernel = ({ inputs: { x }, attrs, backend }) => {
  const engine = native(backend);
  if (!engine || x.dtype !== 'float32') return null;
  const out = backend.makeOutput(x.shape, 'float32');
  const [low, high] = [attrs.clipValueMin as number, attrs.clipValueMax as number];
  engine.kernels.mf_clip(size(x.shape), low, high, engine.at(x), engine.at(out));
  return out;
};

/** `kernel`, and casts of numbers to bool: anything but zero is true. */
export function orToBool(kernel: OwnKernel): OwnKernel {
  return (call) => {
    const { x } = call.inputs;
    const { backend } = call;
    if (call.attrs.dtype !== 'bool' || !native(backend)) return kernel(call);
    if (x.dtype !== 'float32' && x.dtype !== 'int32') return kernel(call);
    return withNumber(backend, x.dtype === 'float32' ? 'notEqual' : 'intNotEqual', x, 0, 'bool');
  };
}

/** tf.where of one shape, or with a condition for each row. */
export const select: OwnKernel = ({ inputs: { condition, t, e }, backend }) => {
  const engine = native(backend);
  if (!engine || t.dtype !== e.dtype || (t.dtype !== 'float32' && t.dtype !== 'int32')) return null;
  if (condition.dtype !== 'bool' || !tf.util.arraysEqual(t.shape, e.shape)) return null;
  const rows = size(condition.shape);
  if (!condition.shape.every((length, axis) => length === t.shape[axis])) return null;
  const out = backend.makeOutput(t.shape, t.dtype);
  if (rows > 0) {
    const at = [condition, t, e, out].map((tensor) => engine.at(tensor));
    engine.kernels.mf_select(rows, size(t.shape) / rows, ...at);
  }
  return out;
};

const LARGEST_EXPONENT = 64;

/** tf.pow with one exponent that is a small integer or half of one. */
export const pow: OwnKernel = ({ inputs: { a, b }, backend }) => {
  const engine = native(backend);
  if (!engine || a.dtype !== 'float32' || b.dtype !== 'float32') return null;
  if (size(b.shape) !== 1 || b.shape.length > a.shape.length) return null;
  const exponent = view(backend, b)[0];
  if (!Number.isInteger(2 * exponent) || Math.abs(exponent) > LARGEST_EXPONENT) return null;
  const out = backend.makeOutput(a.shape, 'float32');
  engine.kernels.mf_power(size(a.shape), exponent, engine.at(a), engine.at(out));
  return out;
};

// ------------------------------------------------------------------------------------------------------- copies

const isPlain = ({ dtype }: tf.TensorInfo): boolean => dtype in BYTES;

/** A tensor of `shape`, read from x at strides that are given for its axes, from an offset on. */
function strided(
  backend: BackendWasm,
  x: tf.TensorInfo,
  shape: number[],
  axes: { length: number; stride: number }[],
  offset = 0,
): tf.TensorInfo {
  const engine = native(backend) as Native;
  const out = backend.makeOutput(shape, x.dtype);
  if (size(shape) === 0) return out;
  const bytes = BYTES[x.dtype as Plain];
  const from = engine.at(x) + offset * bytes;
  run(
    backend,
    engine,
    bytes === 4 ? 'copy' : 'copyBytes',
    axes.map(({ length, stride }) => ({ length, a: stride, b: 0 })),
    [from, 0, engine.at(out)],
    [bytes, bytes],
  );
  return out;
}

/** tf.tile and tf.broadcastTo. */
export const tile: OwnKernel = ({ inputs: { x }, attrs, backend }) => {
  if (!native(backend) || !isPlain(x)) return null;
  const reps = attrs.reps as number[];
  const strides = tf.util.computeStrides(x.shape).concat(1);
  const axes = x.shape.flatMap((length, axis) => [
    { length: reps[axis], stride: 0 },
    { length, stride: strides[axis] },
  ]);
  return strided(
    backend,
    x,
    x.shape.map((length, axis) => length * reps[axis]),
    axes,
  );
};

/** tf.reverse. */
export const reverse: OwnKernel = (call) => {
  const { inputs, attrs, backend } = call;
  const { x } = inputs;
  if (!native(backend) || !isPlain(x)) return null;
  const turned = tf.util.parseAxisParam(attrs.dims as number | number[], x.shape);
  if (x.shape.length === 0) return identity(call);
  const strides = tf.util.computeStrides(x.shape).concat(1);
  let offset = 0;
  const axes = x.shape.map((length, axis) => {
    if (!turned.includes(axis)) return { length, stride: strides[axis] };
    offset += (length - 1) * strides[axis];
    return { length, stride: -strides[axis] };
  });
  return strided(backend, x, x.shape, axes, offset);
};

/** tf.slice along several axes. */
export const slice: OwnKernel = ({ inputs: { x }, attrs, backend }) => {
  if (!native(backend) || !isPlain(x)) return null;
  const [begin, lengths] = tf.slice_util.parseSliceParams(
    x as tf.Tensor,
    attrs.begin as number[],
    attrs.size as number[],
  );
  tf.slice_util.assertParamsValid(x as tf.Tensor, begin, lengths);
  const strides = tf.util.computeStrides(x.shape).concat(1);
  const offset = begin.reduce((sum, at, axis) => sum + at * strides[axis], 0);
  return strided(
    backend,
    x,
    lengths,
    lengths.map((length, axis) => ({ length, stride: strides[axis] })),
    offset,
  );
};

/** tf.stridedSlice. */
export const stridedSlice: OwnKernel = ({ inputs: { x }, attrs, backend }) => {
  if (!native(backend) || !isPlain(x)) return null;
  const { begin, end, strides, beginMask, endMask, ellipsisMask, newAxisMask, shrinkAxisMask } = attrs as Record<
    string,
    never
  >;
  const info = tf.slice_util.sliceInfo(
    ...([x.shape, begin, end, strides, beginMask, endMask, ellipsisMask, newAxisMask, shrinkAxisMask] as const),
  );
  const { finalShapeSparse, finalShape, begin: first, end: last, strides: steps } = info;
  if (info.isIdentity || finalShapeSparse.length !== x.shape.length || first.length !== x.shape.length) return null;
  const own = tf.util.computeStrides(x.shape).concat(1);
  const lengths = tf.slice_util.computeOutShape(first, last, steps);
  if (size(lengths) !== size(finalShape)) return null;
  const offset = first.reduce((sum, at, axis) => sum + at * own[axis], 0);
  return strided(
    backend,
    x,
    finalShape,
    lengths.map((length, axis) => ({ length, stride: own[axis] * steps[axis] })),
    offset,
  );
};

/** x taken for a tensor of the shape `split`, its axes permuted, taken for one of `shape`. */
function permuted(
  backend: BackendWasm,
  x: tf.TensorInfo,
  split: number[],
  permutation: number[],
  shape: number[],
): tf.TensorInfo {
  const strides = tf.util.computeStrides(split).concat(1);
  const axes = permutation.map((axis) => ({ length: split[axis], stride: strides[axis] }));
  return strided(backend, x, shape, axes);
}

/** tf.depthToSpace. */
export const depthToSpace: OwnKernel = ({ inputs: { x }, attrs, backend }) => {
  const block = attrs.blockSize as number;
  const [batch, height, width, depth] = x.shape;
  if (!native(backend) || !isPlain(x) || attrs.dataFormat !== 'NHWC') return null;
  const channels = depth / block ** 2;
  const split = [batch, height, width, block, block, channels];
  return permuted(backend, x, split, [0, 1, 3, 2, 4, 5], [batch, height * block, width * block, channels]);
};

/** tf.spaceToBatchND. */
export const spaceToBatch: OwnKernel = ({ inputs: { x }, attrs, backend }) => {
  if (!native(backend) || !isPlain(x)) return null;
  const block = attrs.blockShape as number[];
  const paddings = [[0, 0], ...(attrs.paddings as number[][])];
  while (paddings.length < x.shape.length) paddings.push([0, 0]);
  const pads = paddings.some(([before, after]) => before !== 0 || after !== 0);
  const padded = pads ? callKernel(backend, 'PadV2', { x }, { paddings, constantValue: 0 }) : x;
  const count = size(block);
  const split = tf.backend_util.getReshaped(padded.shape, block, count, false);
  const permutation = tf.backend_util.getPermuted(split.length, block.length, false);
  const shape = tf.backend_util.getReshapedPermuted(padded.shape, block, count, false);
  const out = permuted(backend, padded, split, permutation, shape);
  if (pads) backend.disposeData(padded.dataId);
  return out;
};

/** tf.batchToSpaceND. */
export const batchToSpace: OwnKernel = ({ inputs: { x }, attrs, backend }) => {
  if (!native(backend) || !isPlain(x)) return null;
  const block = attrs.blockShape as number[];
  const crops = attrs.crops as number[][];
  const count = size(block);
  const split = tf.backend_util.getReshaped(x.shape, block, count);
  const permutation = tf.backend_util.getPermuted(split.length, block.length);
  const shape = tf.backend_util.getReshapedPermuted(x.shape, block, count);
  const whole = permuted(backend, x, split, permutation, shape);
  if (crops.every(([before, after]) => before === 0 && after === 0)) return whole;
  const begin = tf.backend_util.getSliceBeginCoords(crops, block.length);
  const lengths = tf.backend_util.getSliceSize(shape, crops, block.length);
  const out = callKernel(backend, 'Slice', { x: whole }, { begin, size: lengths });
  backend.disposeData(whole.dataId);
  return out;
};

// --------------------------------------------------------------------------------------------------- reductions

const EXTREMA = { max: 0, min: 1, intMax: 2, intMin: 3, all: 4, any: 5 } as const;

/** A reduction over any axes: one pass per run of neighbouring axes, the last run first. */
function reduction(codes: Partial<Record<Plain, keyof typeof EXTREMA>>): OwnKernel {
  return ({ inputs: { x }, attrs, backend }) => {
    const engine = native(backend);
    const code = codes[x.dtype as Plain];
    if (!engine || code === undefined || size(x.shape) === 0) return null;
    const wanted = tf.util.parseAxisParam((attrs.reductionIndices ?? attrs.axis) as number | number[], x.shape);
    const reduced = x.shape.map((_, axis) => wanted.includes(axis));
    const shape = x.shape.flatMap((length, axis) => (reduced[axis] ? (attrs.keepDims ? [1] : []) : [length]));
    let current = x;
    const lengths = [...x.shape];
    for (let end = lengths.length; end > 0; ) {
      if (!reduced[end - 1]) {
        end--;
        continue;
      }
      let start = end - 1;
      while (start > 0 && reduced[start - 1]) start--;
      const [outer, n, inner] = [[0, start], [start, end], [end]].map(([from, to]) => size(lengths.slice(from, to)));
      lengths.fill(1, start, end);
      const next = backend.makeOutput([outer, inner], x.dtype);
      engine.kernels.mf_extremum(EXTREMA[code], outer, n, inner, engine.at(current), engine.at(next));
      if (current !== x) backend.disposeData(current.dataId);
      current = next;
      end = start;
    }
    if (current === x) backend.incRef(x.dataId);
    return { dataId: current.dataId, shape, dtype: x.dtype };
  };
}

/** tf.max. */
export const max: OwnKernel = reduction({ float32: 'max', int32: 'intMax' });
/** tf.min. */
export const min: OwnKernel = reduction({ float32: 'min', int32: 'intMin' });
/** tf.all. */
export const all: OwnKernel = reduction({ bool: 'all' });
/** tf.any. */
export const any: OwnKernel = reduction({ bool: 'any' });

/** Gives a kernel that counts its axis from the front what was counted from the end. */
export function fromFront(name: string): OwnKernel {
  return ({ inputs, attrs, backend }) => {
    const axis = attrs.axis as number;
    if (!(axis < 0)) return null;
    return callKernel(backend, name, inputs, { ...attrs, axis: axis + inputs.x.shape.length });
  };
}

/** tf.cumsum. */
export const cumsum: OwnKernel = ({ inputs: { x }, attrs, backend }) => {
  const engine = native(backend);
  if (!engine || x.dtype !== 'float32' || x.shape.length === 0) return null;
  const axis = tf.util.parseAxisParam(attrs.axis as number, x.shape)[0];
  const out = backend.makeOutput(x.shape, 'float32');
  engine.kernels.mf_running_sum(
    ...[size(x.shape.slice(0, axis)), x.shape[axis], size(x.shape.slice(axis + 1))],
    ...[Number(Boolean(attrs.exclusive)), Number(Boolean(attrs.reverse)), engine.at(x), engine.at(out)],
  );
  return out;
};
