import * as tf from '@tensorflow/tfjs';
import fc from 'fast-check';
import { ready } from '../src/index.ts';

const RUNS = { numRuns: 30, seed: 7 };
const TAU = 2 * Math.PI;

/** Numbers in [-1, 1], no two alike. */
function numbers(count: number, seed: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => Math.sin(12.9898 * (i + 1) + 78.233 * seed));
}

function tensor(shape: number[], seed: number): tf.Tensor {
  return tf.complex(
    tf.tensor(numbers(tf.util.sizeFromShape(shape), seed), shape),
    tf.tensor(numbers(tf.util.sizeFromShape(shape), seed + 1), shape),
  );
}

/** The definition in double precision, of interleaved rows. */
function definition(pairs: ArrayLike<number>, n: number, inverse: boolean): Float64Array {
  const out = new Float64Array(pairs.length);
  const [cos, sin] = [Math.cos, Math.sin].map((f) => Float64Array.from({ length: n }, (_, k) => f((TAU * k) / n)));
  const sign = inverse ? 1 : -1;
  for (let row = 0; row < pairs.length; row += 2 * n) {
    for (let k = 0; k < n; k++) {
      let [re, im] = [0, 0];
      for (let j = 0; j < n; j++) {
        const at = (j * k) % n;
        const [c, s] = [cos[at], sign * sin[at]];
        re += pairs[row + 2 * j] * c - pairs[row + 2 * j + 1] * s;
        im += pairs[row + 2 * j] * s + pairs[row + 2 * j + 1] * c;
      }
      out[row + 2 * k] = inverse ? re / n : re;
      out[row + 2 * k + 1] = inverse ? im / n : im;
    }
  }
  return out;
}

/** Root mean square of the error over that of the values. */
function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  expect(got.length).toBe(want.length);
  let [error, total] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    error += (got[i] - want[i]) ** 2;
    total += want[i] ** 2;
  }
  return total === 0 ? Math.sqrt(error) : Math.sqrt(error / total);
}

function transformed(shape: number[], inverse: boolean): [got: ArrayLike<number>, want: Float64Array] {
  const [z, y] = tf.tidy(() => {
    const from = tensor(shape, 3);
    return [from, inverse ? tf.ifft(from) : tf.fft(from)];
  });
  expect(y.shape).toEqual(shape);
  expect(y.dtype).toBe('complex64');
  const [got, want] = [y.dataSync(), definition(z.dataSync(), shape.at(-1)!, inverse)];
  tf.dispose([z, y]);
  return [got, want];
}

describe('Fourier transforms', () => {
  beforeAll(async () => {
    await ready();
  });

  it('every length up to 150: the definition', () => {
    for (let n = 1; n <= 150; n++) {
      for (const inverse of [false, true]) {
        const [got, want] = transformed([2, n], inverse);
        if (relativeError(got, want) > 4e-7) throw new Error(`length ${n}: error ${relativeError(got, want)}`);
      }
    }
  });

  it.each([256, 384, 500, 625, 729, 1000, 1021, 1024, 1536, 2000, 2047])('length %d: the definition', (n) => {
    for (const inverse of [false, true]) {
      const [got, want] = transformed([1, n], inverse);
      expect(relativeError(got, want)).toBeLessThan(5e-7);
    }
  });

  it('one frequency of a long signal is one line of the spectrum', () => {
    tf.tidy(() => {
      for (const [n, frequency] of [
        [1 << 17, 41],
        [3 * 5 ** 6, 12345],
        [65537, 70],
      ]) {
        const phase = Float64Array.from({ length: n }, (_, j) => (TAU * ((j * frequency) % n)) / n);
        const z = tf.complex(
          tf.tensor1d(Float32Array.from(phase, Math.cos)),
          tf.tensor1d(Float32Array.from(phase, Math.sin)),
        );
        const want = new Float32Array(2 * n);
        want[2 * frequency] = n;
        expect(relativeError(tf.fft(z).dataSync(), want)).toBeLessThan(1e-6);
      }
    });
  });

  it('there and back, any rank', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.nat({ max: 4 }), { maxLength: 3 }),
        fc.integer({ min: 1, max: 200 }),
        async (outer, n) => {
          const before = tf.memory().numTensors;
          tf.tidy(() => {
            const z = tensor([...outer, n], 5);
            expect(relativeError(tf.ifft(tf.fft(z)).dataSync(), z.dataSync())).toBeLessThan(8e-7);
          });
          expect(tf.memory().numTensors).toBe(before);
        },
      ),
      RUNS,
    );
  });

  it('agrees with the cpu backend, real transforms too', async () => {
    const run = (): Record<string, ArrayLike<number>> => {
      const results: Record<string, ArrayLike<number>> = {};
      tf.tidy(() => {
        for (const n of [1, 2, 3, 8, 12, 17, 50, 64]) {
          const x = tf.tensor(numbers(3 * n, 1), [3, n]);
          const spectrum = tf.spectral.rfft(x);
          results[`rfft ${n}`] = spectrum.dataSync();
          results[`longer ${n}`] = tf.spectral.rfft(x, n + 5).dataSync();
          if (n > 2) results[`shorter ${n}`] = tf.spectral.rfft(x, n - 1).dataSync();
          results[`irfft ${n}`] = tf.spectral.irfft(spectrum).dataSync();
          results[`irfft of three axes ${n}`] = tf.spectral.irfft(spectrum.reshape([3, 1, -1])).dataSync();
          results[`fft ${n}`] = tf.fft(tensor([3, n], 2)).dataSync();
        }
      });
      return results;
    };
    await tf.setBackend('cpu');
    const want = run();
    await ready();
    const got = run();
    for (const [name, values] of Object.entries(want)) {
      if (relativeError(got[name], values) > 1e-6) throw new Error(`${name}: ${got[name]} against ${values}`);
    }
  });

  it('a number that is none spreads over its row alone; nothing of nothing', () => {
    tf.tidy(() => {
      for (const n of [8, 7, 15]) {
        const re = tf.tensor(
          Float32Array.from({ length: 2 * n }, (_, i) => (i === 3 ? Number.NaN : 1)),
          [2, n],
        );
        const y = tf.fft(tf.complex(re, tf.zerosLike(re))).dataSync();
        for (let k = 0; k < n; k++) expect(Number.isNaN(y[2 * k]) || Number.isNaN(y[2 * k + 1])).toBe(true);
        expect(y.slice(2 * n).some(Number.isNaN)).toBe(false);
      }
      expect(tf.fft(tensor([0, 5], 1)).shape).toEqual([0, 5]);
      expect(tf.fft(tensor([0, 5], 1)).dataSync().length).toBe(0);
    });
  });

  it('is gone with the tensors: lengths that change leave the heap as it was', () => {
    const use = (): void => {
      for (let n = 1; n < 100; n++) tf.dispose(tf.tidy(() => tf.fft(tensor([2, n], 1))));
    };
    use();
    const before = tf.engine().backend.numDataIds();
    use();
    expect(tf.engine().backend.numDataIds()).toBe(before);
  });
});

