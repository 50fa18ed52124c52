import { onHeap } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { CAST_WASM } from './cast.wasm.ts';

/** The kernels of c/cast.c, by address on the heap of the wasm backend. */
interface Kernels {
  qfx_round(
    n: number,
    channels: number,
    v: number,
    bias: number,
    scale: number,
    step: number,
    least: number,
    high: number,
    y: number,
  ): number;
  qfx_pull(
    n: number,
    channels: number,
    dy: number,
    v: number,
    bias: number,
    y: number,
    from: number,
    to: number,
    relu: number,
    dv: number,
  ): number;
  qfx_column(n: number, channels: number, w: number, sums: number): number;
}

/** The part of the wasm backend that is used. */
interface HeapBackend extends tf.KernelBackend {
  makeOutput(shape: number[], dtype: 'float32'): tf.TensorInfo;
}

/** The kernels on the heap of one backend; null where they cannot run (no SIMD). */
const attached = new WeakMap<object, Heap | null>();

/** Our kernels working in place on the tensors of the wasm backend. */
export interface Heap {
  /** y = cast(relu(v + bias)); undefined when a value is NaN or infinite. */
  round(v: tf.Tensor, bias: tf.Tensor | undefined, grid: HeapGrid): tf.Tensor | undefined;
  /** The gradient of v, and sum of dy * (y - v*m). */
  pull(
    dy: tf.Tensor,
    v: tf.Tensor,
    bias: tf.Tensor | undefined,
    y: tf.Tensor,
    grid: HeapGrid,
  ): { dv: tf.Tensor; sum: number };
  /** Largest sum of |w| over all but the channels. */
  column(w: tf.Tensor, channels: number): number;
}

/** The grid of one cast: raw integers low..high in units of 2^-fraction, after a ReLU where `relu` is set. */
export interface HeapGrid {
  fraction: number;
  low: number;
  high: number;
  relu: boolean;
}

/** The kernels, when the current backend is wasm and can take them. */
export function heap(): Heap | null {
  if (tf.getBackend() !== 'wasm') return null;
  const backend = tf.backend() as HeapBackend;
  let known = attached.get(backend);
  if (known === undefined) {
    known = attach(backend);
    attached.set(backend, known);
  }
  return known;
}

function attach(backend: HeapBackend): Heap | null {
  const kernel = onHeap(Uint8Array.from(atob(CAST_WASM), (c) => c.charCodeAt(0)));
  if (!kernel) return null;
  const { at } = kernel;
  const kernels = kernel.exports as unknown as Kernels;
  const made = (info: tf.TensorInfo): tf.Tensor => tf.engine().makeTensorFromTensorInfo(info, backend);
  return {
    round(v, bias, { fraction, low, high, relu }) {
      const out = backend.makeOutput(v.shape, 'float32');
      const y = made(out);
      const channels = bias ? bias.size : v.size;
      const least = relu ? Math.max(low, 0) : low;
      const scale = 2 ** fraction;
      const broken = kernels.qfx_round(v.size, channels, at(v), at(bias), scale, 1 / scale, least, high, at(out));
      if (broken === 0) return y;
      y.dispose();
      return undefined;
    },
    pull(dy, v, bias, y, { fraction, low, high, relu }) {
      const out = backend.makeOutput(v.shape, 'float32');
      const dv = made(out);
      const step = 2 ** -fraction;
      const [from, to] = [(low - 0.5) * step, (high + 0.5) * step];
      const channels = bias ? bias.size : v.size;
      const sum = kernels.qfx_pull(v.size, channels, at(dy), at(v), at(bias), at(y), from, to, relu ? 1 : 0, at(out));
      return { dv, sum };
    },
    column(w, channels) {
      const sums = backend.makeOutput([channels], 'float32');
      const largest = kernels.qfx_column(w.size, channels, at(w), at(sums));
      backend.disposeData(sums.dataId);
      return largest;
    },
  };
}
