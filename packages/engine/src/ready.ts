import * as tf from '@tensorflow/tfjs';
import * as tfWasm from '@tensorflow/tfjs-backend-wasm';
import { findAddon } from './addon.ts';
import { guard, heapModule } from './backend.ts';
import { registerFused } from './fused.ts';
import { install, native } from './native.ts';
import { speedUpOptimizers } from './optimizers.ts';
import { registerKernels } from './register.ts';
import { withSharedHeap } from './shared.ts';
import { threadCount } from './threads.ts';

/** How the wasm backend is found and started. */
export interface ReadyOptions {
  /**
   * Where a browser fetches the .wasm files of `@tensorflow/tfjs-backend-wasm` from: a folder, or a file name to URL map
   * as `setWasmPaths` takes it. In Node the package's own files are used.
   */
  wasmPaths?: string | Record<string, string>;
  /**
   * How many threads share the work of a kernel, the calling one included; more than 32 count as 32. Default
   * MATFORGE_THREADS, or one for each processor, at most 16; 1 where memory cannot be shared: in pages that are not
   * cross-origin isolated, and when the wasm backend had been started before, without threads (`engineInfo()` tells).
   */
  threads?: number;
}

let starting: Promise<'wasm'> | undefined;

/**
 * Makes the wasm backend current and fit for training: kernels that it lacks are filled in, wrong ones replaced, slow
 * ones swapped for ours. May be called any number of times, before or after `tf.setBackend('wasm')`.
 *
 * @returns the name of the backend that is current afterwards.
 * @throws Error when `threads` is not a whole number from 1 on, and when the wasm backend cannot be started (in a browser:
 * usually because its files were not found).
 */
export async function ready(options: ReadyOptions = {}): Promise<'wasm'> {
  const { threads } = options;
  if (threads !== undefined && !(Number.isInteger(threads) && threads >= 1)) {
    throw new Error(`engine: threads of ready is ${threads}; give a whole number from 1 on.`);
  }
  starting ??= start(options).catch((error) => {
    starting = undefined;
    throw error;
  });
  await starting;
  if (tf.getBackend() !== 'wasm') await tf.setBackend('wasm');
  const backend = tf.backend() as tfWasm.BackendWasm;
  guard(backend);
  const installed = await install(backend);
  if (installed && threads !== undefined && threads !== installed.threads) installed.threads = threads;
  return 'wasm';
}

async function start({ wasmPaths, threads }: ReadyOptions): Promise<'wasm'> {
  if (wasmPaths !== undefined) setWasmPaths(wasmPaths);
  // The backend's own threads serve few of its kernels and none of ours.
  if (tf.getBackend() !== 'wasm') tf.env().set('WASM_HAS_MULTITHREAD_SUPPORT', false);
  const isShared = threadCount(threads) > 1 && (await findAddon()) === null;
  const setBackend = () => tf.setBackend('wasm');
  const started = (isShared && (await withSharedHeap(setBackend))) || (await setBackend());
  if (!started) {
    throw new Error(
      "engine: the wasm backend of TensorFlow.js did not start. In a browser give ready({ wasmPaths }): the folder that serves the .wasm files of '@tensorflow/tfjs-backend-wasm'. A program bundled for Node finds them beside itself.",
    );
  }
  const backend = tf.backend() as tfWasm.BackendWasm;
  guard(backend);
  const installed = await install(backend);
  registerKernels(installed !== null);
  if (installed) {
    registerFused();
    speedUpOptimizers();
  }
  return 'wasm';
}

function setWasmPaths(paths: string | Record<string, string>): void {
  try {
    tfWasm.setWasmPaths(paths as string);
  } catch (cause) {
    throw new Error(
      'engine: the wasm backend failed to start before, and TensorFlow.js takes no other wasmPaths after that. Reload the page and give wasmPaths in the first call of ready().',
      { cause },
    );
  }
}

/** What runs below the tensors. */
export interface EngineInfo {
  /** The backend that is current. */
  backend: string;
  /** Our own build in use: 'relaxed' has fused multiply-add, 'none' leaves tfjs's and the portable kernels. */
  kernels: 'relaxed' | 'simd' | 'none';
  /** What @matforge/engine-native runs on ('avx512', 'avx2', 'neon'), null where it is not in use. */
  native: string | null;
  /** How many threads share the work of a kernel. */
  threads: number;
  /** Size of the wasm heap in bytes, 0 on other backends. */
  heapBytes: number;
}

/** Says which backend and which build of the kernels are in use. */
export function engineInfo(): EngineInfo {
  const backend = tf.getBackend() ?? 'none';
  if (backend !== 'wasm') return { backend, kernels: 'none', native: null, threads: 1, heapBytes: 0 };
  const wasm = tf.backend() as tfWasm.BackendWasm;
  const installed = native(wasm);
  const kernels = installed === null ? 'none' : installed.relaxed ? 'relaxed' : 'simd';
  return {
    backend,
    kernels,
    native: installed?.isa ?? null,
    threads: installed?.threads ?? 1,
    heapBytes: heapModule(wasm).HEAPU8.byteLength,
  };
}
