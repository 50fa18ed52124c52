import * as tf from '@tensorflow/tfjs';
import { during } from '../blocking.ts';
import { parseConfig } from '../contracts/config.ts';
import type { AnyLinearMethod, Role, Site, TensorSpec } from '../contracts/linear-method.ts';
import { ensure, ensureKnown, refuse } from '../errors.ts';
import { nodeFs } from '../files/atomic.ts';
import {
  type CheckpointStorage,
  encodeSafetensors,
  readSafetensors,
  writeDirectoryAtomic,
  writeSafetensors,
} from '../files/index.ts';
import { type AttachOptions, attachWith, declared, detach, finite } from './attach.ts';
import { type Adapter, adapterOf, type BiasOption, type Host, hostOf } from './host.ts';
import {
  assign,
  ensureModel,
  fullMatch,
  type HostLayer,
  type LayerSite,
  type LayerVariable,
  matchesName,
  namedLayers,
  sitesOf,
} from './sites.ts';

const PREFIX = 'base_model.model.';
const CONFIG = 'adapter_config.json';
const WEIGHTS = 'adapter_model.safetensors';

/** Options of {@link save}. */
export interface SaveOptions {
  /** The adapter; default the only active one. */
  name?: string;
  /** Name or path of the base model, stored for the reader. Default null. */
  baseModel?: string | null;
  /** Replace an existing directory, or an adapter that the storage holds. Default false. */
  overwrite?: boolean;
}

/**
 * Stores an adapter as a directory in Hugging Face PEFT's format: `adapter_config.json` and
 * `adapter_model.safetensors`, with PEFT's keys and orientation where PEFT has the method.
 *
 * The directory appears whole or not at all. In a browser give a storage, such as `memoryStorage()`, which then holds the
 * two files.
 *
 * @throws MatforgeError when an adapter is there and `overwrite` is not set, or the directory cannot be written.
 */
export async function save(
  model: tf.LayersModel,
  target: string | CheckpointStorage,
  options: SaveOptions = {},
): Promise<void> {
  const host = hostOf(model);
  ensurePlace(target);
  ensureKnown('save', options, ['name', 'baseModel', 'overwrite'] satisfies (keyof SaveOptions)[]);
  const { name = soleActive(host), baseModel = null, overwrite = false } = options;
  const adapter = adapterOf(host, name);
  const json = `${JSON.stringify(sortKeys(configJson(adapter, baseModel)), null, 2)}\n`;
  const tensors = during('save', () => tf.tidy(() => fileTensors(host, adapter)));
  const metadata = { format: 'pt' };
  try {
    if (typeof target === 'object') {
      for (const file of [CONFIG, WEIGHTS]) {
        ensure(
          overwrite || (await target.read(file)) === undefined,
          file,
          () => 'exists already in the storage and is left as it is; pass overwrite: true to replace it',
        );
      }
      await target.write(WEIGHTS, await encodeSafetensors(tensors, { metadata }));
      await target.write(CONFIG, new TextEncoder().encode(json));
      return;
    }
    await writeDirectoryAtomic(
      target,
      async (temporary) => {
        const fs = await nodeFs();
        await fs.writeFile(`${temporary}/${CONFIG}`, json);
        await writeSafetensors(`${temporary}/${WEIGHTS}`, tensors, { metadata });
      },
      { overwrite },
    );
  } finally {
    tf.dispose(Object.values(tensors));
  }
}

function soleActive(host: Host): string {
  ensure(
    host.active.length === 1,
    'name',
    () => `${host.active.length} adapters are active; say which of ${[...host.adapters.keys()].join(', ')} to save`,
  );
  return host.active[0];
}

function configJson(adapter: Adapter, baseModel: string | null): Record<string, unknown> {
  const { method, config } = adapter.configured;
  const format = method.peft;
  const fields = format ? format.toJson(config) : { ...snakeCase(config), seed: adapter.seed };
  const type = format?.type ?? defaultType(method);
  return {
    ...adapter.foreign,
    peft_type: type,
    task_type: null,
    base_model_name_or_path: baseModel,
    revision: null,
    inference_mode: true,
    target_modules: [...adapter.sites.keys()].sort(),
    modules_to_save: adapter.modulesToSave.length > 0 ? adapter.modulesToSave : null,
    bias: adapter.bias === 'adapterOnly' ? `${type.toLowerCase()}_only` : adapter.bias,
    peft_version: '0.17.0',
    auto_mapping: null,
    ...fields,
  };
}

