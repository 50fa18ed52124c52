import {
  adam,
  adamw,
  didYouMean,
  type GradientTransformation,
  lion,
  option,
  refuse,
  type ScalarSchedule,
  schedules,
  sgd,
} from '@matforge/core';
import * as z from 'zod';
import { isLinear, loadMethod } from './packages.ts';
import type { MethodUse } from './stage.ts';

/** Optimizers that need no package. */
const BUILT_IN: Record<string, (options: never) => GradientTransformation> = { adam, adamw, sgd, lion };

/** `{ name: 'adam', learningRate: 1e-3, … }`; other options go to the optimizer. */
export const optimizerOption = z
  .looseObject({ name: z.string(), learningRate: option.positive().default(1e-3) })
  .default({ name: 'adam', learningRate: 1e-3 });

/** Options that every training stage has. */
export const trainingOptions = {
  optimizer: optimizerOption,
  /** Passes over the data. */
  epochs: option.count().default(1),
  /** Updates; instead of epochs. */
  steps: option.count().optional(),
  batchSize: option.count().default(64),
  /** Share of the steps over which the learning rate rises from 0. */
  warmup: z.number().min(0).max(1).default(0),
  /** How the rate goes on after the warm-up. */
  schedule: z.enum(['constant', 'cosine', 'linear']).default('constant'),
  /** Largest norm of the gradient. */
  clipNorm: option.positive().optional(),
};

export type TrainingStageOptions = z.output<z.ZodObject<typeof trainingOptions>>;

/** The package that an optimizer option asks for. */
export function optimizerUse(
  optimizer: TrainingStageOptions['optimizer'],
  path: readonly (string | number)[] = ['optimizer'],
): MethodUse[] {
  const { name, ...options } = optimizer;
  return name in BUILT_IN ? [] : [{ name, options, path }];
}

/**
 * Makes the optimizer of a stage.
 *
 * @throws MatforgeError for a name that is neither built in nor installed.
 */
export async function makeOptimizer(
  optimizer: TrainingStageOptions['optimizer'],
  from: string,
): Promise<GradientTransformation> {
  const { name, ...options } = optimizer;
  const builtIn = BUILT_IN[name];
  if (builtIn) return builtIn(options as never);
  const near = didYouMean(name, Object.keys(BUILT_IN));
  try {
    const method = await loadMethod(name, from);
    if (isLinear(method)) refuse('optimizer', `"${name}" adapts kernels, it is no optimizer; use it in "adapt"`);
    return method(options);
  } catch (error) {
    if (near) refuse('optimizer', `"${name}" is unknown; did you mean "${near}"?`, { cause: error });
    throw error;
  }
}

/** Learning rate by step: a warm-up, then constant, cosine or linear to 0. */
export function makeSchedule(
  { optimizer, warmup, schedule }: TrainingStageOptions,
  steps: number,
): ScalarSchedule | undefined {
  const peak = optimizer.learningRate;
  const rising = Math.round(warmup * steps);
  if (rising === 0 && schedule === 'constant') return undefined;
  const falling = Math.max(1, steps - rising);
  const after: ScalarSchedule =
    schedule === 'cosine'
      ? schedules.cosine({ peak, steps: falling })
      : schedule === 'linear'
        ? schedules.linear({ from: peak, to: 0, steps: falling })
        : () => peak;
  return (step) => (step < rising ? (peak * (step + 1)) / rising : after(step - rising));
}
