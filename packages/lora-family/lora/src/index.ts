import {
  defineLinearMethod,
  kaimingUniform,
  loraConvolution,
  loraFromJson,
  loraJson,
  loraKeys,
  lowRankApply,
  lowRankOptions,
  lowRankPlan,
  lowRankProduct,
  lowRankScale,
  normal,
  trainable,
  zeros,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';

export { combineAdapters, type LowRankAdapter } from './combine.ts';
export { type LoraPlusOptions, loraPlus } from './lora-plus.ts';

/**
 * LoRA (Hu et al. 2021): the kernel is frozen and a product of two thin factors is learned beside it,
 * y = x·W + b + s·(x·A)·B with A `[in, r]`, B `[r, out]`, s = alpha/r (eq. 3) or alpha/√r with `useRslora`.
 *
 * B starts at zero, so the model starts as it was. Trains r(in + out) numbers per layer.
 */
export const lora = defineLinearMethod({
  info: {
    id: 'lora',
    title: 'LoRA',
    family: 'lora-family',
    kind: 'adapter',
    paper: { title: 'LoRA: Low-Rank Adaptation of Large Language Models', arxiv: '2106.09685', year: 2021 },
  },
  config: z.object({
    ...lowRankOptions,
    /** Start of A: U(±1/√in), or N(0, 1/r²). */
    init: z.enum(['default', 'gaussian']).default('default'),
    /** A bias behind B, starting at zero. */
    loraBias: z.boolean().default(false),
  }),
  tensors: ({ inDim, outDim, config: { rank, init, loraBias } }) => ({
    A: trainable([inDim, rank], init === 'gaussian' ? normal(1 / rank) : kaimingUniform),
    B: trainable([rank, outDim], zeros),
    ...(loraBias && { bias: trainable([outDim], zeros) }),
  }),
  plan: lowRankPlan,
  forward(x, { A, B, bias }, { config, base, dropout }) {
    const s = lowRankScale(config);
    const y = tf.add(base.apply(x), lowRankApply(dropout(x), A, B, s));
    return bias ? tf.add(y, tf.mul(bias, s)) : y;
  },
  kernel({ A, B, bias }, { config, base }) {
    const s = lowRankScale(config);
    const kernel = tf.add(base.kernel, lowRankProduct(A, B, s)) as tf.Tensor2D;
    return { kernel, bias: bias ? (tf.add(base.bias ?? 0, tf.mul(bias, s)) as tf.Tensor1D) : base.bias };
  },
  lookup: (indices, { A, B }, { config, base }) =>
    tf.add(base.lookup(indices), lowRankProduct(tf.gather(A, indices), B, lowRankScale(config))),
  peft: {
    type: 'LORA',
    accepts: (json) => !json.use_dora,
    toJson: (config) =>
      loraJson(config, {
        lora_bias: config.loraBias,
        init_lora_weights: config.init === 'gaussian' ? 'gaussian' : true,
      }),
    fromJson: (json) => ({
      ...loraFromJson(json),
      loraBias: json.lora_bias ?? false,
      init: json.init_lora_weights === 'gaussian' ? 'gaussian' : 'default',
    }),
    keys: (site) => ({ ...loraKeys(site), bias: 'lora_B.bias' }),
    convolution: loraConvolution,
  },
});
