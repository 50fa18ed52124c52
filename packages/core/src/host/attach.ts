import * as tf from '@tensorflow/tfjs';
import { during } from '../blocking.ts';
import type {
  AnyConfiguredMethod,
  AnyLinearMethod,
  Group,
  InitContext,
  PlannedSite,
  Site,
  SitePlan,
  StepInfo,
  TensorSpec,
} from '../contracts/linear-method.ts';
import { ensure, ensureKnown, refuse } from '../errors.ts';
import { tidyTree } from '../optim/tree.ts';
import { random } from '../tensors/random.ts';
import { type Calibration, calibrate, type SiteStatistics } from './calibrate.ts';
import { addGradientHook, type GradientHook } from './hooks.ts';
import {
  type Adapter,
  type AttachedSite,
  BASE,
  type BiasOption,
  closeHost,
  forwardContext,
  type Host,
  hostLayer,
  hostOf,
  isMergeable,
  markTrainable,
  openHost,
  placeModules,
  stack,
} from './host.ts';
import { runHooksInOptimizer } from './optimizer-hooks.ts';
import { saveMerged } from './saved-model.ts';
import {
  assign,
  ensureModel,
  type LayerSite,
  type LayerVariable,
  matchesName,
  namedLayers,
  nearest,
  selectSites,
  type Targets,
} from './sites.ts';

/** Options of {@link attach}. */
export interface AttachOptions {
  /**
   * Which layers: names (exact or dotted suffix), a pattern (a string matches the full name, a RegExp anywhere in it),
   * `'all-linear'` (every dense layer but an `lm_head`), or a predicate. Default `'all-linear'`.
   */
  targets?: Targets;
  /** Layers to leave out; wins over `targets`. */
  exclude?: Targets;
  /** Name of the adapter, for switching and files. Default `'default'`. */
  name?: string;
  /** Seed of everything random. Default 0. */
  seed?: number;
  /** Data for methods that need activations or gradients. */
  calibration?: Calibration;
  /**
   * Biases that train along: none (default), all of the model's, or those of the adapted layers. They are trained in
   * place: disabling the adapter does not restore them, detaching it does. One adapter of a model may train biases.
   */
  bias?: BiasOption;
  /**
   * Layers, by exact name or dotted suffix, that are not adapted but train in full, e.g. a new classifier head. Their
   * values belong to the adapter: they are stored, switched and removed with it.
   */
  modulesToSave?: readonly string[];
}

const OPTIONS = Object.keys({
  targets: true,
  exclude: true,
  name: true,
  seed: true,
  calibration: true,
  bias: true,
  modulesToSave: true,
} satisfies Record<keyof AttachOptions, true>);

/**
 * Attaches a method to layers of a model and makes it the active adapter.
 *
 * The model is changed in place and returned: its layers' `call` runs the method, the method's trainable tensors are
 * weights of the layers, everything else is frozen as the method says. `compile`, `fit`, `predict`, `summary` and
 * callbacks work as before.
 *
 * @throws MatforgeError for targets that match nothing (lists the candidates), a name in use, a configuration that a
 *   layer does not fit, missing calibration data, or kernels with values that are not finite. The model is then as before.
 */
export async function attach<M extends tf.LayersModel>(
  model: M,
  configured: AnyConfiguredMethod,
  options: AttachOptions = {},
): Promise<M> {
  return attachWith(model, configured, options);
}

/** Values that take the place of a method's start values, e.g. from a file. */
export type Provide = (site: LayerSite, tensor: string, spec: TensorSpec) => tf.Tensor | undefined;

