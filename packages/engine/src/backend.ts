import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { isMemory, type WasmMemory } from './webassembly.ts';

/** The typed arrays that live on the heap of the wasm backend. */
export type HeapArray = Float32Array | Int32Array | Uint8Array;

/** What a kernel of the wasm backend is given. */
export interface KernelCall {
  inputs: Record<string, tf.TensorInfo>;
  attrs: Record<string, unknown>;
  backend: BackendWasm;
}

/** A kernel of the wasm backend: reads its inputs on the heap, writes new outputs to it. */
export type Kernel = (call: KernelCall) => tf.TensorInfo | tf.TensorInfo[];

/** A kernel of ours. It returns null for inputs that are not its kind: those go to the stock or the cpu kernel. */
export type OwnKernel = (call: KernelCall) => tf.TensorInfo | tf.TensorInfo[] | null;

/** The part of the Emscripten module of the wasm backend that we touch. */
export interface HeapModule {
  HEAPU8: Uint8Array;
  _malloc(bytes: number): number;
  _free(address: number): void;
  asm?: Record<string, unknown>;
  wasmMemory?: WasmMemory;
}

/** The Emscripten module behind a wasm backend. */
export function heapModule(backend: BackendWasm): HeapModule {
  return backend.wasm as unknown as HeapModule;
}

/** The memory that the wasm backend keeps its tensors in, or null when it cannot be reached. */
export function heapMemory(backend: BackendWasm): WasmMemory | null {
  const module = heapModule(backend);
  const memory = Object.values(module.asm ?? {}).find(isMemory) ?? module.wasmMemory ?? null;
  return memory !== null && memory.buffer === module.HEAPU8.buffer ? memory : null;
}

/** Whether threads can work on a memory together. */
export function isShared({ buffer }: WasmMemory): boolean {
  return Object.prototype.toString.call(buffer) === '[object SharedArrayBuffer]';
}

/** The address of a tensor's first byte on the heap. */
export function address(backend: BackendWasm, tensor: tf.TensorInfo): number {
  return backend.dataIdMap.get(tensor.dataId).memoryOffset;
}

/**
 * A view of a tensor on the heap. Views go stale when the heap grows, that is with any allocation: make outputs first,
 * then take views.
 */
export function view(backend: BackendWasm, tensor: tf.TensorInfo): HeapArray {
  const { buffer } = heapModule(backend).HEAPU8;
  const size = tf.util.sizeFromShape(tensor.shape);
  const at = address(backend, tensor);
  if (tensor.dtype === 'float32') return new Float32Array(buffer, at, size);
  if (tensor.dtype === 'int32') return new Int32Array(buffer, at, size);
  if (tensor.dtype === 'bool') return new Uint8Array(buffer, at, size);
  if (tensor.dtype === 'complex64') return new Float32Array(buffer, at, 2 * size);
  throw new Error(`engine: a tensor of dtype '${tensor.dtype}' has no view on the wasm heap.`);
}

/** The kernel that is registered now under `name` for the wasm backend, called with tensors that are on its heap. */
export function call(
  backend: BackendWasm,
  name: string,
  inputs: Record<string, tf.TensorInfo>,
  attrs: Record<string, unknown> = {},
): tf.TensorInfo {
  const kernel = tf.getKernel(name, 'wasm');
  if (!kernel) throw new Error(`engine: the wasm backend has no kernel '${name}'.`);
  return (kernel.kernelFunc as unknown as Kernel)({ inputs, attrs, backend }) as tf.TensorInfo;
}

const LARGEST_HEAP = 2 ** 32;

/** What kernels that run now have made on a backend, and what they hold on to once more; the innermost one's comes last. */
interface Ledger {
  depth: number;
  readonly made: object[];
  readonly held: object[];
}
const LEDGER = Symbol.for('matforge.engine.ledger');
type Guarded = BackendWasm & { [LEDGER]?: Ledger };

/** The same kernel, which takes back what it has made when it fails half-way. */
export function whole<K extends OwnKernel>(kernel: K): K {
  const run: OwnKernel = (call) => {
    const ledger = (call.backend as Guarded)[LEDGER];
    if (!ledger) return kernel(call);
    const { made, held } = ledger;
    const madeBefore = made.length;
    const heldBefore = held.length;
    ledger.depth++;
    try {
      return kernel(call);
    } catch (error) {
      while (held.length > heldBefore) call.backend.disposeData(held.at(-1)!);
      while (made.length > madeBefore) call.backend.disposeData(made.pop()!, true);
      throw error;
    } finally {
      if (--ledger.depth === 0) {
        made.length = 0;
        held.length = 0;
      }
    }
  };
  return run as K;
}

/**
 * Makes allocation failures and complex tensors honest on one backend instance, and keeps the books for {@link whole}.
 *
 * The stock backend takes a null pointer for a tensor's address when the heap cannot grow and then overwrites its own
 * low addresses; here that is an error before anything is written. Complex tensors are stored as interleaved pairs.
 */
export function guard(backend: BackendWasm): void {
  const guarded = backend as Guarded;
  if (guarded[LEDGER]) return;
  const ledger: Ledger = { depth: 0, made: [], held: [] };
  guarded[LEDGER] = ledger;
  const { disposeData, incRef, move, readSync, write } = backend;
  const module = heapModule(backend);
  // Emscripten replaces its stub of a function by the real one on the first call, and with it what was put there before.
  module._free(module._malloc(8));
  const malloc = module._malloc;
  let wanted = '';
  module._malloc = (bytes) => {
    const at = bytes < LARGEST_HEAP ? malloc(bytes) >>> 0 : 0;
    // Close to 4 GiB the allocator also gives out what ends beyond the heap.
    if ((at !== 0 && at + bytes <= module.HEAPU8.byteLength) || bytes === 0) return at;
    if (at !== 0) module._free(at);
    const what = wanted || 'a work area';
    throw new Error(
      `engine: out of memory: ${what} needs ${bytes} bytes and the wasm heap of ${module.HEAPU8.byteLength} bytes ` +
        'cannot grow by that much. Dispose tensors (tf.tidy), or use a smaller batch.',
    );
  };
  backend.move = (dataId, values, shape, dtype, refCount) => {
    wanted = `a ${dtype} tensor of shape [${shape}]`;
    try {
      move.call(backend, dataId, values, shape, dtype, refCount);
    } finally {
      wanted = '';
    }
  };
  backend.readSync = (dataId, start, end) => {
    const { dtype, memoryOffset, shape } = backend.dataIdMap.get(dataId);
    if (dtype !== 'complex64') return readSync.call(backend, dataId, start, end);
    const last = end ?? tf.util.sizeFromShape(shape);
    return new Float32Array(module.HEAPU8.slice(memoryOffset + 8 * (start ?? 0), memoryOffset + 8 * last).buffer);
  };
  backend.write = (values, shape, dtype) => {
    const dataId = write.call(backend, values, shape, dtype);
    if (ledger.depth > 0) ledger.made.push(dataId);
    return dataId;
  };
  backend.incRef = (dataId) => {
    incRef.call(backend, dataId);
    if (ledger.depth > 0) ledger.held.push(dataId);
  };
  backend.disposeData = (dataId, force) => {
    const at = ledger.held.lastIndexOf(dataId);
    if (at >= 0) ledger.held.splice(at, 1);
    return disposeData.call(backend, dataId, force);
  };
}
