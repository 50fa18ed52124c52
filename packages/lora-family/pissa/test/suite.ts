import { functional, lowRankProduct, lowRankScale, thinSvd } from '@matforge/core';
import { lora } from '@matforge/lora';
import type { MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { convertToLora, nf4Dequantise, nf4Quantise, pissa, pissaInit, qpissaInit } from '../src/index.ts';

function nuclearNorm(W: tf.Tensor2D): tf.Scalar {
  return tf.tidy(() => tf.sum(thinSvd(W).s) as tf.Scalar);
}

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'pissa',
  linear: [
    {
      configured: pissa({ rank: 2 }),
      parameters: (inDim, outDim) => 2 * (inDim + outDim),
      readers: [lora],
      refused: [
        [{ rank: 7 }, /layer0\.rank: rank 7 exceeds min\(in, out\) = 6 of the \[6, 8\] kernel/],
        [{ rank: 0 }, /pissa\.rank: must be a positive integer, got 0/],
        [{ iterations: 0 }, /pissa\.iterations: must be a positive integer, got 0/],
      ],
    },
  ],
  golden: {
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
  },
};
