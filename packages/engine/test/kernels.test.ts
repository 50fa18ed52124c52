import * as tf from '@tensorflow/tfjs';
import fc from 'fast-check';
import { adamStep, engineInfo, gelu, ready } from '../src/index.ts';

const RUNS = { numRuns: 25, seed: 7 };

/** Values that a kernel could get wrong: both signs, no two alike. */
function values(shape: number[], seed: number): tf.Tensor {
  const size = tf.util.sizeFromShape(shape);
  const numbers = Float32Array.from({ length: size }, (_, i) => 3 * Math.sin(12.9898 * (i + 1) + 78.233 * seed));
  return tf.tensor(numbers, shape);
}

/** Value and gradients of f on one backend; weights let no element of the result hide behind another. */
async function evaluate(
  backend: string,
  f: (...xs: tf.Tensor[]) => tf.Tensor,
  shapes: number[][],
  differentiate: boolean,
): Promise<{ shape: number[]; numbers: Float32Array }[]> {
  if (backend === 'wasm') await ready();
  else await tf.setBackend(backend);
  return tf.tidy(() => {
    const xs = shapes.map((shape, i) => values(shape, i + 1));
    const y = f(...xs);
    const outputs = [y];
    if (differentiate) outputs.push(...tf.grads((...args: tf.Tensor[]) => f(...args))(xs, values(y.shape, 9)));
    return outputs.map((output) => ({ shape: output.shape, numbers: output.dataSync() as Float32Array }));
  });
}

async function expectSame(
  f: (...xs: tf.Tensor[]) => tf.Tensor,
  shapes: number[][],
  { differentiate = true, tolerance = 2e-5 } = {},
): Promise<void> {
  const expected = await evaluate('cpu', f, shapes, differentiate);
  const before = tf.memory().numTensors;
  const got = await evaluate('wasm', f, shapes, differentiate);
  expect(tf.memory().numTensors).toBe(before);
  expect(got.map(({ shape }) => shape)).toEqual(expected.map(({ shape }) => shape));
  got.forEach(({ numbers }, output) => {
    const want = expected[output].numbers;
    const scale = want.reduce((largest, value) => Math.max(largest, Math.abs(value)), 1);
    numbers.forEach((number, i) => {
      if (Object.is(number, want[i]) || Math.abs(number - want[i]) <= tolerance * scale) return;
      throw new Error(`output ${output}, element ${i} of [${shapes.join('] [')}]: ${number}, cpu says ${want[i]}`);
    });
  });
}

const length = (max: number, min = 0): fc.Arbitrary<number> => fc.integer({ min, max });
type Four = tf.Tensor4D;

