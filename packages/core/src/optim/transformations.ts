import { adamDirection } from '@matforge/engine';
import * as tf from '@tensorflow/tfjs';
import { ensure, ensureKnown, refuse } from '../errors.ts';
import { type NumberOrSchedule, type ScalarSchedule, valueAt } from './schedules.ts';
import { chain, type GradientTransformation, mapNamed, stateless } from './transformation.ts';
import type { NamedTensors } from './tree.ts';

/** Selects variables by name or shape. */
export type VariablePredicate = (name: string, param: tf.Tensor) => boolean;

/** Multiplies every update by `factor`. */
export function scale(factor: number): GradientTransformation {
  return stateless((updates) => mapNamed(updates, (update) => tf.mul(update, factor)));
}

/** Multiplies every update by `schedule(step)`. */
export function scaleBySchedule(schedule: ScalarSchedule): GradientTransformation<{ count: number }> {
  return {
    init: () => ({ count: 0 }),
    update: (updates, { count }) => ({
      updates: mapNamed(updates, (update) => tf.mul(update, schedule(count))),
      state: { count: count + 1 },
    }),
  };
}

/** Multiplies every update by `-learningRate`: turns a direction of ascent into a step of descent. */
export function scaleByLearningRate(learningRate: NumberOrSchedule): GradientTransformation {
  if (typeof learningRate === 'number') {
    nonNegative('learningRate', learningRate);
    return { ...scale(-learningRate), learningRate };
  }
  return { ...scaleBySchedule((step) => -learningRate(step)), learningRate };
}

/** Options of {@link scaleByAdam}. */
export interface AdamOptions {
  /** Decay of the first moment, in [0, 1). Default 0.9. */
  beta1?: number;
  /** Decay of the second moment, in [0, 1). Default 0.999. */
  beta2?: number;
  /** Added to the root of the second moment. Default 1e-8. */
  epsilon?: number;
}

/** State of {@link scaleByAdam}: the moments and the number of updates of every variable. */
export interface AdamState {
  count: Record<string, number>;
  mu: NamedTensors;
  nu: NamedTensors;
}

/**
 * Adam's direction `mHat / (sqrt(vHat) + epsilon)` (Kingma & Ba, arXiv 1412.6980, algorithm 1). The bias correction
 * counts the updates of each variable by itself, so that a variable that is frozen for a while or joins late is
 * treated like any other.
 */
export function scaleByAdam(options: AdamOptions = {}): GradientTransformation<AdamState> {
  const { beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8 } = options;
  fraction('beta1', beta1);
  fraction('beta2', beta2);
  nonNegative('epsilon', epsilon);
  return {
    init: (params) => ({
      count: mapNamed(params, () => 0),
      mu: mapNamed(params, zerosLike),
      nu: mapNamed(params, zerosLike),
    }),
    update(updates, state) {
      const count = mapNamed(updates, (_, name) => state.count[name] + 1);
      const steps = mapNamed(updates, (g, name) =>
        adamDirection(g, state.mu[name], state.nu[name], { beta1, beta2, epsilon, step: count[name] }),
      );
      return {
        updates: mapNamed(steps, ({ direction }) => direction),
        state: { count, mu: mapNamed(steps, ({ m }) => m), nu: mapNamed(steps, ({ v }) => v) },
      };
    },
  };
}

/**
 * Momentum: `t := decay · t + g`; with `nesterov` the update is `decay · t + g`.
 *
 * @param decay in [0, 1).
 */
export function trace(
  decay: number,
  options: { nesterov?: boolean } = {},
): GradientTransformation<{ trace: NamedTensors }> {
  fraction('decay', decay);
  return {
    init: (params) => ({ trace: mapNamed(params, zerosLike) }),
    update(updates, state) {
      const next = mapNamed(updates, (g, name) => tf.add(tf.mul(state.trace[name], decay), g));
      const looked = options.nesterov ? mapNamed(updates, (g, name) => tf.add(tf.mul(next[name], decay), g)) : next;
      return { updates: looked, state: { trace: next } };
    },
  };
}

