import * as tf from '@tensorflow/tfjs';
import { type OwnKernel, view } from '../backend.ts';

/** The same data under another name: no copy (the stock kernel copies). */
export const identity: OwnKernel = ({ inputs: { x }, backend }) => {
  backend.incRef(x.dataId);
  return { dataId: x.dataId, shape: x.shape, dtype: x.dtype };
};

/** Cast, with the cpu backend's meaning of bool (anything but zero is true). */
export const cast: OwnKernel = (args) => {
  const { x } = args.inputs;
  const dtype = args.attrs.dtype as tf.DataType;
  if (dtype === x.dtype) return identity(args);
  if ([dtype, x.dtype].some((type) => type === 'complex64' || type === 'string')) return null;
  const { backend } = args;
  const out = backend.makeOutput(x.shape, dtype);
  const from = view(backend, x);
  const to = view(backend, out);
  if (dtype === 'bool') for (let i = 0; i < from.length; i++) to[i] = from[i] === 0 ? 0 : 1;
  else to.set(from);
  return out;
};

/** Real and imaginary parts to one complex tensor: interleaved pairs on the heap. */
export const complex: OwnKernel = ({ inputs: { real, imag }, backend }) => {
  const out = backend.makeOutput(real.shape, 'complex64');
  const [re, im, pairs] = [view(backend, real), view(backend, imag), view(backend, out)];
  for (let i = 0; i < re.length; i++) {
    pairs[2 * i] = re[i];
    pairs[2 * i + 1] = im[i];
  }
  return out;
};

function everySecond(offset: 0 | 1): OwnKernel {
  return ({ inputs: { input }, backend }) => {
    const out = backend.makeOutput(input.shape, 'float32');
    const [pairs, to] = [view(backend, input), view(backend, out)];
    for (let i = 0; i < to.length; i++) to[i] = pairs[2 * i + offset];
    return out;
  };
}

/** Real part of a complex tensor. */
export const real: OwnKernel = everySecond(0);
/** Imaginary part of a complex tensor. */
export const imag: OwnKernel = everySecond(1);

/** Modulus of a complex tensor. */
export const complexAbs: OwnKernel = ({ inputs: { x }, backend }) => {
  const out = backend.makeOutput(x.shape, 'float32');
  const [pairs, to] = [view(backend, x), view(backend, out)];
  for (let i = 0; i < to.length; i++) to[i] = Math.hypot(pairs[2 * i], pairs[2 * i + 1]);
  return out;
};

/** Sums rows of `x` that carry the same segment number; rows with a negative number are left out. */
export const unsortedSegmentSum: OwnKernel = ({ inputs: { x, segmentIds }, attrs, backend }) => {
  if (x.dtype !== 'float32' && x.dtype !== 'int32') return null;
  const segments = attrs.numSegments as number;
  const rank = segmentIds.shape.length;
  const row = tf.util.sizeFromShape(x.shape.slice(rank));
  const out = backend.makeOutput([segments, ...x.shape.slice(rank)], x.dtype);
  const [from, ids, to] = [view(backend, x), view(backend, segmentIds), view(backend, out)];
  to.fill(0);
  for (let i = 0; i < ids.length; i++) {
    const segment = ids[i];
    if (segment < 0 || segment >= segments) continue;
    for (let j = 0; j < row; j++) to[segment * row + j] += from[i * row + j];
  }
  return out;
};