describe('agreement with the cpu backend, values and gradients', () => {
  it('runs our own WebAssembly build', async () => {
    await ready();
    expect(engineInfo()).toMatchObject({ backend: 'wasm', kernels: expect.stringMatching(/simd|relaxed/) });
  });

  it('matMul: every transposition, any size, batches', async () => {
    await fc.assert(
      fc.asyncProperty(
        ...[length(40), length(40), length(40), length(3), fc.boolean(), fc.boolean()],
        async (m, n, k, batch, ta, tb) => {
          const outer = batch === 0 ? [] : [batch];
          const [a, b] = [
            [...outer, ...(ta ? [k, m] : [m, k])],
            [...outer, ...(tb ? [n, k] : [k, n])],
          ];
          // The gradients of tf.matMul hold for equal batches alone; of empty matrices the cpu backend has none.
          const differentiate = m * n * k > 0;
          await expectSame((x, y) => tf.matMul(x, y, ta, tb), [a, b], { differentiate });
        },
      ),
      RUNS,
    );
  });

  it.each([
    [
      [300, 100],
      [100, 1030],
    ],
    [
      [97, 520],
      [520, 33],
    ],
    [
      [1, 300],
      [300, 65],
    ],
    [
      [3, 70],
      [70, 9],
    ],
    [
      [200, 300],
      [300, 1],
    ],
    [
      [1, 4203],
      [4203, 70],
    ],
    [
      [1, 41],
      [41, 4503],
    ],
    [
      [3, 603],
      [603, 1101],
    ],
    [
      [1101, 603],
      [603, 4],
    ],
  ])('matMul beyond one block: [%p] · [%p]', async (a, b) => {
    const options = { tolerance: 1e-4, differentiate: false };
    await expectSame((x, y) => tf.matMul(x, y), [a, b], options);
    await expectSame((x, y) => tf.matMul(x, y, true, false), [[a[1], a[0]], b], options);
    await expectSame((x, y) => tf.matMul(x, y, false, true), [a, [b[1], b[0]]], options);
    await expectSame(
      (x, y) => tf.matMul(x, y, true, true),
      [
        [a[1], a[0]],
        [b[1], b[0]],
      ],
      options,
    );
  });

  it.each([
    [
      [2, 3, 4, 5],
      [5, 6],
    ],
    [
      [2, 3, 4, 5],
      [1, 3, 5, 6],
    ],
    [
      [4, 5],
      [2, 3, 5, 6],
    ],
    [
      [2, 1, 4, 5],
      [1, 3, 5, 6],
    ],
  ])('matMul broadcasts batches: [%p] · [%p]', async (a, b) => {
    await ready();
    const [x, y] = [values(a, 1), values(b, 2)];
    const [outer, m, n] = [tf.broadcast_util.assertAndGetBroadcastShape(a.slice(0, -2), b.slice(0, -2)), 4, 6];
    const got = tf.matMul(x, y);
    const repeated = [x, y].map(
      (t) => tf.broadcastTo(t, [...outer, ...t.shape.slice(-2)]).arraySync() as number[][][][],
    );
    const expected: number[] = [];
    for (let p = 0; p < outer[0]; p++)
      for (let q = 0; q < outer[1]; q++)
        for (let i = 0; i < m; i++)
          for (let j = 0; j < n; j++)
            expected.push(repeated[0][p][q][i].reduce((s, value, r) => s + value * repeated[1][p][q][r][j], 0));
    expect(got.shape).toEqual([...outer, m, n]);
    got.dataSync().forEach((value, i) => {
      expect(value).toBeCloseTo(expected[i], 4);
    });
  });

  it.each(['linear', 'relu', 'relu6', 'elu', 'sigmoid', 'leakyrelu', 'prelu'] as const)(
    'fused matMul and conv2d with bias and %s',
    async (activation) => {
      const slopes = activation === 'prelu';
      const last = slopes ? [[7]] : [];
      const leakyreluAlpha = 0.3;
      await expectSame(
        (a, b, bias, preluActivationWeights) =>
          tf.fused.matMul({
            a: a as tf.Tensor2D,
            b: b as tf.Tensor2D,
            bias,
            activation,
            preluActivationWeights,
            leakyreluAlpha,
          }),
        [[5, 6], [6, 7], [7], ...last],
        { differentiate: false },
      );
      const common = { strides: 1, pad: 'same', activation, leakyreluAlpha } as const;
      await expectSame(
        (x, filter, bias, preluActivationWeights) =>
          tf.fused.conv2d({ ...common, x: x as Four, filter: filter as Four, bias, preluActivationWeights }),
        [[2, 5, 4, 3], [3, 2, 3, 7], [7], ...last],
        { differentiate: false },
      );
    },
  );

  const window = fc.record({
    height: length(9, 1),
    width: length(9, 1),
    channels: length(6, 1),
    batch: length(3, 1),
    kernel: fc.tuple(length(3, 1), length(3, 1)),
    stride: length(3, 1),
    pad: fc.constantFrom('same' as const, 'valid' as const),
  });

  it('conv2d: any size, stride and padding', async () => {
    await fc.assert(
      fc.asyncProperty(
        window,
        length(9, 1),
        async ({ height, width, channels, batch, kernel, stride, pad }, filters) => {
          fc.pre(pad === 'same' || (height >= kernel[0] && width >= kernel[1]));
          await expectSame(
            (x, w) => tf.conv2d(x as Four, w as Four, stride, pad),
            [
              [batch, height, width, channels],
              [...kernel, channels, filters],
            ],
          );
        },
      ),
      RUNS,
    );
  });

  // Large enough for the tiles that read the image itself; any remainder of their 4 or 6 pixels and 8 filters.
  it('conv2d: larger images, few and many filters, padding of each side', async () => {
    const side = length(20, 9);
    await fc.assert(
      fc.asyncProperty(
        fc.tuple(side, side, length(7, 1), length(19, 1), length(5, 1), length(5, 1), length(2, 1)),
        fc.oneof(
          fc.constantFrom('same' as const, 'valid' as const),
          fc.array(length(4), { minLength: 4, maxLength: 4 }),
        ),
        async ([height, width, channels, filters, kernelHeight, kernelWidth, stride], padding) => {
          const pad = Array.isArray(padding)
            ? ([[0, 0], padding.slice(0, 2), padding.slice(2), [0, 0]] as never)
            : (padding as 'same');
          await expectSame(
            (x, w) => tf.conv2d(x as Four, w as Four, stride, pad),
            [
              [2, height, width, channels],
              [kernelHeight, kernelWidth, channels, filters],
            ],
            { tolerance: 5e-5 },
          );
        },
      ),
      { numRuns: 40, seed: 7 },
    );
  });

  it('conv2d: dilation, explicit padding, several chunks of patches', async () => {
    await expectSame(
      (x, w) => tf.conv2d(x as Four, w as Four, 1, 'same', 'NHWC', 2),
      [
        [1, 9, 8, 3],
        [3, 2, 3, 5],
      ],
      {
        differentiate: false,
      },
    );
    await expectSame(
      (x, w) => tf.conv2d(x as Four, w as Four, 2, 1),
      [
        [1, 9, 8, 3],
        [3, 3, 3, 5],
      ],
    );
    await expectSame(
      (x, w) => tf.conv2d(x as Four, w as Four, 1, 'same'),
      [
        [3, 16, 16, 32],
        [3, 3, 32, 5],
      ],
      {
        tolerance: 1e-4,
      },
    );
  });

  it('depthwiseConv2d: any size, stride, padding, multiplier', async () => {
    await fc.assert(
      fc.asyncProperty(
        window,
        length(3, 1),
        async ({ height, width, channels, batch, kernel, stride, pad }, multiplier) => {
          fc.pre(pad === 'same' || (height >= kernel[0] && width >= kernel[1]));
          await expectSame(
            (x, w) => tf.depthwiseConv2d(x as Four, w as Four, stride, pad),
            [
              [batch, height, width, channels],
              [...kernel, channels, multiplier],
            ],
          );
        },
      ),
      RUNS,
    );
  });

  it('maxPool and avgPool: any size, stride and padding', async () => {
    await fc.assert(
      fc.asyncProperty(window, async ({ height, width, channels, batch, kernel, stride, pad }) => {
        fc.pre(pad === 'same' || (height >= kernel[0] && width >= kernel[1]));
        const shape = [batch, height, width, channels];
        await expectSame((x) => tf.maxPool(x as Four, kernel, stride, pad), [shape]);
        // At the borders of 'same' the cpu backend's gradient is not that of its own forward pass: see below.
        await expectSame((x) => tf.avgPool(x as Four, kernel, stride, pad), [shape], {
          differentiate: pad === 'valid',
        });
      }),
      RUNS,
    );
  });

  it.each([[[2, 8, 6, 8]], [[1, 7, 9, 4]], [[2, 6, 6, 5]]])(
    'maxPool: halves %p, of equal numbers the first',
    async (shape) => {
      await expectSame(
        (x) => tf.maxPool(tf.add(x, tf.sub(tf.round(values(shape, 1)), values(shape, 1))) as Four, 2, 2, 'valid'),
        [shape],
      );
    },
  );

  it('avgPool with same padding: the gradient is that of the forward pass', async () => {
    await ready();
    const x = values([1, 5, 4, 3], 1) as Four;
    const weights = values([1, 3, 2, 3], 2);
    const f = (t: tf.Tensor): tf.Tensor => tf.sum(tf.mul(tf.avgPool(t as Four, 3, 2, 'same'), weights));
    const gradient = tf.grad(f)(x).dataSync();
    // The function is linear, so the central difference is exact but for rounding.
    for (let i = 0; i < x.size; i++) {
      const bump = tf
        .oneHot(tf.tensor1d([i], 'int32'), x.size)
        .reshape(x.shape)
        .toFloat();
      const slope = (f(tf.add(x, bump)).dataSync()[0] - f(tf.sub(x, bump)).dataSync()[0]) / 2;
      expect(gradient[i]).toBeCloseTo(slope, 4);
    }
  });

  const shape = fc.array(length(6), { minLength: 1, maxLength: 4 });

  it('element-wise functions', async () => {
    const functions = {
      exp: tf.exp,
      tanh: tf.tanh,
      sigmoid: tf.sigmoid,
      softplus: tf.softplus,
      elu: tf.elu,
      selu: tf.selu,
      relu: tf.relu,
      relu6: tf.relu6,
      square: tf.square,
      neg: tf.neg,
      sqrt: (x: tf.Tensor) => tf.sqrt(tf.abs(x)),
      rsqrt: (x: tf.Tensor) => tf.rsqrt(tf.add(tf.abs(x), 0.5)),
    };
    for (const f of Object.values(functions)) {
      await fc.assert(
        fc.asyncProperty(shape, async (s) => expectSame((x) => f(x), [s])),
        { ...RUNS, numRuns: 6 },
      );
    }
    await expectSame((x) => tf.log(tf.abs(x)), [[33]]);
    await expectSame((x) => tf.erf(x), [[1001]], { tolerance: 3e-7, differentiate: false });
  });

  it('sums, differences, products, quotients, repeated along any axes', async () => {
    const pair = shape.chain((whole) =>
      fc.record({
        whole: fc.constant(whole),
        // Axes that are dropped in front, and axes of one element.
        drop: fc.nat({ max: whole.length }),
        thin: fc.array(fc.boolean(), { minLength: whole.length, maxLength: whole.length }),
        swap: fc.boolean(),
      }),
    );
    for (const f of [tf.add, tf.sub, tf.mul, (a: tf.Tensor, b: tf.Tensor) => tf.div(a, tf.add(tf.abs(b), 1))]) {
      await fc.assert(
        fc.asyncProperty(pair, async ({ whole, drop, thin, swap }) => {
          const part = whole.slice(drop).map((n, axis) => (thin[axis] ? 1 : n));
          await expectSame((a, b) => f(a, b), swap ? [part, whole] : [whole, part], {
            // tfjs's own gradient refuses to sum nothing.
            differentiate: !whole.includes(0),
          });
        }),
        { ...RUNS, numRuns: 15 },
      );
      await expectSame(
        (a, b) => f(a, b),
        [
          [3, 5, 7],
          [5, 7],
        ],
      );
      await expectSame((a, b) => f(a, b), [[37], []]);
    }
  });

  it('the gradient of relu has a gradient, and lets no number pass for 0', async () => {
    await ready();
    const x = tf.tensor1d([-1, 0, 2, Number.NaN]);
    const slope = tf.grad((y) => tf.relu(y));
    const first = tf.tidy(() => slope(x).dataSync());
    expect(Array.from(first)).toEqual([0, 0, 1, Number.NaN]);
    // d/dx (x·relu′(x))·x = 2x where x > 0.
    const second = tf.tidy(() =>
      tf
        .grad((y) => tf.mul(tf.mul(y, slope(y)), y))(tf.tensor1d([-1, 3]))
        .dataSync(),
    );
    expect(Array.from(second)).toEqual([0, 6]);
    const steps = tf.tidy(() => [tf.step(x), tf.step(x, 0.5)].map((y) => Array.from(y.dataSync())));
    expect(steps).toEqual([
      [0, 0, 1, Number.NaN],
      [0.5, 0.5, 1, Number.NaN],
    ]);
    x.dispose();
  });

  it('sum, mean and softmax over any axes', async () => {
    await fc.assert(
      fc.asyncProperty(shape, fc.array(length(3)), fc.boolean(), async (s, wanted, keepDims) => {
        const axes = [...new Set(wanted.filter((axis) => axis < s.length))];
        await expectSame((x) => tf.sum(x, axes, keepDims), [s]);
        if (!s.includes(0)) await expectSame((x) => tf.mean(x, axes, keepDims), [s]);
        if (!s.includes(0)) await expectSame((x) => tf.softmax(x), [s]);
      }),
      RUNS,
    );
    await expectSame((x) => tf.sum(x, 0), [[1000, 37]]);
    await expectSame((x) => tf.sum(x, [0, 2]), [[70, 37, 5]]);
  });

  it('transpose, slice, split, concat', async () => {
    const perm = fc
      .integer({ min: 1, max: 5 })
      .chain((rank) =>
        fc.tuple(
          fc.array(length(4, 1), { minLength: rank, maxLength: rank }),
          fc.shuffledSubarray([...Array(rank).keys()], { minLength: rank, maxLength: rank }),
        ),
      );
    await fc.assert(
      fc.asyncProperty(perm, async ([s, order]) => expectSame((x) => tf.transpose(x, order), [s])),
      { ...RUNS, numRuns: 60 },
    );
    await fc.assert(
      fc.asyncProperty(shape, length(3), length(6), length(6), async (s, at, one, two) => {
        const axis = Math.min(at, s.length - 1);
        const lengths = (n: number): number[] => s.map((old, i) => (i === axis ? n : old));
        await expectSame((x, y) => tf.concat([x, y], axis), [lengths(one), lengths(two)]);
        await expectSame((x) => tf.concat(tf.split(x, [one, two], axis).reverse(), axis), [lengths(one + two)]);
        const begin = s.map((_, i) => (i === axis ? one : 0));
        await expectSame((x) => tf.slice(x, begin, lengths(two)), [lengths(one + two)]);
      }),
      RUNS,
    );
  });

  it('stack and unstack', async () => {
    await fc.assert(
      fc.asyncProperty(shape, length(3), async (s, at) => {
        const axis = Math.min(at, s.length);
        await expectSame((x, y) => tf.stack([x, y, x], axis), [s, s]);
        const along = Math.min(at, s.length - 1);
        if (s[along] > 1) await expectSame((x) => tf.concat(tf.unstack(x, along).reverse(), 0), [[...s, 2]]);
      }),
      RUNS,
    );
  });

  it('gather', async () => {
    await fc.assert(
      fc.asyncProperty(shape, length(3), fc.array(length(50), { maxLength: 9 }), async (s, at, picks) => {
        const axis = Math.min(at, s.length - 1);
        const indices = s[axis] === 0 ? [] : picks.map((pick) => pick % s[axis]);
        await expectSame((x) => tf.gather(x, tf.tensor1d(indices, 'int32'), axis), [s], {
          differentiate: indices.length > 0 && !s.includes(0),
        });
      }),
      RUNS,
    );
    await ready();
    expect(() => tf.gather([1, 2, 3], tf.tensor1d([0, 3], 'int32'))).toThrow('the index value 3 is not in [0, 2]');
    expect(() => tf.gather([1, 2, 3], tf.tensor1d([-1], 'int32'))).toThrow('the index value -1 is not in [0, 2]');
  });

  it('unsortedSegmentSum leaves out negative segments', async () => {
    const ids = [2, -1, 0, 2, 2];
    await expectSame((x) => tf.unsortedSegmentSum(x, tf.tensor1d(ids, 'int32'), 4), [[5, 7]]);
  });
});

