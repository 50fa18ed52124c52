import { defineLinearMethod, ensure, ones, option, trainable, zeros } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';

/**
 * RoAd (Liao & Monz 2024): pairs of output features are rotated and scaled, y = h∘c₁ + rot(h)∘c₂ with h = x·W + b
 * (eq. 3). In a group of g features, feature i < g/2 is paired with i + g/2, and rot maps (first, second half) to
 * (−second, first).
 *
 * Starts as the base model. Trains out, 2·out or 4·out numbers per layer. Elementwise, so a batch may use another
 * adapter in every row at almost no cost.
 */
export const road = defineLinearMethod({
  info: {
    id: 'road',
    title: 'RoAd',
    family: 'lora-family',
    kind: 'adapter',
    paper: {
      title: '3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability',
      arxiv: '2409.00119',
      year: 2024,
    },
  },
  config: z.object({
    /** An angle and a scale per pair, per feature, or two of each per feature. */
    variant: z.enum(['road_1', 'road_2', 'road_4']).default('road_1'),
    /** Features per group; even, divides out. */
    groupSize: option
      .count()
      .refine((value) => value % 2 === 0, 'must be divisible by 2')
      .default(64),
    /** Pairs that take part, 0 … out/2 − 1; the others stay as they are. Absent: all. */
    activePairs: z.array(z.number().int().min(0)).optional(),
  }),
  validate({ name, outDim }, { groupSize, activePairs = [] }) {
    ensure(
      outDim % groupSize === 0,
      `${name}.groupSize`,
      () => `out = ${outDim} must be divisible by the group size ${groupSize}; choose a divisor`,
    );
    const beyond = activePairs.find((pair) => pair >= outDim / 2);
    ensure(
      beyond === undefined,
      `${name}.activePairs`,
      () => `pair ${beyond} does not exist; out = ${outDim} has ${outDim / 2} pairs`,
    );
  },
  tensors({ outDim, config: { variant } }) {
    const size = { road_1: outDim / 2, road_2: outDim, road_4: 2 * outDim }[variant];
    return { theta: trainable([size], zeros), alpha: trainable([size], ones) };
  },
  forward(x, { theta, alpha }, { config, base }) {
    return rotate(base.apply(x), { theta, alpha }, config);
  },
  kernel({ theta, alpha }, { config, base }) {
    const turn = (h: tf.Tensor) => rotate(h, { theta, alpha }, config);
    return { kernel: turn(base.kernel) as tf.Tensor2D, bias: base.bias && (turn(base.bias) as tf.Tensor1D) };
  },
  rowwise: true,
  peft: {
    type: 'ROAD',
    toJson: (config) => ({ variant: config.variant, group_size: config.groupSize, init_weights: true }),
    fromJson: (json) => ({ variant: json.variant ?? 'road_1', groupSize: json.group_size ?? 64 }),
    keys: () => ({ theta: 'road_theta', alpha: 'road_alpha' }),
  },
});

/** Which of the three parametrisations. */
export type RoadVariant = 'road_1' | 'road_2' | 'road_4';

interface Rotation {
  readonly theta: tf.Tensor;
  readonly alpha: tf.Tensor;
}

interface RoadConfig {
  readonly variant: RoadVariant;
  readonly groupSize: number;
  readonly activePairs?: readonly number[];
}

function rotate(h: tf.Tensor, { theta, alpha }: Rotation, { variant, groupSize, activePairs }: RoadConfig): tf.Tensor {
  const { c1, c2 } = roadColumns(variant, groupSize, theta, alpha);
  if (!activePairs) return applyRoad(h, c1, c2, groupSize);
  const mask = pairMask(activePairs, groupSize, h.shape[h.rank - 1] as number);
  return applyRoad(h, tf.add(tf.mul(c1, mask), tf.sub(1, mask)), tf.mul(c2, mask), groupSize);
}

/** 1 at both features of every listed pair, `[out]`. */
function pairMask(pairs: readonly number[], groupSize: number, outDim: number): tf.Tensor1D {
  const half = groupSize / 2;
  const mask = new Float32Array(outDim);
  for (const pair of pairs) {
    const first = Math.floor(pair / half) * groupSize + (pair % half);
    mask[first] = mask[first + half] = 1;
  }
  return tf.tensor1d(mask);
}

/**
 * The coefficients c₁ = α·cos θ and c₂ = α·sin θ per output feature.
 *
 * @param theta `[..., n]` with n = out/2, out or 2·out for road_1, road_2 and road_4; leading axes are kept.
 * @param alpha of the shape of `theta`.
 * @returns two tensors `[..., out]`.
 */
export function roadColumns(
  variant: RoadVariant,
  groupSize: number,
  theta: tf.Tensor,
  alpha: tf.Tensor,
): { c1: tf.Tensor; c2: tf.Tensor } {
  return tf.tidy(() => {
    const [cos, sin] = [tf.mul(alpha, tf.cos(theta)), tf.mul(alpha, tf.sin(theta))];
    if (variant === 'road_2') return { c1: cos, c2: sin };
    const lead = theta.shape.slice(0, -1);
    const n = theta.shape[theta.rank - 1] as number;
    if (variant === 'road_1') {
      const twice = (c: tf.Tensor) => {
        const halves = tf.reshape(c, [...lead, (2 * n) / groupSize, groupSize / 2]);
        return tf.reshape(tf.concat([halves, halves], -1), [...lead, 2 * n]);
      };
      return { c1: twice(cos), c2: twice(sin) };
    }
    // road_4 holds, per group, g values for the cosine and then g for the sine.
    const part = (c: tf.Tensor, index: number) => {
      const groups = tf.reshape(c, [...lead, n / (2 * groupSize), 2, groupSize]);
      return tf.reshape(tf.gather(groups, [index], groups.rank - 2), [...lead, n / 2]);
    };
    return { c1: part(cos, 0), c2: part(sin, 1) };
  });
}

/** h∘c₁ + rot(h)∘c₂ over the last axis of h `[..., out]`. */
export function applyRoad(h: tf.Tensor, c1: tf.Tensor, c2: tf.Tensor, groupSize: number): tf.Tensor {
  return tf.tidy(() => {
    const outDim = h.shape[h.rank - 1] as number;
    const groups = tf.reshape(h, [-1, outDim / groupSize, groupSize]);
    const [first, second] = tf.split(groups, 2, 2);
    const rotated = tf.reshape(tf.concat([tf.neg(second), first], 2), h.shape);
    return tf.add(tf.mul(h, c1), tf.mul(rotated, c2));
  });
}

/** Several road_1 adapters of the same groups as one: angles add, scales multiply. */
export function composeRoad(adapters: readonly Rotation[]): { theta: tf.Tensor; alpha: tf.Tensor } {
  ensure(adapters.length > 0, 'adapters', () => 'is empty; give at least one adapter');
  return tf.tidy(() => ({
    theta: tf.addN(adapters.map(({ theta }) => theta)),
    alpha: adapters.map(({ alpha }) => alpha).reduce((product, alpha) => tf.mul(product, alpha)),
  }));
}