/** {@link attach} with start values from elsewhere: with `provide`, neither `init` nor calibration runs. */
export async function attachWith<M extends tf.LayersModel>(
  model: M,
  configured: AnyConfiguredMethod,
  options: AttachOptions,
  provide?: Provide,
): Promise<M> {
  ensureModel(model);
  ensureKnown('attach', options, OPTIONS);
  const {
    targets = 'all-linear',
    exclude,
    name = 'default',
    seed = 0,
    calibration,
    bias = 'none',
    modulesToSave = [],
  } = options;
  const { method, config } = configured ?? {};
  ensure(
    method?.contract === 'linear',
    'method',
    () => 'is not a configured linear method; pass for example lora({ rank: 8 })',
  );
  ensure(
    name !== BASE && /^[A-Za-z0-9][-A-Za-z0-9_.]*$/.test(name),
    'name',
    () => `"${name}" is not an adapter name; use letters, digits, "-", "_" and "."`,
  );
  const modules = selectModules(model, modulesToSave);
  const sites = selectSites(model, targets, exclude).filter(({ name }) => !modules.has(name));
  ensure(sites.length > 0, 'modulesToSave', () => 'holds every layer of targets; leave a layer to adapt');
  const group: Group = {
    sites,
    maxIn: Math.max(...sites.map(({ inDim }) => inDim)),
    maxOut: Math.max(...sites.map(({ outDim }) => outDim)),
  };
  for (const site of sites) {
    if (site.kind === 'embedding' && !method.lookup)
      refuse(site.name, `${method.info.id} cannot be applied to an embedding; exclude it`);
    if (site.kind === 'embedding' && method.needs?.includes('activations') && !provide)
      refuse(site.name, `${method.info.id} needs activations, which an embedding does not have; exclude it`);
    if (site.kind === 'conv2d' && !isMergeable(method, config))
      refuse(site.name, `${method.info.id} cannot be applied to a convolution in this configuration; exclude it`);
    ensure(
      during(`attach(${method.info.id})`, () => finite(site.weight.read())),
      site.name,
      () => 'the kernel has values that are not finite; repair the checkpoint first',
    );
  }

  const host = openHost(model);
  ensure(
    !host.adapters.has(name),
    'name',
    () => `an adapter "${name}" is attached already; choose another name or detach it`,
  );
  ensure(host.merged.length === 0, 'model', () => `has merged adapters (${host.merged.join(', ')}); unmerge first`);
  const rival = bias === 'none' ? undefined : [...host.adapters.values()].find((other) => other.bias !== 'none');
  ensure(!rival, 'bias', () => `adapter "${rival?.name}" trains biases already; only one adapter of a model may`);
  for (const other of host.adapters.values()) {
    if (other.configured.method === method)
      method.coexist?.({ config, group }, { config: other.configured.config, group: other.group });
  }
  for (const site of sites) hostLayer(host, site);
  let statistics = new Map<string, SiteStatistics>();
  const adapter: Adapter = {
    name,
    configured,
    seed,
    group,
    bias,
    modulesToSave,
    modules: new Map(),
    sites: new Map(),
    shared: new Map(),
    random: random(seed).fork('dropout'),
    stopped: new Set(),
  };
  try {
    if (method.needs?.length && !provide) {
      const data =
        calibration ??
        refuse('calibration', `is missing: ${method.info.id} needs ${method.needs.join(' and ')} of every layer`);
      const statistic = (x: tf.Tensor2D, site: Site) =>
        method.statistic?.(x, config, site) ?? (tf.matMul(x, x, true) as tf.Tensor2D);
      statistics = await calibrate(host, sites, method.needs, data, statistic);
    }
    during(`attach(${method.info.id})`, () => makeTensors(adapter, sites, group, statistics, provide));
  } catch (error) {
    removeAdapter(host, adapter);
    if (host.adapters.size === 0) closeHost(host);
    throw error;
  } finally {
    tf.dispose([...statistics.values()].flatMap((entry) => Object.values(entry)));
  }
  if (host.adapters.size === 0) {
    saveMerged(host);
    runHooksInOptimizer(host);
  }
  host.adapters.set(name, adapter);
  host.active = [name];
  keepOriginals(host, adapter);
  addPenalty(host, adapter);
  startSchedule(host, adapter);
  markTrainable(host);
  return model;
}

/** The layers that an adapter trains in full, by name. */
function selectModules(model: tf.LayersModel, modulesToSave: readonly string[]): Set<string> {
  const names = namedLayers(model).map(({ name }) => name);
  for (const module of modulesToSave) {
    ensure(
      names.some((name) => matchesName(name, module)),
      'modulesToSave',
      () => `no layer is named "${module}"${nearest(module, names)} Candidates: ${names.join(', ')}`,
    );
  }
  return new Set(names.filter((name) => modulesToSave.some((module) => matchesName(name, module))));
}

/** Remembers the model's own weights that the adapter trains; its modules start from the model's values. */
function keepOriginals(host: Host, adapter: Adapter): void {
  const modules = selectModules(host.model, adapter.modulesToSave);
  for (const { name, layer } of namedLayers(host.model)) {
    if (modules.has(name)) {
      for (const weight of layer.weights.filter((candidate) => host.flags.has(candidate))) {
        const original = keepOriginal(host, weight);
        adapter.modules.set(weight, tf.keep(tf.clone(original)));
      }
    } else if (layer.bias && (adapter.bias === 'all' || (adapter.bias === 'adapterOnly' && adapter.sites.has(name)))) {
      keepOriginal(host, layer.bias);
    }
  }
}