/** Lion's direction `sign(beta1 · m + (1 - beta1) · g)`, `m := beta2 · m + (1 - beta2) · g` (arXiv 2302.06675). */
export function scaleByLion(
  options: { beta1?: number; beta2?: number } = {},
): GradientTransformation<{ mu: NamedTensors }> {
  const { beta1 = 0.9, beta2 = 0.99 } = options;
  fraction('beta1', beta1);
  fraction('beta2', beta2);
  return {
    init: (params) => ({ mu: mapNamed(params, zerosLike) }),
    update: (updates, { mu }) => ({
      updates: mapNamed(updates, (g, name) => tf.sign(average(mu[name], g, beta1))),
      state: { mu: mapNamed(updates, (g, name) => average(mu[name], g, beta2)) },
    }),
  };
}

/** Adds `rate · parameter` to the updates of the variables that `mask` selects (default: all). */
export function addDecayedWeights(rate: number, mask: VariablePredicate = () => true): GradientTransformation {
  nonNegative('weightDecay', rate);
  return stateless((updates, params) =>
    mapNamed(updates, (update, name) =>
      rate !== 0 && mask(name, params[name]) ? tf.add(update, tf.mul(params[name], rate)) : update,
    ),
  );
}

/** Limits every entry to [-limit, limit]. */
export function clip(limit: number): GradientTransformation {
  positive('clip', limit);
  return stateless((updates) => mapNamed(updates, (update) => tf.clipByValue(update, -limit, limit)));
}

/** Scales all updates by one factor such that their joint Euclidean norm is at most `limit`. */
export function clipByGlobalNorm(limit: number): GradientTransformation {
  positive('clipByGlobalNorm', limit);
  return stateless((updates) => {
    const factor = tf.div(limit, tf.maximum(globalNorm(updates), limit));
    return mapNamed(updates, (update) => tf.mul(update, factor));
  });
}

/** The Euclidean norm of all entries of all tensors, a scalar tensor. */
export function globalNorm(tensors: NamedTensors): tf.Scalar {
  const squares = Object.values(tensors).map((tensor) => tf.sum(tf.square(tensor)));
  return squares.length === 0 ? tf.scalar(0) : (tf.sqrt(tf.addN(squares)) as tf.Scalar);
}

/** Applies `inner` to the variables that `mask` selects; the others pass unchanged. */
export function masked(inner: GradientTransformation, mask: VariablePredicate): GradientTransformation {
  const select = (entries: NamedTensors, params: NamedTensors): NamedTensors =>
    Object.fromEntries(Object.entries(entries).filter(([name]) => mask(name, params[name])));
  return {
    init: (params) => inner.init(select(params, params)),
    update(updates, state, params) {
      const result = inner.update(select(updates, params), state, select(params, params));
      return { updates: { ...updates, ...result.updates }, state: result.state };
    },
    ...(inner.learningRate !== undefined && { learningRate: inner.learningRate }),
  };
}

/**
 * Gives every group of variables a transformation of its own.
 *
 * @param transformations by group.
 * @param labels the group of a variable.
 * @throws MatforgeError when `labels` names a group without a transformation.
 */
export function partition(
  transformations: Record<string, GradientTransformation>,
  labels: (name: string, param: tf.Tensor) => string,
): GradientTransformation<Record<string, unknown>> {
  const groups = Object.keys(transformations);
  const split = (entries: NamedTensors, params: NamedTensors): Record<string, NamedTensors> => {
    const result: Record<string, NamedTensors> = mapNamed(transformations, () => ({}));
    for (const [name, entry] of Object.entries(entries)) {
      const group = labels(name, params[name]);
      if (!(group in result))
        refuse('labels', `variable "${name}" is of group "${group}"; groups: ${groups.join(', ')}`);
      result[group][name] = entry;
    }
    return result;
  };
  return {
    init(params) {
      const byGroup = split(params, params);
      return mapNamed(transformations, (transformation, group) => transformation.init(byGroup[group]));
    },
    update(updates, states, params) {
      const updatesOf = split(updates, params);
      const paramsOf = split(params, params);
      const results = mapNamed(transformations, (transformation, group) =>
        transformation.update(updatesOf[group], states[group], paramsOf[group]),
      );
      return {
        updates: Object.assign({}, ...Object.values(results).map((result) => result.updates)),
        state: mapNamed(results, (result) => result.state),
      };
    },
  };
}

