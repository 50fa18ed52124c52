import * as tf from '@tensorflow/tfjs';
import { didYouMean, ensure, refuse } from '../errors.ts';
import { type WriteOptions, writeFileAtomic } from './atomic.ts';
import {
  bytesPerElement,
  decodeValues,
  encodeValues,
  isReadable,
  type SafetensorsDtype,
  type TensorValues,
  valuesToTensor,
} from './dtypes.ts';
import { buildHeader, headerLength, type PlannedTensor, parseHeader, type SafetensorsEntry } from './header.ts';
import { type ByteSource, openSource } from './source.ts';

/** A tensor to be written that is not a tf.Tensor: its values in any array, rounded to `dtype` on writing. */
export interface RawTensor {
  dtype: SafetensorsDtype;
  shape: number[];
  data: ArrayLike<number | bigint | boolean>;
}

/** A tensor to be written whose bytes exist already, or are made only when their turn comes. */
export interface TensorBytes {
  dtype: string;
  shape: number[];
  bytes: Uint8Array | (() => Uint8Array | Promise<Uint8Array>);
}

/** Anything that a safetensors file can be written from. */
export type WritableTensor = tf.Tensor | RawTensor | TensorBytes;

/** How tensors are stored in a safetensors file. */
export interface SafetensorsOptions {
  /** Texts kept in the header under `__metadata__`. */
  metadata?: Record<string, string>;
  /** How float32 tf.Tensors are stored. Default F32. int32 and bool are always stored as I32 and BOOL. */
  dtype?: 'F32' | 'F16' | 'BF16';
}

