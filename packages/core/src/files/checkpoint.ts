import { ensure, refuse } from '../errors.ts';
import {
  fileError,
  nodeFs,
  nodePath,
  readJsonFile,
  refuseExisting,
  type WriteOptions,
  writeDirectoryAtomic,
  writeFileAtomic,
} from './atomic.ts';
import type { SafetensorsEntry } from './header.ts';
import {
  type Checkpoint,
  type EncodedTensor,
  encodedPieces,
  findEntry,
  openSafetensors,
  planTensors,
  type SafetensorsOptions,
  type WritableTensor,
} from './safetensors.ts';

const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
const SHARD = /^model-\d{5,}-of-\d{5,}\.safetensors$/;

/**
 * Opens a checkpoint: a safetensors file, a `*.safetensors.index.json` with its shards, or a directory that holds
 * `model.safetensors.index.json`, `model.safetensors` or exactly one safetensors file.
 *
 * @throws MatforgeError when nothing of the kind is there, a shard is missing or malformed, or index and shards disagree.
 */
export async function openCheckpoint(directoryOrFile: string): Promise<Checkpoint> {
  const path = await findCheckpoint(directoryOrFile);
  return path.endsWith('.json') ? openSharded(path) : openSafetensors(path);
}

async function findCheckpoint(path: string): Promise<string> {
  const fs = await nodeFs();
  const { join } = await nodePath();
  const status = await fs.stat(path).catch((cause) => Promise.reject(fileError(cause, path, 'read')));
  if (!status.isDirectory()) return path;
  const names = await fs.readdir(path);
  for (const name of [INDEX, SINGLE]) if (names.includes(name)) return join(path, name);
  const candidates = names.filter((name) => name.endsWith('.safetensors'));
  if (candidates.length === 1) return join(path, candidates[0]);
  return refuse(
    path,
    candidates.length
      ? `holds several safetensors files and no ${INDEX}: ${candidates.join(', ')}; name the file`
      : `holds no ${INDEX}, ${SINGLE} or other safetensors file; it holds ${names.slice(0, 20).join(', ') || 'nothing'}`,
  );
}

async function openSharded(indexPath: string): Promise<Checkpoint> {
  const { dirname, join } = await nodePath();
  const weightMap = parseIndex(await readJsonFile(indexPath), indexPath);
  const shards = new Map<string, Checkpoint>();
  const close = async (): Promise<void> => {
    await Promise.all([...shards.values()].map((shard) => shard.close()));
  };
  try {
    for (const file of new Set(weightMap.values())) {
      shards.set(file, await openSafetensors(join(dirname(indexPath), file)));
    }
    const entries = new Map<string, SafetensorsEntry>();
    for (const [name, file] of weightMap)
      entries.set(name, findEntry(shards.get(file)!.entries, name, join(dirname(indexPath), file)));
    for (const [file, shard] of shards) {
      for (const name of shard.entries.keys()) {
        ensure(
          weightMap.get(name) === file,
          `${indexPath}: tensor "${name}"`,
          () =>
            `is in shard ${file}, but the index places it ${weightMap.has(name) ? `in ${weightMap.get(name)}` : 'nowhere'}`,
        );
      }
    }
    const shardOf = (name: string): Checkpoint => {
      findEntry(entries, name, indexPath);
      return shards.get(weightMap.get(name)!)!;
    };
    return {
      metadata: Object.assign({}, ...[...shards.values()].map(({ metadata }) => metadata)),
      entries,
      read: async (name) => shardOf(name).read(name),
      readValues: async (name) => shardOf(name).readValues(name),
      readBytes: async (name) => shardOf(name).readBytes(name),
      close,
    };
  } catch (cause) {
    await close();
    throw cause;
  }
}

function parseIndex(index: unknown, path: string): Map<string, string> {
  const map = (index as { weight_map?: unknown } | null)?.weight_map;
  ensure(typeof map === 'object' && map !== null && !Array.isArray(map), path, () => 'has no weight_map object');
  const weightMap = new Map<string, string>();
  for (const [name, file] of Object.entries(map)) {
    // A shard is a neighbour of its index; anything else would let a download name any file of the machine.
    ensure(
      typeof file === 'string' && /^[^/\\]+\.safetensors$/.test(file),
      `${path}: weight_map["${name}"]`,
      () => `must be the name of a safetensors file in the same directory, is ${JSON.stringify(file)}`,
    );
    weightMap.set(name, file);
  }
  return weightMap;
}

