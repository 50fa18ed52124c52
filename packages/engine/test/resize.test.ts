import * as tf from '@tensorflow/tfjs';
import fc from 'fast-check';
import { ready } from '../src/index.ts';

function values(shape: number[], seed: number): tf.Tensor4D {
  const size = tf.util.sizeFromShape(shape);
  return tf.tensor(
    Float32Array.from({ length: size }, (_, i) => Math.sin(12.9898 * (i + 1) + seed)),
    shape as [number, number, number, number],
  );
}

describe('gradients of resized images', () => {
  it.each(['resizeBilinear', 'resizeNearestNeighbor'] as const)('%s: what the result is made of', async (name) => {
    await ready();
    const side = fc.integer({ min: 1, max: 7 });
    fc.assert(
      fc.property(
        fc.tuple(fc.integer({ min: 1, max: 3 }), side, side, fc.integer({ min: 1, max: 6 })),
        fc.tuple(side, side),
        fc.constantFrom<[boolean, boolean]>([false, false], [true, false], [false, true]),
        (shape, size, [isAligned, isHalf]) => {
          const before = tf.memory().numTensors;
          tf.tidy(() => {
            const f = (x: tf.Tensor): tf.Tensor => tf.image[name](x as tf.Tensor4D, size, isAligned, isHalf);
            const dy = values([shape[0], ...size, shape[3]], 2);
            const got = tf.grad(f)(values(shape, 1), dy);
            expect(got.shape).toEqual([...shape]);
            // The function is linear: its value for one pixel of 1 is that pixel's slope.
            const pixels = shape[1] * shape[2];
            const numbers = got.dataSync();
            for (let pixel = 0; pixel < pixels; pixel++) {
              const one = tf.tensor(
                Float32Array.from({ length: pixels }, (_, i) => Number(i === pixel)),
                [1, shape[1], shape[2], 1],
              );
              const slopes = tf.sum(tf.mul(f(one), dy), [1, 2]).dataSync();
              slopes.forEach((slope, i) => {
                const [b, c] = [Math.floor(i / shape[3]), i % shape[3]];
                expect(Math.abs(numbers[(b * pixels + pixel) * shape[3] + c] - slope)).toBeLessThan(2e-5);
              });
            }
          });
          expect(tf.memory().numTensors).toBe(before);
        },
      ),
      { numRuns: 40, seed: 7 },
    );
  });

  // Of square images: the gradient of others has height and width exchanged there.
  it('agree with the cpu backend; no number stays in its pixels', async () => {
    const run = (): Float32Array[] =>
      tf.tidy(() =>
        (['resizeBilinear', 'resizeNearestNeighbor'] as const).flatMap((name) =>
          [false, true].map(
            (isAligned) =>
              tf
                .grad((x) => tf.image[name](x as tf.Tensor4D, [5, 3], isAligned))(
                  values([1, 6, 6, 5], 1),
                  values([1, 5, 3, 5], 2),
                )
                .dataSync() as Float32Array,
          ),
        ),
      );
    await tf.setBackend('cpu');
    const want = run();
    await ready();
    run().forEach((numbers, i) => {
      numbers.forEach((value, j) => {
        expect(value).toBeCloseTo(want[i][j], 5);
      });
    });
    tf.tidy(() => {
      const dy = tf.tensor4d([1, Number.NaN], [1, 1, 2, 1]);
      const got = tf.grad((x) => tf.image.resizeNearestNeighbor(x as tf.Tensor4D, [1, 2]))(tf.ones([1, 1, 4, 1]), dy);
      expect(Array.from(got.dataSync())).toEqual([1, 0, Number.NaN, 0]);
    });
  });
});
