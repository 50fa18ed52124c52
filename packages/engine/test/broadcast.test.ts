import * as tf from '@tensorflow/tfjs';
import fc from 'fast-check';
import { ready } from '../src/index.ts';

const RUNS = { numRuns: 30, seed: 7 };
const SPECIAL = [Number.NaN, Infinity, -Infinity, 0, -0, 1, -1, 2.5];

type Result = { shape: number[]; dtype: string; numbers: number[] };

/** Numbers with equal ones among them, of both signs. */
function values(shape: number[], seed: number, dtype: tf.DataType = 'float32'): tf.Tensor {
  const size = tf.util.sizeFromShape(shape);
  const numbers = Float32Array.from({ length: size }, (_, i) => Math.round(4 * Math.sin(12.9898 * (i + 1) + seed)) / 2);
  return tf.tidy(() => tf.cast(tf.tensor(numbers, shape), dtype));
}

const read = (y: tf.Tensor): Result => ({
  shape: y.shape,
  dtype: y.dtype,
  numbers: Array.from(y.dataSync() as Float32Array),
});

/** The same on both backends, exactly or within a tolerance. */
async function expectSame(f: () => tf.Tensor[], tolerance = 0): Promise<void> {
  await tf.setBackend('cpu');
  const want = tf.tidy(() => f().map(read));
  await ready();
  const before = [tf.memory().numTensors, tf.engine().backend.numDataIds()];
  const got = tf.tidy(() => f().map(read));
  expect([tf.memory().numTensors, tf.engine().backend.numDataIds()]).toEqual(before);
  got.forEach((result, i) => {
    expect([result.shape, result.dtype]).toEqual([want[i].shape, want[i].dtype]);
    result.numbers.forEach((number, at) => {
      const other = want[i].numbers[at];
      // Zeros of both signs are one number here.
      if (number === other || (Number.isNaN(number) && Number.isNaN(other))) return;
      if (Math.abs(number - other) <= tolerance * Math.max(1, Math.abs(other))) return;
      throw new Error(`result ${i} of shape [${result.shape}], element ${at}: ${number}, cpu says ${other}`);
    });
  });
}

const length = (max: number, min = 0): fc.Arbitrary<number> => fc.integer({ min, max });
const shapeOf = (max: number, rank: number): fc.Arbitrary<number[]> => fc.array(length(max), { maxLength: rank });

/** Two shapes that broadcast: axes of the whole that are dropped in front or thinned to one element in either. */
const pair = fc.array(length(5), { maxLength: 6 }).chain((whole) => {
  const thin = fc.array(fc.boolean(), { minLength: whole.length, maxLength: whole.length });
  const part = fc
    .tuple(fc.nat({ max: whole.length }), thin)
    .map(([drop, one]) => whole.map((n, axis) => (one[axis] ? 1 : n)).slice(drop));
  return fc.tuple(part, part);
});

type Binary = (a: tf.Tensor, b: tf.Tensor) => tf.Tensor;

