import * as tf from '@tensorflow/tfjs';
import type {
  AnyConfiguredMethod,
  AnyLinearMethod,
  Base,
  ForwardContext,
  Group,
  Site,
  TrainingSchedule,
} from '../contracts/linear-method.ts';
import { ensure, refuse } from '../errors.ts';
import { tidyTree } from '../optim/tree.ts';
import type { Random } from '../tensors/random.ts';
import { denseBase } from './dense-base.ts';
import {
  assign,
  containers,
  type HostLayer,
  type LayerSite,
  type LayerVariable,
  matchesName,
  namedLayers,
} from './sites.ts';

/** Stands for "no adapter" among the adapter names of a mixed batch. */
export const BASE = '__base__';

/** Which biases train along with an adapter. */
export type BiasOption = 'none' | 'all' | 'adapterOnly';

/** A method at one site: its tensors, and the layer weights that hold the trainable ones. */
export interface AttachedSite {
  readonly site: LayerSite;
  // biome-ignore lint/suspicious/noExplicitAny: configurations differ per method.
  readonly config: any;
  /** All tensors by name; trainable ones are the variables of `weights`. */
  readonly tensors: Record<string, tf.Tensor>;
  /** Layer weights this site added to its layer. */
  readonly weights: Record<string, LayerVariable>;
}

/** One named adapter of a model. */
export interface Adapter {
  readonly name: string;
  readonly configured: AnyConfiguredMethod;
  readonly seed: number;
  readonly group: Group;
  readonly bias: BiasOption;
  readonly modulesToSave: readonly string[];
  /**
   * Weights of the layers in `modulesToSave`: this adapter's value while the layer holds another one, null while the
   * layer holds it.
   */
  readonly modules: Map<LayerVariable, tf.Tensor | null>;
  /** Options of the adapter's file that its method does not know; they are stored again. */
  foreign?: Record<string, unknown>;
  readonly sites: Map<string, AttachedSite>;
  /** Tensors that several sites hold. */
  readonly shared: Map<string, tf.Tensor>;
  readonly random: Random;
  /** Layer weights that a schedule has frozen. */
  readonly stopped: Set<LayerVariable>;
  schedule?: TrainingSchedule<string>;
  removeHook?: () => void;
}

/** A layer whose `call` is replaced. */
interface HostedLayer {
  readonly site: LayerSite;
  readonly call: HostLayer['call'];
  /** Kernel and bias from before merging. */
  original?: { kernel: tf.Tensor; bias: tf.Tensor | null };
}

/** What a model carries once something is attached. */
export interface Host {
  readonly model: tf.LayersModel;
  readonly layers: Map<string, HostedLayer>;
  readonly adapters: Map<string, Adapter>;
  active: string[];
  merged: string[];
  disabled: boolean;
  /** Adapter of each row of the batch that is running. */
  rows?: readonly string[];
  /** Observes the inputs of hosted layers during calibration. */
  observe?: (site: LayerSite, x: tf.Tensor) => void;
  /** The model's own weights with their trainable flags from before the first attach. */
  readonly flags: Map<LayerVariable, boolean>;
  readonly layerFlags: Map<{ trainable_: boolean }, boolean>;
  /** Values from before attaching of the model's own weights that some adapter trains. */
  readonly originals: Map<LayerVariable, tf.Tensor>;
  /** The adapter whose value a weight of a module holds now. */
  readonly placed: Map<LayerVariable, Adapter>;
  readonly restore: (() => void)[];
}

const hosts = new WeakMap<object, Host>();

/** The host of a model that has adapters. */
export function hostOf(model: tf.LayersModel): Host {
  return hosts.get(model) ?? refuse('model', 'has no adapters; call attach(model, method, options) first');
}

/** The host of a model, if something is attached. */
export function findHost(model: tf.LayersModel): Host | undefined {
  return hosts.get(model);
}

/** The adapter of that name. */
export function adapterOf(host: Host, name: string): Adapter {
  const names = [...host.adapters.keys()];
  return host.adapters.get(name) ?? refuse('adapter', `there is no adapter "${name}"; attached: ${names.join(', ')}`);
}

/** The model's host, made on first use: from then on layers can be hosted and `model.save` writes the merged model. */
export function openHost(model: tf.LayersModel): Host {
  const existing = hosts.get(model);
  if (existing) return existing;
  buildSequentials(model);
  const flags = new Map<LayerVariable, boolean>();
  const layerFlags = new Map<{ trainable_: boolean }, boolean>();
  for (const { layer } of namedLayers(model)) {
    layerFlags.set(layer, layer.trainable_);
    for (const weight of layer.weights) flags.set(weight, weight.trainable);
  }
  for (const container of containers(model)) layerFlags.set(container, container.trainable_);
  const host: Host = {
    model,
    layers: new Map(),
    adapters: new Map(),
    active: [],
    merged: [],
    disabled: false,
    flags,
    layerFlags,
    originals: new Map(),
    placed: new Map(),
    restore: [],
  };
  hosts.set(model, host);
  return host;
}

