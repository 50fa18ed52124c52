import { type ByteSource, ensure, openSource, refuse } from '@matforge/core';

/** A path (Node), a File or Blob (browser), or the bytes themselves. */
export type FileSource = string | Blob | Uint8Array;

/** Rows of files up to this size are held in memory; larger files are read again in every pass. */
export const MAX_MEMORY_BYTES = 2 ** 28;
const CHUNK = 2 ** 20;

export async function withSource<T>(source: FileSource, use: (bytes: ByteSource) => Promise<T>): Promise<T> {
  const bytes = await openSource(source);
  try {
    return await use(bytes);
  } finally {
    await bytes.close();
  }
}

/** Opens a file again for one pass, if it is still the one whose rows are known. */
export async function reopen(source: FileSource, size: number): Promise<ByteSource> {
  const file = await openSource(source);
  if (file.size !== size) await file.close();
  ensure(
    file.size === size,
    file.name,
    () => `has changed: ${size} bytes when it was opened, ${file.size} now; open it anew`,
  );
  return file;
}

export async function* chunks(bytes: ByteSource): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.size; at += CHUNK) yield bytes.read(at, Math.min(CHUNK, bytes.size - at));
}

/** One line without its end. `start` and `end` are byte positions, `end` behind the line's end. */
export interface Line {
  text: string;
  start: number;
  end: number;
  /** Counts from 1. */
  number: number;
}

/** The lines of a UTF-8 text, one in memory at a time. */
export async function* lines(bytes: ByteSource): AsyncGenerator<Line> {
  let rest = new Uint8Array(0);
  let start = 0;
  let number = 1;
  for await (const chunk of chunks(bytes)) {
    const text = new Uint8Array(rest.length + chunk.length);
    text.set(rest);
    text.set(chunk, rest.length);
    let from = 0;
    for (let to = text.indexOf(10, rest.length); to >= 0; to = text.indexOf(10, from)) {
      yield { text: utf8(text.subarray(from, to), bytes.name, number), start, end: start + to + 1 - from, number };
      start += to + 1 - from;
      from = to + 1;
      number++;
    }
    rest = text.slice(from);
  }
  if (rest.length) yield { text: utf8(rest, bytes.name, number), start, end: start + rest.length, number };
}

export function utf8(bytes: Uint8Array, file: string, line: number): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    return refuse(`${file}: line ${line}`, 'is not text in UTF-8', { cause });
  }
}

/** gzip, known by its first two bytes, is unpacked into memory; anything else comes back as it is. */
export async function unpacked(bytes: ByteSource): Promise<ByteSource> {
  const magic = await bytes.read(0, Math.min(2, bytes.size));
  if (magic[0] !== 0x1f || magic[1] !== 0x8b) return bytes;
  const stream = new Blob([await bytes.read(0, bytes.size)]).stream().pipeThrough(new DecompressionStream('gzip'));
  const plain = await new Response(stream).arrayBuffer().then(
    (buffer) => new Uint8Array(buffer),
    (cause) => refuse(bytes.name, 'starts like gzip but cannot be unpacked; it is truncated or damaged', { cause }),
  );
  const unpackedBytes = await openSource(plain);
  return { ...unpackedBytes, name: bytes.name, close: () => bytes.close() };
}

/** Path of a file inside an installed npm package. */
export async function packageFile(specifier: string): Promise<string> {
  const name = specifier.split('/')[0];
  if (typeof process === 'undefined' || !process.versions?.node) {
    refuse(name, 'is read from node_modules, which needs Node; in a browser fetch the files and pass them to idx()');
  }
  const { createRequire } = await import(/* webpackIgnore: true */ /* @vite-ignore */ 'node:module');
  try {
    return createRequire(import.meta.url).resolve(specifier);
  } catch (cause) {
    return refuse(name, `is not installed or lacks ${specifier}; run: npm install ${name}`, { cause });
  }
}

/** An array that grows by doubling. */
export class Growing<T extends Float32Array | Float64Array | Int32Array> {
  length = 0;
  #values: T;
  constructor(empty: T) {
    this.#values = empty;
  }
  push(values: ArrayLike<number>): void {
    const needed = this.length + values.length;
    if (needed > this.#values.length) {
      const larger = new (this.#values.constructor as new (n: number) => T)(
        Math.max(1024, 2 * this.#values.length, needed),
      );
      larger.set(this.#values.subarray(0, this.length));
      this.#values = larger;
    }
    this.#values.set(values, this.length);
    this.length = needed;
  }
  finish(): T {
    return this.#values.slice(0, this.length) as T;
  }
}
