import {
  constant,
  defineLinearMethod,
  ensure,
  frozen,
  linear,
  option,
  type StepInfo,
  trainable,
  uniform,
  zeros,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { AdaptiveFreezer, type FreezerState, freezerOptions } from './freezer.ts';

export { AdaptiveFreezer, cubicFraction, type FreezerConfig, type FreezerState } from './freezer.ts';

/**
 * AFLoRA (Liu et al. 2024): y = x·W + b + s·(((x·A)∘d)·B)∘l with s = alpha/√r. Vectors d, l always train; the projection
 * matrices A, B start trainable and are frozen one by one, the least sensitive first (eq. 3-5), until only the vectors
 * are left.
 *
 * l starts at zero, so the model starts as it was. Trains r(in + out) + r + out numbers per layer at first, r + out in the
 * end. The freezing runs under `model.fit` and every loop that uses the compiled optimizer.
 */
export const aflora = defineLinearMethod({
  info: {
    id: 'aflora',
    title: 'AFLoRA',
    family: 'lora-family',
    kind: 'adapter',
    paper: {
      title: 'AFLoRA: Adaptive Freezing of Low Rank Adaptation in Parameter Efficient Fine-Tuning of Large Models',
      arxiv: '2403.13269',
      year: 2024,
    },
  },
  config: z.object({
    rank: option.rank().default(4),
    /** s = alpha/√rank. */
    alpha: option.positive().default(1),
    /** Start of d. */
    dInitial: z
      .number('must be a number other than 0')
      .refine((value) => value !== 0, 'must not be 0')
      .default(0.1),
    dropout: option.dropout(),
    ...freezerOptions,
    /** Optimizer steps of the whole training; may be left to a training loop that knows it. */
    totalSteps: option.count().optional(),
    /** Steps before the first freezing. Default 1/20 of all. */
    warmupSteps: z.number().int('must be an integer >= 0').min(0, 'must be an integer >= 0').optional(),
    /** Steps at the end with every matrix frozen. Default 14/20 of all. */
    finalSteps: z.number().int('must be an integer >= 0').min(0, 'must be an integer >= 0').optional(),
    /** Never train the projections of square layers. */
    freezeSquare: z.boolean().default(false),
  }),
  validate(_, config) {
    if (config.totalSteps !== undefined) phases(config, config.totalSteps);
  },
  tensors({ inDim, outDim, config: { rank, dInitial, freezeSquare } }) {
    const projection = freezeSquare && inDim === outDim ? frozen : trainable;
    return {
      A: projection([inDim, rank], uniform(Math.sqrt(6 / inDim))),
      B: projection([rank, outDim], uniform(Math.sqrt(6 / rank))),
      lambdaD: trainable([rank], constant(dInitial)),
      lambdaB: trainable([outDim], zeros),
    };
  },
  forward(x, { A, B, lambdaD, lambdaB }, { config, base, dropout }) {
    const z = linear(tf.mul(linear(dropout(x), A), lambdaD), B);
    return tf.add(base.apply(x), tf.mul(z, tf.mul(lambdaB, config.alpha / Math.sqrt(config.rank))));
  },
  kernel: (tensors, { config, base }) => tf.add(base.kernel, afloraDelta(tensors, config)),
  schedule(sites, config) {
    const matrices = sites
      .filter(({ site, config: { freezeSquare } }) => !(freezeSquare && site.inDim === site.outDim))
      .flatMap(({ site, tensors }) =>
        (['A', 'B'] as const).map((tensor) => ({ site: site.name, tensor, size: tensors[tensor].size })),
      );
    const nameOf = ({ site, tensor }: { site: string; tensor: string }) => `${site}.${tensor}`;
    const sizes = Object.fromEntries(matrices.map((matrix) => [nameOf(matrix), matrix.size]));
    let freezer: AdaptiveFreezer | undefined;
    let saved: FreezerState | undefined;
    return {
      state: () => freezer?.state() ?? saved ?? null,
      restore(state) {
        saved = state as FreezerState;
        freezer?.restore(saved);
      },
      onStep({ step, totalSteps, gradient }: StepInfo<'A' | 'B' | 'lambdaD' | 'lambdaB'>) {
        const total = config.totalSteps ?? totalSteps;
        ensure(
          total !== undefined,
          'aflora.totalSteps',
          () => 'is unknown: set the option to the number of optimizer steps of the training',
        );
        if (!freezer) {
          freezer = new AdaptiveFreezer(sizes, { ...config, ...phases(config, total), totalSteps: total });
          if (saved) freezer.restore(saved);
        }
        const gradients = Object.fromEntries(
          matrices.flatMap((matrix) => {
            const value = gradient(matrix.site, matrix.tensor);
            return value ? [[nameOf(matrix), Float64Array.from(value.dataSync())]] : [];
          }),
        );
        freezer.update(step, gradients);
        const frozenNow = freezer.decide(step);
        return { freeze: matrices.filter((matrix) => frozenNow.includes(nameOf(matrix))) };
      },
    };
  },
});

type Phases = { warmupSteps?: number; finalSteps?: number };

function phases({ warmupSteps, finalSteps }: Phases, total: number): Required<Phases> {
  const result = {
    warmupSteps: warmupSteps ?? Math.round(total / 20),
    finalSteps: finalSteps ?? Math.round((14 * total) / 20),
  };
  ensure(
    result.warmupSteps + result.finalSteps < total,
    'aflora.warmupSteps',
    () =>
      `no room for the freezing phase: ${result.warmupSteps} warm-up and ${result.finalSteps} final steps of ${total}`,
  );
  return result;
}

/** s·(A∘d)·(B∘l), `[in, out]`. */
export function afloraDelta(
  { A, B, lambdaD, lambdaB }: Record<'A' | 'B' | 'lambdaD' | 'lambdaB', tf.Tensor>,
  { alpha, rank }: { alpha: number; rank: number },
): tf.Tensor2D {
  return tf.tidy(() => {
    const product = tf.matMul(tf.mul(A, lambdaD) as tf.Tensor2D, tf.mul(B, lambdaB) as tf.Tensor2D);
    return tf.mul(product, alpha / Math.sqrt(rank)) as tf.Tensor2D;
  });
}
