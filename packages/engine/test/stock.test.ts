import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { engineInfo, ready } from '../src/index.ts';

// Where stock kernels of the wasm backend misread their inputs or leave their results unwritten.

type Make = () => tf.Tensor | tf.Tensor[];

const floats = (shape: number[], seed = 1): tf.Tensor => {
  const size = tf.util.sizeFromShape(shape);
  return tf.tensor(
    Float32Array.from({ length: size }, (_, i) => Math.sin(12.9898 * (i + 1) + seed)),
    shape,
  );
};
const ints = (...values: number[]): tf.Tensor1D => tf.tensor1d(values, 'int32');
const bools = (...values: number[]): tf.Tensor1D => tf.tensor1d(values, 'bool');
const empty = (dtype: 'float32' | 'int32' | 'bool'): tf.Tensor => tf.zeros([0, 3], dtype);

async function on<T>(backend: 'cpu' | 'wasm', use: () => T): Promise<T> {
  await tf.setBackend(backend);
  try {
    return tf.tidy(use as never) as T;
  } finally {
    await tf.setBackend('wasm');
  }
}

const results = (make: Make) => () =>
  [make()].flat().map((x) => ({ dtype: x.dtype, shape: x.shape, values: Array.from(x.dataSync(), Number) }));

beforeAll(async () => {
  await ready();
});

const CASES: Record<string, Make> = {
  'not a number, of integers': () => [tf.isNaN(ints(-1, 0, 1)), tf.isFinite(ints(-1, 0, 1)), tf.isInf(ints(-1, 0, 1))],
  'inverse functions of integers': () => [tf.reciprocal(ints(1, 2)), tf.asinh(ints(-9, 4)), tf.acosh(ints(1, 9))],
  'integers clipped': () => tf.clipByValue(ints(-5, 0, 5), -1, 2),
  'one row of integers': () =>
    tf.stridedSlice(tf.range(0, 30, 1, 'int32').reshape([5, 6]), [1, 2], [4, 5], [1, 2], 0, 0, 0, 0, 1),
  'abs of bool': () => tf.abs(bools(1, 0, 1)),
  'square of bool': () => tf.square(bools(1, 0, 1)),
  'choice between bools': () => tf.where(bools(1, 0, 1, 0), bools(1, 1, 0, 0), bools(0, 1, 1, 1)),
  'top of bools': () => tf.topk(bools(1, 0, 1, 0), 2).values,
  'strings compared': () => {
    const [a, b] = [tf.tensor1d(['p', 'q', 'r']), tf.tensor1d(['p', 'r', 'q'])];
    return [tf.equal(a, b), tf.notEqual(a, b), tf.greater(a, b)];
  },
  'sums of nothing': () => [tf.sum(empty('int32'), 0), tf.sum(empty('int32')), tf.prod(empty('float32'), 0)],
  'any of nothing': () => [tf.any(empty('bool'), 0), tf.all(empty('bool'), 0)],
  'slopes for each row': () => tf.prelu(floats([2, 3, 4]), floats([3, 1], 2)),
  'slopes for each image': () => tf.prelu(floats([2, 3, 4]), floats([2, 1, 1], 2)),
  'product with slopes for each row': () =>
    tf.fused.matMul({
      ...{ a: floats([3, 4]) as tf.Tensor2D, b: floats([4, 5], 2) as tf.Tensor2D, bias: floats([5], 3) },
      ...{ activation: 'prelu', preluActivationWeights: floats([3, 1], 4) },
    }),
  'NaN clipped': () => tf.clipByValue(tf.tensor1d([Number.NaN, -5, 0.5, 5, Number.POSITIVE_INFINITY]), -1, 2),
  'gathered, three batches of two': () => tf.gather(floats([3, 4, 5]), ints(1, 0, 3, 2, 1, 0).reshape([3, 2]), 1, 1),
  'gathered along a later axis': () => tf.gather(floats([2, 3, 4]), ints(1, 0, 3, 2, 2, 0).reshape([2, 3]), 2, 1),
  'gathered in batches of bools': () =>
    tf.gather(tf.greater(floats([3, 4]), 0), ints(1, 0, 3, 2, 1, 0).reshape([3, 2]), 1, 1),
  'turned, grey around': () => tf.image.rotateWithOffset(floats([1, 4, 5, 2]) as tf.Tensor4D, 0.7, 0.5),
  'counted in a volume': () => tf.bincount(ints(1, 2, 2, 0).reshape([2, 2, 1]) as never, tf.tensor1d([]), 4),
};