describe('not a number, infinities, extremes', () => {
  const SPECIAL = [
    Number.NaN,
    Infinity,
    -Infinity,
    0,
    -0,
    1e-42,
    -1e-42,
    3e38,
    -3e38,
    88.5,
    89,
    -87.5,
    -100,
    -104,
    1e-9,
    4.1,
  ];

  it.each([
    ['exp', tf.exp, Math.exp],
    ['tanh', tf.tanh, Math.tanh],
    ['sigmoid', tf.sigmoid, (x: number) => 1 / (1 + Math.exp(-x))],
    ['log', tf.log, Math.log],
    ['softplus', tf.softplus, (x: number) => (x > 40 ? x : Math.log1p(Math.exp(x)))],
    ['elu', tf.elu, (x: number) => (x >= 0 ? x : Math.expm1(x))],
  ] as [string, (x: tf.Tensor) => tf.Tensor, (x: number) => number][])('%s', async (_, f, exact) => {
    await ready();
    const got = tf.tidy(() => f(tf.tensor1d(SPECIAL)).dataSync());
    SPECIAL.forEach((x, i) => {
      const want = Math.fround(exact(Math.fround(x)));
      if (Number.isNaN(want)) expect(got[i]).toBeNaN();
      else if (!Number.isFinite(want)) expect(got[i]).toBe(want);
      else
        expect(Math.abs(got[i] - want)).toBeLessThanOrEqual(
          3e-7 * Math.max(Math.abs(want), 1e-30) + 1.5e-45 + 1e-7 * Number(_ === 'elu'),
        );
    });
  });

  it('gelu and its slope are good to a few units in the last place, to the far left too', async () => {
    await ready();
    // Φ(−a) by its continued fraction, from a = 2 on.
    const tail = (a: number): number => {
      let fraction = a;
      for (let k = 200; k > 0; k--) fraction = a + k / fraction;
      return Math.exp(-0.5 * a * a) / Math.sqrt(2 * Math.PI) / fraction;
    };
    const at = Float32Array.from({ length: 400 }, (_, i) => -2 - i / 50);
    const x = tf.tensor1d(at);
    const [y, slope] = tf.tidy(() => [gelu(x), tf.grad((z) => gelu(z))(x)].map((t) => t.dataSync()));
    at.forEach((value, i) => {
      const cdf = tail(-value);
      const density = Math.exp(-0.5 * value * value) / Math.sqrt(2 * Math.PI);
      // The exponent itself is rounded: x²/2 units in the last place of 1.
      const tolerance = 1e-6 + 1e-7 * value * value;
      expect(Math.abs(y[i] / (value * cdf) - 1)).toBeLessThan(tolerance);
      expect(Math.abs(slope[i] / (cdf + value * density) - 1)).toBeLessThan(4 * tolerance);
    });
    x.dispose();
  });

  it('exp, tanh, log keep seven digits over their range', async () => {
    await ready();
    const xs = Float32Array.from({ length: 20011 }, (_, i) => (i - 10005) / 117);
    const relative = (f: (x: tf.Tensor) => tf.Tensor, exact: (x: number) => number, at: Float32Array): number => {
      const got = tf.tidy(() => f(tf.tensor1d(at)).dataSync());
      return at.reduce(
        (worst, x, i) => Math.max(worst, Math.abs(got[i] / (exact(x) || 1) - (exact(x) === 0 ? got[i] + 0 : 1))),
        0,
      );
    };
    expect(relative(tf.exp, Math.exp, xs)).toBeLessThan(2.5e-7);
    expect(
      relative(
        tf.tanh,
        Math.tanh,
        xs.map((x) => x / 20),
      ),
    ).toBeLessThan(2.5e-7);
    expect(
      relative(
        tf.log,
        Math.log,
        xs.map((x) => Math.abs(x) + 1.5),
      ),
    ).toBeLessThan(2.5e-7);
  });

  it('goes through products, convolutions, sums and pools', async () => {
    await ready();
    for (const bad of [Number.NaN, Infinity]) {
      tf.tidy(() => {
        const a = tf.tensor(
          Float32Array.from({ length: 35 }, (_, i) => (i === 17 ? bad : 1)),
          [5, 7],
        );
        const product = tf.matMul(a, tf.ones([7, 9])).arraySync() as number[][];
        product.forEach((row, i) => {
          row.forEach((value) => {
            expect(value).toBe(i === 2 ? bad : 7);
          });
        });
        const image = a.reshape([1, 5, 7, 1]) as Four;
        expect(tf.sum(image).dataSync()[0]).toBe(bad);
        const pooled = tf.maxPool(image, [5, 7], 1, 'valid');
        expect(pooled.dataSync()[0]).toBe(bad);
        expect(tf.avgPool(image, [5, 7], 1, 'valid').dataSync()[0]).toBe(bad);
        const convolved = tf.conv2d(image, tf.ones([1, 3, 1, 2]), 1, 'valid').arraySync() as number[][][][];
        expect(convolved[0][2].map(([value]) => value)).toEqual([3, bad, bad, bad, 3]);
        expect(convolved[0][1].flat().every((value) => value === 3)).toBe(true);
      });
    }
    expect(Array.from(tf.tidy(() => tf.softmax(tf.tensor1d([1, Infinity, 2])).dataSync()))[1]).toBeNaN();
    expect(Array.from(tf.tidy(() => tf.softmax(tf.tensor1d([1, -Infinity, 1])).dataSync()))).toEqual([0.5, 0, 0.5]);
  });
});