/** Fields of a file's configuration that neither the format nor the method knows; what is empty or off is left out. */
function foreignFields(
  json: Record<string, unknown>,
  method: AnyLinearMethod,
  config: Record<string, unknown>,
): Record<string, unknown> {
  const known = new Set([
    ...['peft_type', 'task_type', 'base_model_name_or_path', 'revision', 'inference_mode', 'target_modules'],
    ...['modules_to_save', 'bias', 'peft_version', 'auto_mapping', 'seed'],
    ...Object.keys(method.peft ? method.peft.toJson(config) : snakeCase(method.config.shape)),
  ]);
  return Object.fromEntries(Object.entries(json).filter(([key, value]) => !known.has(key) && !isOff(value)));
}

function isOff(value: unknown): boolean {
  if (value === null || value === false || value === '') return true;
  return typeof value === 'object' && Object.keys(value).length === 0;
}

function defaultType(method: AnyLinearMethod): string {
  return method.info.id.replaceAll('-', '_').toUpperCase();
}

/** File key and orientation of one tensor of a site. */
function keyOf(method: AnyLinearMethod, site: Site, tensor: string, shared: string | undefined): string {
  const suffix = method.peft?.keys(site)[tensor] ?? `${method.info.id.replaceAll('-', '_')}_${tensor}`;
  if (shared === undefined) return `${PREFIX}${site.name}.${suffix}`;
  return method.peft?.keys(site)[tensor] ? `base_model.${suffix}` : `base_model.${suffix}.${shared}`;
}

function specsOf(adapter: Adapter, site: Site, config: unknown): Record<string, TensorSpec> {
  return declared(
    adapter.configured.method.tensors({
      inDim: site.inDim,
      outDim: site.outDim,
      config,
      site,
      group: adapter.group,
    }),
  );
}

function fileTensors(host: Host, adapter: Adapter): Record<string, tf.Tensor> {
  const { method } = adapter.configured;
  const tensors: Record<string, tf.Tensor> = {};
  for (const attached of adapter.sites.values()) {
    const { site, config } = attached;
    const converted = method.peft?.convert?.(attached.tensors, config);
    if (converted) {
      for (const [key, value] of Object.entries(converted)) {
        tensors[keyOf(method, site, key, undefined)] = toFile(value as tf.Tensor, layoutOf(method, site, key));
      }
      continue;
    }
    for (const [key, spec] of Object.entries(specsOf(adapter, site, config))) {
      if (spec.role !== 'seeded')
        tensors[keyOf(method, site, key, spec.shared)] ??= toFile(attached.tensors[key], layoutOf(method, site, key));
    }
  }
  for (const { key, value, layout } of extras(host, adapter)) tensors[key] = toFile(value, layout);
  return tensors;
}

/** A weight of the model that is stored with an adapter. */
interface Extra {
  readonly key: string;
  readonly weight: LayerVariable;
  /** The adapter's value, which need not be what the layer holds now. */
  readonly value: tf.Tensor;
  readonly layout: Layout;
}

/** Biases and whole modules that train along with an adapter. */
function extras(host: Host, adapter: Adapter): Extra[] {
  return namedLayers(host.model).flatMap(({ name, layer }) => {
    const own = layer.weights.filter((weight) => adapter.modules.has(weight));
    if (own.length > 0) {
      return own.map((weight) => ({
        key: `${PREFIX}${name}.${moduleSuffix(layer, weight)}`,
        weight,
        value: adapter.modules.get(weight) ?? weight.read(),
        layout: moduleLayout(layer, weight),
      }));
    }
    const adapted = adapter.sites.has(name);
    if (!layer.bias || adapter.bias === 'none' || (adapter.bias === 'adapterOnly' && !adapted)) return [];
    const key = `${PREFIX}${name}.${adapted ? 'base_layer.' : ''}bias`;
    const value = host.layers.get(name)?.original?.bias ?? layer.bias.read();
    return [{ key, weight: layer.bias, value, layout: { kind: 'plain' } }];
  });
}