describe('functions of two tensors', () => {
  const ANY: Binary[] = [tf.add, tf.sub, tf.mul, tf.maximum, tf.minimum];
  const COMPARISONS: Binary[] = [tf.equal, tf.notEqual, tf.greater, tf.greaterEqual, tf.less, tf.lessEqual];

  it('of any shapes that broadcast: the cpu backend', async () => {
    await fc.assert(
      fc.asyncProperty(pair, async ([s, t]) => {
        await expectSame(() => {
          const [a, b] = [values(s, 1), values(t, 2)];
          const [c, d] = [values(s, 1, 'int32'), values(t, 2, 'int32')];
          const [e, f] = [values(s, 1, 'bool'), values(t, 2, 'bool')];
          return [
            ...[
              ...ANY,
              ...COMPARISONS,
              tf.squaredDifference,
              (x: tf.Tensor, y: tf.Tensor) => tf.div(x, tf.add(y, 7)),
            ].map((op) => op(a, b)),
            ...[...ANY, ...COMPARISONS].map((op) => op(c, d)),
            ...[tf.logicalAnd, tf.logicalOr, tf.logicalXor, tf.equal, tf.notEqual].map((op) => op(e, f)),
          ];
        }, 1e-6);
      }),
      RUNS,
    );
  });

  it('of numbers that are none, infinities and zeros of both signs', async () => {
    await expectSame(() => {
      const [a, b] = [tf.tensor2d(SPECIAL, [8, 1]), tf.tensor1d(SPECIAL)];
      return [...ANY, ...COMPARISONS, tf.div].flatMap((op) => [op(a, b), op(b, a), op(tf.tile(a, [1, 8]), b)]);
    });
    await ready();
    const signs = tf.tidy(() => [tf.maximum([-0], [0]).dataSync()[0], tf.minimum([0], [-0]).dataSync()[0]]);
    expect(signs).toEqual([0, -0]);
  });

  it('whose gradients compare and repeat', async () => {
    await expectSame(() => {
      const [a, b] = [values([4, 1, 7], 1), values([5, 1], 2)];
      const dy = values([4, 5, 7], 3);
      const ops: Binary[] = [tf.add, tf.sub, tf.mul, tf.maximum, tf.minimum, tf.squaredDifference];
      // Operands of one shape, by hand: tfjs has some of these gradients for no other.
      const whole: Binary = (x, y) => tf.add(tf.mul(x, tf.ones([4, 5, 7])), tf.mul(y, tf.zeros([4, 5, 7])));
      return ops.flatMap((op) => [
        ...tf.grads((x, y) => op(whole(x, y), whole(y, x)))([a, b], dy),
        ...(tf.getBackend() === 'wasm'
          ? tf.grads(op)([a, b], dy)
          : tf.grads((x, y) => op(whole(x, y), whole(y, x)))([a, b], dy)),
      ]);
    }, 1e-5);
  });

  it('integers wrap; large ones compare exactly', async () => {
    await ready();
    tf.tidy(() => {
      const [a, b] = [tf.tensor1d([16777217, 2147483647], 'int32'), tf.tensor1d([16777216, 1], 'int32')];
      expect(Array.from(tf.equal(a, b).dataSync())).toEqual([0, 0]);
      expect(Array.from(tf.greater(a, b).dataSync())).toEqual([1, 1]);
      expect(Array.from(tf.add(a, b).dataSync())).toEqual([33554433, -2147483648]);
      expect(Array.from(tf.maximum(a, b).dataSync())).toEqual([16777217, 2147483647]);
    });
  });
});

