import { webAssembly } from './webassembly.ts';

// The wasm backend of TensorFlow.js keeps its tensors in a memory that one thread can see. Whether a memory is shared is
// one bit in the binary that declares it, and all else in the binary is valid for both kinds; so that bit is set while the
// backend starts, and worker threads of ours can then work on the tensors in place.

/** Something that only the binary of the wasm backend exports. */
const OF_BACKEND = 'register_tensor';
const IMPORTS = 2;
const MEMORY = 5;
const HAS_MAXIMUM = 1;
const SHARED = 2;
const MOST_PAGES = 65536;

/** A copy of a WebAssembly binary whose memory, declared or imported, is shared. */
export function asShared(bytes: Uint8Array): Uint8Array {
  const parts: (Uint8Array | number[])[] = [bytes.subarray(0, 8)];
  for (const { id, start, from, to } of sections(bytes)) {
    const at = id === MEMORY ? from + 1 : id === IMPORTS ? memoryImport(bytes, from) : -1;
    if (at < 0) {
      parts.push(bytes.subarray(start, to));
      continue;
    }
    const afterMinimum = number(bytes, at + 1).next;
    const maximum = bytes[at] & HAS_MAXIMUM ? [] : encoded(MOST_PAGES);
    const body = [
      ...bytes.subarray(from, at),
      bytes[at] | HAS_MAXIMUM | SHARED,
      ...bytes.subarray(at + 1, afterMinimum),
      ...maximum,
      ...bytes.subarray(afterMinimum, to),
    ];
    parts.push([id, ...encoded(body.length)], body);
  }
  const result = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}

interface Section {
  id: number;
  /** Where the section begins, and its content from and to. */
  start: number;
  from: number;
  to: number;
}

function* sections(bytes: Uint8Array): Generator<Section> {
  for (let start = 8; start < bytes.length; ) {
    const { value, next } = number(bytes, start + 1);
    yield { id: bytes[start], start, from: next, to: next + value };
    start = next + value;
  }
}

/** Where the limits of the imported memory stand in an import section; -1 without one. */
function memoryImport(bytes: Uint8Array, from: number): number {
  let { value: count, next: at } = number(bytes, from);
  for (; count > 0; count--) {
    for (let name = 0; name < 2; name++) {
      const { value: length, next } = number(bytes, at);
      at = next + length;
    }
    const kind = bytes[at++];
    if (kind === 2) return at;
    // Function: a type; global: type and mutability; table: type and limits.
    if (kind === 0) at = number(bytes, at).next;
    else if (kind === 3) at += 2;
    else {
      const hasMaximum = bytes[at + 1] & HAS_MAXIMUM;
      at = number(bytes, at + 2).next;
      if (hasMaximum) at = number(bytes, at).next;
    }
  }
  return -1;
}

/** An unsigned LEB128 number and where it ends. */
function number(bytes: Uint8Array, at: number): { value: number; next: number } {
  let value = 0;
  for (let factor = 1; ; factor *= 128) {
    const byte = bytes[at++];
    value += (byte & 127) * factor;
    if (byte < 128) return { value, next: at };
  }
}

function encoded(value: number): number[] {
  const bytes: number[] = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return [...bytes, value];
}

type Source = ArrayBuffer | ArrayBufferView | object;

/** `bytes` as they are, or with a shared memory where they are the wasm backend's. */
function shareBackend(source: Source): Source {
  const isView = ArrayBuffer.isView(source);
  if (!isView && Object.prototype.toString.call(source) !== '[object ArrayBuffer]') return source;
  const bytes = isView
    ? new Uint8Array(source.buffer, source.byteOffset, source.byteLength)
    : new Uint8Array(source as ArrayBuffer);
  return new TextDecoder('latin1').decode(bytes).includes(OF_BACKEND) ? asShared(bytes) : source;
}

/** Runs `start`, during which the wasm backend may come up: its memory is then shared. */
export async function withSharedHeap<T>(start: () => Promise<T>): Promise<T> {
  const api = webAssembly as unknown as Record<'instantiate' | 'instantiateStreaming', Instantiate | undefined>;
  const { instantiate, instantiateStreaming } = api;
  api.instantiate = (source, imports) => instantiate!.call(api, shareBackend(source), imports);
  if (instantiateStreaming) {
    api.instantiateStreaming = async (response, imports) =>
      api.instantiate!(await ((await response) as Response).arrayBuffer(), imports);
  }
  try {
    return await start();
  } finally {
    api.instantiate = instantiate;
    if (instantiateStreaming) api.instantiateStreaming = instantiateStreaming;
  }
}

type Instantiate = (source: Source, imports?: object) => Promise<unknown>;
interface Response {
  arrayBuffer(): Promise<ArrayBuffer>;
}
