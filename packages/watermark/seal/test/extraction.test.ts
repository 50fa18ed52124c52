import { linalg, random, ready, toMatrix } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import {
  attacks,
  binomialLog10Tail,
  extract,
  factorConditions,
  imagePassport,
  makePassport,
  release,
  watermarkStats,
} from '../src/index.ts';

beforeAll(async () => {
  await ready();
});

let before: number;
beforeEach(() => {
  before = tf.memory().numTensors;
});
afterEach(() => {
  expect(tf.memory().numTensors).toBe(before);
});

function example(rank = 6) {
  const stream = random(4);
  const A = stream.normal([20, rank]) as tf.Tensor2D;
  const B = stream.normal([rank, 15]) as tf.Tensor2D;
  return { A, B, C: makePassport(rank, 9), scale: 1.5 };
}

const largest = (a: tf.Tensor, b: tf.Tensor) => tf.max(tf.abs(tf.sub(a, b))).dataSync()[0];
const relative = (a: tf.Tensor, b: tf.Tensor) => tf.div(tf.norm(tf.sub(a, b)), tf.norm(b)).dataSync()[0];
const update = ({ A, B, scale }: { A: tf.Tensor2D; B: tf.Tensor2D; scale: number }) =>
  tf.mul(tf.matMul(A, B), scale) as tf.Tensor2D;

describe('passports', () => {
  test('depend on the secret alone, have norm √r, and the second is far from the first', () => {
    tf.tidy(() => {
      for (const rank of [2, 5, 16]) {
        const [C, again, Cp] = [makePassport(rank, 3), makePassport(rank, 3), makePassport(rank, 3, { which: 1 })];
        expect(Array.from(again.dataSync())).toEqual(Array.from(C.dataSync()));
        expect(linalg.frobeniusNorm(toMatrix(C))).toBeCloseTo(Math.sqrt(rank), 5);
        expect(linalg.conditionNumber(toMatrix(C))).toBeLessThan(30 * rank + 1);
        expect(Math.abs(watermarkStats(C, Cp).cosine)).toBeLessThan(0.4001);
        expect(largest(C, makePassport(rank, 4))).toBeGreaterThan(0.1);
      }
    });
  });

  test('unscaled ones are standard normal', () => {
    tf.tidy(() => {
      const { mean, variance } = tf.moments(makePassport(64, 1, { normalize: 'none' }));
      expect(Math.abs(mean.dataSync()[0])).toBeLessThan(0.06);
      expect(Math.abs(variance.dataSync()[0] - 1)).toBeLessThan(0.1);
    });
  });

  test('of an image: one frame per layer, modulo their number', () => {
    tf.tidy(() => {
      const frames = random(1).uniform([3, 4, 4], -1, 1);
      const second = tf.reshape(tf.slice(frames, [1, 0, 0], [1, 4, 4]), [4, 4]);
      expect(largest(imagePassport(frames, 4, { frame: 4, normalize: 'none' }), second)).toBe(0);
      expect(tf.norm(imagePassport(second, 4)).dataSync()[0]).toBeCloseTo(2, 5);
    });
  });

  test.each([
    [
      'another size',
      () => tf.ones([4, 3]),
      /passport: must be \[r, r\] with r = 4, or a list of such frames; got \[4,3\]/,
    ],
    ['8-bit grey', () => tf.fill([4, 4], 200), /passport: pixels must be in \[-1, 1\]/],
    ['NaN', () => tf.fill([4, 4], Number.NaN), /passport: pixels must be in \[-1, 1\]/],
    ['one colour', () => tf.fill([4, 4], 0.5), /passport is not invertible: condition number/],
  ])('an image of %s is refused', (_, image, message) => {
    const pixels = image();
    expect(() => imagePassport(pixels, 4)).toThrow(message);
    pixels.dispose();
  });

  test('rank 1 and fractional secrets are refused', () => {
    expect(() => makePassport(1, 0)).toThrow(/rank: must be an integer >= 2, got 1/);
    expect(() => makePassport(4, 0.5)).toThrow(/secret: must be an integer, got 0.5/);
  });
});