function keepOriginal(host: Host, weight: LayerVariable): tf.Tensor {
  const original = host.originals.get(weight) ?? tf.keep(tf.clone(weight.read()));
  host.originals.set(weight, original);
  return original;
}

/** Plans, checks and makes every tensor; nothing stays behind when a site refuses. */
function makeTensors(
  adapter: Adapter,
  sites: readonly LayerSite[],
  group: Group,
  statistics: Map<string, SiteStatistics>,
  provide: Provide | undefined,
): void {
  const { method, config } = adapter.configured;
  const source = random(adapter.seed);
  const plans: Record<string, SitePlan<object>> = tidyTree(
    () =>
      method.plan?.(
        sites.map((site) => planned(site, statistics.get(site.name))),
        config,
        source.fork('plan'),
      ) ?? {},
  );
  try {
    const configs = new Map(sites.map(({ name }) => [name, { ...config, ...plans[name]?.config }]));
    for (const site of sites) method.validate?.(site, configs.get(site.name));
    for (const site of sites) {
      const siteConfig = configs.get(site.name);
      const { inDim, outDim } = site;
      const specs = declared(method.tensors({ inDim, outDim, config: siteConfig, site, group }));
      const made = tf.tidy(() => {
        const context: InitContext<object> = {
          ...planned(site, statistics.get(site.name)),
          site,
          group,
          config: siteConfig,
          random: source.fork(site.name),
          data: plans[site.name]?.data ?? {},
        };
        const given = provide ? (key: string) => provide(site, key, specs[key]) : asLookup(method.init?.(context));
        return makeSite(method, specs, adapter, context, given);
      });
      adapter.sites.set(site.name, hold(adapter, site, siteConfig, specs, made));
    }
  } finally {
    tf.dispose(Object.values(plans).flatMap(({ data }) => Object.values(data ?? {})));
  }
}

function planned(site: LayerSite, statistics: SiteStatistics | undefined): PlannedSite {
  const { name, kind, inDim, outDim, weight, layer } = site;
  const kernel = tf.reshape(weight.read(), [inDim, outDim]) as tf.Tensor2D;
  return {
    name,
    kind,
    inDim,
    outDim,
    kernel,
    bias: (layer.bias?.read() as tf.Tensor1D | undefined) ?? null,
    ...statistics,
  };
}

/** The declarations without the tensors that a configuration leaves out. */
export function declared(specs: Partial<Record<string, TensorSpec>>): Record<string, TensorSpec> {
  return Object.fromEntries(
    Object.entries(specs).filter((entry): entry is [string, TensorSpec] => entry[1] !== undefined),
  );
}

function asLookup(values: Partial<Record<string, tf.Tensor>> = {}): (key: string) => tf.Tensor | undefined {
  return (key) => values[key];
}

/** The start values of one site, checked against their declarations. */
export function makeSite(
  method: AnyLinearMethod,
  specs: Record<string, TensorSpec>,
  adapter: Pick<Adapter, 'seed' | 'shared'>,
  context: InitContext<object>,
  given: (key: string) => tf.Tensor | undefined,
): Record<string, tf.Tensor> {
  return Object.fromEntries(
    Object.entries(specs).map(([key, spec]) => {
      const where = `${context.site.name}.${key}`;
      const held = spec.shared === undefined ? undefined : adapter.shared.get(spec.shared);
      // Shared tensors draw from the adapter's seed, not the site's, so that the order of sites does not matter.
      const stream =
        spec.shared === undefined ? context.random.fork(key) : random(adapter.seed).fork(`shared/${spec.shared}`);
      const value =
        held ??
        given(key) ??
        spec.initializer?.(spec.shape, stream) ??
        refuse(where, `${method.info.id} gives this tensor no start value`);
      ensure(
        value.shape.length === spec.shape.length && value.shape.every((size, axis) => size === spec.shape[axis]),
        where,
        () => `has shape [${value.shape}], but [${spec.shape}] is needed`,
      );
      // A start value may alias the kernel or serve twice; what is kept must be the site's own.
      return [key, held ?? tf.clone(value)];
    }),
  );
}

