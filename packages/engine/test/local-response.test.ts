import * as tf from '@tensorflow/tfjs';
import fc from 'fast-check';
import { ready } from '../src/index.ts';

function values(shape: number[], seed: number): tf.Tensor4D {
  const size = tf.util.sizeFromShape(shape);
  return tf.tensor(
    Float32Array.from({ length: size }, (_, i) => 2 * Math.sin(12.9898 * (i + 1) + seed)),
    shape as [number, number, number, number],
  );
}

describe('localResponseNormalization', () => {
  it('any size, radius and exponent: the cpu backend, gradients too', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.tuple(...[2, 3, 3, 30].map((max) => fc.integer({ min: 0, max }))),
        fc.integer({ min: 0, max: 40 }),
        fc.constantFrom(0.5, 0.75, 1, 1.3, 0),
        async (shape, radius, beta) => {
          const f = (x: tf.Tensor): tf.Tensor =>
            tf.localResponseNormalization(x as tf.Tensor4D, radius, 1.5, 0.3, beta);
          const run = (): (Float32Array | number[])[] =>
            tf.tidy(() => {
              const x = values(shape, 1);
              const y = f(x);
              return [y, tf.grad(f)(x, values(shape, 2))].map((t) => t.dataSync() as Float32Array);
            });
          await tf.setBackend('cpu');
          const want = run();
          await ready();
          const before = tf.memory().numTensors;
          const got = run();
          expect(tf.memory().numTensors).toBe(before);
          want.forEach((numbers, output) => {
            expect(got[output].length).toBe(numbers.length);
            numbers.forEach((value, i) => {
              if (Math.abs(got[output][i] - value) <= 3e-6 * (1 + Math.abs(value))) return;
              throw new Error(`output ${output}, element ${i} of [${shape}]: ${got[output][i]}, cpu ${value}`);
            });
          });
        },
      ),
      { numRuns: 40, seed: 7 },
    );
  });

  it('slopes', async () => {
    await ready();
    tf.tidy(() => {
      const x = values([1, 2, 1, 7], 1);
      const weights = values([1, 2, 1, 7], 2);
      const f = (t: tf.Tensor): tf.Tensor => tf.localResponseNormalization(t as tf.Tensor4D, 2, 1, 0.5, 0.75);
      const total = (numbers: Float32Array): number =>
        tf.sum(tf.mul(f(tf.tensor(numbers, x.shape)), weights)).dataSync()[0];
      const gradient = tf.grad(f)(x, weights).dataSync();
      const numbers = x.dataSync() as Float32Array;
      numbers.forEach((_, i) => {
        const [up, down] = [0.01, -0.01].map((step) => {
          const moved = numbers.slice();
          moved[i] += step;
          return total(moved);
        });
        expect(gradient[i]).toBeCloseTo((up - down) / 0.02, 2);
      });
    });
  });

  it('no number reaches its window alone', async () => {
    await ready();
    tf.tidy(() => {
      const numbers = new Float32Array(20).fill(1);
      numbers[9] = Number.NaN;
      const y = tf.localResponseNormalization(tf.tensor4d(numbers, [1, 1, 1, 20]), 2).dataSync();
      expect(Array.from(y).flatMap((value, i) => (Number.isNaN(value) ? [i] : []))).toEqual([7, 8, 9, 10, 11]);
    });
  });
});