describe('complex tensors', () => {
  const run = (shape: number[]): tf.Tensor[] => {
    const rank = shape.length;
    const [z, w] = [tensor(shape, 1), tensor(shape, 4)];
    const row = tensor(shape.slice(1), 6);
    return [
      tf.add(z, w),
      tf.sub(z, w),
      tf.mul(z, w),
      tf.mul(z, row),
      tf.mul(row, z),
      tf.mul(z, tf.complex(2, -3)),
      tf.add(z, row),
      tf.mul(z, tf.scalar(2)),
      tf.cast(tf.real(z), 'complex64'),
      tf.cast(z, 'float32'),
      tf.real(z),
      tf.imag(z),
      tf.abs(z),
      tf.transpose(z),
      tf.concat([z, w], 0),
      tf.concat([z, w], rank - 1),
      tf.concat([z, w], -1),
      // Last: the cpu backend changes the shape of the tensor's own parts with it.
      tf.reshape(z, [-1]),
    ];
  };

  it('moves act on the parts, also those that the cpu backend refuses', async () => {
    await ready();
    const moves: ((z: tf.Tensor) => tf.Tensor | tf.Tensor[])[] = [
      (z) => tf.slice(z, [0, 0, 0], z.shape),
      (z) => tf.slice(z, [0, 1, 0], [2, 2, 4]),
      (z) => tf.slice(z, 1),
      (z) => tf.split(z, 2, -1),
      (z) => tf.split(z, [1, 2], 1),
      (z) => tf.unstack(z, -2),
      (z) => tf.stack([z, z], -1),
      (z) => tf.stack([z, z], 3),
      (z) => tf.concat([z, z], -2),
      (z) => tf.gather(z, tf.tensor1d([2, 0], 'int32'), 1),
      (z) => tf.gather(z, tf.tensor1d([2, 0], 'int32'), -1),
      (z) => tf.transpose(z, [2, 0, 1]),
      (z) => tf.transpose(z, [0, 2, 1]),
    ];
    for (const move of moves) {
      tf.tidy(() => {
        const z = tensor([2, 3, 4], 2);
        const got = [move(z)].flat();
        const [re, im] = [tf.real(z), tf.imag(z)].map((part) => [move(part)].flat());
        got.forEach((y, i) => {
          expect(y.dtype).toBe('complex64');
          expect(y.shape).toEqual(re[i].shape);
          expect(y.dataSync()).toEqual(tf.complex(re[i], im[i]).dataSync());
        });
        expect(z.dtype).toBe('complex64');
        expect(z.shape).toEqual([2, 3, 4]);
      });
    }
  });

  it('arithmetic and moves agree with the cpu backend', async () => {
    const all = (): { shape: number[]; dtype: string; values: number[] }[] =>
      [[5], [3, 4], [2, 3, 7], [1, 1]].flatMap((shape) =>
        tf.tidy(() =>
          run(shape).map((y) => ({ shape: y.shape, dtype: y.dtype, values: Array.from(y.dataSync() as Float32Array) })),
        ),
      );
    await tf.setBackend('cpu');
    const want = all();
    await ready();
    const before = [tf.memory().numTensors, tf.engine().backend.numDataIds()];
    const got = all();
    expect([tf.memory().numTensors, tf.engine().backend.numDataIds()]).toEqual(before);
    expect(got.map(({ shape, dtype }) => [shape, dtype])).toEqual(want.map(({ shape, dtype }) => [shape, dtype]));
    got.forEach(({ values }, i) => {
      values.forEach((value, at) => {
        if (Math.abs(value - want[i].values[at]) > 1e-6) throw new Error(`result ${i}, ${at}: ${value}`);
      });
    });
  });

  it('the modulus of extremes', async () => {
    await ready();
    const [re, im] = [
      [3e38, 1e-38, Infinity, Number.NaN, Number.NaN, 0],
      [3e38, 1e-38, Number.NaN, -Infinity, 1, 0],
    ];
    const got = tf.tidy(() => tf.abs(tf.complex(re, im)).dataSync());
    const want = re.map((x, i) => Math.fround(Math.hypot(Math.fround(x), Math.fround(im[i]))));
    expect(Array.from(got)).toEqual(want);
  });
});
