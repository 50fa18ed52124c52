import type * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { type NativeKernels, openAddon } from './addon.ts';
import { address, heapMemory, heapModule } from './backend.ts';
import { decodeBase64 } from './base64.ts';
import { base64 as plain } from './kernels.wasm.ts';
import { base64 as relaxed } from './kernels-relaxed.wasm.ts';
import { type WasmExports, type WasmModule, webAssembly } from './webassembly.ts';

const STACK_BYTES = 1 << 16;

/** Our kernels on the heap of one wasm backend: the WebAssembly module, or the optional addon in place of it. */
export class Native {
  readonly kernels: WasmExports;
  /** The WebAssembly module alone. */
  readonly wasm: WasmExports;
  /** Whether this is the build with fused multiply-add. */
  readonly relaxed: boolean;
  /** The instruction set of the optional native addon, null without it. */
  readonly addon: string | null;
  private readonly backend: BackendWasm;
  private scratch = { at: 0, bytes: 0 };

  constructor(backend: BackendWasm, kernels: WasmExports, isRelaxed: boolean, addon: NativeKernels | null = null) {
    this.backend = backend;
    this.wasm = kernels;
    this.kernels = addon ? ({ ...kernels, ...addon.kernels } as WasmExports) : kernels;
    this.relaxed = isRelaxed;
    this.addon = addon?.isa ?? null;
    const module = heapModule(backend);
    kernels.__stack_pointer.value = (module._malloc(STACK_BYTES) + STACK_BYTES) & ~15;
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

/** Puts our module on the heap of a backend, once. */
export async function install(backend: BackendWasm): Promise<Native | null> {
  const host = backend as unknown as Host;
  if (host[NATIVE] !== undefined) return host[NATIVE];
  const memory = heapMemory(backend);
  const build = choose();
  if (!memory || !build) {
    host[NATIVE] = null;
    return null;
  }
  const instance = await webAssembly!.instantiate(await build.module, { env: { memory } });
  const addon = await openAddon(() => heapModule(backend).HEAPU8, instance.exports);
  // Two callers may have come this far; the first to get here wins.
  host[NATIVE] ??= new Native(backend, instance.exports as WasmExports, build.relaxed, addon);
  return host[NATIVE];
}

let chosen: { module: Promise<WasmModule>; relaxed: boolean } | null | undefined;

function choose(): { module: Promise<WasmModule>; relaxed: boolean } | null {
  if (chosen !== undefined) return chosen;
  chosen = null;
  for (const text of [relaxed, plain]) {
    const bytes = decodeBase64(text);
    if (!webAssembly?.validate(bytes)) continue;
    chosen = { module: webAssembly.compile(bytes), relaxed: text === relaxed };
    break;
  }
  return chosen;
}