describe('stock kernels give what the cpu backend gives', () => {
  it.each(Object.entries(CASES))('%s', async (_, make) => {
    const want = await on('cpu', results(make));
    const got = await on('wasm', results(make));
    expect(got.map(({ dtype, shape }) => [dtype, shape])).toEqual(want.map(({ dtype, shape }) => [dtype, shape]));
    got.forEach(({ values }, i) => {
      values.forEach((value, j) => {
        if (Number.isNaN(want[i].values[j])) expect(value).toBeNaN();
        else expect(value).toBeCloseTo(want[i].values[j], 5);
      });
    });
  });

  it('leaves what lies beside a tensor alone', async () => {
    const at = tf.tensor2d([[1], [300]], [2, 1], 'int32');
    const before = tf.tensor2d([[1], [-3]], [2, 1], 'int32');
    const [x, two] = [floats([5, 2]), floats([2, 2])];
    for (const indices of [at, before]) {
      expect(() => tf.scatterND(indices, two, [5, 2])).toThrow('does not index into 5,2');
      expect(() => tf.tensorScatterUpdate(x, indices, two)).toThrow('does not index into 5,2');
      expect(() => tf.gatherND(x, indices)).toThrow('does not index into 5,2');
    }
    expect(() => tf.sparseToDense(ints(1, 300), tf.tensor1d([1, 2]), [6], 0)).toThrow('does not index into 6');
    expect(() => tf.gather(floats([3, 4]), tf.tensor2d([[0], [4], [0]], [3, 1], 'int32'), 1, 1)).toThrow(
      'index value 4',
    );
    expect(() => tf.slice(bools(1, 0, 1), 2, 9)).toThrow();
    tf.dispose([at, before, x, two]);
  });

  it('forgets no memory', async () => {
    const backend = tf.backend() as BackendWasm;
    const before = backend.numDataIds();
    for (const make of Object.values(CASES)) tf.tidy(() => void make());
    expect(backend.numDataIds()).toBe(before);
  });

  it('counts axes from the end', async () => {
    const rows = tf.tensor2d([1, 2, 3, 4, 5, 6], [2, 3], 'int32');
    expect(tf.cumsum(rows, -1).arraySync()).toEqual([
      [1, 3, 6],
      [4, 9, 15],
    ]);
    expect(tf.cumprod(tf.cast(rows, 'float32'), -1).arraySync()).toEqual([
      [1, 2, 6],
      [4, 20, 120],
    ]);
    expect(tf.cumprod(rows, -2).arraySync()).toEqual([
      [1, 2, 3],
      [4, 10, 18],
    ]);
  });
});

/** The largest difference of a gradient from that of secants. */
function error(of: (...xs: tf.Tensor[]) => tf.Tensor, operands: () => tf.Tensor[]): number {
  return tf.tidy(() => {
    const xs = operands();
    const dy = floats(of(...xs).shape, 9);
    const loss = (...at: tf.Tensor[]): number => tf.tidy(() => tf.sum(tf.mul(of(...at), dy)).dataSync()[0]);
    const errors = tf
      .grads(of)(xs, dy)
      .flatMap((gradient, k) =>
        Array.from(gradient.dataSync(), (slope, i) => {
          const moved = (step: number): number => {
            const values = Float32Array.from(xs[k].dataSync());
            values[i] += step;
            return loss(...xs.map((x, j) => (j === k ? tf.tensor(values, x.shape) : x)));
          };
          return Math.abs((moved(1e-2) - moved(-1e-2)) / 2e-2 - slope);
        }),
      );
    return Math.max(...errors);
  });
}

