import * as tf from '@tensorflow/tfjs';
import {
  cumprod,
  defineOp,
  depthToSpace,
  gatherNd,
  gelu,
  repairGradients,
  scatterNd,
  stopGradient,
  stridedSlice,
  topk,
  where,
} from '../src/ops/index.ts';
import { backends, deviation, gradientError, leaked, useBackend, values } from './backends.ts';

describe.each(backends)('indexing and element-wise ops on %s', (backend) => {
  beforeAll(() => useBackend(backend));
  beforeEach(() => tf.engine().startScope());
  afterEach(() => tf.engine().endScope());

  test('topk', () => {
    const x = tf.tensor([3, -1, 7, 2, 5, 0, 4, 6, -2, 9, 8, 1], [2, 1, 6]);
    const { values: largest, indices } = topk(x, 2);
    expect(largest.arraySync()).toEqual([[[7, 5]], [[9, 8]]]);
    expect(indices.arraySync()).toEqual([[[2, 4]], [[3, 4]]]);
    expect(gradientError((t) => topk(t, 2).values, [x])).toBeLessThan(1e-3);
    expect(gradientError((t) => topk(t, 6).values, [x])).toBeLessThan(1e-3);
    expect(leaked((t) => tf.tidy(() => topk(t, 2).values), [x])).toBe(0);
  });

  test('indices of topk and argMax select without a gradient of their own', () => {
    repairGradients();
    const x = tf.tensor([3, -1, 7, 2, 5, 0]);
    expect(gradientError((t) => tf.gather(tf.square(t), topk(t, 3).indices), [x])).toBeLessThan(1e-2);
    expect(gradientError((t) => tf.gather(tf.square(t), tf.argMax(t)), [x])).toBeLessThan(1e-2);
  });

  test.each([
    [false, false],
    [true, false],
    [false, true],
    [true, true],
  ])('cumprod, exclusive %p, reverse %p, exact with zeros', (exclusive, reverse) => {
    const x = tf.tensor([0.5, -2, 0, 1.5, 3, 2, 0, -1, 0, 1, 2, 0.25, 1, 1.5, -0.5], [3, 5]);
    const rows = x.arraySync() as number[][];
    const expected = rows.flatMap((row) =>
      row.map((_, i) => {
        const part = reverse ? row.slice(exclusive ? i + 1 : i) : row.slice(0, exclusive ? i : i + 1);
        return part.reduce((p, v) => p * v, 1);
      }),
    );
    expect(deviation(cumprod(x, 1, exclusive, reverse), expected)).toBeLessThan(1e-6);
    for (const axis of [0, 1, -1]) {
      expect(gradientError((t) => cumprod(t, axis, exclusive, reverse), [x])).toBeLessThan(2e-3);
      expect(leaked((t) => cumprod(t, axis, exclusive, reverse), [x])).toBe(0);
    }
    expect(gradientError((t) => cumprod(t, 1, exclusive, reverse), [values([2, 3, 2])])).toBeLessThan(2e-3);
  });

  test('gatherNd and scatterNd', () => {
    const x = values([3, 4, 2]);
    const tuples = tf.tensor2d(
      [
        [0, 1],
        [2, 3],
        [0, 1],
      ],
      [3, 2],
      'int32',
    );
    const all = x.arraySync() as number[][][];
    expect(gatherNd(x, tuples).arraySync()).toEqual([all[0][1], all[2][3], all[0][1]]);
    expect(gradientError((t) => gatherNd(t, tuples), [x])).toBeLessThan(1e-3);
    const updates = values([3, 2]);
    const [a, b, c] = updates.arraySync() as number[][];
    const placed = scatterNd(tuples, updates, [3, 4, 2]).arraySync() as number[][][];
    expect(deviation(placed[0][1], [a[0] + c[0], a[1] + c[1]])).toBeLessThan(1e-6);
    expect(placed[2][3]).toEqual(b);
    expect(placed[1][1]).toEqual([0, 0]);
    expect(gradientError((t) => scatterNd(tuples, t, [3, 4, 2]), [updates])).toBeLessThan(1e-3);
    expect(leaked((t) => gatherNd(t, tuples), [x])).toBe(0);
    expect(leaked((t) => scatterNd(tuples, t, [3, 4, 2]), [updates])).toBe(0);
  });

  test.each([
    [[5], [0], [5], [2], {}, [0, 2, 4]],
    [[5], [4], [0], [-2], {}, [4, 2]],
    [[5], [-1], [-6], [-1], {}, [4, 3, 2, 1, 0]],
    [[3, 4], [1, 0], [3, 4], [1, 3], {}, [4, 7, 8, 11]],
    [[3, 4], [1, 1], [2, 4], [1, 1], { shrinkAxisMask: 1 }, [5, 6, 7]],
    [[2, 3, 4], [0, 1], [0, 4], [1, 2], { ellipsisMask: 1 }, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]],
    [[3, 4], [2, 9], [0, 9], [-1, -3], { beginMask: 2, endMask: 2 }, [11, 8, 7, 4]],
    [[4], [0, 1], [0, 3], [1, 1], { newAxisMask: 1 }, [1, 2]],
  ] as [number[], number[], number[], number[], Record<string, number>, number[]][])(
    'stridedSlice of %p from %p to %p by %p, %p',
    (shape, begin, end, strides, masks, picked) => {
      const f = (t: tf.Tensor): tf.Tensor =>
        stridedSlice(
          t,
          begin,
          end,
          strides,
          masks['beginMask'],
          masks['endMask'],
          masks['ellipsisMask'],
          masks['newAxisMask'],
          masks['shrinkAxisMask'],
        );
      const count = tf.reshape(tf.range(0, tf.util.sizeFromShape(shape)), shape);
      expect(Array.from(f(count).dataSync())).toEqual(picked);
      expect(gradientError(f, [values(shape)])).toBeLessThan(1e-3);
      expect(leaked(f, [values(shape)])).toBe(0);
    },
  );

  test('depthToSpace', () => {
    const x = values([2, 2, 3, 8]) as tf.Tensor4D;
    expect(depthToSpace(x, 2).shape).toEqual([2, 4, 6, 2]);
    expect(gradientError((t) => depthToSpace(t as tf.Tensor4D, 2), [x])).toBeLessThan(1e-3);
    expect(leaked((t) => depthToSpace(t as tf.Tensor4D, 2), [x])).toBe(0);
  });

  test('where and plain comparisons on the path', () => {
    const [x, y] = [values([3, 4]), values([4], 2)];
    expect(gradientError((a, b) => where(tf.greater(a, 0.05), tf.mul(a, b), b), [x, y], 1e-3)).toBeLessThan(5e-3);
    expect(leaked((a, b) => tf.tidy(() => where(tf.greater(a, 0.05), a, b)), [x, y])).toBe(0);
    repairGradients();
    expect(gradientError((a) => tf.where(tf.less(a, 0.05), a, tf.zerosLike(a)), [x], 1e-3)).toBeLessThan(5e-3);
    expect(gradientError((a) => tf.mul(tf.cast(tf.greater(a, 0.05), 'float32'), a), [x], 1e-3)).toBeLessThan(5e-3);
    const both = (a: tf.Tensor): tf.Tensor => tf.logicalAnd(tf.notEqual(a, 2), tf.logicalNot(tf.lessEqual(a, 0.05)));
    expect(gradientError((a) => tf.where(both(a), tf.square(a), a), [x], 1e-3)).toBeLessThan(5e-3);
    expect(gradientError((a) => tf.linalg.bandPart(a, 1, 0), [x])).toBeLessThan(1e-3);
    expect(gradientError((a) => tf.unstack(a)[0], [values([1, 4])])).toBeLessThan(1e-3);
    expect(gradientError((a) => tf.split(a, 1)[0], [x])).toBeLessThan(1e-3);
  });

  test('tile sums its repetitions at any rank', () => {
    repairGradients();
    expect(gradientError((t) => tf.tile(t, [3, 2]), [values([2, 3])])).toBeLessThan(1e-3);
    expect(gradientError((t) => tf.tile(t, [1, 2, 1, 3, 2]), [values([2, 1, 2, 1, 2])])).toBeLessThan(1e-3);
    expect(gradientError((t) => tf.broadcastTo(t, [4, 2, 3]), [values([2, 1])])).toBeLessThan(1e-3);
  });

  test.each(['reflect', 'symmetric'] as const)('mirrorPad, %s: the borders go back to what they mirror', (mode) => {
    repairGradients();
    const most = mode === 'reflect' ? 1 : 0;
    const cases: [shape: number[], paddings: [number, number][]][] = [
      [[4], [[2, 3 - most]]],
      [[1], [[0, 1 - most]]],
      [
        [3, 4],
        [
          [0, 2],
          [3, 1],
        ],
      ],
      [
        [2, 3, 4],
        [
          [1, 0],
          [2, 1],
          [0, 3],
        ],
      ],
    ];
    for (const [shape, paddings] of cases) {
      const f = (t: tf.Tensor): tf.Tensor => tf.mirrorPad(t, paddings, mode);
      expect(gradientError(f, [values(shape)])).toBeLessThan(1e-3);
      expect(leaked(f, [values(shape)])).toBe(0);
    }
  });

  test('maxima, minima, squared differences of what is repeated, running sums along any axis', () => {
    repairGradients();
    for (const [a, b] of [
      [values([2, 3, 4]), values([3, 1], 2)],
      [values([4]), values([2, 1, 4], 2)],
    ]) {
      for (const f of [tf.maximum, tf.minimum, tf.squaredDifference] as ((s: tf.Tensor, t: tf.Tensor) => tf.Tensor)[]) {
        expect(gradientError(f, [a, b], 1e-3)).toBeLessThan(5e-3);
        expect(leaked(f, [a, b])).toBe(0);
      }
    }
    for (const axis of [0, 1, 2]) {
      expect(gradientError((t) => tf.cumsum(t, axis, true, axis === 1), [values([2, 3, 4])])).toBeLessThan(1e-3);
    }
  });

  test('batchNorm without scale, without offset', () => {
    repairGradients();
    const x = values([2, 3, 4]);
    const [mean, other] = [values([4], 2), values([4], 3)];
    const variance = tf.add(tf.abs(values([4], 4)), 0.5);
    const norm = (...[t, m, v, offset, scale]: (tf.Tensor | undefined)[]): tf.Tensor =>
      tf.batchNorm(t!, m as tf.Tensor1D, v as tf.Tensor1D, offset as tf.Tensor1D, scale as tf.Tensor1D);
    expect(gradientError((t, m, v) => norm(t, m, v), [x, mean, variance])).toBeLessThan(2e-3);
    expect(gradientError((t, m, v, offset) => norm(t, m, v, offset), [x, mean, variance, other])).toBeLessThan(2e-3);
    const scaled = (t: tf.Tensor, m: tf.Tensor, v: tf.Tensor, scale: tf.Tensor): tf.Tensor =>
      norm(t, m, v, undefined, scale);
    expect(gradientError(scaled, [x, mean, variance, other])).toBeLessThan(2e-3);
    expect(leaked((t, m, v) => norm(t, m, v), [x, mean, variance])).toBe(0);
  });

  test('stopGradient lets values through and no gradient', () => {
    const x = values([4]);
    expect(deviation(stopGradient(x), x)).toBe(0);
    const gradient = tf.grad((t) => tf.sum(tf.mul(t, stopGradient(t))))(x);
    expect(deviation(gradient, x)).toBe(0);
    // Straight-through rounding: the value of round, the gradient of the identity.
    const ste = (t: tf.Tensor): tf.Tensor => tf.add(t, stopGradient(tf.sub(tf.round(t), t)));
    expect(deviation(ste(x), tf.round(x))).toBeLessThan(1e-6);
    expect(deviation(tf.grad((t) => tf.sum(ste(t)))(x), [1, 1, 1, 1])).toBe(0);
    expect(leaked((t) => tf.tidy(() => tf.add(t, stopGradient(t))), [x])).toBe(0);
  });

  test('gelu is x·Φ(x)', () => {
    const x = tf.tensor([-3, -1, -0.5, 0, 0.5, 1, 3]);
    // Φ to ten digits (Abramowitz & Stegun, table 26.1).
    const phi = [
      0.0013498980316, 0.1586552539315, 0.308537538726, 0.5, 0.691462461274, 0.8413447460685, 0.9986501019684,
    ];
    const expected = phi.map((p, i) => p * x.dataSync()[i]);
    expect(deviation(gelu(x), expected)).toBeLessThan(1e-6);
    expect(gradientError((at) => gelu(at), [x])).toBeLessThan(1e-3);
    expect(leaked((at) => gelu(at), [x])).toBe(0);
  });

  test('defineOp: several outputs, and only the gradients that are asked for are computed', () => {
    const asked: string[] = [];
    const op = defineOp<{ factor: number }>({
      name: 'MatforgeTestOp',
      saveInputs: ['a', 'b'],
      forward: ({ a, b }, { factor }) => [tf.mul(tf.mul(a, b), factor), tf.sub(a, b)],
      pullback: ([g, h], [a, b], { factor }) => ({
        a: () => {
          asked.push('a');
          return tf.add(tf.mul(tf.mul(g, b), factor), h);
        },
        b: () => {
          asked.push('b');
          return tf.sub(tf.mul(tf.mul(g, a), factor), h);
        },
      }),
    });
    const f = (a: tf.Tensor, b: tf.Tensor): tf.Tensor => {
      const [p, q] = op({ a, b }, { factor: 3 });
      return tf.add(p, tf.square(q));
    };
    const [x, y] = [values([3]), values([3], 2)];
    expect(gradientError(f, [x, y])).toBeLessThan(2e-3);
    asked.length = 0;
    tf.grad((t) => tf.sum(f(t, y)))(x);
    expect(asked).toEqual(['a']);
  });
});
