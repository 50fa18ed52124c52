import type { z } from 'zod';
import { during } from '../blocking.ts';
import { type ConfigSchema, parseConfig } from '../contracts/config.ts';
import type { MethodInfo } from '../contracts/info.ts';
import { TransformationOptimizer } from './optimizer.ts';
import type { GradientTransformation } from './transformation.ts';
import type { NamedTensors } from './tree.ts';

/** What a method package says about its gradient transformation. */
export interface TransformationDefinition<Schema extends ConfigSchema, State> {
  info: MethodInfo;
  /** Options, their defaults and limits. Unknown options are refused. */
  config: Schema;
  /** See {@link GradientTransformation.init}; `config` is validated, with defaults. */
  init(params: NamedTensors, config: z.output<Schema>): State;
  /** See {@link GradientTransformation.update}. */
  update(
    updates: NamedTensors,
    state: State,
    params: NamedTensors,
    config: z.output<Schema>,
  ): { updates: NamedTensors; state: State };
}

/** A transformation made by a method: it knows its method, its configuration, and makes its optimizer. */
export interface MethodTransformation<Config, State> extends GradientTransformation<State> {
  readonly info: MethodInfo;
  readonly config: Config;
  /** A new optimizer for `model.compile`, `optimizer.minimize` or the training loop. */
  optimizer(): TransformationOptimizer;
}

/** Call it with a configuration to get the transformation. */
export interface TransformationMethod<Schema extends ConfigSchema, State> {
  (config?: z.input<Schema>): MethodTransformation<z.output<Schema>, State>;
  readonly info: MethodInfo;
  readonly config: Schema;
}

/**
 * Defines a method that is a gradient transformation. A number named `learningRate` in the configuration is taken to
 * be the rate that the updates are proportional to.
 */
export function defineTransformation<Schema extends ConfigSchema, State>(
  definition: TransformationDefinition<Schema, State>,
): TransformationMethod<Schema, State> {
  const { info, config: schema } = definition;
  type Made = MethodTransformation<z.output<Schema>, State>;
  const make = (config: z.output<Schema>): Made => {
    const { learningRate } = config as { learningRate?: unknown };
    const transformation: Made = {
      info,
      config,
      init: (params) => during(`${info.id}.init`, () => definition.init(params, config)),
      update: (updates, state, params) =>
        during(`${info.id}.update`, () => definition.update(updates, state, params, config)),
      ...(typeof learningRate === 'number' && {
        learningRate,
        withLearningRate: (rate: number) => make({ ...config, learningRate: rate }),
      }),
      optimizer: () => new TransformationOptimizer(transformation),
    };
    return transformation;
  };
  const method = (given?: z.input<Schema>): Made => make(parseConfig(info.id, schema, given));
  return Object.assign(method, { info, config: schema });
}
