import { ensure, lowRankProduct } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { pissaInit } from './index.ts';
import { type Nf4, nf4Dequantise, nf4Quantise } from './nf4.ts';

/** What {@link qpissaInit} returns. */
export interface QpissaInit {
  /** `[in, r]` */
  A: tf.Tensor2D;
  /** `[r, out]` */
  B: tf.Tensor2D;
  /** The residual W − A·B in 4 bits. */
  quantised: Nf4;
}

/**
 * QPiSSA (section 4): the residual, whose large singular values are gone, is quantised to 4 bits instead of the kernel.
 * Each further iteration takes the principal part of what the last one left: A·B of W − Q, then Q of W − A·B.
 *
 * @param W kernel `[in, out]`, float32.
 * @param options `rank`; `blockSize` of NF4, default 64; `iterations`, default 1 (the authors use 5).
 * @throws MatforgeError when `blockSize` does not divide the size or `iterations` is below 1.
 */
export function qpissaInit(
  W: tf.Tensor2D,
  { rank, blockSize = 64, iterations = 1 }: { rank: number; blockSize?: number; iterations?: number },
): QpissaInit {
  ensure(
    Number.isInteger(iterations) && iterations >= 1,
    'iterations',
    () => `must be a positive integer, got ${iterations}`,
  );
  let rest = tf.clone(W);
  let result: QpissaInit | undefined;
  for (let i = 0; i < iterations; i++) {
    if (result) tf.dispose([result.A, result.B]);
    const { A, B } = principal(rest, rank);
    rest.dispose();
    rest = tf.tidy(() => tf.sub(W, lowRankProduct(A, B)));
    const quantised = nf4Quantise(rest, blockSize);
    rest.dispose();
    rest = tf.tidy(() => tf.sub(W, nf4Dequantise(quantised)) as tf.Tensor2D);
    result = { A, B, quantised };
  }
  rest.dispose();
  return result as QpissaInit;
}

function principal(W: tf.Tensor2D, rank: number): { A: tf.Tensor2D; B: tf.Tensor2D } {
  const { A, B, residual, S } = pissaInit(W, { rank });
  tf.dispose([residual, S]);
  return { A, B };
}
