import * as tf from '@tensorflow/tfjs';
import { type OwnKernel, view } from '../backend.ts';
import { native } from '../native.ts';

/** As in c/wave.c: beyond, an angle needs more digits of π. */
const FARTHEST = 2 ** 20;

function wave(cosine: 0 | 1, exact: (x: number) => number): OwnKernel {
  return ({ inputs: { x }, backend }) => {
    const engine = native(backend);
    if (!engine || x.dtype !== 'float32') return null;
    const out = backend.makeOutput(x.shape, 'float32');
    const near = engine.kernels.mf_wave(cosine, tf.util.sizeFromShape(x.shape), engine.at(x), engine.at(out));
    if (near) return out;
    const [from, to] = [view(backend, x), view(backend, out)];
    from.forEach((angle, i) => {
      if (Math.abs(angle) > FARTHEST) to[i] = exact(angle);
    });
    return out;
  };
}

/** tf.sin. */
export const sin: OwnKernel = wave(0, Math.sin);
/** tf.cos. */
export const cos: OwnKernel = wave(1, Math.cos);