/** PyTorch's names for the weights of a layer; others keep their own. */
const SUFFIXES: Record<string, string> = {
  gamma: 'weight',
  beta: 'bias',
  moving_mean: 'running_mean',
  moving_variance: 'running_var',
};

function moduleSuffix(layer: HostLayer, weight: LayerVariable): string {
  if (weight === layer.kernel || weight === layer.embeddings) return 'weight';
  if (weight === layer.bias) return 'bias';
  const own = weight.originalName.slice(weight.originalName.lastIndexOf('/') + 1);
  return SUFFIXES[own] ?? own;
}

function moduleLayout(layer: HostLayer, weight: LayerVariable): Layout {
  const { shape } = weight.read();
  if (weight !== layer.kernel) return { kind: 'plain' };
  if (shape.length === 2) return { kind: 'matrix' };
  return shape.length === 4 ? { kind: 'kernel' } : { kind: 'plain' };
}

/** How a tensor is laid out in the file. */
type Layout =
  | { readonly kind: 'plain' | 'matrix' | 'kernel' | 'pointwise' | 'channels' }
  /** Height, width and channels of the patches. */
  | { readonly kind: 'patches'; readonly patch: readonly number[] };

function layoutOf(method: AnyLinearMethod, site: LayerSite, tensor: string): Layout {
  if (site.kind === 'layer') return { kind: 'plain' };
  const kind = site.kind === 'conv2d' ? method.peft?.convolution?.[tensor] : undefined;
  if (kind === 'patches') return { kind, patch: site.weight.read().shape.slice(0, 3) };
  return { kind: kind ?? 'matrix' };
}

// PyTorch stores a linear map as [out, in] and a convolution as [out, in, height, width].
function toFile(value: tf.Tensor, layout: Layout): tf.Tensor {
  const [rows, columns] = value.shape;
  switch (layout.kind) {
    case 'matrix':
      return value.rank === 2 ? tf.transpose(value) : tf.clone(value);
    case 'kernel':
      return tf.transpose(value, [3, 2, 0, 1]);
    case 'patches':
      return tf.transpose(tf.reshape(value, [...layout.patch, columns]), [3, 2, 0, 1]);
    case 'pointwise':
      return tf.reshape(tf.transpose(value), [columns, rows, 1, 1]);
    case 'channels':
      return tf.reshape(value, [1, -1, 1, 1]);
    default:
      return tf.clone(value);
  }
}

/** The inverse of {@link toFile}; a file's tensor of another rank is handed on, to be refused by its shape. */
function fromFile(value: tf.Tensor, layout: Layout): tf.Tensor {
  if (layout.kind === 'matrix' || layout.kind === 'plain') return toFile(value, layout);
  if (value.rank !== 4) return tf.clone(value);
  const [out, channels, height, width] = value.shape;
  switch (layout.kind) {
    case 'kernel':
      return tf.transpose(value, [2, 3, 1, 0]);
    case 'patches':
      return tf.reshape(tf.transpose(value, [2, 3, 1, 0]), [height * width * channels, out]);
    case 'pointwise':
      return tf.transpose(tf.reshape(value, [out, channels * height * width]));
    default:
      return tf.reshape(value, [-1]);
  }
}

/** Options of {@link load}. */
export interface LoadOptions extends Pick<AttachOptions, 'seed'> {
  /** Methods that may be in the file, e.g. `[lora, dora]`. */
  methods: readonly AnyLinearMethod[];
  /** Name of the adapter in the model. Default `'default'`. */
  name?: string;
}

/**
 * Attaches an adapter from a directory in PEFT's format, written by {@link save} or by PEFT, or from a storage that holds
 * the two files of one.
 *
 * Fields that the method does not know are ignored with a warning.
 *
 * @throws MatforgeError when files are missing or damaged, no given method fits, layers, keys or shapes differ (lists
 *   them), or a tensor has values that are not finite (names its key). The model is then as before.
 */
