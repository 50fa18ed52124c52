import { functional, linalg, lowRankProduct, lowRankScale, random, thinSvd, toMatrix } from '@matforge/core';
import { lora } from '@matforge/lora';
import { testGolden, testLinearMethod } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { convertToLora, nf4Dequantise, nf4Quantise, pissa, pissaInit, qpissaInit } from '../src/index.ts';

testLinearMethod({
  configured: pissa({ rank: 2 }),
  parameters: (inDim, outDim) => 2 * (inDim + outDim),
  readers: [lora],
  refused: [
    [{ rank: 7 }, /layer0\.rank: rank 7 exceeds min\(in, out\) = 6 of the \[6, 8\] kernel/],
    [{ rank: 0 }, /pissa\.rank: must be a positive integer, got 0/],
    [{ iterations: 0 }, /pissa\.iterations: must be a positive integer, got 0/],
  ],
});

function nuclearNorm(W: tf.Tensor2D): tf.Scalar {
  return tf.tidy(() => tf.sum(thinSvd(W).s) as tf.Scalar);
}

testGolden('pissa', __dirname, {
  init: (inputs, config) =>
    tf.tidy(() => {
      const W = inputs.matrix('W');
      const scale = lowRankScale({ ...config, rank: config.r });
      const { A, B, residual, S } = pissaInit(W, { rank: config.r, scale });
      const method = functional(pissa({ rank: config.r, alpha: config.alpha, useRslora: config.useRslora }), {
        kernel: W,
        bias: inputs.vector('bias'),
      });
      return {
        principal: lowRankProduct(A, B, scale),
        residual,
        gramA: tf.matMul(A, A, true),
        gramB: tf.matMul(B, B, false, true),
        singularValues: S,
        y: method.forward(inputs.tensor('x'), method.init()),
        trainableParams: tf.scalar(A.size + B.size),
      };
    }),
  convertToLora: (inputs, config) =>
    tf.tidy(() => {
      const { r, alpha, useRslora } = config;
      const [A0, B0, A1, B1] = ['A0', 'B0', 'A1', 'B1'].map((name) => inputs.matrix(name));
      const scale = lowRankScale({ rank: r, alpha, useRslora });
      const originalW = tf.add(inputs.matrix('residual'), lowRankProduct(A0, B0, scale)) as tf.Tensor2D;
      const plain = convertToLora({ A0, B0, A1, B1, rank: r, alpha, useRslora });
      const method = functional(lora({ rank: plain.rank, alpha: plain.alpha, useRslora }), {
        kernel: originalW,
        bias: inputs.vector('bias'),
      });
      return {
        originalW,
        loraDelta: lowRankProduct(plain.A, plain.B, lowRankScale({ ...plain, useRslora })),
        newRank: tf.scalar(plain.rank),
        newAlpha: tf.scalar(plain.alpha),
        y: method.forward(inputs.tensor('x'), { A: plain.A, B: plain.B }),
      };
    }),
  quantisedInit: (inputs, { r, blockSize, iterations }) =>
    tf.tidy(() => {
      const W = inputs.matrix('W');
      const direct = nf4Quantise(W, blockSize);
      const nf4W = nf4Dequantise(direct);
      const error = (count: number) => {
        const { A, B, quantised } = qpissaInit(W, { rank: r, blockSize, iterations: count });
        return nuclearNorm(tf.sub(tf.sub(W, lowRankProduct(A, B)), nf4Dequantise(quantised)));
      };
      return {
        nf4Codes: tf.tensor(Array.from(direct.codes), W.shape),
        nf4W,
        directError: nuclearNorm(tf.sub(W, nf4W)),
        qpissaErrors: tf.stack(Array.from({ length: iterations }, (_, i) => error(i + 1))),
      };
    }),
});

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