/** Trainable tensors become weights of the layer, the others are kept beside it. */
function hold(
  adapter: Adapter,
  site: LayerSite,
  config: object,
  specs: Record<string, TensorSpec>,
  made: Record<string, tf.Tensor>,
): AttachedSite {
  const weights: Record<string, LayerVariable> = {};
  const tensors: Record<string, tf.Tensor> = {};
  for (const [key, spec] of Object.entries(specs)) {
    const held = spec.shared === undefined ? undefined : adapter.shared.get(spec.shared);
    if (held) {
      tensors[key] = held;
      continue;
    }
    if (spec.role === 'trainable') {
      // Layers of a loaded model put zeros in the place of every initializer.
      site.layer.setFastWeightInitDuringBuild(false);
      const weight = site.layer.addWeight(`${adapter.name}/${key}`, spec.shape, 'float32', { apply: () => made[key] });
      weights[key] = weight;
      tensors[key] = weight.read();
    } else {
      tensors[key] = tf.keep(made[key]);
    }
    if (spec.shared !== undefined) adapter.shared.set(spec.shared, tensors[key]);
  }
  return { site, config, tensors, weights };
}

function addPenalty(host: Host, adapter: Adapter): void {
  const { method } = adapter.configured;
  const { penalty } = method;
  if (!penalty) return;
  const [{ site }] = adapter.sites.values();
  const loss = () =>
    tf.tidy(() => {
      if (!host.active.includes(adapter.name)) return tf.scalar(0);
      const terms = [...adapter.sites.values()].map((attached) =>
        penalty(attached.tensors, forwardContext(adapter, attached, stack(host, attached.site, [], true), true)),
      );
      return tf.addN(terms) as tf.Scalar;
    });
  site.layer._losses.push(loss);
  const { removeHook } = adapter;
  adapter.removeHook = () => {
    removeHook?.();
    site.layer._losses.splice(site.layer._losses.indexOf(loss), 1);
  };
}

/** What a checkpoint holds of a schedule. */
interface ScheduleState {
  /** Places of the frozen weights among all of the adapter's. */
  readonly stopped: readonly number[];
  readonly assigned?: readonly { readonly site: string; readonly tensor: string; readonly value: tf.Tensor }[];
  readonly own: unknown;
}

function startSchedule(host: Host, adapter: Adapter): void {
  const { method, config } = adapter.configured;
  if (!method.schedule) return;
  const sites = [...adapter.sites.values()];
  const schedule = method.schedule(sites, config);
  adapter.schedule = schedule;
  const assigned = new Map<string, { site: string; tensor: string }>();
  const hook: GradientHook = (gradients, { step, totalSteps }) => {
    if (!host.active.includes(adapter.name)) return;
    const info: StepInfo<string> = {
      step,
      totalSteps,
      gradient: (site, tensor) => {
        const weight = adapter.sites.get(site)?.weights[tensor];
        return weight && !adapter.stopped.has(weight) ? (gradients[weight.read().name] ?? null) : null;
      },
    };
    const decision = during(`${method.info.id}.onStep`, () => schedule.onStep(info));
    if (!decision) return;
    const weightOf = ({ site, tensor }: { site: string; tensor: string }) =>
      adapter.sites.get(site)?.weights[tensor] ??
      refuse(`${site}.${tensor}`, 'is not a trainable tensor of the adapter');
    for (const reference of decision.freeze ?? []) {
      const weight = weightOf(reference);
      adapter.stopped.add(weight);
      weight.trainable = false;
      gradients[weight.read().name] = null;
    }
    const before = (decision.masks ?? []).map((entry) => ({
      weight: weightOf(entry),
      mask: entry.mask,
      value: tf.clone(weightOf(entry).read()),
    }));
    return () => {
      for (const { weight, mask, value } of before) {
        assign(
          weight,
          tf.tidy(() => tf.add(tf.mul(weight.read(), mask), tf.mul(value, tf.sub(1, mask)))),
        );
        value.dispose();
        mask.dispose();
      }
      for (const { site, tensor, value } of decision.assign ?? []) {
        setTensor(adapter, site, tensor, value);
        // Trained tensors are in a checkpoint anyway; what a schedule assigned beside them must come along.
        if (!adapter.sites.get(site)?.weights[tensor]) assigned.set(`${site}/${tensor}`, { site, tensor });
      }
    };
  };
  const held = () => [...adapter.sites.values()].flatMap(({ weights }) => Object.values(weights));
  hook.state = () => ({
    stopped: held().flatMap((weight, place) => (adapter.stopped.has(weight) ? [place] : [])),
    assigned: [...assigned.values()].map(({ site, tensor }) => ({
      site,
      tensor,
      value: tf.clone(adapter.sites.get(site)?.tensors[tensor] as tf.Tensor),
    })),
    own: schedule.state?.() ?? null,
  });
  hook.restore = (state) => {
    const { stopped, own, ...rest } = state as ScheduleState;
    adapter.stopped.clear();
    for (const place of stopped) adapter.stopped.add(held()[place]);
    for (const { site, tensor, value } of rest.assigned ?? []) {
      setTensor(adapter, site, tensor, tf.clone(value));
      assigned.set(`${site}/${tensor}`, { site, tensor });
    }
    if (own !== null) schedule.restore?.(own);
    markTrainable(host);
  };
  const remove = addGradientHook(host.model, hook);
  const { removeHook } = adapter;
  adapter.removeHook = () => {
    removeHook?.();
    remove();
    schedule.dispose?.();
  };
}