/** A Sequential is built at its first use, which marks all of its weights as trainable; that must lie behind us. */
function buildSequentials(model: object): void {
  for (const container of containers(model)) {
    const sequential = container as Partial<tf.Sequential> & { model?: object | null };
    if (sequential.getClassName?.() === 'Sequential' && !sequential.model) sequential.build?.();
  }
}

/** Puts everything back as it was before the first attach. */
export function closeHost(host: Host): void {
  for (const undo of host.restore) undo();
  for (const [weight, trainable] of host.flags) weight.trainable = trainable;
  for (const [owner, trainable] of host.layerFlags) owner.trainable_ = trainable;
  collectTrainable(host);
  hosts.delete(host.model);
}

/** Replaces the layer's `call` by one that runs the active adapters. */
export function hostLayer(host: Host, site: LayerSite): void {
  if (host.layers.has(site.name)) return;
  const { layer } = site;
  const call = layer.call;
  host.layers.set(site.name, { site, call });
  layer.call = (inputs, kwargs) => {
    const x = Array.isArray(inputs) ? inputs[0] : inputs;
    host.observe?.(site, x);
    const names = layersAbove(host, site);
    if (names.length === 0 && !host.rows) return call.call(layer, inputs, kwargs);
    return tf.tidy(() => {
      layer.invokeCallHook(inputs, kwargs);
      const training = Boolean(kwargs?.training);
      const y = host.rows ? mixed(host, site, x, host.rows) : through(host, site, x, names, training);
      return layer.activation ? layer.activation.apply(y) : y;
    });
  };
  host.restore.push(() => {
    // The prototype's method shows again; an instance property of the user's own is put back.
    if (Object.getPrototypeOf(layer).call === call) delete (layer as Partial<HostLayer>).call;
    else layer.call = call;
  });
}

/** Names of the adapters that act at a site now. */
function layersAbove(host: Host, site: Site): string[] {
  if (host.disabled || host.merged.length > 0) return [];
  return host.active.filter((name) => host.adapters.get(name)?.sites.has(site.name));
}

/** x through the layer and the named adapters, before the activation. */
function through(host: Host, site: LayerSite, x: tf.Tensor, names: readonly string[], training: boolean): tf.Tensor {
  const base = stack(host, site, names, training);
  if (site.kind === 'dense') {
    ensure(
      x.shape[x.rank - 1] === site.inDim,
      site.name,
      () => `input has width ${x.shape[x.rank - 1]}, the kernel takes ${site.inDim}`,
    );
    return base.apply(x);
  }
  if (site.kind === 'embedding') {
    const indices = tf.reshape(tf.cast(x, 'int32'), [-1]) as tf.Tensor1D;
    return tf.reshape(base.lookup(indices), [...x.shape, site.outDim]);
  }
  const { strides = [1, 1], padding = 'valid', dilationRate = [1, 1], dataFormat } = site.layer;
  const kernel = tf.reshape(base.kernel, site.weight.read().shape as tf.Tensor4D['shape']) as tf.Tensor4D;
  // As tfjs's own layer does it: not every backend convolves with the channels first.
  const first = dataFormat === 'channelsFirst';
  const image = (first ? tf.transpose(x, [0, 2, 3, 1]) : x) as tf.Tensor4D;
  const product = tf.conv2d(image, kernel, strides, padding, 'NHWC', dilationRate);
  const y = base.bias ? tf.add(product, base.bias) : product;
  return first ? tf.transpose(y, [0, 3, 1, 2]) : y;
}

/** One adapter per row: rows of the same adapter run together and return to their places. */
function mixed(host: Host, site: LayerSite, x: tf.Tensor, rows: readonly string[]): tf.Tensor {
  ensure(x.shape[0] === rows.length, 'adapterNames', () => `has ${rows.length} names for a batch of ${x.shape[0]}`);
  const names = rows.map((name) => (host.adapters.get(name)?.sites.has(site.name) ? name : BASE));
  const groups = groupBy(names);
  const fused = rowwise(host, site, x, names, groups);
  if (fused) return fused;
  if (groups.size === 1) return through(host, site, x, names[0] === BASE ? [] : [names[0]], false);
  const parts = [...groups].map(([name, indices]) =>
    through(host, site, tf.gather(x, indices), name === BASE ? [] : [name], false),
  );
  return tf.gather(tf.concat(parts, 0), inverse([...groups.values()].flat()));
}

