import {
  type Checkpoint,
  ensure,
  openCheckpoint,
  readJsonFile,
  writeCheckpoint,
  writeDirectoryAtomic,
  writeFileAtomic,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { configOf, type HuggingFaceConfig, ownWeight } from './architecture.ts';
import { buildFromConfig, type FromConfigOptions } from './from-config.ts';

/** A weight of a model as a checkpoint names and turns it. */
interface Parameter {
  key: string;
  variable: tf.LayerVariable;
  /** Axes of the file's tensor, as axes of ours: PyTorch keeps linear weights [out, in]. */
  permutation: number[] | null;
}

/** Options of {@link loadPretrained}. */
export interface LoadPretrainedOptions extends FromConfigOptions {
  /** Checkpoint keys that may be left over, e.g. `/^cls\.seq_relationship/` of a head that is not wanted. */
  ignoreUnexpected?: RegExp;
  /** Model keys that may be missing, e.g. `/^classifier\./`; they start from random weights. */
  initializeMissing?: RegExp;
}

// Buffers and copies that checkpoints carry beside the weights.
const derived = /(^|\.)(attn\.(bias|masked_bias)|rotary_emb\.inv_freq|embeddings\.position_ids)$/;

/**
 * Builds the model of a Hugging Face directory (`config.json` and safetensors, sharded or not) with its weights.
 * Checkpoints saved without the base model's prefix (`transformer.`, `model.`, `bert.`, `vit.`) are understood.
 *
 * @throws MatforgeError when a file is missing or malformed, the model type is not supported, keys are missing or
 *   unexpected (all are listed), a shape differs, or a weight is not finite.
 */
export async function loadPretrained(
  directory: string,
  { ignoreUnexpected, initializeMissing, ...options }: LoadPretrainedOptions = {},
): Promise<tf.LayersModel> {
  const config = (await readJsonFile(`${directory}/config.json`)) as HuggingFaceConfig;
  const checkpoint = await openCheckpoint(directory);
  let model: tf.LayersModel | undefined;
  try {
    // Random weights are drawn only where some may be left in place.
    model = buildFromConfig(config, options, initializeMissing !== undefined);
    await readParameters(model, checkpoint, directory, { ignoreUnexpected, initializeMissing });
    return model;
  } catch (cause) {
    model?.dispose();
    throw cause;
  } finally {
    await checkpoint.close();
  }
}

async function readParameters(
  model: tf.LayersModel,
  checkpoint: Checkpoint,
  directory: string,
  { ignoreUnexpected, initializeMissing }: Pick<LoadPretrainedOptions, 'ignoreUnexpected' | 'initializeMissing'>,
): Promise<void> {
  const parameters = parametersOf(model);
  const files = matchKeys(
    parameters.map(({ key }) => key),
    [...checkpoint.entries.keys()],
  );
  const missing = parameters.filter(({ key }) => !files.has(key) && !initializeMissing?.test(key));
  const used = new Set(files.values());
  const copies = tiedCopies(model);
  const unexpected = [...checkpoint.entries.keys()].filter(
    (key) => !used.has(key) && !derived.test(key) && !copies.includes(key) && !ignoreUnexpected?.test(key),
  );
  const problems = [
    ...(missing.length ? [`missing: ${missing.map(({ key }) => key).join(', ')}`] : []),
    ...(unexpected.length ? [`unexpected: ${unexpected.join(', ')}`] : []),
    ...parameters.flatMap((parameter) => {
      const entry = checkpoint.entries.get(files.get(parameter.key) ?? '');
      const wanted = fileShape(parameter);
      if (!entry || String(entry.shape) === String(wanted)) return [];
      return [`${parameter.key} has shape [${entry.shape}], config.json asks for [${wanted}]`];
    }),
  ];
  ensure(problems.length === 0, directory, () => `the checkpoint does not fit the model; ${problems.join('; ')}`);
  for (const parameter of parameters) {
    const file = files.get(parameter.key);
    if (file === undefined) continue;
    const { data } = await checkpoint.readValues(file);
    const bad = data.findIndex((value: number) => !Number.isFinite(value));
    ensure(bad < 0, `${directory}: ${file}`, () => `value ${data[bad]} at index ${bad} is not finite`);
    const value = tf.tidy(() => {
      const stored = tf.tensor(
        data instanceof Float32Array ? data : Float32Array.from(data),
        fileShape(parameter),
        'float32',
      );
      return parameter.permutation ? tf.transpose(stored, inverse(parameter.permutation)) : stored;
    });
    parameter.variable.write(value);
    value.dispose();
  }
}

/** Model key → checkpoint key, allowing for an absent base prefix and for the norm weights' old names. */
function matchKeys(keys: string[], available: string[]): Map<string, string> {
  const present = new Map(available.map((key) => [modernKey(key), key]));
  const pairs = keys.flatMap((key): [string, string][] => {
    const bare = key.replace(/^(transformer|model|bert|vit)\./, '');
    const found = present.get(key) ?? present.get(bare);
    return found === undefined ? [] : [[key, found]];
  });
  return new Map(pairs);
}

function modernKey(key: string): string {
  return key.replace(/LayerNorm\.gamma$/, 'LayerNorm.weight').replace(/LayerNorm\.beta$/, 'LayerNorm.bias');
}

/** Keys under which checkpoints repeat tied weights. */
function tiedCopies(model: tf.LayersModel): string[] {
  return model.layers
    .filter((layer) => layer.getClassName() === 'MatforgeTiedHead')
    .flatMap(({ name }) => [`${name}.weight`, `${name}.decoder.weight`, `${name}.decoder.bias`]);
}

/** All weights of a model with their checkpoint keys; weights that adapters added are not among them. */
function parametersOf(model: tf.LayersModel): Parameter[] {
  // GPT-2's Conv1D keeps its weights [in, out].
  const linear = configOf(model).model_type === 'gpt2' ? null : [1, 0];
  const forms: Record<string, Record<string, [suffix: string, permutation: number[] | null]>> = {
    Dense: { kernel: ['.weight', linear], bias: ['.bias', null] },
    Conv2D: { kernel: ['.weight', [3, 2, 0, 1]], bias: ['.bias', null] },
    Embedding: { embeddings: ['.weight', null] },
    MatforgeRMSNorm: { weight: ['.weight', null] },
    MatforgeLayerNorm: { weight: ['.weight', null], bias: ['.bias', null] },
    MatforgeTiedHead: { bias: ['.bias', null] },
    MatforgePatchSequence: { cls_token: ['.cls_token', null], position_embeddings: ['.position_embeddings', null] },
  };
  return model.layers.flatMap((layer) =>
    Object.entries(forms[layer.getClassName()] ?? {}).flatMap(([name, [suffix, permutation]]) => {
      const variable = ownWeight(layer, name);
      return variable ? [{ key: layer.name + suffix, variable, permutation }] : [];
    }),
  );
}

function fileShape({ variable, permutation }: Parameter): number[] {
  const shape = variable.shape as number[];
  return permutation ? permutation.map((axis) => shape[axis]) : shape;
}

function inverse(permutation: number[]): number[] {
  return permutation.map((_, axis) => permutation.indexOf(axis));
}

/** Options of {@link savePretrained}. */
export interface SavePretrainedOptions {
  /** How weights are stored. Default F32. */
  dtype?: 'F32' | 'F16' | 'BF16';
  /** Largest number of data bytes in one file. Default 5 GB. */
  maxShardBytes?: number;
  /** Replace a directory that stands there, with everything it holds. Default false. */
  overwrite?: boolean;
}

/**
 * Writes a Hugging Face directory: `config.json` and `model.safetensors` (or shards) with the keys and orientation that
 * transformers reads. The directory appears whole or not at all. Attached adapters are not written; merge them first.
 *
 * @throws MatforgeError when the model was not built by this package, or the directory exists or cannot be written.
 */
export async function savePretrained(
  model: tf.LayersModel,
  directory: string,
  { dtype = 'F32', maxShardBytes, overwrite = false }: SavePretrainedOptions = {},
): Promise<void> {
  const torchName = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' }[dtype];
  // transformers renamed the field in its version 5.
  const config = { ...configOf(model), dtype: torchName, torch_dtype: torchName };
  const tensors = Object.fromEntries(
    parametersOf(model).map((parameter) => [
      parameter.key,
      tf.tidy(() => {
        const value = parameter.variable.read();
        return parameter.permutation ? tf.transpose(value, parameter.permutation) : value.clone();
      }),
    ]),
  );
  try {
    await writeDirectoryAtomic(
      directory,
      async (temporary) => {
        await writeFileAtomic(`${temporary}/config.json`, `${JSON.stringify(config, null, 2)}\n`);
        await writeCheckpoint(temporary, tensors, { dtype, maxShardBytes, metadata: { format: 'pt' } });
      },
      { overwrite },
    );
  } finally {
    tf.dispose(tensors);
  }
}
