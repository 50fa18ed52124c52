import { ensure, refuse } from '../errors.ts';
import { bytesPerElement } from './dtypes.ts';

/** One tensor of a safetensors file. `offset` counts from the start of the file. */
export interface SafetensorsEntry {
  name: string;
  dtype: string;
  shape: number[];
  offset: number;
  byteLength: number;
}

export interface SafetensorsHeader {
  metadata: Record<string, string>;
  entries: Map<string, SafetensorsEntry>;
}

/** The format's own limit: a longer header is an attack or not a header at all. */
export const MAX_HEADER_BYTES = 100_000_000;
const METADATA = '__metadata__';

/** The header's length, from the first eight bytes of a file of `size` bytes. */
export function headerLength(prefix: Uint8Array, size: number, file: string): number {
  ensure(
    size >= 8,
    file,
    () => `${size} bytes are too few for a safetensors file, which starts with an 8-byte header length`,
  );
  const length = new DataView(prefix.buffer, prefix.byteOffset, 8).getBigUint64(0, true);
  ensure(
    length <= MAX_HEADER_BYTES,
    file,
    () =>
      `a header of ${length} bytes is beyond the format's limit of ${MAX_HEADER_BYTES}; this is not a safetensors file`,
  );
  ensure(
    length >= 2n && Number(length) + 8 <= size,
    file,
    () =>
      `the header should be ${length} bytes long but the file has ${size} bytes; it is truncated or not a safetensors file`,
  );
  return Number(length);
}

/**
 * Checks a header as the format demands: one JSON object without duplicate names, known dtypes, shapes that account for
 * every byte, tensors back to back from the header's end to the file's end.
 */
export function parseHeader(bytes: Uint8Array, size: number, file: string): SafetensorsHeader {
  ensure(bytes[0] === 0x7b, file, () => 'the header does not start with "{"; this is not a safetensors file');
  const object = parseObject(bytes, file);
  const metadata: [string, string][] = [];
  const entries: SafetensorsEntry[] = [];
  const dataStart = 8 + bytes.length;
  for (const [name, value] of Object.entries(object)) {
    if (name !== METADATA) {
      entries.push(parseEntry(name, value, dataStart, size, file));
      continue;
    }
    ensure(isObject(value), `${file}: ${METADATA}`, () => `must map texts to texts, is ${JSON.stringify(value)}`);
    for (const [key, text] of Object.entries(value)) {
      ensure(
        typeof text === 'string',
        `${file}: ${METADATA}.${key}`,
        () => `must be a text, is ${JSON.stringify(text)}`,
      );
      metadata.push([key, text]);
    }
  }
  entries.sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength);
  let end = dataStart;
  for (const { name, offset, byteLength } of entries) {
    ensure(
      offset === end,
      `${file}: tensor "${name}"`,
      () =>
        `${offset < end ? 'overlaps the tensor before it' : 'leaves a hole before it'}: starts at data byte ` +
        `${offset - dataStart}, the tensors before it end at ${end - dataStart}`,
    );
    end = offset + byteLength;
  }
  ensure(
    end === size,
    file,
    () => `${size - end} bytes after the last tensor belong to no tensor; the file is damaged`,
  );
  return {
    metadata: Object.fromEntries(metadata),
    entries: new Map(entries.map((entry) => [entry.name, entry])),
  };
}

function parseEntry(name: string, value: unknown, dataStart: number, size: number, file: string): SafetensorsEntry {
  const field = `${file}: tensor "${name}"`;
  ensure(
    isObject(value),
    field,
    () => `must be an object with dtype, shape and data_offsets, is ${JSON.stringify(value)}`,
  );
  const { dtype, shape, data_offsets: offsets } = value;
  ensure(typeof dtype === 'string', field, () => `dtype must be a text, is ${JSON.stringify(dtype)}`);
  ensure(isCounts(shape), field, () => `shape must be a list of sizes, is ${JSON.stringify(shape)}`);
  ensure(
    isCounts(offsets) && offsets.length === 2 && offsets[0] <= offsets[1],
    field,
    () => `data_offsets must be [begin, end] with begin ≤ end, is ${JSON.stringify(offsets)}`,
  );
  const [begin, end] = offsets;
  ensure(
    dataStart + end <= size,
    field,
    () =>
      `data_offsets ${JSON.stringify(offsets)} reach beyond the file, which has ${size - dataStart} data bytes; it is truncated`,
  );
  const expected = shape.reduce((product, extent) => product * extent, bytesPerElement(dtype, field));
  ensure(
    end - begin === expected,
    field,
    () => `${end - begin} bytes do not hold ${dtype} of shape [${shape}], which takes ${expected}`,
  );
  return { name, dtype, shape, offset: dataStart + begin, byteLength: end - begin };
}

function parseObject(bytes: Uint8Array, file: string): Record<string, unknown> {
  let text: string;
  let value: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    value = JSON.parse(text);
  } catch (cause) {
    refuse(file, `the header is not JSON in UTF-8 (${(cause as Error).message}); the file is damaged`, { cause });
  }
  ensure(isObject(value), file, () => 'the header is not a JSON object; this is not a safetensors file');
  const duplicate = duplicateKey(text);
  ensure(
    duplicate === undefined,
    file,
    () => `the header names ${JSON.stringify(duplicate)} twice; the file is damaged`,
  );
  return value;
}

/** The first name that one object of a valid JSON text has twice; JSON.parse would silently keep the last. */
export function duplicateKey(text: string): string | undefined {
  const open: (Set<string> | undefined)[] = [];
  const token = /"(?:[^"\\]|\\.)*"(\s*:)?|[{}[\]]/g;
  for (let match = token.exec(text); match; match = token.exec(text)) {
    const [found, colon] = match;
    if (found === '{') open.push(new Set());
    else if (found === '[') open.push(undefined);
    else if (found === '}' || found === ']') open.pop();
    else if (colon) {
      const key: string = JSON.parse(found.slice(0, -colon.length));
      const names = open.at(-1)!;
      if (names.has(key)) return key;
      names.add(key);
    }
  }
  return undefined;
}

/** What the header says of one tensor to be written. */
export interface PlannedTensor {
  name: string;
  dtype: string;
  shape: number[];
  byteLength: number;
}

/**
 * Header bytes, with the 8-byte length, for tensors in the given order. Padded with spaces so that data start at a
 * multiple of 8.
 */
export function buildHeader(tensors: readonly PlannedTensor[], metadata: Record<string, string>): Uint8Array {
  const fields: string[] = [];
  const keys = Object.keys(metadata).sort();
  if (keys.length)
    fields.push(`"${METADATA}":${JSON.stringify(Object.fromEntries(keys.map((key) => [key, metadata[key]])))}`);
  let offset = 0;
  for (const { name, dtype, shape, byteLength } of tensors) {
    ensure(name !== METADATA, `tensor "${METADATA}"`, () => 'this name is reserved by the format; rename the tensor');
    const entry = { dtype, shape, data_offsets: [offset, offset + byteLength] };
    fields.push(`${JSON.stringify(name)}:${JSON.stringify(entry)}`);
    offset += byteLength;
  }
  const json = new TextEncoder().encode(`{${fields.join(',')}}`);
  const length = Math.ceil(json.length / 8) * 8;
  ensure(
    length <= MAX_HEADER_BYTES,
    'tensors',
    () =>
      `the header would take ${length} bytes, beyond the format's limit of ${MAX_HEADER_BYTES}; write fewer tensors a file`,
  );
  const bytes = new Uint8Array(8 + length).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  bytes.set(json, 8);
  return bytes;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0);
}