describe('release and extraction', () => {
  test('the release is the product, in the shapes of LoRA', () => {
    tf.tidy(() => {
      const marked = example();
      const released = release(marked);
      expect(released.A.shape).toEqual(marked.A.shape);
      expect(released.B.shape).toEqual(marked.B.shape);
      expect(
        relative(tf.matMul(released.A, released.B), tf.matMul(tf.matMul(marked.A, marked.C), marked.B)),
      ).toBeLessThan(1e-5);
    });
  });

  test('a clean release gives the passport back, and so does any other factorisation of it', () => {
    tf.tidy(() => {
      const marked = example();
      const released = release(marked);
      const conditions = factorConditions(marked);
      expect(Math.max(conditions.A, conditions.B)).toBeLessThan(20);
      for (const published of [
        released,
        attacks.refactor(released, random(2).normal([6, 6]) as tf.Tensor2D),
        attacks.truncate(released, 6),
        attacks.truncate(released, 9),
      ]) {
        expect(relative(update(published), update(released))).toBeLessThan(1e-4);
        const X = extract(marked, update(published));
        expect(largest(X, marked.C)).toBeLessThan(1e-4);
        expect(watermarkStats(X, marked.C)).toMatchObject({ matched: 36, total: 36, bitErrorRate: 0 });
      }
    });
  });

  test('a forged passport is extracted without an error', () => {
    tf.tidy(() => {
      const released = release(example());
      const F = makePassport(6, 77);
      const forged = attacks.forge(released, F);
      expect(watermarkStats(extract(forged, update(released)), F).matched).toBe(36);
      expect(relative(tf.matMul(tf.matMul(forged.A, F), forged.B), tf.matMul(released.A, released.B))).toBeLessThan(
        1e-5,
      );
    });
  });

  test.each<[string, (marked: ReturnType<typeof example>) => unknown, RegExp]>([
    [
      'a passport of another size',
      (m) => release({ ...m, C: tf.eye(5) }),
      /passport must be \[r, r\] with r = 6, got \[5,5\]/,
    ],
    ['a singular passport', (m) => release({ ...m, C: tf.ones([6, 6]) }), /passport is not invertible/],
    ['factors of different rank', (m) => release({ ...m, B: tf.ones([5, 15]) }), /B: has 5 rows, A has 6 columns/],
    [
      'a change of another shape',
      (m) => extract(m, tf.ones([20, 14])),
      /delta: has shape \[20,14\], the factors make \[20, 15\]/,
    ],
    ['a change with NaN', (m) => extract(m, tf.fill([20, 15], Number.NaN)), /delta: has values that are not finite/],
    [
      'A without full rank',
      (m) =>
        extract(
          { ...m, A: tf.concat([tf.slice(m.A, [0, 0], [20, 4]), tf.slice(m.A, [0, 0], [20, 2])], 1) },
          tf.ones([20, 15]),
        ),
      /A: A has numerical rank 4 < 6; train the watermark for longer/,
    ],
    ['B of zeros', (m) => extract({ ...m, B: tf.zeros([6, 15]) }, tf.ones([20, 15])), /B has numerical rank 0 < 6/],
    [
      'A with infinities',
      (m) => extract({ ...m, A: tf.fill([20, 6], Infinity) }, tf.ones([20, 15])),
      /A: has values that are not finite/,
    ],
  ])('%s is refused', (_, attempt, message) => {
    tf.tidy(() => {
      expect(() => attempt(example())).toThrow(message);
    });
  });
});

describe('attacks', () => {
  test('pruning zeroes the smallest entries, the first of equal ones', () => {
    tf.tidy(() => {
      const W = tf.tensor2d([3, -1, 1, -2, 1, 4], [2, 3]);
      expect(Array.from(attacks.prune(W, 1 / 3).dataSync())).toEqual([3, 0, 0, -2, 1, 4]);
      expect(Array.from(attacks.prune(W, 0).dataSync())).toEqual(Array.from(W.dataSync()));
      expect(Array.from(attacks.prune(W, 1).dataSync())).toEqual([0, 0, 0, 0, 0, 0]);
    });
  });

  test('quantisation rounds to its levels', () => {
    tf.tidy(() => {
      const W = tf.tensor2d([3, -1.2, 0.4, -2.6], [2, 2]);
      expect(Array.from(attacks.quantize(W, 3).dataSync())).toEqual([3, -1, 0, -3]);
      expect(largest(attacks.quantize(W, 16), W)).toBeLessThan(3 / 32767);
      expect(Array.from(attacks.quantize(tf.zeros([2, 2]), 4).dataSync())).toEqual([0, 0, 0, 0]);
    });
  });

  test('noise has the norm asked for', () => {
    tf.tidy(() => {
      const W = random(1).normal([9, 7]) as tf.Tensor2D;
      expect(relative(attacks.noise(W, 0.25, random(2)), W)).toBeCloseTo(0.25, 5);
    });
  });

  test('truncation is the best approximation of its rank', () => {
    tf.tidy(() => {
      const released = release(example());
      const cut = attacks.truncate(released, 4);
      expect([cut.A.shape, cut.B.shape]).toEqual([
        [20, 4],
        [4, 15],
      ]);
      const s = linalg.singularValues(toMatrix(update(released)));
      expect(tf.norm(tf.sub(update(cut), update(released))).dataSync()[0]).toBeCloseTo(Math.hypot(s[4], s[5]), 3);
    });
  });

  test('mild pruning, quantisation and noise leave the bits; the harder, the more are lost', () => {
    tf.tidy(() => {
      const stream = random(5);
      const marked = {
        A: stream.normal([96, 16]) as tf.Tensor2D,
        B: stream.normal([16, 80]) as tf.Tensor2D,
        C: makePassport(16, 1),
        scale: 1,
      };
      const D = update(release(marked));
      const errors = (attacked: tf.Tensor2D) => watermarkStats(extract(marked, attacked), marked.C).bitErrorRate;
      expect(errors(attacks.prune(D, 0))).toBe(0);
      expect(errors(attacks.quantize(D, 16))).toBe(0);
      expect(errors(attacks.noise(D, 1e-4, stream))).toBeLessThan(0.01);
      const [light, heavy] = [0.5, 0.95].map((fraction) => errors(attacks.prune(D, fraction)));
      expect(light).toBeLessThan(heavy);
      expect(light).toBeLessThan(0.1);
      expect(errors(attacks.quantize(D, 2))).toBeGreaterThan(errors(attacks.quantize(D, 6)));
    });
  });

  test.each<[string, (W: tf.Tensor2D) => unknown, RegExp]>([
    ['a fraction above 1', (W) => attacks.prune(W, 1.5), /fraction: must be in \[0, 1\], got 1\.5/],
    ['NaN for a fraction', (W) => attacks.prune(W, Number.NaN), /fraction: must be in \[0, 1\], got NaN/],
    ['one bit', (W) => attacks.quantize(W, 1), /bits: must be an integer 2\.\.24, got 1/],
    ['negative noise', (W) => attacks.noise(W, -1, random(0)), /relative: must be >= 0, got -1/],
    ['rank 0', (W) => attacks.truncate({ A: W, B: W, scale: 1 }, 0), /rank: must be a positive integer, got 0/],
    ['a singular R', (W) => attacks.refactor({ A: W, B: W, scale: 1 }, W), /not invertible/],
  ])('%s is refused', (_, attempt, message) => {
    tf.tidy(() => {
      expect(() => attempt(tf.ones([3, 3]))).toThrow(message);
    });
  });
});