export async function load<M extends tf.LayersModel>(
  model: M,
  source: string | CheckpointStorage,
  options: LoadOptions,
): Promise<M> {
  ensureModel(model);
  ensurePlace(source);
  ensureMethods(options?.methods);
  ensureKnown('load', options, ['methods', 'name', 'seed'] satisfies (keyof LoadOptions)[]);
  const place = typeof source === 'string' ? `${source}/` : '';
  const json = parseJson(`${place}${CONFIG}`, await configText(source));
  const method = methodFor(json, options.methods);
  const given = method.peft ? method.peft.fromJson(json) : camelCase(json, Object.keys(method.config.shape));
  const config = parseConfig(method.info.id, method.config, given);
  const foreign = foreignFields(json, method, config as Record<string, unknown>);
  if (Object.keys(foreign).length > 0) {
    console.warn(`matforge: ${place}${CONFIG}: ${method.info.id} does not know ${Object.keys(foreign).join(', ')}`);
  }
  const { tensors } = await readSafetensors(
    typeof source === 'string' ? `${source}/${WEIGHTS}` : ((await source.read(WEIGHTS)) ?? refuseAbsent(WEIGHTS)),
  );
  const bias = String(json.bias ?? 'none');
  const modulesToSave = (json.modules_to_save as string[] | null) ?? [];
  const used = new Set<string>();
  try {
    for (const [key, tensor] of Object.entries(tensors))
      during('load', () => ensure(finite(tensor), key, () => 'has values that are not finite'));
    const names = sitesOf(model).map(({ name }) => name);
    const stored = names.filter((name) => Object.keys(tensors).some((key) => key.startsWith(`${PREFIX}${name}.`)));
    const targets = stored.filter((name) => isAdapted(json.target_modules, name));
    ensure(
      targets.length > 0,
      `${place}${WEIGHTS}`,
      () => `holds no layer of this model. Keys: ${Object.keys(tensors).slice(0, 8).join(', ')}`,
    );
    const missing = absentTargets(json.target_modules, names, stored).map((name) => `${PREFIX}${name}.*`);
    await attachWith(
      model,
      { method, config },
      {
        targets,
        name: options.name,
        seed: options.seed ?? (method.peft ? 0 : Number(json.seed ?? 0)),
        bias: (bias.endsWith('_only') ? 'adapterOnly' : bias) as BiasOption,
        modulesToSave,
      },
      (site, tensor, spec) => {
        if (spec.role === ('seeded' satisfies Role)) return undefined;
        const key = keyOf(method, site, tensor, spec.shared);
        used.add(key);
        if (!tensors[key]) {
          missing.push(key);
          return tf.zeros(spec.shape);
        }
        return fromFile(tensors[key], layoutOf(method, site, tensor));
      },
    );
    try {
      const host = hostOf(model);
      const adapter = adapterOf(host, options.name ?? 'default');
      adapter.foreign = foreign;
      for (const { key, weight, layout } of extras(host, adapter)) {
        used.add(key);
        if (!tensors[key]) {
          missing.push(key);
          continue;
        }
        const value = fromFile(tensors[key], layout);
        const { shape } = weight.read();
        if (String(value.shape) === String(shape)) assign(weight, value);
        else {
          value.dispose();
          refuse(key, `has shape [${tensors[key].shape}]; the layer's weight is [${shape}] in tfjs's order`);
        }
      }
      const unexpected = Object.keys(tensors).filter((key) => !used.has(key));
      ensure(missing.length === 0 && unexpected.length === 0, `${place}${WEIGHTS}`, () =>
        [
          missing.length ? `missing keys: ${missing.join(', ')}` : '',
          unexpected.length ? `unexpected keys: ${unexpected.join(', ')}` : '',
        ]
          .filter(Boolean)
          .join('; '),
      );
    } catch (error) {
      detach(model, options.name ?? 'default');
      throw error;
    }
  } finally {
    tf.dispose(Object.values(tensors));
  }
  return model;
}