/**
 * Multiplies the updates of each group by the group's factor (1 where none is given). After an optimizer this is a
 * learning rate per group, e.g. LoRA+'s `perGroup({ B: 16 }, (name) => name.endsWith('lora_B') ? 'B' : 'rest')`.
 */
export function perGroup(
  factors: Record<string, number>,
  labels: (name: string, param: tf.Tensor) => string,
): GradientTransformation {
  return stateless((updates, params) =>
    mapNamed(updates, (update, name) => {
      const factor = factors[labels(name, params[name])] ?? 1;
      return factor === 1 ? update : tf.mul(update, factor);
    }),
  );
}

/** Stochastic gradient descent, with momentum when `momentum` is above 0. */
export function sgd(options: {
  learningRate: NumberOrSchedule;
  momentum?: number;
  nesterov?: boolean;
}): GradientTransformation {
  ensureKnown('sgd', options, ['learningRate', 'momentum', 'nesterov']);
  const { learningRate, momentum = 0, nesterov = false } = options;
  return momentum === 0
    ? scaleByLearningRate(learningRate)
    : chain(trace(momentum, { nesterov }), scaleByLearningRate(learningRate));
}

/** Adam. `learningRate` defaults to 1e-3. */
export function adam(options: AdamOptions & { learningRate?: NumberOrSchedule } = {}): GradientTransformation {
  ensureKnown('adam', options, ['learningRate', 'beta1', 'beta2', 'epsilon']);
  return chain(scaleByAdam(options), scaleByLearningRate(options.learningRate ?? 1e-3));
}

/**
 * Adam with decoupled weight decay (arXiv 1711.05101): the decay is `learningRate · weightDecay · parameter`.
 * `learningRate` defaults to 1e-3, `weightDecay` to 0.01, `mask` (which variables decay) to all.
 */
export function adamw(
  options: AdamOptions & { learningRate?: NumberOrSchedule; weightDecay?: number; mask?: VariablePredicate } = {},
): GradientTransformation {
  ensureKnown('adamw', options, ['learningRate', 'weightDecay', 'beta1', 'beta2', 'epsilon', 'mask']);
  return chain(
    scaleByAdam(options),
    addDecayedWeights(options.weightDecay ?? 0.01, options.mask),
    scaleByLearningRate(options.learningRate ?? 1e-3),
  );
}

/** Lion with decoupled weight decay. `learningRate` defaults to 1e-4, `weightDecay` to 0. */
export function lion(
  options: {
    learningRate?: NumberOrSchedule;
    beta1?: number;
    beta2?: number;
    weightDecay?: number;
    mask?: VariablePredicate;
  } = {},
): GradientTransformation {
  ensureKnown('lion', options, ['learningRate', 'weightDecay', 'beta1', 'beta2', 'mask']);
  return chain(
    scaleByLion(options),
    addDecayedWeights(options.weightDecay ?? 0, options.mask),
    scaleByLearningRate(options.learningRate ?? 1e-4),
  );
}

/** The rate that `transformation` applies at `step`, or undefined where it has none. */
export function learningRateAt(transformation: GradientTransformation, step: number): number | undefined {
  return transformation.learningRate === undefined ? undefined : valueAt(transformation.learningRate, step);
}

function average(previous: tf.Tensor, value: tf.Tensor, decay: number): tf.Tensor {
  return tf.add(tf.mul(previous, decay), tf.mul(value, 1 - decay));
}

function zerosLike(tensor: tf.Tensor): tf.Tensor {
  return tf.zeros(tensor.shape, 'float32');
}

function fraction(field: string, value: number): void {
  ensure(value >= 0 && value < 1, field, () => `${value} given; accepted is a number in [0, 1)`);
}

function nonNegative(field: string, value: number): void {
  ensure(value >= 0 && Number.isFinite(value), field, () => `${value} given; accepted is a finite number >= 0`);
}

function positive(field: string, value: number): void {
  ensure(value > 0, field, () => `${value} given; accepted is a number > 0`);
}