describe('memory', () => {
  it('is right when the heap grows in the middle', async () => {
    await ready();
    const a = values([64, 64], 1);
    const expected = tf.tidy(() => tf.matMul(a, a, false, true).dataSync());
    const kept: tf.Tensor[] = [];
    const before = engineInfo().heapBytes;
    let rounds = 0;
    while (engineInfo().heapBytes === before && rounds++ < 64) {
      kept.push(tf.zeros([1 << 20]));
      const got = tf.tidy(() => tf.matMul(a, a, false, true).dataSync());
      expect(got).toEqual(expected);
    }
    expect(engineInfo().heapBytes).toBeGreaterThan(before);
    const image = tf.ones([1, 40, 40, 64]) as Four;
    const filter = tf.ones([3, 3, 64, 8]) as Four;
    const middle = tf.tidy(() => tf.conv2d(image, filter, 1, 'same').slice([0, 20, 20, 0], [1, 1, 1, 1]).dataSync()[0]);
    expect(middle).toBe(576);
    tf.dispose([...kept, a, image, filter]);
  });

  it('does not grow over 10,000 steps', async () => {
    await ready();
    const [w, x] = [tf.variable(values([6, 3], 1)), values([4, 6], 2)];
    const [m, v] = [tf.variable(tf.zeros([6, 3]), false), tf.variable(tf.zeros([6, 3]), false)];
    const step = (t: number): void => {
      tf.tidy(() => {
        const gradient = tf.matMul(x, tf.tanh(tf.matMul(x, w)), true, false);
        adamStep(w, gradient, m, v, { learningRate: 1e-3, step: t });
      });
    };
    const state = (): object => ({
      tensors: tf.memory().numTensors,
      heap: engineInfo().heapBytes,
      data: tf.engine().backend.numDataIds(),
    });
    for (let t = 1; t <= 20; t++) step(t);
    const before = state();
    for (let t = 21; t <= 10_020; t++) step(t);
    expect(state()).toEqual(before);
    tf.dispose([w, x, m, v]);
  });

  it('does not grow over 500 steps of a convolutional model', async () => {
    await ready();
    const w = tf.variable(values([8, 4], 1));
    const filter = tf.variable(values([3, 3, 1, 2], 2));
    const optimizer = tf.train.adam(0.01);
    const image = values([2, 4, 4, 1], 3) as Four;
    const step = (): void => {
      optimizer.minimize(() => {
        const y = tf.maxPool(tf.conv2d(image, filter as unknown as Four, 1, 'same'), 2, 2, 'valid');
        return tf.mean(tf.square(tf.softmax(tf.matMul(y.reshape([2, 8]), w)))) as tf.Scalar;
      });
    };
    for (let i = 0; i < 20; i++) step();
    const before = {
      tensors: tf.memory().numTensors,
      heap: engineInfo().heapBytes,
      data: tf.engine().backend.numDataIds(),
    };
    for (let i = 0; i < 500; i++) step();
    const after = {
      tensors: tf.memory().numTensors,
      heap: engineInfo().heapBytes,
      data: tf.engine().backend.numDataIds(),
    };
    expect(after).toEqual(before);
    optimizer.dispose();
    tf.dispose([w, filter, image]);
  });
});