/** The whole mixed batch in one pass, for methods whose `forward` takes one set of tensors per row. */
function rowwise(
  host: Host,
  site: LayerSite,
  x: tf.Tensor,
  names: string[],
  groups: Map<string, number[]>,
): tf.Tensor | undefined {
  const attached = [...groups.keys()].map((name) => host.adapters.get(name));
  const first = attached[0];
  if (!first || site.kind !== 'dense' || !first.configured.method.rowwise) return undefined;
  const place = first.sites.get(site.name) as AttachedSite;
  const config = JSON.stringify(place.config);
  const alike = attached.every(
    (adapter) =>
      adapter?.configured.method === first.configured.method &&
      JSON.stringify(adapter?.sites.get(site.name)?.config) === config,
  );
  if (!alike) return undefined;
  const order = [...groups.keys()];
  const index = tf.tensor1d(
    names.map((name) => order.indexOf(name)),
    'int32',
  );
  const tensors = Object.fromEntries(
    Object.keys(place.tensors).map((key) => {
      const stacked = tf.stack(
        order.map((name) => host.adapters.get(name)?.sites.get(site.name)?.tensors[key] as tf.Tensor),
      );
      const perRow = tf.gather(stacked, index);
      const between = Array.from({ length: x.rank - 2 }, () => 1);
      return [key, tf.reshape(perRow, [x.shape[0], ...between, ...stacked.shape.slice(1)])];
    }),
  );
  return first.configured.method.forward(x, tensors, forwardContext(first, place, layerBase(host, site), false));
}

function groupBy(names: readonly string[]): Map<string, number[]> {
  const groups = new Map<string, number[]>();
  names.forEach((name, row) => {
    const rows = groups.get(name);
    if (rows) rows.push(row);
    else groups.set(name, [row]);
  });
  return groups;
}

function inverse(permutation: number[]): number[] {
  const result = new Array<number>(permutation.length);
  permutation.forEach((from, to) => {
    result[from] = to;
  });
  return result;
}

/** The map made by the layer and the named adapters in order. */
export function stack(host: Host, site: LayerSite, names: readonly string[], training: boolean): Base {
  return names.reduce<Base>(
    (base, name) => {
      const adapter = adapterOf(host, name);
      const attached = adapter.sites.get(site.name);
      return attached ? over(base, adapter, attached, training) : base;
    },
    layerBase(host, site),
  );
}

/** Kernel and bias of a site with the named adapters, as new tensors. */
export function effective(
  host: Host,
  site: LayerSite,
  names: readonly string[],
): { kernel: tf.Tensor2D; bias: tf.Tensor1D | null } {
  return tidyTree(() => {
    const { kernel, bias } = stack(host, site, names, false);
    return { kernel: tf.clone(kernel), bias: bias && tf.clone(bias) };
  });
}

/** The layer's own map, as it was before merging. */
function layerBase(host: Host, site: LayerSite): Base {
  const original = host.layers.get(site.name)?.original;
  const kernel = tf.reshape(original?.kernel ?? site.weight.read(), [site.inDim, site.outDim]) as tf.Tensor2D;
  const bias = (original ? original.bias : (site.layer.bias?.read() ?? null)) as tf.Tensor1D | null;
  return denseBase(kernel, bias);
}

/** The map of an adapter on top of `base`. */
function over(base: Base, adapter: Adapter, attached: AttachedSite, training: boolean): Base {
  const { method } = adapter.configured;
  const context = forwardContext(adapter, attached, base, training);
  const dense = () => denseForm(method, attached, context);
  const apply = (x: tf.Tensor) => method.forward(x, attached.tensors, context);
  // A linear map's bias is its value at zero: no dense kernel is formed to find it.
  const offset = () => tf.reshape(apply(tf.zeros([1, attached.site.inDim])), [attached.site.outDim]) as tf.Tensor1D;
  return {
    get kernel() {
      return dense().kernel;
    },
    get bias() {
      return isMergeable(method, attached.config) ? dense().bias : offset();
    },
    apply,
    linear: (x) => tf.sub(apply(x), offset()),
    lookup: (indices) =>
      method.lookup
        ? method.lookup(indices, attached.tensors, context)
        : refuse(attached.site.name, `${method.info.id} cannot be applied to an embedding`),
  };
}

/** Kernel and bias of a method at a site. */
export function denseForm(
  method: AnyLinearMethod,
  attached: { tensors: Record<string, tf.Tensor>; site: Site; config: unknown },
  context: ForwardContext<unknown>,
): { kernel: tf.Tensor2D; bias: tf.Tensor1D | null } {
  if (!isMergeable(method, attached.config)) {
    refuse(attached.site.name, `${method.info.id} is not mergeable: it has no dense kernel in this configuration`);
  }
  const form = method.kernel?.(attached.tensors, context) as
    | tf.Tensor2D
    | { kernel: tf.Tensor2D; bias: tf.Tensor1D | null };
  return form instanceof tf.Tensor ? { kernel: form, bias: context.base.bias } : form;
}

