import * as tf from '@tensorflow/tfjs';

/**
 * PyTorch's CPU random stream, for files that hold a seed in place of the numbers drawn from it: Mersenne Twister
 * MT19937 (Matsumoto & Nishimura 1998) seeded with the low 32 bits.
 */
export interface TorchRandom {
  /** Next 32 random bits. */
  bits(): number;
  /** `torch.empty(shape).uniform_(low, high)`, float32, row-major. */
  uniform(shape: number[], low: number, high: number): tf.Tensor;
  /** `torch.randperm(n)`. */
  permutation(n: number): Int32Array;
}

/** Opens the stream of `torch.Generator().manual_seed(seed)`. */
export function torchRandom(seed: number): TorchRandom {
  const state = new Uint32Array(624);
  state[0] = seed >>> 0;
  for (let i = 1; i < 624; i++) {
    const previous = state[i - 1] ^ (state[i - 1] >>> 30);
    state[i] = Math.imul(previous, 1812433253) + i;
  }
  let position = 624;
  const refill = (): void => {
    for (let i = 0; i < 624; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    position = 0;
  };
  const bits = (): number => {
    if (position === 624) refill();
    let y = state[position++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
  return {
    bits,
    uniform: (shape, low, high) => {
      const values = new Float32Array(tf.util.sizeFromShape(shape));
      // 24 bits, as many as a float32 holds; the product and the sum are rounded to float32 one after the other.
      for (let i = 0; i < values.length; i++) {
        values[i] = Math.fround((bits() & 0xffffff) * 2 ** -24 * Math.fround(high - low)) + low;
      }
      return tf.tensor(values, shape);
    },
    permutation: (n) => {
      const order = Int32Array.from({ length: n }, (_, i) => i);
      for (let i = 0; i < n - 1; i++) {
        const j = i + (bits() % (n - i));
        [order[i], order[j]] = [order[j], order[i]];
      }
      return order;
    },
  };
}
