import * as tf from '@tensorflow/tfjs';

/**
 * A seeded stream of random numbers (xoshiro128**, Blackman & Vigna 2018). The numbers are made in JavaScript, so the
 * same seed gives the same tensors on every backend.
 */
export interface Random {
  /** The seed this stream started from. */
  readonly seed: number;
  /** Next number, uniform in [0, 1), 53 bits. */
  next(): number;
  /** Next integer, uniform in [0, bound). */
  integer(bound: number): number;
  /** Next standard normal number (Box-Muller). */
  gaussian(): number;
  /** float32 tensor with entries uniform in [low, high). */
  uniform(shape: number[], low?: number, high?: number): tf.Tensor;
  /** float32 tensor with entries N(mean, deviation²). */
  normal(shape: number[], mean?: number, deviation?: number): tf.Tensor;
  /** A permutation of 0 … n-1 (Fisher-Yates). */
  permutation(n: number): Int32Array;
  /** An independent stream that depends on this stream's seed and the label, not on how far this stream has run. */
  fork(label: string | number): Random;
  /** The stream's position, to be stored in a checkpoint. */
  state(): number[];
  /** Continues at a stored position. */
  restore(state: readonly number[]): void;
}

// Looked up once: under test runners a global is found through the sandbox, at ten times the cost of the arithmetic.
const { imul, floor } = Math;

/** Opens the stream of a seed (any integer). */
export function random(seed: number): Random {
  const s = new Uint32Array(4);
  let spare: number | undefined;
  let mix = seed >>> 0;
  for (let i = 0; i < 4; i++) s[i] = splitmix32(() => (mix = (mix + 0x9e3779b9) >>> 0));

  const bits = (): number => {
    const result = imul(rotate(imul(s[1], 5), 7), 9) >>> 0;
    const t = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 11);
    return result;
  };
  const next = (): number => ((bits() >>> 5) * 67108864 + (bits() >>> 6)) / 9007199254740992;
  const gaussian = (): number => {
    if (spare !== undefined) {
      const value = spare;
      spare = undefined;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - next()));
    const angle = 2 * Math.PI * next();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
  const fill = (shape: number[], draw: () => number): tf.Tensor => {
    const values = new Float32Array(tf.util.sizeFromShape(shape));
    for (let i = 0; i < values.length; i++) values[i] = draw();
    return tf.tensor(values, shape, 'float32');
  };
  return {
    seed,
    next,
    integer: (bound) => floor(next() * bound),
    gaussian,
    uniform: (shape, low = 0, high = 1) => fill(shape, () => low + (high - low) * next()),
    normal: (shape, mean = 0, deviation = 1) => fill(shape, () => mean + deviation * gaussian()),
    permutation: (n) => {
      const order = Int32Array.from({ length: n }, (_, i) => i);
      for (let i = n - 1; i > 0; i--) {
        const j = floor(next() * (i + 1));
        [order[i], order[j]] = [order[j], order[i]];
      }
      return order;
    },
    fork: (label) => random(hash(`${seed}/${label}`)),
    state: () => [...s, spare === undefined ? 0 : 1, spare ?? 0],
    restore: (state) => {
      s.set(state.slice(0, 4));
      spare = state[4] ? state[5] : undefined;
    },
  };
}

function rotate(x: number, k: number): number {
  return (x << k) | (x >>> (32 - k));
}

function splitmix32(advance: () => number): number {
  let z = advance();
  z = imul(z ^ (z >>> 16), 0x85ebca6b);
  z = imul(z ^ (z >>> 13), 0xc2b2ae35);
  return (z ^ (z >>> 16)) >>> 0;
}

/** FNV-1a of a text, 32 bits: turns names into seeds. */
export function hash(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = imul(h ^ text.charCodeAt(i), 0x01000193);
  return h >>> 0;
}
