import * as tf from '@tensorflow/tfjs';
import { ensure } from '../errors.ts';
import { setTensor } from './attach.ts';
import { adapterOf, BASE, effective, hostOf, markTrainable } from './host.ts';

/**
 * Chooses which adapters act. Costs no recompilation; a compiled model trains the new choice from its next step on.
 * Additive methods add up, multiplicative ones apply in the given order; `[]` runs the base model.
 *
 * @throws MatforgeError for an unknown name (lists the attached ones) or while adapters are merged.
 */
export function setActive<M extends tf.LayersModel>(model: M, names: string | readonly string[]): M {
  const host = hostOf(model);
  const chosen = typeof names === 'string' ? [names] : [...names];
  for (const name of chosen) adapterOf(host, name);
  ensure(new Set(chosen).size === chosen.length, 'names', () => `lists an adapter twice: ${chosen.join(', ')}`);
  ensure(host.merged.length === 0, 'model', () => `has merged adapters (${host.merged.join(', ')}); unmerge first`);
  host.active = chosen;
  markTrainable(host);
  return model;
}

/** Runs `body` with the base model alone and returns its value. */
export function disable<T>(model: tf.LayersModel, body: () => T): T {
  const host = hostOf(model);
  ensure(host.merged.length === 0, 'model', () => `has merged adapters (${host.merged.join(', ')}); unmerge first`);
  host.disabled = true;
  let result: T;
  try {
    result = body();
  } catch (error) {
    host.disabled = false;
    throw error;
  }
  if (result instanceof Promise) {
    return result.finally(() => {
      host.disabled = false;
    }) as T;
  }
  host.disabled = false;
  return result;
}

/**
 * Predicts a batch whose rows use different adapters.
 *
 * @param adapterNames the adapter of each row; `'__base__'` for none. Length = batch.
 * @returns the model's output, equal to running each row with its own adapter.
 */
export function predictMixed(
  model: tf.LayersModel,
  x: tf.Tensor | tf.Tensor[],
  adapterNames: readonly string[],
): tf.Tensor | tf.Tensor[] {
  const host = hostOf(model);
  const batch = (Array.isArray(x) ? x[0] : x).shape[0];
  ensure(
    adapterNames.length === batch,
    'adapterNames',
    () => `has ${adapterNames.length} names for a batch of ${batch}`,
  );
  ensure(host.merged.length === 0, 'model', () => `has merged adapters (${host.merged.join(', ')}); unmerge first`);
  for (const name of adapterNames) if (name !== BASE) adapterOf(host, name);
  host.rows = adapterNames;
  try {
    return model.predictOnBatch(x);
  } finally {
    host.rows = undefined;
  }
}

/** What is attached to a model. */
export interface AdapterSummary {
  readonly name: string;
  readonly method: string;
  readonly active: boolean;
  readonly merged: boolean;
  /** Names of the adapted layers. */
  readonly sites: readonly string[];
  /** Numbers that training moves now. */
  readonly trainable: number;
}

/** The adapters of a model, in the order of attaching. */
export function list(model: tf.LayersModel): AdapterSummary[] {
  const host = hostOf(model);
  return [...host.adapters.values()].map(({ name, configured, sites, stopped }) => ({
    name,
    method: configured.method.info.id,
    active: host.active.includes(name),
    merged: host.merged.includes(name),
    sites: [...sites.keys()],
    trainable: sum(
      [...sites.values()].flatMap(({ weights }) =>
        Object.values(weights)
          .filter((weight) => !stopped.has(weight))
          .map((weight) => weight.read().size),
      ),
    ),
  }));
}

/** Parameter counts of a model. */
export interface Counts {
  /** Numbers that the next training step moves: adapter tensors, and biases or modules that train along. */
  readonly trainable: number;
  /** All numbers of the model, adapters included, shared tensors once. */
  readonly total: number;
  /** Trainable numbers per adapter, active or not. */
  readonly adapters: Readonly<Record<string, number>>;
}

/** Counts what a model with adapters trains and holds. */
export function count(model: tf.LayersModel): Counts {
  const host = hostOf(model);
  const frozen = new Set<tf.Tensor>();
  for (const { sites } of host.adapters.values()) {
    for (const { tensors, weights } of sites.values()) {
      for (const [key, tensor] of Object.entries(tensors))
        if (!weights[key] && !(tensor instanceof tf.Variable)) frozen.add(tensor);
    }
  }
  return {
    trainable: sum(model.trainableWeights.map((weight) => weight.read().size)),
    total: sum(model.weights.map((weight) => weight.read().size)) + sum([...frozen].map(({ size }) => size)),
    adapters: Object.fromEntries(list(model).map(({ name, trainable }) => [name, trainable])),
  };
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

/** Tensors of an adapter by layer and name. They are the adapter's own: read them, dispose nothing. */
export function adapterTensors(model: tf.LayersModel, name: string): Record<string, Record<string, tf.Tensor>> {
  const { sites } = adapterOf(hostOf(model), name);
  return Object.fromEntries([...sites].map(([site, { tensors }]) => [site, { ...tensors }]));
}

/**
 * Replaces tensors of an adapter, by layer and name. The values are copied.
 *
 * @throws MatforgeError for an unknown adapter, layer or tensor, or another shape.
 */
export function setAdapterTensors(
  model: tf.LayersModel,
  name: string,
  values: Record<string, Record<string, tf.Tensor>>,
): void {
  const adapter = adapterOf(hostOf(model), name);
  for (const [site, tensors] of Object.entries(values)) {
    for (const [tensor, value] of Object.entries(tensors)) setTensor(adapter, site, tensor, tf.clone(value));
  }
}

/**
 * What an adapter adds to the kernels of its layers, `[in, out]` each, as new tensors.
 *
 * @throws MatforgeError when the method has no dense kernel.
 */
export function deltas(model: tf.LayersModel, name: string): Record<string, tf.Tensor2D> {
  const host = hostOf(model);
  const { sites } = adapterOf(host, name);
  return Object.fromEntries(
    [...sites.values()].map(({ site }) => {
      const [before, after] = [[], [name]].map((names) => effective(host, site, names));
      const delta = tf.sub(after.kernel, before.kernel) as tf.Tensor2D;
      tf.dispose([before, after].flatMap(({ kernel, bias }) => (bias ? [kernel, bias] : [kernel])));
      return [site.name, delta];
    }),
  );
}
