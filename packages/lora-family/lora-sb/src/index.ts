import {
  defineLinearMethod,
  ensure,
  type ForwardContext,
  frozen,
  linear,
  lowRankProduct,
  option,
  refuse,
  trainable,
  validateRank,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { optimalCore } from './equivalent-gradient.ts';
import { firstUpdateSize, loraSbInit, loraXsInit } from './init.ts';

export { type EquivalentGradient, equivalentGradient } from './equivalent-gradient.ts';
export {
  firstUpdateSize,
  type LoraSbInit,
  type LoraSbInitOptions,
  loraSbInit,
  loraXsInit,
  type UpdateSize,
} from './init.ts';

const coreOptions = {
  rank: option.rank().default(96),
  /** s, by which A·R·B is multiplied. */
  scale: option.positive().default(1),
  /** Gives R the gradient whose step on the kernel is nearest to that of full fine-tuning (theorem 3). */
  precondition: z.boolean().default(false),
  /** Power iterations of a randomized SVD; null for the exact one. The authors use 10. */
  iterations: option.count().nullable().default(null),
  dropout: option.dropout(),
};

interface CoreConfig {
  rank: number;
  scale: number;
  precondition: boolean;
}

type CoreTensors = Record<'A' | 'R' | 'B', tf.Tensor>;

/** y = x·W + b + s·((x·A)·R)·B with A `[in, r]` and B `[r, out]` frozen: only the core R `[r, r]` trains. */
const trainedCore = {
  tensors: ({ inDim, outDim, config: { rank } }: { inDim: number; outDim: number; config: { rank: number } }) => ({
    A: frozen([inDim, rank]),
    R: trainable([rank, rank]),
    B: frozen([rank, outDim]),
  }),
  forward(x: tf.Tensor, { A, R, B }: CoreTensors, { config, base, dropout }: ForwardContext<CoreConfig>): tf.Tensor {
    const core = config.precondition ? optimalCore(R, A, B, config.scale) : R;
    return tf.add(base.apply(x), tf.mul(linear(linear(linear(dropout(x), A), core), B), config.scale));
  },
  kernel: ({ A, R, B }: CoreTensors, { config, base }: ForwardContext<CoreConfig>): tf.Tensor2D =>
    tf.add(base.kernel, lowRankProduct(linear(A, R), B, config.scale)),
  lookup: (indices: tf.Tensor1D, { A, R, B }: CoreTensors, { config, base }: ForwardContext<CoreConfig>): tf.Tensor =>
    tf.add(base.lookup(indices), lowRankProduct(linear(tf.gather(A, indices), R), B, config.scale)),
};

/**
 * LoRA-SB (Ponkshe et al. 2024): the first step of full fine-tuning is estimated from a few samples as
 * D = −η·sign(ΣG); its best approximation of rank r is s·A·R·B. A and B, orthonormal, are frozen, R trains.
 *
 * Starts one approximate full step away from the base model, on purpose: s·A·R·B is not taken off the kernel. Trains r²
 * numbers per layer.
 */
export const loraSb = defineLinearMethod({
  info: {
    id: 'lora-sb',
    title: 'LoRA-SB',
    family: 'lora-family',
    kind: 'adapter',
    paper: {
      title:
        'Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning',
      arxiv: '2411.19557',
      year: 2024,
    },
  },
  config: z.object({
    ...coreOptions,
    /** η, the size of the estimated first step. Default: the learning rate at the first step of the warm-up. */
    eta: option.positive().optional(),
    /** Of the training to come; with the next two options it gives η. */
    learningRate: option.positive().default(1e-4),
    /** Share of the training over which the learning rate rises. */
    warmupRatio: z.number('must be in [0, 1]').min(0, 'must be in [0, 1]').max(1, 'must be in [0, 1]').default(0.02),
    /** Optimizer steps of the training. Absent: no warm-up. */
    totalSteps: option.count().optional(),
  }),
  needs: ['gradients'],
  validate: validateRank,
  tensors: trainedCore.tensors,
  init({ kernel, gradients, config, site, random }) {
    const G =
      gradients ?? refuse(site.name, 'gradient estimate is missing: pass the sum of dLoss/dKernel as gradients');
    ensure(
      String(G.shape) === String(kernel.shape),
      site.name,
      () => `gradient estimate has shape [${G.shape}], the kernel [${kernel.shape}]`,
    );
    const { A, R, B } = loraSbInit(G, { ...config, eta: firstUpdateSize(config), random, name: site.name });
    return { A, R, B };
  },
  forward: trainedCore.forward,
  kernel: trainedCore.kernel,
  lookup: trainedCore.lookup,
});

/**
 * LoRA-XS (Bałazy et al. 2024), the baseline: A and B are the leading singular vectors of the kernel itself, A times their
 * singular values, and R starts near zero.
 *
 * Starts as the base model, up to 1e-5. Trains r² numbers per layer.
 */
export const loraXs = defineLinearMethod({
  info: {
    id: 'lora-xs',
    title: 'LoRA-XS',
    family: 'lora-family',
    kind: 'adapter',
    paper: {
      title: 'LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters',
      arxiv: '2405.17604',
      year: 2024,
    },
  },
  config: z.object(coreOptions),
  validate: validateRank,
  tensors: trainedCore.tensors,
  init: ({ kernel, config, random }) => loraXsInit(kernel, { ...config, random }),
  forward: trainedCore.forward,
  kernel: trainedCore.kernel,
  lookup: trainedCore.lookup,
});