async function configText(source: string | CheckpointStorage): Promise<string> {
  if (typeof source === 'object') return new TextDecoder().decode((await source.read(CONFIG)) ?? refuseAbsent(CONFIG));
  const path = `${source}/${CONFIG}`;
  const fs = await nodeFs();
  return fs.readFile(path, 'utf8').catch((cause) => refuseAbsent(path, cause));
}

function refuseAbsent(file: string, cause?: unknown): never {
  return refuse(file, 'cannot be read; an adapter directory holds adapter_config.json and adapter_model.safetensors', {
    cause,
  });
}

function parseJson(path: string, text: string): Record<string, unknown> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    return refuse(path, 'is not valid JSON', { cause: error });
  }
  ensure(typeof json === 'object' && json !== null && !Array.isArray(json), path, () => 'is not a JSON object');
  return json as Record<string, unknown>;
}

/** Refuses what is neither a path nor a storage. */
function ensurePlace(place: unknown): void {
  const accepted = "accepted is a directory's path, or a storage such as memoryStorage()";
  const isStorage = typeof (place as CheckpointStorage | null | undefined)?.read === 'function';
  ensure(isStorage || (typeof place === 'string' && place !== ''), 'path', () => `${place} given; ${accepted}`);
  ensure(isStorage || !/^\w{2,}:\/\//.test(place as string), 'path', () => `"${place}" is a URL; ${accepted}`);
}

function ensureMethods(methods: unknown): void {
  const example = 'give the methods that may be in the file, e.g. load(model, source, { methods: [lora] })';
  ensure(Array.isArray(methods), 'methods', () => example);
  const isMethod = (method: Partial<AnyLinearMethod> | undefined) => method?.contract === 'linear';
  ensure(methods.every(isMethod), 'methods', () => `holds what is no method; ${example}, not lora()`);
}

function methodFor(json: Record<string, unknown>, methods: readonly AnyLinearMethod[]): AnyLinearMethod {
  const type = String(json.peft_type);
  const typeOf = (method: AnyLinearMethod) => method.peft?.type ?? defaultType(method);
  // Variants of a type are told apart by their switches.
  const switches = Object.keys(json).filter((key) => key.startsWith('use_') && json[key] === true);
  const described = `"${type}"${switches.length > 0 ? ` with ${switches.join(', ')}` : ''}`;
  const candidates = methods.filter((method) => typeOf(method) === type || method.peft?.aliases?.includes(type));
  const accepted = candidates.find((method) => method.peft?.accepts?.(json) ?? true);
  if (accepted) return accepted;
  const given = methods.map(({ info }) => info.id).join(', ') || 'none';
  const wanted =
    candidates.length > 0 ? 'the method of that variant' : `the method of that type, e.g. [${type.toLowerCase()}]`;
  return refuse('peft_type', `${described} fits none of the given methods (${given}); pass ${wanted} in "methods"`);
}

function isAdapted(targetModules: unknown, name: string): boolean {
  if (Array.isArray(targetModules)) return targetModules.some((target) => matchesName(name, String(target)));
  if (typeof targetModules === 'string')
    return targetModules === 'all-linear' || fullMatch(targetModules, 'target_modules').test(name);
  return true;
}

/** Layers that a list of targets names in full, or by a suffix of none that is stored, without a tensor in the file. */
function absentTargets(targetModules: unknown, names: readonly string[], stored: readonly string[]): string[] {
  if (!Array.isArray(targetModules)) return [];
  return targetModules.map(String).flatMap((target) => {
    const matching = names.filter((name) => matchesName(name, target));
    const present = matching.filter((name) => stored.includes(name));
    return matching.filter((name) => !present.includes(name) && (name === target || present.length === 0));
  });
}

function snakeCase(config: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(config).map(([key, value]) => [toSnake(key), value]));
}

function camelCase(json: Record<string, unknown>, known: readonly string[]): Record<string, unknown> {
  return Object.fromEntries(known.filter((key) => toSnake(key) in json).map((key) => [key, json[toSnake(key)]]));
}

function toSnake(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function sortKeys(object: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(object).sort(([a], [b]) => (a < b ? -1 : 1)));
}