describe('functions of one tensor', () => {
  it('powers', async () => {
    const exponents = [0, 1, 2, 3, 4, 7, 12, -1, -2, -3, 0.5, -0.5, 1.5, 2.5, 0.3, -1.7, 65];
    await expectSame(
      () =>
        exponents.flatMap((exponent) => {
          const x = tf.tensor1d([...SPECIAL, 0.3, 1.1, 7, 1e-20, 1e20]);
          return [tf.pow(x, exponent), tf.pow(x.reshape([13, 1]), tf.tensor1d([exponent]))];
        }),
      3e-7,
    );
    await expectSame(() => [2, 3, -1, 0.5].map((e) => tf.grad((x) => tf.pow(x, e))(tf.tensor1d([0.3, 1, 2.5]))), 1e-6);
    await expectSame(() => [tf.pow(values([5, 3], 1, 'int32'), tf.scalar(2, 'int32')), tf.pow([2, 3], [1.3, 2])], 1e-6);
  });

  it('powers at the edges are those of JavaScript', async () => {
    await ready();
    const edges = [-Infinity, -0, 0, Infinity, -2, Number.NaN];
    for (const exponent of [0.5, 1.5, 2.5, -0.5, -1.5, 3, -3]) {
      const got = tf.tidy(() => tf.pow(tf.tensor1d(edges), exponent).dataSync());
      expect([exponent, ...got]).toEqual([exponent, ...edges.map((x) => x ** exponent)]);
    }
  });

  it('clips, elu and selu keep small numbers', async () => {
    await ready();
    tf.tidy(() => {
      const numbers = [Number.NaN, -5, -0.25, 7, Number.POSITIVE_INFINITY];
      expect([...tf.clipByValue(tf.tensor1d(numbers), -0.5, 1).dataSync()]).toEqual([Number.NaN, -0.5, -0.25, 1, 1]);
      const small = [-1e-8, -1e-6, -1e-3];
      const relative = (got: tf.Tensor, scale: number): number =>
        got
          .dataSync<'float32'>()
          .reduce((most, y, i) => Math.max(most, Math.abs(y / (scale * Math.expm1(small[i])) - 1)), 0);
      expect(relative(tf.elu(tf.tensor1d(small)), 1)).toBeLessThan(3e-7);
      expect(relative(tf.selu(tf.tensor1d(small)), 1.7580993408473766)).toBeLessThan(3e-7);
    });
  });

  it('sign, reciprocal, leakyRelu, expm1, log1p, casts', async () => {
    const numbers = [...SPECIAL, 1e-8, -1e-8, 0.49, -0.49, 0.51, -0.51, 20, -20, 88, -0.999999, 1e-30, 1e30];
    await expectSame(() => {
      const x = tf.tensor1d(numbers);
      return [tf.sign(x), tf.reciprocal(x), tf.leakyRelu(x, 0.3), tf.leakyRelu(x), tf.cast(x, 'bool')];
    }, 1e-6);
    await expectSame(() => [tf.cast(tf.tensor1d([0, 5, -1, 256], 'int32'), 'bool'), tf.cast([true, false], 'int32')]);
    await ready();
    const check = (f: (x: tf.Tensor) => tf.Tensor, exact: (x: number) => number): void => {
      const got = tf.tidy(() => f(tf.tensor1d(numbers)).dataSync());
      numbers.forEach((x, i) => {
        const want = Math.fround(exact(Math.fround(x)));
        if (Object.is(got[i], want) || got[i] === want) return;
        if (!(Math.abs(got[i] - want) <= 4e-7 * Math.abs(want))) throw new Error(`of ${x}: ${got[i]}, not ${want}`);
      });
    };
    check(tf.expm1, Math.expm1);
    check(tf.log1p, Math.log1p);
  });

  it('sine and cosine keep seven digits, far out too', async () => {
    await ready();
    const numbers = Float32Array.from({ length: 4003 }, (_, i) => (i < 2000 ? (i - 1000) / 50 : (i - 3000) * 1040.3));
    const far = Float32Array.from([3e6, -1e30, 1]);
    tf.tidy(() => {
      for (const [f, exact] of [
        [tf.sin, Math.sin],
        [tf.cos, Math.cos],
      ] as const) {
        for (const xs of [numbers, far]) {
          const got = f(tf.tensor1d(xs)).dataSync();
          xs.forEach((x, i) => {
            const [want, tolerance] = [exact(x), xs === far ? 1e-6 : 1e-7 + 1e-6 * Math.abs(exact(x))];
            if (!(Math.abs(got[i] - want) <= tolerance)) throw new Error(`of ${x}: ${got[i]}, not ${want}`);
          });
          // Near a zero the digits are those of the reduced angle.
          xs.forEach((x, i) => {
            if (xs === numbers && Math.abs(exact(x)) < 1e-2 && exact(x) !== 0)
              expect(Math.abs(got[i] / exact(x) - 1)).toBeLessThan(4e-7);
          });
        }
        const special = Array.from(f(tf.tensor1d([Number.NaN, Infinity, -Infinity, 0])).dataSync());
        expect(special).toEqual([Number.NaN, Number.NaN, Number.NaN, exact(0)]);
      }
      const slope = tf
        .grad(tf.sin)(tf.tensor1d([0, 1, -2]))
        .dataSync();
      [1, Math.cos(1), Math.cos(2)].forEach((want, i) => {
        expect(slope[i]).toBeCloseTo(want, 6);
      });
    });
  });

  it('where', async () => {
    await fc.assert(
      fc.asyncProperty(shapeOf(5, 4), async (shape) => {
        await expectSame(() => {
          const [c, a, b] = [values(shape, 1, 'bool'), values(shape, 2), values(shape, 3)];
          const ints = [a, b].map((t) => tf.cast(t, 'int32'));
          return [tf.where(c, a, b), tf.where(c, ints[0], ints[1])];
        });
      }),
      RUNS,
    );
    await expectSame(() => [
      tf.where(values([3, 1], 1, 'bool'), values([3, 4], 1), values([1, 4], 2)),
      ...tf.grads((a, b) => tf.where(values([3, 4], 5, 'bool'), a, b))([values([3, 4], 1), values([3, 4], 2)]),
    ]);
  });
});

