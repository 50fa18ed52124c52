import { ready } from '@matforge/engine';
import * as tf from '@tensorflow/tfjs';

/** The backends that every op is tested on. */
export const backends = ['cpu', 'wasm'] as const;

/** Makes a backend current; wasm as the engine completes it. */
export async function useBackend(name: (typeof backends)[number]): Promise<void> {
  if (name === 'wasm') await ready();
  else await tf.setBackend(name);
  await tf.ready();
}

/** Values spread over (-1, 1) with a fixed pattern that no symmetry of an op hides. */
export function values(shape: number[], seed = 1): tf.Tensor {
  let state = seed * 2654435761;
  return tf.tensor(
    Float32Array.from({ length: tf.util.sizeFromShape(shape) }, () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return (state / 4294967296) * 2 - 1;
    }),
    shape,
  );
}

/** Largest |a-b|/(1+|b|). */
export function deviation(a: tf.Tensor | ArrayLike<number>, b: tf.Tensor | ArrayLike<number>): number {
  const [x, y] = [a, b].map((t) => ('dataSync' in t ? t.dataSync() : t) as ArrayLike<number>);
  if (x.length !== y.length) return Number.POSITIVE_INFINITY;
  let worst = 0;
  for (let i = 0; i < x.length; i++) {
    const d = Math.abs(x[i] - y[i]) / (1 + Math.abs(y[i]));
    worst = Number.isNaN(d) ? Number.POSITIVE_INFINITY : Math.max(worst, d);
  }
  return worst;
}

/**
 * Largest deviation between the gradients of Σ w·f(xs) by autodiff and by central differences. Fixed uneven weights w keep
 * errors of different outputs from cancelling.
 */
export function gradientError(f: (...xs: tf.Tensor[]) => tf.Tensor, xs: tf.Tensor[], step = 1e-2): number {
  return tf.tidy(() => {
    const weights = values(f(...xs).shape, 77);
    const loss = (...inputs: tf.Tensor[]): tf.Scalar => tf.sum(tf.mul(f(...inputs), weights));
    const gradients = tf.grads(loss)(xs);
    const w = weights.dataSync();
    // Summed in float64: a float32 sum of many outputs would drown the difference.
    const value = (inputs: tf.Tensor[]): number =>
      tf.tidy(() =>
        f(...inputs)
          .dataSync<'float32'>()
          .reduce((sum, y, i) => sum + y * w[i], 0),
      );
    let worst = 0;
    xs.forEach((x, which) => {
      const data = x.dataSync();
      const numeric = Array.from(data, (centre, i) => {
        const at = (v: number): number => {
          const moved = Float32Array.from(data);
          moved[i] = v;
          return value(xs.map((other, j) => (j === which ? tf.tensor(moved, x.shape) : other)));
        };
        const [up, down] = [Math.fround(centre + step), Math.fround(centre - step)];
        return (at(up) - at(down)) / (up - down);
      });
      if (String(gradients[which].shape) !== String(x.shape)) worst = Number.POSITIVE_INFINITY;
      worst = Math.max(worst, deviation(gradients[which], numeric));
    });
    return worst;
  });
}

/** Tensors that `f` leaves behind besides its result, forward and in a backward pass. */
export function leaked(f: (...xs: tf.Tensor[]) => tf.Tensor | tf.Tensor[], xs: tf.Tensor[]): number {
  const all = (t: tf.Tensor | tf.Tensor[]): tf.Tensor[] => (Array.isArray(t) ? t : [t]);
  const before = tf.memory().numTensors;
  tf.dispose(f(...xs));
  const total = (...inputs: tf.Tensor[]): tf.Scalar =>
    tf.addN(all(f(...inputs)).map((y) => tf.sum(tf.square(tf.cast(y, 'float32'))))) as tf.Scalar;
  tf.dispose(tf.grads(total)(xs));
  return tf.memory().numTensors - before;
}