describe('gradients that tfjs has wrong or not at all', () => {
  it.each([0, 1, 2, -1, -2])('running sums along axis %i', (axis) => {
    expect(
      error(
        (x) => tf.cumsum(x, axis),
        () => [floats([3, 3, 3])],
      ),
    ).toBeLessThan(1e-2);
    expect(
      error(
        (x) => tf.cumsum(x, axis, true, true),
        () => [floats([2, 3, 4])],
      ),
    ).toBeLessThan(1e-2);
  });

  it('products with an operand that serves every batch', () => {
    expect(
      error(
        (a, b) => tf.matMul(a, b),
        () => [floats([2, 3, 4]), floats([4, 2], 2)],
      ),
    ).toBeLessThan(1e-2);
    const turned = (a: tf.Tensor, b: tf.Tensor) => tf.matMul(a, b, true, true);
    expect(error(turned, () => [floats([1, 4, 3]), floats([2, 2, 4], 2)])).toBeLessThan(1e-2);
  });

  it.each(['ceil', 'round'] as const)('windows whose number is rounded: %s', (rounding) => {
    const image = () => [floats([1, 8, 8, 2])];
    // Numbers so far apart that no secant changes which is the largest.
    const apart = () => [tf.reshape(tf.mod(tf.range(0, 64 * 29, 29), 64), [1, 8, 8, 1])];
    expect(error((x) => tf.maxPool(x as tf.Tensor4D, 3, 2, 1, rounding), apart)).toBeLessThan(1e-2);
    expect(error((x) => tf.avgPool(x as tf.Tensor4D, 3, 2, 1, rounding), image)).toBeLessThan(1e-2);
    const conv = (x: tf.Tensor, w: tf.Tensor) =>
      tf.conv2d(x as tf.Tensor4D, w as tf.Tensor4D, 2, 0, 'NHWC', 1, rounding);
    expect(error(conv, () => [floats([1, 8, 8, 2]), floats([3, 3, 2, 3], 2)])).toBeLessThan(1e-2);
  });

  it('slopes for each row, and batches of indices', () => {
    expect(
      error(
        (x, slopes) => tf.prelu(x, slopes),
        () => [floats([2, 3, 4]), floats([3, 1], 2)],
      ),
    ).toBeLessThan(1e-2);
    const indices = tf.tensor2d(
      [
        [1, 0],
        [3, 2],
        [1, 1],
      ],
      [3, 2],
      'int32',
    );
    expect(
      error(
        (x) => tf.gather(x, indices, 1, 1),
        () => [floats([3, 4, 2])],
      ),
    ).toBeLessThan(1e-2);
    indices.dispose();
  });
});

describe('batch norm', () => {
  it('has right gradients in the step in which the heap grows', () => {
    const n = 30_000;
    const [x, one, zero] = [floats([2, n]), tf.ones([n]), tf.zeros([n])] as tf.Tensor1D[];
    const norm = (mean: tf.Tensor, variance: tf.Tensor) =>
      tf.batchNorm(x, mean as tf.Tensor1D, variance as tf.Tensor1D, zero, one);
    const first = (): number[] =>
      tf.tidy(() =>
        tf
          .grads(norm)([zero, one])
          .map((gradient) => gradient.slice(0, 1).dataSync()[0]),
      );
    const want = first();
    const start = engineInfo().heapBytes;
    const filling: tf.Tensor[] = [];
    // The last memory that a step asks for is that for sums of pieces: with it the heap grows.
    while (engineInfo().heapBytes === start && filling.length < 2000) {
      filling.push(tf.zeros([25_000]));
      expect(first()).toEqual(want);
    }
    expect(engineInfo().heapBytes).toBeGreaterThan(start);
    tf.dispose([...filling, x, one, zero]);
  });
});