describe('moves', () => {
  it('tile, reverse, slices: the cpu backend', async () => {
    const cases = fc.array(length(4), { minLength: 1, maxLength: 5 }).chain((shape) => {
      const each = <T>(arbitrary: (n: number) => fc.Arbitrary<T>): fc.Arbitrary<T[]> =>
        fc.tuple(...shape.map(arbitrary)) as unknown as fc.Arbitrary<T[]>;
      return fc.record({
        shape: fc.constant(shape),
        reps: each(() => length(3)),
        turned: each(() => fc.boolean()),
        begin: each((n) => length(n)),
        steps: each(() => fc.constantFrom(1, 2, 3, -1, -2)),
        dtype: fc.constantFrom('float32' as const, 'int32' as const, 'bool' as const),
      });
    });
    await fc.assert(
      fc.asyncProperty(cases, async ({ shape, reps, turned, begin, steps, dtype }) => {
        await expectSame(() => {
          const x = values(shape, 1, dtype);
          const axes = shape.flatMap((_, axis) => (turned[axis] ? [axis] : []));
          const lengths = shape.map((n, axis) => n - begin[axis]);
          // tf.reverse counts no axes as all of them.
          const results = [tf.tile(x, reps), tf.slice(x, begin, lengths)];
          if (!shape.includes(0)) {
            results.push(tf.reverse(x, axes));
            const [first, last] = [
              steps.map((step, axis) => (step > 0 ? 0 : shape[axis] - 1)),
              steps.map((step, axis) => (step > 0 ? shape[axis] : -shape[axis] - 1)),
            ];
            results.push(tf.stridedSlice(x, first, last, steps));
          }
          return results;
        });
      }),
      RUNS,
    );
  });

  it('strided slices with masks', async () => {
    await expectSame(() => {
      const x = values([4, 5, 6], 1);
      return [
        tf.stridedSlice(x, [1, 0, 0], [4, 5, 6], [2, 2, 3]),
        tf.stridedSlice(x, [1, 1, 1], [3, 4, 5], [1, 1, 2], 0b10, 0b100),
        tf.stridedSlice(x, [1, 1], [3, 6], [1, 2], 0, 0, 0b1),
        tf.stridedSlice(x, [0, 0, 1, 0], [4, 1, 5, 6], [2, 1, 2, 1], 0, 0, 0, 0b10),
        tf.stridedSlice(x, [0, 0, 0], [4, 5, 6], [1, 1, 1]),
        tf.stridedSlice(x, [3, 4, 5], [0, 0, 0], [-1, -2, -1]),
        tf.stridedSlice(x, [2, 0, 0], [2, 5, 6], [1, 2, 1]),
      ];
    });
  });

  it('blocks of space: the cpu backend, gradients too', async () => {
    await expectSame(() => {
      const x = values([2, 3, 5, 12], 1) as tf.Tensor4D;
      const batches = values([12, 3, 2, 3], 2);
      const ops: [(t: tf.Tensor) => tf.Tensor, tf.Tensor][] = [
        [
          (t) =>
            tf.spaceToBatchND(
              t,
              [1, 5],
              [
                [0, 0],
                [0, 0],
              ],
            ),
          x,
        ],
        [
          (t) =>
            tf.spaceToBatchND(
              t,
              [2, 3],
              [
                [0, 1],
                [1, 0],
              ],
            ),
          x,
        ],
        [
          (t) =>
            tf.batchToSpaceND(
              t,
              [2, 3],
              [
                [0, 0],
                [0, 0],
              ],
            ),
          batches,
        ],
        [
          (t) =>
            tf.batchToSpaceND(
              t,
              [2, 3],
              [
                [1, 2],
                [0, 1],
              ],
            ),
          batches,
        ],
        [(t) => tf.batchToSpaceND(t, [4], [[1, 0]]), batches],
      ];
      return [
        tf.depthToSpace(x, 2, 'NHWC'),
        tf.depthToSpace(values([1, 1, 2, 18], 1) as tf.Tensor4D, 3, 'NHWC'),
        ...ops.flatMap(([f, t]) => [f(t), tf.grad(f)(t, values(f(t).shape, 3))]),
        tf.pool(x, 2, 'max', 'valid', [2, 2]),
      ];
    });
  });

  it('broadcastTo and the gradients of moves', async () => {
    await expectSame(() => {
      const x = values([3, 1, 2], 1);
      return [
        tf.broadcastTo(x, [2, 3, 4, 2]),
        tf.broadcastTo(x, [3, 1, 2]),
        tf.grad((t) => tf.tile(t, [2, 3, 1]))(x, values([6, 3, 2], 2)),
        tf.grad((t) => tf.reverse(t, 0))(x, values([3, 1, 2], 2)),
        tf.grad((t) => tf.slice(t, [1, 0, 1], [2, 1, 1]))(x, values([2, 1, 1], 2)),
      ];
    }, 1e-6);
  });
});

