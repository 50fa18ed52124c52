import * as tf from '@tensorflow/tfjs';
import { parseConfig } from '../contracts/config.ts';
import type { AnyLinearMethod, Role, Site, TensorSpec } from '../contracts/linear-method.ts';
import { ensure, refuse } from '../errors.ts';
import { readSafetensors, writeDirectoryAtomic, writeSafetensors } from '../files/index.ts';
import { type AttachOptions, attachWith, declared, detach, finite } from './attach.ts';
import { type Adapter, adapterOf, type BiasOption, type Host, hostOf } from './host.ts';
import { assign, type HostLayer, type LayerVariable, matchesName, namedLayers, sitesOf } from './sites.ts';

const PREFIX = 'base_model.model.';
const CONFIG = 'adapter_config.json';
const WEIGHTS = 'adapter_model.safetensors';

/** Options of {@link save}. */
export interface SaveOptions {
  /** The adapter; default the only active one. */
  name?: string;
  /** Name or path of the base model, stored for the reader. Default null. */
  baseModel?: string | null;
  /** Replace an existing directory. Default false. */
  overwrite?: boolean;
}

/**
 * Stores an adapter as a directory in Hugging Face PEFT's format: `adapter_config.json` and
 * `adapter_model.safetensors`, with PEFT's keys and orientation where PEFT has the method.
 *
 * The directory appears whole or not at all.
 *
 * @throws MatforgeError when the directory exists and `overwrite` is not set, or cannot be written.
 */
export async function save(model: tf.LayersModel, directory: string, options: SaveOptions = {}): Promise<void> {
  const host = hostOf(model);
  const { name = soleActive(host), baseModel = null, overwrite = false } = options;
  const adapter = adapterOf(host, name);
  const json = `${JSON.stringify(sortKeys(configJson(adapter, baseModel)), null, 2)}\n`;
  const tensors = tf.tidy(() => fileTensors(host, adapter));
  try {
    await writeDirectoryAtomic(
      directory,
      async (temporary) => {
        const { writeFile } = await import('node:fs/promises');
        await writeFile(`${temporary}/${CONFIG}`, json);
        await writeSafetensors(`${temporary}/${WEIGHTS}`, tensors, { metadata: { format: 'pt' } });
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
        tensors[keyOf(method, site, key, undefined)] = toFile(value as tf.Tensor, site);
      }
      continue;
    }
    for (const [key, spec] of Object.entries(specsOf(adapter, site, config))) {
      if (spec.role !== 'seeded')
        tensors[keyOf(method, site, key, spec.shared)] ??= toFile(attached.tensors[key], site);
    }
  }
  for (const { key, weight, layer } of extras(host, adapter)) tensors[key] = toFile(weight.read(), layer);
  return tensors;
}

/** Biases and whole modules that train along with an adapter. */
function extras(host: Host, adapter: Adapter): { key: string; weight: LayerVariable; layer: { kind: Site['kind'] } }[] {
  return namedLayers(host.model).flatMap(({ name, layer }) => {
    const whole = adapter.modulesToSave.some((module) => matchesName(name, module));
    const adapted = adapter.sites.has(name);
    if (whole) return moduleWeights(name, layer);
    if (!layer.bias || adapter.bias === 'none' || (adapter.bias === 'adapterOnly' && !adapted)) return [];
    return [
      {
        key: `${PREFIX}${name}.${adapted ? 'base_layer.' : ''}bias`,
        weight: layer.bias,
        layer: { kind: 'layer' as const },
      },
    ];
  });
}

function moduleWeights(
  name: string,
  layer: HostLayer,
): { key: string; weight: LayerVariable; layer: { kind: Site['kind'] } }[] {
  const kind = layer.getClassName() === 'Embedding' ? 'layer' : 'dense';
  return layer._trainableWeights
    .filter((weight) => !weight.originalName.includes('/default/'))
    .map((weight) => ({
      key: `${PREFIX}${name}.${weight === layer.bias ? 'bias' : 'weight'}`,
      weight,
      layer: { kind: weight === layer.bias ? ('layer' as const) : kind },
    }));
}

// PyTorch stores a linear map as [out, in]; whole embeddings and vectors have no orientation to change.
function toFile(value: tf.Tensor, { kind }: { kind: Site['kind'] }): tf.Tensor {
  return value.rank === 2 && kind !== 'layer' ? tf.transpose(value) : tf.clone(value);
}