/** The tensor of an adapter that `value` may replace. */
export function heldTensor(adapter: Adapter, site: string, tensor: string, value: tf.Tensor): tf.Tensor {
  const where = `${adapter.name}.${site}.${tensor}`;
  const { tensors } =
    adapter.sites.get(site) ??
    refuse(where, `the adapter has no layer "${site}"; it has ${[...adapter.sites.keys()].join(', ')}`);
  const present = tensors[tensor] ?? refuse(where, `no such tensor; the layer has ${Object.keys(tensors).join(', ')}`);
  ensure(
    String(present.shape) === String(value.shape),
    where,
    () => `has shape [${present.shape}], got a value of shape [${value.shape}]`,
  );
  return present;
}

/** Puts a value in the place of one of an adapter's tensors; the value is then the adapter's. */
export function setTensor(adapter: Adapter, site: string, tensor: string, value: tf.Tensor): void {
  const present = heldTensor(adapter, site, tensor, value);
  // A shared tensor is a weight of the first layer that holds it.
  const weight = [...adapter.sites.values()]
    .flatMap(({ weights }) => Object.values(weights))
    .find((candidate) => candidate.read() === present);
  if (weight) {
    assign(weight, value);
  } else {
    for (const { tensors } of adapter.sites.values()) {
      for (const key of Object.keys(tensors)) if (tensors[key] === present) tensors[key] = tf.keep(value);
    }
    for (const [key, shared] of adapter.shared) if (shared === present) adapter.shared.set(key, value);
    present.dispose();
  }
}

/** Frees an adapter's tensors and takes its weights off their layers. */
function removeAdapter(host: Host, adapter: Adapter): void {
  adapter.removeHook?.();
  releaseModules(host, adapter);
  const kept = new Set<tf.Tensor>();
  for (const { site, tensors, weights } of adapter.sites.values()) {
    const own = new Set(Object.values(weights));
    site.layer._trainableWeights = site.layer._trainableWeights.filter((weight) => !own.has(weight));
    site.layer._addedWeightNames = site.layer._addedWeightNames.filter((name) => !name.startsWith(`${adapter.name}/`));
    for (const tensor of Object.values(tensors)) kept.add(tensor);
  }
  for (const tensor of kept) tensor.dispose();
  adapter.sites.clear();
  host.adapters.delete(adapter.name);
  host.active = host.active.filter((name) => name !== adapter.name);
}

/** Puts the model's own values back into the weights that only this adapter trained. */
function releaseModules(host: Host, adapter: Adapter): void {
  const others = [...host.adapters.values()].filter((other) => other !== adapter);
  placeModules(
    host,
    host.active.filter((name) => name !== adapter.name),
  );
  tf.dispose([...adapter.modules.values()].filter((value) => value !== null));
  adapter.modules.clear();
  for (const [weight, original] of host.originals) {
    if (others.some(({ modules, bias }) => modules.has(weight) || bias !== 'none')) continue;
    weight.write(original);
    original.dispose();
    host.originals.delete(weight);
  }
}

/**
 * Removes an adapter, or all of them. The base model is then bit for bit what it was before.
 *
 * @param name the adapter; default all.
 */
export function detach<M extends tf.LayersModel>(model: M, name?: string): M {
  const host = hostOf(model);
  ensure(host.merged.length === 0, 'model', () => `has merged adapters (${host.merged.join(', ')}); unmerge first`);
  const names = name === undefined ? [...host.adapters.keys()] : [name];
  for (const each of names) {
    const adapter =
      host.adapters.get(each) ??
      refuse('name', `there is no adapter "${each}"; attached: ${[...host.adapters.keys()].join(', ')}`);
    removeAdapter(host, adapter);
  }
  if (host.adapters.size === 0) closeHost(host);
  else markTrainable(host);
  return model;
}

/** True when every entry is finite. */
export function finite(tensor: tf.Tensor): boolean {
  // A sum is finite only if all terms are; it costs one pass and no mask. Overflow of finite terms is ruled out by scaling.
  return tf.tidy(() => Number.isFinite(tf.sum(tf.mul(tensor, 1e-6)).dataSync()[0]));
}
