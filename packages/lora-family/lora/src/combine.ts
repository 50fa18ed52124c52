import { ensure, lowRankProduct, random, randomizedSvd } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** The factors of one adapter: A `[in, r]`, B `[r, out]`, update s·A·B. */
export interface LowRankAdapter {
  readonly A: tf.Tensor2D;
  readonly B: tf.Tensor2D;
  readonly scale: number;
}

/**
 * Combines adapters of one layer into a single one of scale 1.
 *
 * - `cat`: exactly Σ wᵢ·sᵢ·Aᵢ·Bᵢ, ranks add up;
 * - `linear`: A = Σ sgn(wᵢ)√|wᵢsᵢ|·Aᵢ, B = Σ √|wᵢsᵢ|·Bᵢ, for equal ranks; cross terms make it differ from the sum;
 * - `svd`: the best approximation of that sum with rank `rank`.
 *
 * @throws MatforgeError when `linear` is given different ranks, or weights and adapters differ in number.
 */
export function combineAdapters(
  adapters: readonly LowRankAdapter[],
  weights: readonly number[],
  how: 'cat' | 'linear' | 'svd',
  rank: number = adapters[0]?.A.shape[1],
): LowRankAdapter {
  ensure(
    adapters.length > 0 && adapters.length === weights.length,
    'weights',
    () => `${weights.length} weights for ${adapters.length} adapters`,
  );
  const factors = weights.map((weight, i) => weight * adapters[i].scale);
  const [A, B] = tf.tidy(() => {
    if (how === 'cat') {
      return [
        tf.concat(
          adapters.map((adapter, i) => tf.mul(adapter.A, factors[i])),
          1,
        ),
        tf.concat(
          adapters.map((adapter) => adapter.B),
          0,
        ),
      ];
    }
    if (how === 'linear') {
      const ranks = adapters.map((adapter) => adapter.A.shape[1]);
      ensure(
        new Set(ranks).size === 1,
        'adapters',
        () => `"linear" needs adapters of the same rank, got ${ranks.join(', ')}; use "cat" or "svd"`,
      );
      const roots = factors.map((factor) => Math.sqrt(Math.abs(factor)));
      return [
        tf.addN(adapters.map((adapter, i) => tf.mul(adapter.A, Math.sign(weights[i]) * roots[i]))),
        tf.addN(adapters.map((adapter, i) => tf.mul(adapter.B, roots[i]))),
      ];
    }
    const sum = tf.addN(adapters.map((adapter, i) => lowRankProduct(adapter.A, adapter.B, factors[i]))) as tf.Tensor2D;
    const { u, s, v } = randomizedSvd(sum, rank, { random: random(0) });
    const root = tf.sqrt(s);
    return [tf.mul(u, root), tf.mul(tf.transpose(v), tf.expandDims(root, 1))];
  });
  return { A: A as tf.Tensor2D, B: B as tf.Tensor2D, scale: 1 };
}