describe('binomialLog10Tail', () => {
  test.each([
    // By exact integers, and by sums in 40 digits.
    [8, 10, -1.2621119296336116],
    [560, 1000, -4.083414807617146],
    [999, 1000, -298.02956158650187],
    [5300, 10_000, -8.983795597434892],
    [499_000, 1_000_000, -0.009970398341260053],
    [501_000, 1_000_000, -1.6419861122598054],
    [700_000, 1_000_000, -35737.81725315729],
  ])('%d of %d', (matched, n, expected) => {
    expect(Math.abs(binomialLog10Tail(matched, n) - expected)).toBeLessThan(1e-10 * Math.max(1, Math.abs(expected)));
  });

  test('all matched is n coin flips, none matched is certain', () => {
    for (const n of [1, 64, 1000, 1_000_000]) {
      expect(binomialLog10Tail(n, n)).toBeCloseTo(-n * Math.log10(2), 8);
      expect(binomialLog10Tail(0, n)).toBe(0);
    }
  });

  test('falls with every further bit', () => {
    const tails = Array.from({ length: 129 }, (_, matched) => binomialLog10Tail(matched, 128));
    // Far below one half the tail is 1 to rounding, so neighbours may be equal there.
    expect(tails.slice(1).every((tail, i) => tail <= tails[i])).toBe(true);
    expect(tails.slice(41).every((tail, i) => tail < tails[40 + i])).toBe(true);
  });

  test('refuses counts that are none', () => {
    expect(() => binomialLog10Tail(5, 4)).toThrow(/matched: must be an integer from 0 to 4, got 5/);
    expect(() => binomialLog10Tail(1, 0)).toThrow(/n: must be a positive integer, got 0/);
    expect(() => binomialLog10Tail(Number.NaN, 4)).toThrow(/matched/);
  });
});

describe('watermarkStats', () => {
  test('an unrelated passport agrees in about half of the bits', () => {
    tf.tidy(() => {
      const { bitErrorRate, log10p, cosine } = watermarkStats(makePassport(64, 1), makePassport(64, 2));
      expect(Math.abs(bitErrorRate - 0.5)).toBeLessThan(0.04);
      expect(log10p).toBeGreaterThan(-3);
      expect(Math.abs(cosine)).toBeLessThan(0.06);
    });
  });

  test('puts layers of any size together', () => {
    tf.tidy(() => {
      const [C, D] = [makePassport(4, 1), makePassport(6, 2)];
      const stats = watermarkStats([C, tf.neg(D)], [C, D]);
      expect(stats).toMatchObject({ matched: 16, total: 52 });
      expect(stats.mse).toBeCloseTo((4 * 6) / 52, 5);
      expect(stats.psnr).toBeCloseTo(10 * Math.log10(4 / stats.mse + 1e-6), 8);
      expect(() => watermarkStats([C], [D])).toThrow(/differ in shape: \[4,4\] and \[6,6\]/);
    });
  });
});