/** An open checkpoint: what it holds is known, values are read one tensor at a time. */
export interface Checkpoint {
  readonly metadata: Record<string, string>;
  /** name → dtype, shape and place. */
  readonly entries: ReadonlyMap<string, SafetensorsEntry>;
  /** A new tensor: floats as float32, integers as int32, BOOL as bool. */
  read(name: string): Promise<tf.Tensor>;
  /** The values in a typed array that loses nothing (F64 and I64 as float64). */
  readValues(name: string): Promise<TensorValues>;
  /** The bytes as stored. */
  readBytes(name: string): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** A whole file in memory. The caller owns the tensors. */
export interface SafetensorsContent {
  metadata: Record<string, string>;
  tensors: Record<string, tf.Tensor>;
}

/**
 * Opens a safetensors file and checks its whole header; tensors are then read by ranges, so the file may be larger than
 * memory. In the browser pass a File or Blob.
 *
 * @throws MatforgeError naming file and tensor when the header is malformed (longer than 100 MB or than the file, not a
 *   JSON object, duplicate names, unknown dtype, shape and bytes that disagree, tensors that overlap, leave holes or
 *   reach beyond the file).
 */
export async function openSafetensors(source: string | Blob | Uint8Array): Promise<Checkpoint> {
  const bytes = await openSource(source);
  try {
    const prefix = await bytes.read(0, Math.min(8, bytes.size));
    const length = headerLength(prefix, bytes.size, bytes.name);
    const { metadata, entries } = parseHeader(await bytes.read(8, length), bytes.size, bytes.name);
    return checkpointOf(bytes, metadata, entries);
  } catch (cause) {
    await bytes.close();
    throw cause;
  }
}

function checkpointOf(
  source: ByteSource,
  metadata: Record<string, string>,
  entries: ReadonlyMap<string, SafetensorsEntry>,
): Checkpoint {
  const readBytes = (name: string): Promise<Uint8Array> => {
    const { offset, byteLength } = findEntry(entries, name, source.name);
    return source.read(offset, byteLength);
  };
  const readValues = async (name: string): Promise<TensorValues> => {
    const { dtype, shape } = findEntry(entries, name, source.name);
    return decodeValues(await readBytes(name), dtype, shape, `${source.name}: tensor "${name}"`);
  };
  return {
    metadata,
    entries,
    readBytes,
    readValues,
    read: async (name) => valuesToTensor(await readValues(name), `${source.name}: tensor "${name}"`),
    close: () => source.close(),
  };
}

export function findEntry(
  entries: ReadonlyMap<string, SafetensorsEntry>,
  name: string,
  file: string,
): SafetensorsEntry {
  return entries.get(name) ?? refuse(`${file}: tensor "${name}"`, `is not in the file${suggestion(name, entries)}`);
}

function suggestion(name: string, entries: ReadonlyMap<string, unknown>): string {
  const meant = didYouMean(name, entries.keys());
  return meant ? `; did you mean "${meant}"?` : `, which holds ${entries.size} tensors`;
}

/** Reads a whole safetensors file. See {@link openSafetensors} for what is refused. */
export async function readSafetensors(source: string | Blob | Uint8Array): Promise<SafetensorsContent> {
  const file = await openSafetensors(source);
  const tensors: [string, tf.Tensor][] = [];
  try {
    for (const name of file.entries.keys()) tensors.push([name, await file.read(name)]);
  } catch (cause) {
    tf.dispose(tensors.map(([, tensor]) => tensor));
    throw cause;
  } finally {
    await file.close();
  }
  return { metadata: file.metadata, tensors: Object.fromEntries(tensors) };
}

/** Reads safetensors bytes in memory. See {@link openSafetensors} for what is refused. */
export function decodeSafetensors(bytes: Uint8Array): SafetensorsContent {
  const file = 'safetensors bytes';
  const length = headerLength(bytes, bytes.length, file);
  const { metadata, entries } = parseHeader(bytes.subarray(8, 8 + length), bytes.length, file);
  const tensors: [string, tf.Tensor][] = [];
  try {
    for (const { name, dtype, shape, offset, byteLength } of entries.values()) {
      const field = `${file}: tensor "${name}"`;
      const values = decodeValues(bytes.subarray(offset, offset + byteLength), dtype, shape, field);
      tensors.push([name, valuesToTensor(values, field)]);
    }
  } catch (cause) {
    tf.dispose(tensors.map(([, tensor]) => tensor));
    throw cause;
  }
  return { metadata, tensors: Object.fromEntries(tensors) };
}

/** Safetensors bytes of the tensors, in memory. See {@link writeSafetensors}. */
export async function encodeSafetensors(
  tensors: Record<string, WritableTensor>,
  options: SafetensorsOptions = {},
): Promise<Uint8Array> {
  const plan = planTensors(tensors, options.dtype);
  const pieces: Uint8Array[] = [];
  for await (const piece of encodedPieces(plan, options.metadata)) pieces.push(piece);
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

/**
 * Writes tensors to a safetensors file, atomically. The order is that of the format's own writer: wide element types
 * first, then by name, so equal tensors give equal files.
 *
 * @throws MatforgeError when the file exists and `overwrite` is not set, a value does not fit its dtype, a shape and its
 *   data disagree, or the file cannot be written.
 */
export async function writeSafetensors(
  path: string,
  tensors: Record<string, WritableTensor>,
  { overwrite, dtype, metadata }: SafetensorsOptions & WriteOptions = {},
): Promise<void> {
  await writeFileAtomic(path, encodedPieces(planTensors(tensors, dtype, `${path}: `), metadata), { overwrite });
}

/** A tensor whose dtype, shape and size are settled and whose bytes can be asked for. */
export interface EncodedTensor extends PlannedTensor {
  encode(): Uint8Array | Promise<Uint8Array>;
}

/** Settles dtype and size of every tensor, in file order, before anything is written. */
export function planTensors(
  tensors: Record<string, WritableTensor>,
  floatDtype: string = 'F32',
  file = '',
): EncodedTensor[] {
  ensure(
    ['F32', 'F16', 'BF16'].includes(floatDtype),
    'dtype',
    () => `is ${floatDtype}; accepted are F32, F16 and BF16`,
  );
  const width = ({ dtype, name }: EncodedTensor): number => bytesPerElement(dtype, name);
  return Object.entries(tensors)
    .map(([name, tensor]) => planTensor(name, tensor, floatDtype as SafetensorsDtype, `${file}tensor "${name}"`))
    .sort((a, b) => width(b) - width(a) || (a.name < b.name ? -1 : 1));
}

function planTensor(name: string, tensor: WritableTensor, floatDtype: SafetensorsDtype, field: string): EncodedTensor {
  if (tensor instanceof tf.Tensor) {
    ensure(!tensor.isDisposed, field, () => 'has been disposed; save before disposing');
    const dtype = { float32: floatDtype, int32: 'I32' as const, bool: 'BOOL' as const }[tensor.dtype as string];
    ensure(dtype, field, () => `has dtype ${tensor.dtype}; float32, int32 and bool can be stored`);
    const byteLength = tensor.size * bytesPerElement(dtype, field);
    const encode = async (): Promise<Uint8Array> => encodeValues(await tensor.data(), dtype, field);
    return { name, dtype, shape: tensor.shape, byteLength, encode };
  }
  const { dtype, shape } = tensor;
  ensure(
    Array.isArray(shape) && shape.every((extent) => Number.isSafeInteger(extent) && extent >= 0),
    field,
    () => `shape must be a list of sizes, is ${JSON.stringify(shape)}`,
  );
  const size = tf.util.sizeFromShape(shape);
  const byteLength = size * bytesPerElement(dtype, field);
  if ('bytes' in tensor) {
    const { bytes } = tensor;
    const encode = async (): Promise<Uint8Array> => {
      const made = typeof bytes === 'function' ? await bytes() : bytes;
      ensure(
        made.length === byteLength,
        field,
        () => `${made.length} bytes do not hold ${dtype} of shape [${shape}] (${byteLength})`,
      );
      return made;
    };
    return { name, dtype, shape, byteLength, encode };
  }
  const { data } = tensor;
  ensure(isReadable(dtype), field, () => `values cannot be stored as ${dtype}; give the bytes instead`);
  ensure(data.length === size, field, () => `${data.length} values do not fill shape [${shape}], which has ${size}`);
  return { name, dtype, shape, byteLength, encode: () => encodeValues(data, dtype, field) };
}

/** The bytes of a file, tensor after tensor, so that only one tensor is held twice. */
export async function* encodedPieces(
  plan: EncodedTensor[],
  metadata: Record<string, string> = {},
): AsyncGenerator<Uint8Array> {
  for (const [key, text] of Object.entries(metadata)) {
    ensure(
      typeof text === 'string',
      `metadata.${key}`,
      () => `must be a text, is ${JSON.stringify(text)}; use String() or JSON`,
    );
  }
  yield buildHeader(plan, metadata);
  for (const tensor of plan) yield await tensor.encode();
}
