import * as tf from '@tensorflow/tfjs';
import type { NumberOrSchedule } from './schedules.ts';
import type { NamedTensors } from './tree.ts';

/**
 * A pure step of an optimizer. `update` turns gradients (or the updates of the transformation before it in a
 * {@link chain}) into updates that are ADDED to the parameters. Both functions return new tensors or pass on what they
 * were given, and dispose nothing; who calls them disposes the state that was replaced.
 *
 * A state is any nesting of plain objects and arrays over tensors, typed arrays and numbers. What belongs to one
 * variable stands under the variable's name: names may come and go between steps, and a name that is absent from
 * `updates` needs no entry in the state that is returned.
 */
export interface GradientTransformation<State = unknown> {
  /** The state before the first update. May be called again for variables that join later. */
  init(params: NamedTensors): State;
  /** `updates`, `params` and the returned updates share their names and shapes. */
  update(updates: NamedTensors, state: State, params: NamedTensors): { updates: NamedTensors; state: State };
  /**
   * The learning rate this transformation applies, where it has one. The updates are proportional to it, which is what
   * lets an optimizer follow a schedule from outside.
   */
  readonly learningRate?: NumberOrSchedule;
  /** The same transformation, on the same states, with another rate; where absent, updates are rescaled instead. */
  withLearningRate?(rate: number): GradientTransformation<State>;
}

/** Applies transformations one after the other; the state is the list of their states. */
export function chain(...transformations: GradientTransformation[]): GradientTransformation<unknown[]> {
  const rates = transformations.map(({ learningRate }) => learningRate).filter((rate) => rate !== undefined);
  return {
    init: (params) => transformations.map((transformation) => transformation.init(params)),
    update(updates, states, params) {
      let current = updates;
      const next = transformations.map((transformation, i) => {
        const result = transformation.update(current, states[i], params);
        current = result.updates;
        return result.state;
      });
      return { updates: current, state: next };
    },
    ...(rates.length === 1 && { learningRate: rates[0] }),
  };
}

/** `params + updates`, as new tensors; parameters without an update are copied. */
export function applyUpdates(params: NamedTensors, updates: NamedTensors): NamedTensors {
  return mapNamed(params, (param, name) => (name in updates ? tf.add(param, updates[name]) : param.clone()));
}

/** A transformation without state. */
export function stateless(
  f: (updates: NamedTensors, params: NamedTensors) => NamedTensors,
): GradientTransformation<Record<string, never>> {
  return { init: () => ({}), update: (updates, state, params) => ({ updates: f(updates, params), state }) };
}

/** Applies `f` to every entry. */
export function mapNamed<T, U>(entries: Record<string, T>, f: (value: T, name: string) => U): Record<string, U> {
  return Object.fromEntries(Object.entries(entries).map(([name, value]) => [name, f(value, name)]));
}