/** Options of {@link writeCheckpoint}. */
export interface CheckpointOptions extends SafetensorsOptions, WriteOptions {
  /** Largest number of data bytes in one file; a larger tensor gets a file of its own. Default 5 GB. */
  maxShardBytes?: number;
}

/**
 * Writes `model.safetensors`, or, when the tensors take more than `maxShardBytes`, `model-00001-of-0000N.safetensors` …
 * and `model.safetensors.index.json`. A new directory appears complete or not at all. In an existing directory other
 * files are kept; an older checkpoint there is refused unless `overwrite` is set, and replaced once the new one is
 * written in full.
 *
 * @returns the names of the files written.
 */
export async function writeCheckpoint(
  directory: string,
  tensors: Record<string, WritableTensor>,
  { maxShardBytes = 5e9, overwrite = false, metadata, dtype }: CheckpointOptions = {},
): Promise<string[]> {
  ensure(maxShardBytes > 0, 'maxShardBytes', () => `must be a positive number of bytes, is ${maxShardBytes}`);
  const shards = intoShards(planTensors(tensors, dtype, `${directory}: `), maxShardBytes);
  // transformers refuses a file whose metadata does not say which framework's tensors it holds.
  const write = (into: string): Promise<string[]> => writeShards(into, shards, { format: 'pt', ...metadata });
  const fs = await nodeFs();
  const { join } = await nodePath();
  const old = await fs
    .readdir(directory)
    .catch((cause) => (cause.code === 'ENOENT' ? undefined : Promise.reject(fileError(cause, directory, 'written'))));
  if (!old) return writeDirectoryAtomic(directory, write);
  const stale = old.filter((name) => name === SINGLE || name === INDEX || SHARD.test(name));
  for (const name of stale) await refuseExisting(join(directory, name), overwrite);
  const temporary = await fs
    .mkdtemp(join(directory, '.checkpoint-'))
    .catch((cause) => Promise.reject(fileError(cause, directory, 'written')));
  try {
    const names = await write(temporary);
    for (const name of names) await fs.rename(join(temporary, name), join(directory, name));
    for (const name of stale) if (!names.includes(name)) await fs.rm(join(directory, name), { force: true });
    return names;
  } finally {
    await fs.rm(temporary, { recursive: true, force: true });
  }
}

function intoShards(plan: EncodedTensor[], maxShardBytes: number): EncodedTensor[][] {
  const shards: EncodedTensor[][] = [[]];
  let bytes = 0;
  for (const tensor of plan) {
    if (bytes > 0 && bytes + tensor.byteLength > maxShardBytes) {
      shards.push([]);
      bytes = 0;
    }
    shards.at(-1)!.push(tensor);
    bytes += tensor.byteLength;
  }
  return shards;
}

async function writeShards(
  directory: string,
  shards: EncodedTensor[][],
  metadata: Record<string, string>,
): Promise<string[]> {
  const { join } = await nodePath();
  if (shards.length === 1) {
    await writeFileAtomic(join(directory, SINGLE), encodedPieces(shards[0], metadata));
    return [SINGLE];
  }
  const number = (i: number): string => String(i).padStart(5, '0');
  const names = shards.map((_, i) => `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`);
  const weightMap: [string, string][] = [];
  for (const [i, shard] of shards.entries()) {
    await writeFileAtomic(join(directory, names[i]), encodedPieces(shard, metadata));
    for (const { name } of shard) weightMap.push([name, names[i]]);
  }
  weightMap.sort(([a], [b]) => (a < b ? -1 : 1));
  const total = shards.flat().reduce((sum, { byteLength }) => sum + byteLength, 0);
  const index = { metadata: { total_size: total }, weight_map: Object.fromEntries(weightMap) };
  await writeFileAtomic(join(directory, INDEX), `${JSON.stringify(index, null, 2)}\n`);
  return [...names, INDEX];
}
