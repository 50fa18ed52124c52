import * as tf from '@tensorflow/tfjs';
import fc from 'fast-check';
import {
  digitCount,
  digitLevels,
  digitsOf,
  FixedQuantizer,
  fixedType,
  initialPosition,
  MultiplierFreeQuantizer,
  majority,
  QfxOptimizer,
  quantizeModel,
  toRaw,
} from '../src/index.ts';

beforeAll(() => tf.setBackend('cpu'));

/** A number and its derivative. */
type Dual = [value: number, slope: number];

/** y = s * clip(round(x / s)) with d round = 1 and s = 2^(I-W), dI = 1, differentiated by dual numbers in float64. */
function straightThrough(x: number, W: number, I: number, low: number, high: number): Dual {
  const s: Dual = [2 ** (I - W), 2 ** (I - W) * Math.LN2];
  const u: Dual = [x / s[0], (-x * s[1]) / (s[0] * s[0])];
  const rounded = Math.floor(Math.abs(u[0]) + 0.5) * Math.sign(u[0]);
  const clipped: Dual = rounded < low ? [low, 0] : rounded > high ? [high, 0] : [rounded, u[1]];
  return [s[0] * clipped[0], s[1] * clipped[0] + s[0] * clipped[1]];
}

describe('the trainable binary point', () => {
  test('has the gradient of the straight-through construction', () => {
    const values = fc.array(fc.integer({ min: -2000, max: 2000 }), { minLength: 4, maxLength: 30 });
    fc.assert(
      fc.property(values, fc.integer({ min: 2, max: 8 }), fc.integer({ min: -1, max: 5 }), (raws, W, I) => {
        // Multiples of 2^-8 are float32, and dy of alternating size makes cancellation unlikely.
        const x = raws.map((r) => r / 256);
        const dy = raws.map((_, i) => (i % 3) + 0.5);
        const expected = x.reduce(
          (sum, v, i) => sum + dy[i] * straightThrough(v, W, I, -(2 ** (W - 1)), 2 ** (W - 1) - 1)[1],
          0,
        );
        const quantizer = new FixedQuantizer({ W, theta: I + 0.3, Q: 'AP_RND_INF' });
        const { value, grads } = tf.variableGrads(
          () => tf.sum(tf.mul(quantizer.apply(tf.tensor1d(x)), tf.tensor1d(dy))) as tf.Scalar,
          [quantizer.theta],
        );
        const got = Object.values(grads)[0].dataSync()[0];
        tf.dispose([value, grads]);
        quantizer.theta.dispose();
        const scale = x.reduce((sum, v, i) => sum + Math.abs(dy[i] * v), 1);
        expect(Math.abs(got - expected)).toBeLessThanOrEqual(1e-6 * scale);
      }),
      { numRuns: 150, seed: 11 },
    );
  });

  test("'lsq' scales it by 1/sqrt(n * hi)", () => {
    const slope = (positionGrad: 'one' | 'lsq'): number => {
      const quantizer = new FixedQuantizer({ W: 4, theta: 2, positionGrad });
      const { value, grads } = tf.variableGrads(
        () => tf.sum(quantizer.apply(tf.tensor1d([0.3, 5, -0.7, 1.1]))) as tf.Scalar,
        [quantizer.theta],
      );
      const got = Object.values(grads)[0].dataSync()[0];
      tf.dispose([value, grads]);
      quantizer.theta.dispose();
      return got;
    };
    expect(slope('lsq') / slope('one')).toBeCloseTo(1 / Math.sqrt(4 * 7), 6);
  });

  test('starts where the largest value fits, exactly at powers of two', () => {
    const format = { W: 8, signed: true, Q: 'AP_RND', O: 'AP_SAT' } as const;
    const unsigned = { ...format, signed: false };
    expect(initialPosition([0.5, -1], format, 'max')).toBe(1);
    expect(initialPosition([1.0000001], format, 'max')).toBe(2);
    expect(initialPosition([0.25], unsigned, 'max')).toBe(-2);
    expect(initialPosition([-5, 3], unsigned, 'max')).toBe(2);
    expect(initialPosition([0, 0], format, 'max')).toBe(1);
    expect(initialPosition([-1, 0], unsigned, 'max')).toBe(0);
    expect(initialPosition([2 ** -126], unsigned, 'max')).toBe(-126);
  });

  test('per channel: each its own position and gradient', () => {
    const quantizer = new FixedQuantizer({ W: 4, init: 'max' });
    const x = tf.tensor2d([
      [0.9, 7, 0.01],
      [-0.2, 3, -0.02],
    ]);
    quantizer.init(x, 3);
    expect(quantizer.positions()).toEqual([1, 4, -4]);
    const y = quantizer.apply(x);
    // Steps 1/8, 1 and 1/256.
    expect(Array.from(y.dataSync())).toEqual([0.875, 7, 3 / 256, -0.25, 3, -5 / 256]);
    const { value, grads } = tf.variableGrads(() => tf.sum(quantizer.apply(x)) as tf.Scalar, [quantizer.theta]);
    const slopes = Object.values(grads)[0].dataSync();
    expect(slopes[1]).toBe(0);
    expect(slopes[0]).toBeCloseTo(Math.LN2 * (0.875 - 0.9 - 0.25 + 0.2), 6);
    tf.dispose([x, y, value, grads]);
    quantizer.theta.dispose();
  });

  test('refuses NaN and infinity, and an unset position', () => {
    const quantizer = new FixedQuantizer({ W: 8, theta: 2 });
    const bad = [tf.tensor1d([1, Number.NaN]), tf.tensor1d([Number.POSITIVE_INFINITY])];
    expect(() => quantizer.apply(bad[0])).toThrow('cannot represent NaN');
    expect(() => quantizer.apply(bad[1])).toThrow('cannot represent infinity');
    tf.dispose(bad);
    quantizer.theta.dispose();
    expect(() => new FixedQuantizer({ W: 8 }).type()).toThrow('has no value yet');
    expect(() => new FixedQuantizer({ W: 0 })).toThrow('word length must be an integer in 1..64, got 0');
    expect(() => new FixedQuantizer({ W: 54 })).toThrow('at most 53 bits');
  });
});

