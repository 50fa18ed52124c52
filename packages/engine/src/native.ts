import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { type Addon, findAddon } from './addon.ts';
import { address, heapMemory, heapModule, isShared } from './backend.ts';
import { decodeBase64 } from './base64.ts';
import { base64 as plain } from './kernels.wasm.ts';
import { base64 as relaxed } from './kernels-relaxed.wasm.ts';
import { asShared } from './shared.ts';
import { MOST_THREADS, Pool, sharedKernels, threadCount } from './threads.ts';
import { type WasmExports, type WasmMemory, type WasmModule, webAssembly } from './webassembly.ts';

const STACK_BYTES = 1 << 16;

/** Our kernels on the heap of one wasm backend: the WebAssembly module, alone or with threads, or the addon in its place. */
export class Native {
  readonly kernels: WasmExports;
  /** The WebAssembly module alone. */
  readonly wasm: WasmExports;
  /** Whether this is the build with fused multiply-add. */
  readonly relaxed: boolean;
  /** The instruction set of the optional native addon, null without it. */
  readonly isa: string | null;
  private readonly backend: BackendWasm;
  private readonly addon: Addon | null;
  private readonly pool: Pool | null = null;
  private readonly isShared: boolean;
  private scratch = { at: 0, bytes: 0 };

  constructor(backend: BackendWasm, memory: WasmMemory, build: Build, wasm: WasmExports, addon: Addon | null) {
    this.backend = backend;
    this.wasm = wasm;
    this.relaxed = build.relaxed;
    const { _malloc: malloc, _free: free } = heapModule(backend);
    wasm.__stack_pointer.value = (malloc(STACK_BYTES) + STACK_BYTES) & ~15;
    const opened = addon?.openNative(() => heapModule(backend).HEAPU8, wasm) ?? null;
    this.addon = opened && addon;
    this.isa = opened?.isa ?? null;
    this.isShared = isShared(memory);
    if (opened) {
      this.kernels = { ...wasm, ...opened.kernels } as WasmExports;
      return;
    }
    this.pool = new Pool({ memory, malloc, free }, build.module, wasm, this.isShared ? threadCount() : 1);
    this.kernels = { ...wasm, ...sharedKernels(wasm, this.pool) } as WasmExports;
  }

  /** How many threads share the work of a kernel. */
  get threads(): number {
    return this.addon?.nativeThreads() ?? this.pool?.size ?? 1;
  }

  set threads(count: number) {
    this.addon?.nativeThreads(Math.min(count, MOST_THREADS));
    const size = threadCount(count);
    if (this.isShared && size !== this.pool?.size) this.pool?.resize(size);
  }

  /** The address of a work area of at least so many bytes; the same one for every call, so it serves one kernel at a time. */
  work(bytes: number): number {
    if (bytes > this.scratch.bytes) {
      const module = heapModule(this.backend);
      if (this.scratch.at !== 0) module._free(this.scratch.at);
      this.scratch = { at: 0, bytes: 0 };
      this.scratch = { at: module._malloc(bytes) >>> 0, bytes };
    }
    return this.scratch.at;
  }

  /** The address of a tensor, 0 for none. */
  at(tensor: tf.TensorInfo | null | undefined): number {
    return tensor ? address(this.backend, tensor) : 0;
  }
}

const NATIVE = Symbol.for('matforge.engine.native');
type Host = { [NATIVE]?: Native | null };

/** The module on a backend's heap; null where the machine or the backend does not allow it. */
export function native(backend: BackendWasm): Native | null {
  return (backend as unknown as Host)[NATIVE] ?? null;
}

/** Whether our module works on the current backend. */
export function isCurrent(): boolean {
  return tf.getBackend() === 'wasm' && native(tf.backend() as BackendWasm) !== null;
}

/** Puts our module on the heap of a backend, once. */
export async function install(backend: BackendWasm): Promise<Native | null> {
  const host = backend as unknown as Host;
  if (host[NATIVE] !== undefined) return host[NATIVE];
  const memory = heapMemory(backend);
  const bytes = memory && choose();
  if (!bytes) {
    host[NATIVE] = null;
    return null;
  }
  const module = await webAssembly!.compile(isShared(memory) ? asShared(bytes) : bytes);
  const { exports } = await webAssembly!.instantiate(module, { env: { memory } });
  const addon = await findAddon();
  const build = { module, relaxed: bytes === decoded.get(relaxed) };
  // Two callers may have come this far; the first to get here wins.
  host[NATIVE] ??= new Native(backend, memory, build, exports as WasmExports, addon);
  return host[NATIVE];
}

/**
 * Brings kernels of your own onto the heap of the wasm backend, where they work on tensors in place: the exports of a
 * WebAssembly module that imports its memory as `env.memory`, and the address of a tensor.
 *
 * @param bytes the module, compiled for a memory of its own or a shared one; it must not have data sections.
 * @returns null when `wasm` is not the current backend, and where this machine does not take the module.
 */
export function onHeap(bytes: Uint8Array): HeapKernels | null {
  if (tf.getBackend() !== 'wasm' || !webAssembly?.validate(bytes)) return null;
  const backend = tf.backend() as BackendWasm;
  const memory = heapMemory(backend);
  if (!memory) return null;
  const module = new webAssembly.Module(isShared(memory) ? asShared(bytes) : bytes);
  const { exports } = new webAssembly.Instance(module, { env: { memory } });
  return { exports: exports as WasmExports, at: (tensor) => (tensor ? address(backend, tensor) : 0) };
}

/** What {@link onHeap} gives. */
export interface HeapKernels {
  exports: Record<string, (...numbers: number[]) => number>;
  /** The address of a tensor's first byte; 0 for none. */
  at(tensor: tf.TensorInfo | null | undefined): number;
}

interface Build {
  module: WasmModule;
  relaxed: boolean;
}

const decoded = new Map<string, Uint8Array>();

/** The build that this machine takes; null without SIMD. */
function choose(): Uint8Array | null {
  for (const text of [relaxed, plain]) {
    const bytes = decoded.get(text) ?? decodeBase64(text);
    decoded.set(text, bytes);
    if (webAssembly?.validate(bytes)) return bytes;
  }
  return null;
}