describe('gradients of what repeats and what sums', () => {
  it('sum, mean, tile: the cpu backend', async () => {
    const cases = fc.tuple(fc.array(length(5, 1), { minLength: 1, maxLength: 4 }), fc.array(length(3)), fc.boolean());
    await fc.assert(
      fc.asyncProperty(cases, async ([shape, wanted, keepDims]) => {
        const axes = [...new Set(wanted.filter((axis) => axis < shape.length))];
        const reps = shape.map((_, axis) => 1 + (wanted[axis] ?? 0));
        await expectSame(() => {
          const x = values(shape, 1);
          const functions = [
            (t: tf.Tensor) => tf.sum(t, axes, keepDims),
            (t: tf.Tensor) => tf.mean(t, axes, keepDims),
            (t: tf.Tensor) => tf.tile(t, reps),
          ];
          return functions.map((f) => tf.grad(f)(x, values(f(x).shape, 2)));
        }, 1e-5);
      }),
      RUNS,
    );
  });

  it('of gradients; of any rank; of nothing', async () => {
    await ready();
    tf.tidy(() => {
      const x = values([2, 3], 1);
      // (Σ x² / 6)² has the second derivative 2/9·(x_i Σ v x) + 2/3·mean(x²)·v along v.
      const f = (t: tf.Tensor): tf.Tensor => tf.square(tf.mean(tf.square(t)));
      const v = values([2, 3], 2);
      const got = tf.grad((t) => tf.sum(tf.mul(tf.grad(f)(t), v)))(x);
      const along = tf.add(
        tf.mul(tf.mul(x, tf.sum(tf.mul(v, x))), 2 / 9),
        tf.mul(tf.mul(tf.mean(tf.square(x)), v), 2 / 3),
      );
      got.dataSync().forEach((value, i) => {
        expect(value).toBeCloseTo(along.dataSync()[i], 4);
      });
      const second = tf.grad((t) => tf.sum(tf.square(tf.broadcastTo(tf.square(t), [4, 2, 3]))))(x);
      second.dataSync().forEach((value, i) => {
        expect(value).toBeCloseTo(16 * x.dataSync()[i] ** 3, 3);
      });
      const tiled = tf.grad((t) => tf.tile(t, [2, 1, 2, 1, 3]))(tf.ones([1, 2, 1, 2, 2]));
      expect(Array.from(tiled.dataSync())).toEqual(new Array(8).fill(12));
      expect(tf.grad((t) => tf.sum(t, 0))(tf.zeros([0, 3]), tf.ones([3])).shape).toEqual([0, 3]);
    });
  });
});

describe('reductions', () => {
  it('max, min, all, any over any axes: the cpu backend', async () => {
    const cases = fc.tuple(fc.array(length(20, 1), { minLength: 1, maxLength: 4 }), fc.array(length(3)), fc.boolean());
    await fc.assert(
      fc.asyncProperty(cases, async ([shape, wanted, keepDims]) => {
        const axes = [...new Set(wanted.filter((axis) => axis < shape.length))];
        await expectSame(() => {
          const x = values(shape, 1);
          const [ints, bools] = [tf.cast(x, 'int32'), tf.cast(x, 'bool')];
          return [
            ...[tf.max, tf.min].flatMap((f) => [f(x, axes, keepDims), f(ints, axes, keepDims)]),
            ...[tf.all, tf.any].map((f) => f(bools, axes, keepDims)),
          ];
        });
      }),
      RUNS,
    );
  });

  it('what is not a number wins; the gradient goes to the extremes', async () => {
    await ready();
    tf.tidy(() => {
      for (const n of [3, 40]) {
        for (const place of [0, 1, n - 1]) {
          const numbers = Float32Array.from({ length: n }, (_, i) => (i === place ? Number.NaN : i));
          expect(tf.max(tf.tensor1d(numbers)).dataSync()[0]).toBeNaN();
          expect(tf.min(tf.tensor1d(numbers)).dataSync()[0]).toBeNaN();
          expect(tf.max(tf.tensor2d(numbers, [n, 1]), 0).dataSync()[0]).toBeNaN();
          expect(tf.min(tf.stack([numbers, numbers], 1), 0).dataSync()[1]).toBeNaN();
        }
      }
      expect(tf.max(tf.fill([20], -Infinity)).dataSync()[0]).toBe(-Infinity);
    });
    await expectSame(() => [
      tf.grad((x) => tf.max(x, 1))(values([4, 5], 1), values([4], 2)),
      tf.grad((x) => tf.min(x, [0, 2]))(values([4, 5, 3], 1), values([5], 2)),
    ]);
  });

  it('running sums', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(length(9), { minLength: 1, maxLength: 4 }),
        length(3),
        fc.boolean(),
        fc.boolean(),
        async (shape, at, exclusive, reverse) => {
          const axis = Math.min(at, shape.length - 1);
          await expectSame(
            () => [
              tf.cumsum(values(shape, 1), axis, exclusive, reverse),
              tf.cumsum(values(shape, 1, 'int32'), axis, exclusive, reverse),
            ],
            1e-6,
          );
        },
      ),
      RUNS,
    );
    await expectSame(() => [tf.grad((x) => tf.cumsum(x, 1, true))(values([3, 5], 1), values([3, 5], 2))], 1e-6);
  });
});
