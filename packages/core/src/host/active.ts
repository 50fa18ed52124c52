import * as tf from '@tensorflow/tfjs';
import { ensure } from '../errors.ts';
import { heldTensor, setTensor } from './attach.ts';
import { adapterOf, BASE, effective, type Host, hostOf, markTrainable, placeModules } from './host.ts';
import { merge, unmerge } from './merge.ts';

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

/**
 * Runs `body` with the base model alone and returns its value; for a promise, until it is settled. Merged adapters are
 * unmerged for that time. Biases that an adapter trains keep their trained values.
 */
export function disable<T>(model: tf.LayersModel, body: () => T): T {
  const host = hostOf(model);
  const { merged, disabled } = host;
  if (merged.length > 0) unmerge(model);
  const set = (value: boolean) => {
    host.disabled = value;
    placeModules(host);
  };
  const restore = () => {
    set(disabled);
    // What was written before may be written again: the merged kernels come out the same.
    if (merged.length > 0) merge(model, merged, { safe: false });
  };
  set(true);
  let result: T;
  try {
    result = body();
  } catch (error) {
    restore();
    throw error;
  }
  // Not instanceof: promises may come from another realm.
  const promise = result as Partial<Promise<unknown>> | undefined;
  if (typeof promise?.then === 'function') return Promise.resolve(result).finally(restore) as T;
  restore();
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
  const acting = new Set([...host.active, ...adapterNames].filter((name) => name !== BASE));
  const own = [...acting].some((name) => adapterOf(host, name).modules.size > 0);
  return own ? predictApart(host, x, adapterNames) : predictRows(host, x, adapterNames);
}

function predictRows(host: Host, x: tf.Tensor | tf.Tensor[], rows: readonly string[]): tf.Tensor | tf.Tensor[] {
  host.rows = rows;
  try {
    return host.model.predictOnBatch(x);
  } finally {
    host.rows = undefined;
  }
}

/** Adapters that bring modules of their own run one after the other over their rows. */
function predictApart(
  host: Host,
  x: tf.Tensor | tf.Tensor[],
  adapterNames: readonly string[],
): tf.Tensor | tf.Tensor[] {
  const names = [...new Set(adapterNames)];
  const rowsOf = (name: string) => adapterNames.flatMap((other, row) => (other === name ? [row] : []));
  const order = names.flatMap(rowsOf);
  const back = adapterNames.map((_, row) => order.indexOf(row));
  try {
    return tf.tidy(() => {
      const parts = names.map((name) => {
        const pick = (input: tf.Tensor) => tf.gather(input, rowsOf(name));
        placeModules(host, name === BASE ? [] : [name]);
        const rows = rowsOf(name).map(() => name);
        const y = predictRows(host, Array.isArray(x) ? x.map(pick) : pick(x), rows);
        return Array.isArray(y) ? y : [y];
      });
      const outputs = parts[0].map((_, i) =>
        tf.gather(
          tf.concat(
            parts.map((part) => part[i]),
            0,
          ),
          back,
        ),
      );
      return outputs.length === 1 ? outputs[0] : outputs;
    });
  } finally {
    placeModules(host);
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
    trainable: sum(once(model.trainableWeights).map(({ size }) => size)),
    total: sum([...once(model.weights), ...frozen].map(({ size }) => size)),
    adapters: Object.fromEntries(list(model).map(({ name, trainable }) => [name, trainable])),
  };
}

/** The variables of weights; tfjs lists a layer's weights once per model that holds the layer. */
function once(weights: readonly { read(): tf.Tensor }[]): tf.Tensor[] {
  return [...new Set(weights.map((weight) => weight.read()))];
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
 * @throws MatforgeError for an unknown adapter, layer or tensor, or another shape; nothing is replaced then.
 */
export function setAdapterTensors(
  model: tf.LayersModel,
  name: string,
  values: Record<string, Record<string, tf.Tensor>>,
): void {
  const adapter = adapterOf(hostOf(model), name);
  const entries = Object.entries(values).flatMap(([site, tensors]) =>
    Object.entries(tensors).map(([tensor, value]) => ({ site, tensor, value })),
  );
  for (const { site, tensor, value } of entries) heldTensor(adapter, site, tensor, value);
  for (const { site, tensor, value } of entries) setTensor(adapter, site, tensor, tf.clone(value));
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