describe('the multiplier-free quantizer', () => {
  test('with k >= W-1 unsigned digits is AP_RND_INF with AP_SAT_SYM', () => {
    for (const W of [2, 3, 4, 5]) {
      const free = new MultiplierFreeQuantizer({ W, k: W - 1, theta: 1 });
      const x = tf.tensor1d(Array.from({ length: 800 }, (_, i) => (i - 400) / 256));
      const expected = toRaw(x.dataSync(), fixedType(W, 1, { Q: 'AP_RND_INF', O: 'AP_SAT_SYM' }));
      const y = free.apply(x);
      expect(Array.from(y.dataSync(), (v) => v * 2 ** (W - 1))).toEqual(Array.from(expected as Float64Array));
      tf.dispose([x, y]);
      free.theta.dispose();
    }
  });

  test.each(['unsigned', 'signed'] as const)('%s digits write every level, and no other number', (digits) => {
    for (const k of [1, 2, 3]) {
      const levels = new Set(digitLevels(255, k, digits));
      for (let m = 0; m <= 255; m++) {
        const terms = digitsOf(BigInt(m), digits);
        expect(terms.reduce((sum, { sign, shift }) => sum + sign * 2 ** shift, 0)).toBe(m);
        expect(terms).toHaveLength(digitCount(m, digits));
        expect(levels.has(m)).toBe(terms.length <= k);
        const negative = digitsOf(BigInt(-m), digits);
        expect(negative.reduce((sum, { sign, shift }) => sum + sign * 2 ** shift, 0) + m).toBe(0);
      }
    }
  });

  test('signed digits may reach one place above the top bit', () => {
    expect(digitsOf(127n, 'signed')).toEqual([
      { sign: -1, shift: 0 },
      { sign: 1, shift: 7 },
    ]);
    expect(digitsOf(-96n, 'unsigned')).toEqual([
      { sign: -1, shift: 5 },
      { sign: -1, shift: 6 },
    ]);
  });
});

describe('training of positions', () => {
  test('the majority decides, ties go to the larger', () => {
    expect(
      majority([
        [1, 4],
        [2, 4],
        [2, 3],
        [1, 3],
        [1, 5],
      ]),
    ).toEqual([1, 4]);
    expect(majority([[1], [2]])).toEqual([2]);
  });

  test('learns the right range from a wrong start, then stands still', async () => {
    const float = tf.sequential({ layers: [tf.layers.dense({ inputShape: [4], units: 2, useBias: false })] });
    const x = tf.randomNormal([128, 4], 0, 1, 'float32', 5);
    const y = tf.tidy(() => float.predict(x) as tf.Tensor);
    // I = 7 at 4 bits: steps of 8, everything becomes zero.
    const model = quantizeModel(float, { bits: 4, outputBits: 12, positionInit: { activations: 7 }, positionLr: 0.1 });
    model.compile({ optimizer: tf.train.adam(1e-4), loss: 'meanSquaredError' });
    const before = await model.fit(x, y, { epochs: 1, batchSize: 32, verbose: 0 });
    const after = await model.fit(x, y, { epochs: 40, batchSize: 32, verbose: 0 });
    const input = model.layers.find((layer) => layer.getClassName() === 'QfxInput') as never as {
      quantizer: FixedQuantizer;
    };
    expect(input.quantizer.positions()[0]).toBeLessThan(5);
    expect(input.quantizer.learn).toBe(false);
    expect(Number.isInteger(input.quantizer.theta.dataSync()[0])).toBe(true);
    expect((after.history.loss as number[])[39]).toBeLessThan(0.5 * (before.history.loss as number[])[0]);
    tf.dispose([x, y]);
    model.dispose();
    float.dispose();
  });

  test('the optimizer refuses impossible settings, and its state can be saved', async () => {
    const float = tf.sequential({ layers: [tf.layers.dense({ inputShape: [2], units: 1 })] });
    const x = tf.ones([2, 2]);
    const model = quantizeModel(float, { calibration: x });
    expect(() => new QfxOptimizer(tf.train.sgd(0.1), model, { positionLr: 0 })).toThrow('greater than 0');
    expect(() => new QfxOptimizer(tf.train.sgd(0.1), model, { freezeAfter: 2 })).toThrow('0..1');
    const step = (optimizer: QfxOptimizer): void => {
      optimizer.minimize(() => tf.sum(tf.square(model.apply(x, { training: true }) as tf.Tensor)) as tf.Scalar);
    };
    const [first, second] = [0, 1].map(() => new QfxOptimizer(tf.train.adam(1e-3), model));
    step(first);
    const state = await first.getWeights();
    await second.setWeights(state);
    const again = await second.getWeights();
    expect(again.map(({ tensor }) => Array.from(tensor.dataSync()))).toEqual(
      state.map(({ tensor }) => Array.from(tensor.dataSync())),
    );
    for (const { name, tensor } of [...state, ...again]) if (name.startsWith('positions/')) tensor.dispose();
    first.dispose();
    second.dispose();
    x.dispose();
    model.dispose();
    float.dispose();
  });
});