/** Refuses a bias that the layer has no place for. */
export function requireBias({ site, bias }: { site: LayerSite; bias: tf.Tensor1D | null }): void {
  ensure(
    !bias || site.layer.bias,
    site.name,
    () => 'the adapter has a bias and the layer has none, so it cannot be merged; give the layer a bias (useBias)',
  );
}

/** True when the method has a dense kernel in this configuration. */
export function isMergeable(method: AnyLinearMethod, config: unknown): boolean {
  return Boolean(method.kernel) && (method.mergeable?.(config) ?? true);
}

/** What `forward` of an attached site is given. */
export function forwardContext(
  adapter: Adapter,
  attached: AttachedSite,
  base: Base,
  training: boolean,
): ForwardContext<unknown> {
  const rate: number = attached.config.dropout ?? 0;
  return {
    config: attached.config,
    base,
    site: attached.site,
    training,
    dropout: (x) => (training && rate > 0 ? tf.dropout(x, rate, undefined, adapter.random.integer(2 ** 31)) : x),
  };
}

/**
 * Marks what trains: the active adapters' own tensors, biases and modules as their options say, the whole model where
 * an active method trains it. A compiled model is told, so that switching needs no new compile.
 */
export function markTrainable(host: Host): void {
  const active = host.active.map((name) => adapterOf(host, name));
  const wholeModel = active.some(({ configured }) => configured.method.trains === 'model');
  placeModules(host);
  for (const { name, layer } of namedLayers(host.model)) {
    const adapted = active.some((adapter) => adapter.sites.has(name));
    const saved = active.some(({ modulesToSave }) => modulesToSave.some((module) => matchesName(name, module)));
    const replaced = active.some(({ sites, configured }) => sites.has(name) && configured.method.trains === 'model');
    const hosted = host.layers.get(name)?.site.weight;
    for (const weight of layer.weights) {
      const ownFlag = host.flags.get(weight);
      // Running means and the like never train.
      if (ownFlag === undefined || layer._nonTrainableWeights.includes(weight)) continue;
      const flag = ownFlag && host.layerFlags.get(layer) !== false;
      const isBias = weight === layer.bias;
      const byBias = isBias && active.some(({ bias }) => bias === 'all' || (bias === 'adapterOnly' && adapted));
      weight.trainable = byBias || saved || (wholeModel && flag && !(replaced && weight === hosted));
    }
    if (adapted || saved) layer.trainable_ = true;
    else if (layer.bias && active.some(({ bias }) => bias === 'all')) layer.trainable_ = true;
  }
  for (const container of containers(host.model)) container.trainable_ = true;
  for (const adapter of host.adapters.values()) {
    const isActive = host.active.includes(adapter.name);
    for (const { weights } of adapter.sites.values()) {
      for (const weight of Object.values(weights)) weight.trainable = isActive && !adapter.stopped.has(weight);
    }
  }
  collectTrainable(host);
}

/**
 * Puts the value of the acting adapter into every weight of a module that adapters train in full, or the model's own
 * where none of them acts.
 *
 * @param acting names of the adapters; default those that run now.
 */
export function placeModules(
  host: Host,
  acting = host.merged.length > 0 ? host.merged : host.disabled ? [] : host.active,
): void {
  for (const [weight, original] of host.originals) {
    const owners = acting.map((name) => adapterOf(host, name)).filter(({ modules }) => modules.has(weight));
    const [now, next] = [host.placed.get(weight), owners.at(-1)];
    if (now === next) continue;
    now?.modules.set(weight, tf.keep(tf.clone(weight.read())));
    const value = next?.modules.get(weight);
    if (value) assign(weight, value);
    else weight.write(original);
    if (next) {
      next.modules.set(weight, null);
      host.placed.set(weight, next);
    } else host.placed.delete(weight);
  }
}

interface Compiled {
  collectedTrainableWeights?: LayerVariable[];
  trainableWeights: LayerVariable[];
  /** The functional model inside a Sequential, which is the one that is compiled. */
  model?: Compiled;
}

/** A compiled tfjs model trains the list it collected at compile time; this renews it. */
function collectTrainable({ model }: Host): void {
  const outer = model as unknown as Compiled;
  for (const compiled of [outer, outer.model]) {
    if (compiled?.collectedTrainableWeights) compiled.collectedTrainableWeights = compiled.trainableWeights;
  }
}
