import { type ConfigSchema, parseConfig } from '@matforge/core';
import type { z } from 'zod';
import type { RunContext } from './context.ts';
import type { State } from './state.ts';

/** What a stage needs from the stages before it, or gives to those after it. */
export type Part = 'data' | 'model' | 'adapter' | 'watermark' | 'quantized' | 'project';

/** Definition of a stage: a typed function from state to state. */
export interface StageDefinition<S extends ConfigSchema> {
  /** Name, as in YAML. */
  readonly name: string;
  /** One line for `--help`. */
  readonly about: string;
  readonly options: S;
  readonly needs?: readonly Part[];
  readonly gives?: readonly Part[];
  /** Names of method packages that the options ask for, so that a missing one is found before anything runs. */
  readonly methods?: (options: z.output<S>) => readonly MethodUse[];
  /** Does the work. Long work observes `context.signal`. */
  readonly run: (state: State, options: z.output<S>, context: RunContext) => Promise<State>;
  /** Brings the state back to where it was after the stage, from the run directory. Default: runs the stage again. */
  readonly restore?: (state: State, options: z.output<S>, context: RunContext) => Promise<State>;
}

/** A method package that a stage asks for. */
export interface MethodUse {
  readonly name: string;
  /** Options for the package's method; absent where the stage uses the package's functions. */
  readonly options?: Record<string, unknown>;
  /** Where the options stand, below the stage. Default the stage itself. */
  readonly path?: readonly (string | number)[];
}

/** A stage with its options. */
export interface Stage {
  readonly definition: StageDefinition<ConfigSchema>;
  readonly options: Record<string, unknown>;
}

/** A stage that can be called with options, as in `train({ data: 'digits', epochs: 1 })`. */
export interface StageFactory<S extends ConfigSchema> extends StageDefinition<S> {
  (options: z.input<S>): Stage;
}

/**
 * Defines a stage.
 *
 * @throws MatforgeError when called with unknown or unacceptable options.
 */
export function defineStage<S extends ConfigSchema>(definition: StageDefinition<S>): StageFactory<S> {
  const { name: _, ...rest } = definition;
  const factory = (options: z.input<S>): Stage => ({
    definition: definition as unknown as StageDefinition<ConfigSchema>,
    options: parseConfig(definition.name, definition.options, options),
  });
  Object.defineProperty(factory, 'name', { value: definition.name });
  return Object.assign(factory, rest) as unknown as StageFactory<S>;
}
