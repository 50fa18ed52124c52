import * as tf from '@tensorflow/tfjs';
import fc from 'fast-check';
import { ready } from '../src/index.ts';

const RUNS = { numRuns: 25, seed: 7 };
type Five = tf.Tensor5D;
type Four = tf.Tensor4D;
type F = (...xs: tf.Tensor[]) => tf.Tensor;

function values(shape: number[], seed: number): tf.Tensor {
  const size = tf.util.sizeFromShape(shape);
  return tf.tensor(
    Float32Array.from({ length: size }, (_, i) => 3 * Math.sin(12.9898 * (i + 1) + 78.233 * seed)),
    shape,
  );
}

/** Value and gradients on one backend; weights let no element of the result hide behind another. */
async function evaluate(backend: string, f: F, shapes: number[][], differentiate: boolean): Promise<Float32Array[]> {
  if (backend === 'wasm') await ready();
  else await tf.setBackend(backend);
  return tf.tidy(() => {
    const xs = shapes.map((shape, i) => values(shape, i + 1));
    const y = f(...xs);
    const all = differentiate ? [y, ...tf.grads(f)(xs, values(y.shape, 9))] : [y];
    return all.map((tensor) => tensor.dataSync() as Float32Array);
  });
}

async function expectSame(f: F, shapes: number[][], differentiate = true): Promise<void> {
  const want = await evaluate('cpu', f, shapes, differentiate);
  const before = tf.memory().numTensors;
  const got = await evaluate('wasm', f, shapes, differentiate);
  expect(tf.memory().numTensors).toBe(before);
  want.forEach((numbers, output) => {
    expect(got[output].length).toBe(numbers.length);
    const scale = numbers.reduce((largest, value) => Math.max(largest, Math.abs(value)), 1);
    numbers.forEach((value, i) => {
      if (Math.abs(got[output][i] - value) <= 1e-5 * scale) return;
      throw new Error(`output ${output}, element ${i} of [${shapes.join('] [')}]: ${got[output][i]}, cpu ${value}`);
    });
  });
}

/** The gradients of f against differences of f itself, where f is linear in steps of this size. */
async function expectSlopes(f: F, shapes: number[][], step: number): Promise<void> {
  await ready();
  tf.tidy(() => {
    const xs = shapes.map((shape, i) => values(shape, i + 1));
    const y = f(...xs);
    const weights = values(y.shape, 9);
    const total = (...args: tf.Tensor[]): number => tf.tidy(() => tf.sum(tf.mul(f(...args), weights)).dataSync()[0]);
    const gradients = tf
      .grads(f)(xs, weights)
      .map((gradient) => gradient.dataSync());
    xs.forEach((x, input) => {
      const numbers = x.dataSync() as Float32Array;
      numbers.forEach((_, i) => {
        const [up, down] = [step, -step].map((change) => {
          const moved = numbers.slice();
          moved[i] += change;
          return total(...xs.map((other, j) => (j === input ? tf.tensor(moved, x.shape) : other)));
        });
        const slope = (up - down) / (2 * step);
        if (Math.abs(gradients[input][i] - slope) <= 2e-3 * (1 + Math.abs(slope))) return;
        throw new Error(`input ${input}, element ${i}: gradient ${gradients[input][i]}, slope ${slope}`);
      });
    });
  });
}

const length = (max: number, min = 1): fc.Arbitrary<number> => fc.integer({ min, max });
const space = fc.record({
  size: fc.tuple(length(7), length(7), length(7)),
  kernel: fc.tuple(length(3), length(3), length(3)),
  stride: fc.tuple(length(3), length(3), length(3)),
  channels: length(6),
  batch: length(2),
  pad: fc.constantFrom('same' as const, 'valid' as const),
});
type Space = typeof space extends fc.Arbitrary<infer T> ? T : never;
const fits = ({ size, kernel, pad }: Space): boolean => pad === 'same' || size.every((n, axis) => n >= kernel[axis]);

describe('conv3d', () => {
  it('any size, stride and padding: the cpu backend, gradients too', async () => {
    await fc.assert(
      fc.asyncProperty(space.filter(fits), length(7), async ({ size, kernel, stride, channels, batch, pad }, filters) =>
        expectSame(
          (x, w) => tf.conv3d(x as Five, w as Five, stride, pad),
          [
            [batch, ...size, channels],
            [...kernel, channels, filters],
          ],
        ),
      ),
      RUNS,
    );
  });

  it('dilation', async () => {
    await expectSame(
      (x, w) => tf.conv3d(x as Five, w as Five, 1, 'same', 'NDHWC', [2, 1, 3]),
      [
        [2, 5, 6, 7, 3],
        [2, 3, 2, 3, 4],
      ],
      false,
    );
  });

  it('one volume without a batch, single voxels as kernel, several chunks of patches', async () => {
    await expectSame(
      (x, w) => tf.conv3d(x as Four, w as Five, 1, 'same'),
      [
        [3, 4, 5, 2],
        [2, 2, 2, 2, 3],
      ],
    );
    await expectSame(
      (x, w) => tf.conv3d(x as Five, w as Five, 1, 'valid'),
      [
        [2, 3, 3, 3, 5],
        [1, 1, 1, 5, 7],
      ],
    );
    await expectSame(
      (x, w) => tf.conv3d(x as Five, w as Five, 1, 'same'),
      [
        [1, 12, 11, 10, 8],
        [3, 3, 3, 8, 2],
      ],
    );
  });

  it('slopes', async () => {
    await expectSlopes(
      (x, w) => tf.conv3d(x as Five, w as Five, [1, 2, 1], 'same'),
      [
        [1, 3, 4, 3, 2],
        [2, 3, 2, 2, 2],
      ],
      0.5,
    );
  });

  it('a number that is none stays where it can be seen; no volumes give none', async () => {
    await ready();
    tf.tidy(() => {
      const x = tf.buffer([1, 5, 5, 5, 1]) as tf.TensorBuffer<tf.Rank.R5>;
      x.set(Number.NaN, 0, 0, 0, 0, 0);
      const y = tf.conv3d(x.toTensor() as Five, tf.ones([3, 3, 3, 1, 1]) as Five, 1, 'same').dataSync();
      expect(Array.from(y).filter(Number.isNaN).length).toBe(8);
      expect(tf.conv3d(tf.zeros([0, 4, 4, 4, 2]) as Five, tf.ones([2, 2, 2, 2, 3]) as Five, 1, 'same').shape).toEqual([
        0, 4, 4, 4, 3,
      ]);
    });
  });
});

