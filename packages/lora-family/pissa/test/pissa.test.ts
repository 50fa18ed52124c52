import { linalg, lowRankProduct, random, thinSvd, toMatrix } from '@matforge/core';
import { testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { convertToLora, nf4Quantise, pissaInit } from '../src/index.ts';
import { suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

describe('invariants', () => {
  test('full rank leaves no residual', () => {
    tf.tidy(() => {
      const { residual } = pissaInit(random(1).normal([6, 4]) as tf.Tensor2D, { rank: 4 });
      expect(tf.max(tf.abs(residual)).dataSync()[0]).toBeLessThan(1e-5);
    });
  });

  test('the residual keeps the singular values beyond the rank', () => {
    tf.tidy(() => {
      const W = random(2).normal([7, 5]) as tf.Tensor2D;
      const { residual, S } = pissaInit(W, { rank: 2 });
      const rest = Array.from(linalg.svd(toMatrix(residual)).s).slice(0, 3);
      expect(rest).toEqual(
        Array.from(S.dataSync())
          .slice(2)
          .map((value) => expect.closeTo(value, 4)),
      );
    });
  });

  test('an untrained adapter converts to a LoRA that changes nothing', () => {
    tf.tidy(() => {
      const { A, B } = pissaInit(random(3).normal([6, 4]) as tf.Tensor2D, { rank: 2 });
      const plain = convertToLora({ A0: A, B0: B, A1: A, B1: B, rank: 2, alpha: 2 });
      expect(tf.max(tf.abs(lowRankProduct(plain.A, plain.B))).dataSync()[0]).toBeLessThan(1e-6);
    });
  });

  test('the randomized start agrees with the exact one on a decaying spectrum', () => {
    tf.tidy(() => {
      const left = thinSvd(random(4).normal([40, 30]) as tf.Tensor2D);
      const spectrum = tf.pow(0.7, tf.range(0, 30));
      const W = tf.matMul(tf.mul(left.u, spectrum) as tf.Tensor2D, left.v, false, true) as tf.Tensor2D;
      const [exact, fast] = [null, 4].map((iterations) => pissaInit(W, { rank: 4, iterations, random: random(0) }));
      expect(tf.max(tf.abs(tf.sub(exact.residual, fast.residual))).dataSync()[0]).toBeLessThan(1e-4);
    });
  });
});

test('blocks of zeros quantise to zeros', () => {
  const W = tf.zeros([4, 4]);
  const quantised = nf4Quantise(W, 4);
  expect(Array.from(quantised.codes)).toEqual(new Array(16).fill(7));
  expect(Array.from(quantised.scales)).toEqual([0, 0, 0, 0]);
  W.dispose();
});

test('a block size that does not divide the kernel is refused with both numbers', () => {
  const W = tf.zeros([3, 5]);
  expect(() => nf4Quantise(W, 4)).toThrow(/blockSize: 4 does not divide the 15 entries/);
  W.dispose();
});

test('conversion refuses factors of different ranks', () => {
  tf.tidy(() => {
    const factors = { A0: tf.ones([4, 2]), B0: tf.ones([2, 3]), A1: tf.ones([4, 3]), B1: tf.ones([3, 3]) } as Record<
      'A0' | 'B0' | 'A1' | 'B1',
      tf.Tensor2D
    >;
    expect(() => convertToLora({ ...factors, rank: 2, alpha: 2 })).toThrow(/differ in shape/);
  });
});
