import {
  defineLinearMethod,
  type ForwardContext,
  kaimingUniform,
  linear,
  loraFromJson,
  loraJson,
  loraKeys,
  matchPattern,
  option,
  random,
  type Site,
  seeded,
  toTensor,
  trainable,
  zeros,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { drawPassports } from './passport.ts';
import { release } from './release.ts';

const rank = () => z.number('must be an integer >= 2').int('must be an integer >= 2').min(2, 'must be an integer >= 2');

/** Tensors of the method at one layer. */
type SealTensors = Record<'A' | 'B' | 'C' | 'Cp' | 'passport' | 'trainingPassport' | 'scale', tf.Tensor>;
type SealConfig = { rank: number; alpha: number; secret: number; schedule: 'random' | 'alternate' };

/**
 * SEAL (Oh et al. 2025): y = x·W + b + s·((x·A)·K)·B with s = alpha/rank, where K is one of two secret, fixed `[r, r]`
 * matrices. Training draws the passport C or C' once per step for all layers, so that A and B become entangled with
 * both without any extra loss; evaluation uses C unless {@link setPassport} says otherwise.
 *
 * B starts at zero, so the model starts as it was. Trains r(in + out) numbers per layer, as LoRA does. Files that
 * `save` writes are plain LoRA with C absorbed into the factors (section 3.3): neither passport nor secret is in them.
 */
export const seal = defineLinearMethod({
  info: {
    id: 'seal',
    title: 'SEAL',
    family: 'watermark',
    kind: 'adapter',
    paper: {
      title: 'SEAL: Entangled White-box Watermarks on Low-Rank Adaptation',
      arxiv: '2501.09284',
      year: 2025,
    },
  },
  config: z.object({
    /** Rank r of the factors and size of the passports. */
    rank: rank().default(16),
    /** Numerator of the scale s = alpha/rank. */
    alpha: option.positive().default(16),
    /** Seed of every passport; layer i of the adapter has those of secret + i. Keep it as you keep a private key. */
    secret: option.seed(),
    /** Which passport a step trains with: drawn with probability 1/2, or in turn. */
    schedule: z.enum(['random', 'alternate']).default('random'),
    /** Scale of the passports: ‖C‖_F = √r, or as drawn. */
    normalize: z.enum(['fro', 'none']).default('fro'),
    dropout: option.dropout(),
    /** Rank per module name; first match wins. The scale is the same at every rank. */
    rankPattern: option.pattern(rank()),
  }),
  tensors({ inDim, outDim, config, site, group }) {
    const layer = group.sites.findIndex(({ name }) => name === site.name);
    const passport = (which: 0 | 1) => () =>
      toTensor(drawPassports(config.rank, config.secret + layer, config.normalize)[which]);
    const square = [config.rank, config.rank];
    return {
      A: trainable([inDim, config.rank], kaimingUniform),
      B: trainable([config.rank, outDim], zeros),
      C: seeded(square, passport(0)),
      Cp: seeded(square, passport(1)),
      // One switch for all layers: a choice per layer would entangle each alone, not the model.
      passport: seeded([], zeros, 'passport'),
      trainingPassport: seeded([], () => tf.scalar(trainStepPassport(1, config)), 'trainingPassport'),
      // A claim is read from the adapter's tensors, and needs the scale.
      scale: seeded([], () => tf.scalar(config.alpha / config.rank), 'scale'),
    };
  },
  plan: (sites, config) =>
    Object.fromEntries(
      sites.map(({ name }) => {
        const r = matchPattern(config.rankPattern, name) ?? config.rank;
        return [name, { config: { rank: r, alpha: (config.alpha / config.rank) * r } }];
      }),
    ),
  forward(x, tensors, context) {
    const { A, B } = tensors;
    const path = linear(linear(linear(context.dropout(x), A), passportInForce(tensors, context)), B);
    return tf.add(context.base.apply(x), tf.mul(path, scaleOf(context)));
  },
  kernel: (tensors, context) => tf.add(context.base.kernel, change(tensors.A, tensors, context)),
  lookup: (indices, tensors, context) =>
    tf.add(context.base.lookup(indices), change(tf.gather(tensors.A, indices), tensors, context)),
  schedule: ([{ site }], config) => ({
    onStep: ({ step }) => ({
      assign: [
        {
          site: site.name,
          tensor: 'trainingPassport' as const,
          value: tf.scalar(trainStepPassport(step + 1, config)),
        },
      ],
    }),
  }),
  peft: {
    type: 'LORA',
    // The file is plain LoRA: it is for lora to read back.
    accepts: () => false,
    toJson: ({ rank, alpha, dropout, rankPattern }) =>
      loraJson({
        rank,
        alpha,
        dropout,
        rankPattern,
        useRslora: false,
        alphaPattern: Object.fromEntries(Object.entries(rankPattern).map(([key, r]) => [key, (alpha / rank) * r])),
      }),
    fromJson: loraFromJson,
    keys: (site: Site) => loraKeys(site),
    convert({ A, B, C }, config) {
      const released = release({
        A: A as tf.Tensor2D,
        B: B as tf.Tensor2D,
        C: C as tf.Tensor2D,
        scale: config.alpha / config.rank,
      });
      return { A: released.A, B: released.B };
    },
  },
});

/**
 * The passport of a training step, 1, 2, …: 0 for C, 1 for C'. Depends on the step alone, so that a resumed training
 * goes on as it would have.
 */
export function trainStepPassport(step: number, { secret, schedule }: Pick<SealConfig, 'secret' | 'schedule'>): 0 | 1 {
  if (schedule === 'alternate') return step % 2 === 1 ? 0 : 1;
  return random(secret).fork(`step/${step}`).next() < 0.5 ? 0 : 1;
}

/** K: C where the switch is 0, C' where it is 1, exactly. */
function passportInForce({ C, Cp, passport, trainingPassport }: SealTensors, context: ForwardContext<SealConfig>) {
  const choice = context.training ? trainingPassport : passport;
  return tf.add(tf.mul(tf.sub(1, choice), C), tf.mul(choice, Cp));
}

/** s·A·K·B. */
function change(A: tf.Tensor, tensors: SealTensors, context: ForwardContext<SealConfig>): tf.Tensor2D {
  const left = tf.matMul(A as tf.Tensor2D, passportInForce(tensors, context) as tf.Tensor2D);
  return tf.mul(tf.matMul(left, tensors.B as tf.Tensor2D), scaleOf(context));
}

function scaleOf({ config: { alpha, rank } }: ForwardContext<SealConfig>): number {
  return alpha / rank;
}
