import {
  defineLinearMethod,
  lowRankOptions,
  lowRankPlan,
  lowRankScale,
  option,
  refuse,
  shiftedLowRank,
  validateRank,
} from '@matforge/core';
import * as z from 'zod';
import { normalisedGram } from './covariance.ts';
import { cordaInit } from './decomposition.ts';

export { CovarianceCollector, type Normalisation } from './covariance.ts';
export {
  type CordaDecomposition,
  type CordaInit,
  type CordaInitOptions,
  type CordaMode,
  contextError,
  cordaDecompose,
  cordaInit,
  cordaTruncate,
} from './decomposition.ts';

/**
 * CorDA (Yang et al. 2024): LoRA whose factors start with components of the kernel that are ordered by how much they act
 * on given data. With F the damped covariance of the layer's inputs, F·W = U·Σ·Vᵀ and W = (F⁻¹·U)·Σ·Vᵀ (eq. 2, 3);
 * A = F⁻¹·U_J·√Σ_J and B = √Σ_J·V_Jᵀ train, the rest of the kernel is frozen.
 *
 * `ipm` trains the r components that matter most to samples of the new task; `kpm` trains the r that matter least to
 * samples of what should be kept. Starts as the base model. Trains r(in + out) numbers per layer. Stored as plain LoRA of
 * rank 2r over the original kernel.
 */
export const corda = defineLinearMethod({
  info: {
    id: 'corda',
    title: 'CorDA',
    family: 'lora-family',
    kind: 'adapter',
    paper: {
      title: 'CorDA: Context-Oriented Decomposition Adaptation of Large Language Models',
      arxiv: '2406.05223',
      year: 2024,
    },
  },
  config: z.object({
    ...lowRankOptions,
    rank: option.rank().default(128),
    /** Absent: alpha = rank, so that s = 1. */
    alpha: option.positive().optional(),
    /** `ipm`: calibrate with the new task, train the largest components. `kpm`: with what to keep, train the smallest. */
    mode: z.enum(['ipm', 'kpm']).default('ipm'),
    /** Multiple of the covariance's mean diagonal that is added to it; doubled until the inverse is accurate. */
    damp: option.positive().default(0.01),
    /** Divides the inputs of each batch by max|X|, by |max X| as the authors' code does, or not at all. */
    normalize: z.enum(['absmax', 'official', 'none']).default('absmax'),
  }),
  needs: ['activations'],
  statistic: (x, { normalize }, { name }) => normalisedGram(x, normalize, name),
  validate: validateRank,
  plan: lowRankPlan,
  tensors: shiftedLowRank.tensors,
  init({ kernel, activations, config, site }) {
    const covariance =
      activations ?? refuse(site.name, "covariance is empty: corda needs the layer's inputs; pass activations");
    const { A, B } = cordaInit(kernel, covariance, { ...config, scale: lowRankScale(config), name: site.name });
    return { A, B, A0: A, B0: B };
  },
  forward: shiftedLowRank.forward,
  kernel: shiftedLowRank.kernel,
  peft: shiftedLowRank.peft,
});
