import { closeSync, existsSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';

/** A kernel of @matforge/engine: numbers and addresses on the heap in, a number out. */
export type HeapKernel = (...numbers: number[]) => number;

/** The addon bound to one heap. */
export interface NativeKernels {
  /** The kernels, by the names and with the arguments of the WebAssembly module's exports. */
  kernels: Record<string, HeapKernel>;
  /** What matrix products run on. */
  isa: 'avx512' | 'avx2' | 'neon';
}

interface Addon {
  /** Functions bound to a heap, and `move`, which says where that heap is. */
  open(): Record<string, HeapKernel> & { move(heap: Uint8Array): void };
  threads(count?: number): number;
  isa(name?: string): 'avx512' | 'avx2' | 'neon' | null;
  /** Number of arguments by kernel. */
  kernels(): Record<string, number>;
  /** Fingerprint of the sources. */
  sources(): string;
  /** Fingerprint of the version of @matforge/engine whose kernels it has. */
  engine(): string;
}

let loaded: Addon | null | undefined;
let problem: string | undefined;

function addon(): Addon | null {
  if (loaded !== undefined) return loaded;
  loaded = null;
  const name = 'matforge_engine.node';
  const places = [`../build/Release/${name}`, `../prebuilds/${process.platform}-${process.arch}/${name}`].map((place) =>
    fileURLToPath(new URL(place, import.meta.url)),
  );
  const present = places.filter((place) => existsSync(place));
  problem = present.length === 0 ? `there is no binary for ${process.platform}-${process.arch}` : undefined;
  for (const place of present) {
    try {
      if (isCutOff(place)) throw new Error(`${place} is cut off; install the package again`);
      const holder = { exports: {} };
      process.dlopen(holder, place);
      const candidate = holder.exports as Addon;
      if (candidate.isa() === null) {
        problem = 'the processor has neither AVX2 nor NEON';
        continue;
      }
      candidate.threads(wantedThreads());
      loaded = candidate;
      problem = undefined;
      return loaded;
    } catch (error) {
      problem = error instanceof Error ? error.message : String(error);
    }
  }
  return loaded;
}

/** Whether the end of an ELF file is missing. Loading one ends the process: it is mapped beyond what there is. */
function isCutOff(path: string): boolean {
  const file = openSync(path, 'r');
  try {
    const header = Buffer.alloc(64);
    const isElf64 = readSync(file, header) === 64 && header.readUInt32BE(0) === 0x7f454c46 && header[4] === 2;
    if (!isElf64) return false;
    // The table of sections comes last.
    const [at, size, count] = [header.readBigUInt64LE(40), header.readUInt16LE(58), header.readUInt16LE(60)];
    return fstatSync(file).size < Number(at) + size * count;
  } finally {
    closeSync(file);
  }
}

/** MATFORGE_THREADS, or a thread for each processor that this process may use, at most 16. */
function wantedThreads(): number {
  const given = Number(process.env.MATFORGE_THREADS);
  return Number.isInteger(given) && given > 0 ? given : Math.min(availableParallelism(), quota(), 16);
}

/** Processors that a container may use at a time: threads beyond them would take turns. */
function quota(): number {
  try {
    const [time, period] = readFileSync('/sys/fs/cgroup/cpu.max', 'utf8').split(' ').map(Number);
    return time > 0 ? Math.max(1, Math.ceil(time / period)) : Number.POSITIVE_INFINITY;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

/**
 * Why the addon is not in use, or undefined when it is. With the fingerprint of an engine's kernels also whether it is made
 * for that engine.
 */
export function whyNot(engine?: string): string | undefined {
  const found = addon();
  if (!found || engine === undefined || found.engine() === engine) return problem;
  return 'it belongs to another version of @matforge/engine; install the two in the same version';
}

/**
 * Binds the addon to a heap. `heap` returns a view of the whole heap and a new one when it has grown or moved, as
 * Emscripten's HEAPU8 does. `reference` are the exports of the WebAssembly module that the kernels stand in for: only
 * those that it has, with as many arguments, are given.
 *
 * @returns null where there is no working binary for this machine; {@link whyNot} tells why.
 */
export function openNative(
  heap: () => Uint8Array,
  reference?: Readonly<Record<string, unknown>>,
): NativeKernels | null {
  const found = addon();
  const isa = found?.isa();
  if (!found || !isa) return null;
  const { move, ...functions } = found.open();
  const counts = found.kernels();
  let last: Uint8Array | undefined;
  const kernels: Record<string, HeapKernel> = {};
  for (const [name, run] of Object.entries(functions)) {
    if (reference && (reference[name] as HeapKernel | undefined)?.length !== counts[name]) continue;
    kernels[name] = (...numbers) => {
      const now = heap();
      if (now !== last) {
        move(now);
        last = now;
      }
      return run(...numbers);
    };
  }
  return { kernels, isa };
}

/** Fingerprint of the sources that the binary was made from, null without it. */
export function nativeSources(): string | null {
  return addon()?.sources() ?? null;
}

/**
 * Number of threads that share a matrix product, the calling one included; sets it when `count` is given. The default is
 * MATFORGE_THREADS or the number of processors, at most 16. Results do not depend on it. Without the addon: 1.
 */
export function nativeThreads(count?: number): number {
  if (count !== undefined && !(Number.isInteger(count) && count >= 1 && count <= 64)) {
    throw new Error(`nativeThreads: count must be a whole number from 1 to 64, got ${count}.`);
  }
  const found = addon();
  return found ? (count === undefined ? found.threads() : found.threads(count)) : 1;
}

/**
 * The instruction set that matrix products use, null without the addon. A name selects another one that the machine has;
 * one that it lacks changes nothing.
 */
export function nativeIsa(name?: 'avx512' | 'avx2' | 'neon'): 'avx512' | 'avx2' | 'neon' | null {
  const found = addon();
  return found ? (name === undefined ? found.isa() : found.isa(name)) : null;
}