const fromFile = toFile;

/** Options of {@link load}. */
export interface LoadOptions extends Pick<AttachOptions, 'seed'> {
  /** Methods that may be in the file, e.g. `[lora, dora]`. */
  methods: readonly AnyLinearMethod[];
  /** Name of the adapter in the model. Default `'default'`. */
  name?: string;
}

/**
 * Attaches an adapter from a directory in PEFT's format, written by {@link save} or by PEFT.
 *
 * Fields that the method does not know are ignored with a warning.
 *
 * @throws MatforgeError when files are missing or damaged, no given method fits, layers, keys or shapes differ (lists
 *   them), or a tensor has values that are not finite (names its key). The model is then as before.
 */
export async function load<M extends tf.LayersModel>(model: M, directory: string, options: LoadOptions): Promise<M> {
  const json = await readConfig(`${directory}/${CONFIG}`);
  const method = methodFor(json, options.methods);
  const given = method.peft ? method.peft.fromJson(json) : camelCase(json, Object.keys(method.config.shape));
  const config = parseConfig(method.info.id, method.config, given);
  const { tensors } = await readSafetensors(`${directory}/${WEIGHTS}`);
  const bias = String(json.bias ?? 'none');
  const modulesToSave = (json.modules_to_save as string[] | null) ?? [];
  const used = new Set<string>();
  try {
    for (const [key, tensor] of Object.entries(tensors))
      ensure(finite(tensor), key, () => 'has values that are not finite');
    const names = new Set(
      Object.keys(tensors).flatMap((key) =>
        sitesOf(model)
          .filter(({ name }) => key.startsWith(`${PREFIX}${name}.`))
          .map(({ name }) => name),
      ),
    );
    const targets = [...names].filter((name) => isAdapted(json.target_modules, name));
    ensure(
      targets.length > 0,
      `${directory}/${WEIGHTS}`,
      () => `holds no layer of this model. Keys: ${Object.keys(tensors).slice(0, 8).join(', ')}`,
    );
    const missing: string[] = [];
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
        return fromFile(tensors[key], site);
      },
    );
    try {
      const host = hostOf(model);
      const adapter = adapterOf(host, options.name ?? 'default');
      for (const { key, weight, layer } of extras(host, adapter)) {
        used.add(key);
        if (tensors[key]) assign(weight, fromFile(tensors[key], layer));
        else missing.push(key);
      }
      const unexpected = Object.keys(tensors).filter((key) => !used.has(key));
      ensure(missing.length === 0 && unexpected.length === 0, `${directory}/${WEIGHTS}`, () =>
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

async function readConfig(path: string): Promise<Record<string, unknown>> {
  const { readFile } = await import('node:fs/promises');
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    return refuse(
      path,
      'cannot be read; an adapter directory holds adapter_config.json and adapter_model.safetensors',
      { cause: error },
    );
  }
  try {
    const json: unknown = JSON.parse(text);
    ensure(typeof json === 'object' && json !== null && !Array.isArray(json), path, () => 'is not a JSON object');
    return json as Record<string, unknown>;
  } catch (error) {
    return refuse(path, 'is not valid JSON', { cause: error });
  }
}

function methodFor(json: Record<string, unknown>, methods: readonly AnyLinearMethod[]): AnyLinearMethod {
  const type = String(json.peft_type);
  const typeOf = (method: AnyLinearMethod) => method.peft?.type ?? defaultType(method);
  const candidates = methods.filter((method) => typeOf(method) === type || method.peft?.aliases?.includes(type));
  return (
    candidates.find((method) => method.peft?.accepts?.(json) ?? true) ??
    refuse(
      'peft_type',
      `"${type}" fits none of the given methods (${methods.map(({ info }) => info.id).join(', ') || 'none'}); pass the method's package in "methods"`,
    )
  );
}

function isAdapted(targetModules: unknown, name: string): boolean {
  if (Array.isArray(targetModules)) return targetModules.some((target) => matchesName(name, String(target)));
  if (typeof targetModules === 'string')
    return targetModules === 'all-linear' || new RegExp(`^(?:${targetModules})$`).test(name);
  return true;
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