describe('pooling of volumes', () => {
  it('any size, stride and padding: the cpu backend', async () => {
    await fc.assert(
      fc.asyncProperty(space.filter(fits), async ({ size, kernel, stride, channels, batch, pad }) => {
        const shape = [batch, ...size, channels];
        // The cpu backend loses maxima where the window is not a cube, and shares of 'same' windows at the borders.
        const cube = kernel.every((n) => n === kernel[0]);
        await expectSame((x) => tf.maxPool3d(x as Five, kernel, stride, pad), [shape], cube);
        await expectSame((x) => tf.avgPool3d(x as Five, kernel, stride, pad), [shape], pad === 'valid');
      }),
      RUNS,
    );
  });

  it.each([
    [[2, 3, 1], [1, 2, 1], 'same'],
    [[3, 1, 2], [2, 1, 1], 'valid'],
    [[2, 2, 3], [3, 1, 2], 'same'],
  ] as [[number, number, number], [number, number, number], 'same' | 'valid'][])(
    'slopes: window %p, stride %p, %s',
    async (kernel, stride, pad) => {
      const shape = [1, 4, 5, 3, 3];
      await expectSlopes((x) => tf.maxPool3d(x as Five, kernel, stride, pad), [shape], 1e-3);
      await expectSlopes((x) => tf.avgPool3d(x as Five, kernel, stride, pad), [shape], 0.5);
    },
  );

  it('one volume without a batch, padding by number', async () => {
    await expectSame((x) => tf.maxPool3d(x as Four, 2, 1, 'same'), [[3, 4, 5, 2]]);
    await expectSame((x) => tf.maxPool3d(x as Five, 3, 2, 1), [[1, 5, 5, 5, 5]]);
    await expectSame((x) => tf.avgPool3d(x as Five, 3, 2, 1), [[1, 5, 5, 5, 5]], false);
  });

  it('takes what is not a number for the largest, and gives it the gradient; the first of equals', async () => {
    await ready();
    tf.tidy(() => {
      const x = tf.tensor5d([1, Number.NaN, 5, Number.NaN, 2, 2, -Infinity, -Infinity], [1, 2, 1, 4, 1]);
      const pool = (t: tf.Tensor): tf.Tensor => tf.maxPool3d(t as Five, [1, 1, 2], [1, 1, 2], 'valid');
      expect(Array.from(pool(x).dataSync())).toEqual([Number.NaN, Number.NaN, 2, -Infinity]);
      expect(Array.from(tf.grad(pool)(x).dataSync())).toEqual([0, 1, 0, 1, 1, 0, 1, 0]);
    });
  });
});

describe('dilation2d', () => {
  it('any size, stride, padding and dilation: the cpu backend, gradients too', async () => {
    await fc.assert(
      fc.asyncProperty(space.filter(fits), length(2), async ({ size, kernel, stride, channels, batch, pad }, rate) => {
        // The cpu backend's own index runs out of the image where a dilated window does not fit in.
        fc.pre(rate === 1 || size.every((n, axis) => n >= 2 * kernel[axis]));
        await expectSame(
          (x, w) => tf.dilation2d(x as Four, w as tf.Tensor3D, rate === 1 ? [stride[0], stride[1]] : 1, pad, rate),
          [
            [batch, size[0], size[1], channels],
            [kernel[0], kernel[1], channels],
          ],
        );
      }),
      RUNS,
    );
  });

  it('slopes', async () => {
    await expectSlopes(
      (x, w) => tf.dilation2d(x as Four, w as tf.Tensor3D, [1, 2], 'same'),
      [
        [2, 5, 4, 3],
        [2, 3, 3],
      ],
      1e-3,
    );
  });

  it('what is not a number is the largest; everything may be -infinity', async () => {
    await ready();
    tf.tidy(() => {
      const x = tf.tensor4d([Number.NaN, 1, 2, -Infinity], [1, 1, 4, 1]);
      const y = tf.dilation2d(x, tf.zeros([1, 1, 1]), 1, 'valid');
      expect(Array.from(y.dataSync())).toEqual([Number.NaN, 1, 2, -Infinity]);
      const wide = tf.dilation2d(x, tf.zeros([1, 2, 1]), 1, 'valid');
      expect(Array.from(wide.dataSync())).toEqual([Number.NaN, 2, 2]);
    });
  });

  it('works on int32 as before', async () => {
    await expectSame(
      (x, w) => tf.dilation2d(tf.cast(x, 'int32') as Four, tf.cast(w, 'int32') as tf.Tensor3D, 1, 'valid'),
      [
        [1, 4, 4, 2],
        [2, 2, 2],
      ],
      false,
    );
  });
});
