import * as tf from '@tensorflow/tfjs';
import { ensure, refuse } from '../errors.ts';
import { encodeSafetensors, openSafetensors, type RawTensor, type WritableTensor } from '../files/safetensors.ts';
import type { CheckpointStorage } from '../files/storage.ts';
import { TransformationOptimizer } from '../optim/optimizer.ts';
import { flattenTree, isTensor, tensorsOf, unflattenTree } from '../optim/tree.ts';

/** The file of a training checkpoint in its directory or storage. */
export const CHECKPOINT_FILE = 'training.safetensors';

const FORMAT = 'matforge-training-1';
const DTYPES = new Map<string, RawTensor['dtype']>([
  ['Int8Array', 'I8'],
  ['Uint8Array', 'U8'],
  ['Int16Array', 'I16'],
  ['Int32Array', 'I32'],
  ['Float32Array', 'F32'],
  ['Float64Array', 'F64'],
]);

/** Writes any tree of tensors, typed arrays and JSON values as one safetensors file. */
export async function writeTree(storage: CheckpointStorage, name: string, tree: unknown): Promise<void> {
  const tensors: Record<string, WritableTensor> = {};
  const json: Record<string, unknown> = {};
  const kinds: Record<string, string> = {};
  for (const [path, leaf] of flattenTree(tree)) {
    if (isTensor(leaf)) {
      tensors[path] = leaf;
      kinds[path] = 'tensor';
    } else if (ArrayBuffer.isView(leaf)) {
      const dtype = DTYPES.get(leaf.constructor.name) ?? refuse(path, `${leaf.constructor.name} cannot be stored`);
      tensors[path] = { dtype, shape: [leaf.length], data: leaf };
      kinds[path] = 'array';
    } else {
      json[path] = typeof leaf === 'number' && !Number.isFinite(leaf) ? { number: String(leaf) } : leaf;
      kinds[path] = 'json';
    }
  }
  const metadata = { format: FORMAT, kinds: JSON.stringify(kinds), json: JSON.stringify(json) };
  await storage.write(name, await encodeSafetensors(tensors, { metadata }));
}

/** Reads what {@link writeTree} wrote; undefined when there is no such file. The caller owns the tensors. */
export async function readTree(storage: CheckpointStorage, name: string): Promise<unknown> {
  const bytes = await storage.read(name);
  if (!bytes) return undefined;
  const file = await openSafetensors(bytes);
  const leaves: [string, unknown][] = [];
  try {
    ensure(file.metadata.format === FORMAT, name, () => `is no training checkpoint (format ${FORMAT})`);
    const kinds = JSON.parse(file.metadata.kinds) as Record<string, string>;
    const json = JSON.parse(file.metadata.json) as Record<string, unknown>;
    for (const [path, kind] of Object.entries(kinds)) {
      if (kind === 'tensor') leaves.push([path, await file.read(path)]);
      else if (kind === 'array') leaves.push([path, (await file.readValues(path)).data.slice()]);
      else {
        const value = json[path] as { number: string } | null;
        leaves.push([path, typeof value === 'object' && value !== null ? Number(value.number) : value]);
      }
    }
  } catch (cause) {
    tf.dispose(leaves.flatMap(([, leaf]) => tensorsOf(leaf)));
    throw cause;
  } finally {
    await file.close();
  }
  return unflattenTree(leaves);
}

/** The state of any optimizer as a tree that the caller owns. */
export async function optimizerTree(optimizer: tf.Optimizer): Promise<unknown> {
  const kind = optimizer.getClassName();
  if (optimizer instanceof TransformationOptimizer) return { kind, own: optimizer.state() };
  const weights = await optimizer.getWeights();
  const copies = weights.map(({ name, tensor }) => ({ name, tensor: tensor.clone() }));
  // Variables are the optimizer's own; anything else was made for this call.
  for (const { tensor } of weights) if (!(tensor instanceof tf.Variable)) tensor.dispose();
  return {
    kind,
    weights: copies,
    // Adam keeps powers of its betas; setWeights() would compute them anew, with another rounding.
    powers: Object.fromEntries(powersOf(optimizer).map(([name, variable]) => [name, variable.clone()])),
  };
}

/** Restores an optimizer from {@link optimizerTree}; `rename` translates variable names. */
export async function restoreOptimizer(
  optimizer: tf.Optimizer,
  tree: unknown,
  rename: (name: string) => string,
): Promise<void> {
  const { kind, own, weights, powers } = tree as {
    kind: string;
    own?: { step: number; names: string[]; state: unknown };
    weights?: { name: string; tensor: tf.Tensor }[];
    powers?: Record<string, tf.Tensor>;
  };
  ensure(
    kind === optimizer.getClassName(),
    'optimizer',
    () => `the checkpoint is of ${kind}, given is ${optimizer.getClassName()}`,
  );
  if (own && optimizer instanceof TransformationOptimizer) {
    const state = renameKeys(own.state, new Map(own.names.map((name) => [name, rename(name)])));
    optimizer.restore({ step: own.step, names: own.names.map(rename), state });
    return;
  }
  await optimizer.setWeights(weights ?? []);
  for (const [name, variable] of powersOf(optimizer)) if (powers?.[name]) variable.assign(powers[name]);
}

function powersOf(optimizer: tf.Optimizer): [string, tf.Variable][] {
  const isPower = ([name, value]: [string, unknown]): boolean =>
    name.startsWith('accBeta') && value instanceof tf.Variable;
  return Object.entries(optimizer).filter(isPower) as [string, tf.Variable][];
}

function renameKeys(tree: unknown, names: ReadonlyMap<string, string>): unknown {
  if (Array.isArray(tree)) return tree.map((node) => renameKeys(node, names));
  if (typeof tree !== 'object' || tree === null || isTensor(tree) || ArrayBuffer.isView(tree)) return tree;
  return Object.fromEntries(
    Object.entries(tree).map(([key, value]) => [names.get(key) ?? key, renameKeys(value, names)]),
  );
}
