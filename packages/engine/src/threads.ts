import { SHARES } from './shares.ts';
import type { WasmExports, WasmMemory, WasmModule } from './webassembly.ts';

// Worker threads that run our kernels on the heap of the wasm backend, which is shared memory. A call is cut into pieces;
// threads take one after the other, the calling one among them, so that no result waits for a thread that is still starting.

/** Where the heap is, and how to get a place on it. */
export interface Heap {
  memory: WasmMemory;
  malloc(bytes: number): number;
  free(address: number): void;
}

/** One argument of a call that is cut into pieces. */
interface Part {
  base: number;
  /** What is added for each step along the (up to three) directions in which the call is cut. */
  steps?: readonly number[];
  /** What is added for each thread: memory that a thread needs for itself. */
  own?: number;
  /** The argument counts what lies along this direction: `base` in all, `chunk` of them in a piece. */
  along?: number;
  chunk?: number;
}

const STACK_BYTES = 1 << 16;
const MOST_ARGUMENTS = 24;
/** More than that many threads are never used. */
export const MOST_THREADS = 32;
// What fits into its part of the ticket, with room for every thread to look once too often.
const MOST_PIECES = 127;
const GEOMETRY_INTS = 16;
// Words that different threads write are kept on cache lines of their own.
const CONTROL_BYTES = 4 * 64;
const JOB_BYTES = 8 * (4 + 8 * MOST_ARGUMENTS);

/** The threads of one heap. */
export class Pool {
  /** Threads in use, the calling one included. */
  size: number;
  private readonly heap: Heap;
  private readonly exports: WasmExports;
  private readonly module: WasmModule;
  private readonly functions: Map<string, number>;
  private readonly control: Int32Array;
  private readonly job: Float64Array;
  private readonly geometries: number;
  private readonly runPieces: (worker: number) => void;
  private workers: Worker[] = [];
  private mayWait = false;
  private scratch = { at: 0, bytes: 0 };
  private jobs = 0;

  /** @param size how many threads; 1 for a heap that is not shared. */
  constructor(heap: Heap, module: WasmModule, exports: WasmExports, size: number) {
    this.heap = heap;
    this.exports = exports;
    this.module = module;
    this.size = size;
    this.functions = new Map(Object.keys(exports).map((name, index) => [name, index]));
    const at = (heap.malloc(CONTROL_BYTES + JOB_BYTES + 4 * GEOMETRY_INTS * MOST_PIECES + 64) + 63) & ~63;
    const { buffer } = heap.memory;
    this.control = new Int32Array(buffer, at, CONTROL_BYTES / 4).fill(0);
    this.job = new Float64Array(buffer, at + CONTROL_BYTES, JOB_BYTES / 8);
    this.geometries = at + CONTROL_BYTES + JOB_BYTES;
    this.runPieces = threadBody(exports, this.control, this.job).runPieces;
    this.resize(size);
  }

  /** Sets how many threads share the work from now on. Workers beyond them sleep until they are wanted again. */
  resize(size: number): void {
    this.size = size;
    Atomics.store(this.control, Word.limit, size);
    Atomics.notify(this.control, Word.limit);
  }

  /** The address of work areas of so many bytes, one behind the other, for every thread that there is. */
  work(bytes: number): number {
    // A worker may have looked at the limit just before it fell.
    const all = bytes * Math.max(this.size, this.workers.length + 1);
    if (all > this.scratch.bytes) {
      if (this.scratch.at !== 0) this.heap.free(this.scratch.at);
      this.scratch = { at: 0, bytes: 0 };
      this.scratch = { at: this.heap.malloc(all) >>> 0, bytes: all };
    }
    return this.scratch.at;
  }

  /** Copies of a convolution's geometry, each with a part of the images; a piece finds its own 64 bytes on. */
  geometry(from: number, images: number, chunk: number): number {
    const { buffer } = this.heap.memory;
    const whole = new Int32Array(buffer, from, GEOMETRY_INTS);
    for (let piece = 0; piece * chunk < images; piece++) {
      const part = new Int32Array(buffer, this.geometries + 4 * GEOMETRY_INTS * piece, GEOMETRY_INTS);
      part.set(whole);
      part[0] = Math.min(chunk, images - piece * chunk);
    }
    return this.geometries;
  }

  /** The numbers at an address. */
  ints(at: number, count: number): Int32Array {
    return new Int32Array(this.heap.memory.buffer, at, count);
  }

  /** Takes memory for as long as `use` runs. */
  withMemory(bytes: number, use: (at: number) => void): void {
    const at = this.heap.malloc(bytes) >>> 0;
    try {
      use(at);
    } finally {
      this.heap.free(at);
    }
  }

  /** Calls a kernel once for each piece, `counts` of them along each direction. Returns when all are done. */
  run(name: string, parts: readonly Part[], counts: readonly [number, number?, number?]): void {
    const [first, second = 1, third = 1] = counts;
    const pieces = first * second * third;
    if (this.size === 1) {
      for (let piece = 0; piece < pieces; piece++) {
        const along = [piece % first, Math.floor(piece / first) % second, Math.floor(piece / (first * second))];
        this.exports[name](...parts.map((part) => argument(part, along)));
      }
      return;
    }
    if (this.workers.length < this.size - 1) this.start();
    const { control, job } = this;
    job[0] = this.functions.get(name)!;
    job[1] = parts.length;
    job[2] = first;
    job[3] = second;
    let at = 4;
    for (const { base, steps, own, along, chunk } of parts) {
      job[at++] = base;
      job[at++] = steps?.[0] ?? 0;
      job[at++] = steps?.[1] ?? 0;
      job[at++] = steps?.[2] ?? 0;
      job[at++] = own ?? 0;
      job[at++] = along ?? -1;
      job[at++] = chunk ?? 0;
      at++;
    }
    this.jobs = (this.jobs + 1) & 0x7fff;
    Atomics.store(control, Word.done, 0);
    Atomics.store(control, Word.ticket, (this.jobs << 16) | (pieces << 8));
    if (Atomics.load(control, Word.sleepers) > 0) Atomics.notify(control, Word.ticket);
    this.runPieces(0);
    for (let spins = 0; ; spins++) {
      const done = Atomics.load(control, Word.done);
      if (done === pieces) break;
      // More threads than processors: let the other one run.
      if (spins > 50_000 && this.mayWait) Atomics.wait(control, Word.done, done, 0.05);
    }
    if (Atomics.exchange(control, Word.failed, 0) !== 0) {
      throw new Error(
        `engine: ${name} failed on a worker thread. Start with MATFORGE_THREADS=1 to see the error itself.`,
      );
    }
  }

  private start(): void {
    const { memory } = this.heap;
    const { workers } = this;
    const failed = (cause: unknown): void => {
      if (this.workers !== workers) return;
      for (const worker of workers) worker.terminate();
      this.workers = [];
      this.resize(1);
      console.warn(`engine: no worker threads, going on with 1: ${cause}`);
    };
    this.mayWait = maySleep(this.control);
    try {
      for (let index = workers.length + 1; index < this.size; index++) {
        const stack = (this.heap.malloc(STACK_BYTES) + STACK_BYTES) & ~15;
        const { byteOffset } = this.control;
        const start = { module: this.module, memory, stack, index, at: byteOffset, job: this.job.byteOffset };
        workers.push(startWorker(start, failed));
      }
    } catch (error) {
      // Forbidden here (content security policy, permissions): the calling thread does all pieces.
      this.resize(workers.length + 1);
      console.warn(`engine: no worker threads, going on with ${this.size}: ${error}`);
    }
  }
}

/** What an argument is in the piece at a place. */
function argument({ base, steps, along: direction, chunk }: Part, along: readonly number[]): number {
  if (direction !== undefined) return Math.min(chunk!, base - along[direction] * chunk!);
  return (steps ?? []).reduce((sum, step, i) => sum + step * along[i], base);
}

/** Words of the control block. `ticket` holds number of the job, its pieces and the next piece. */
const Word = { ticket: 0, done: 16, sleepers: 32, failed: 48, limit: 49 } as const;

/** Whether the calling thread may sleep; the main thread of a page may not. */
function maySleep(control: Int32Array): boolean {
  try {
    // It is 0, so this returns at once.
    Atomics.wait(control, Word.failed, 1);
    return true;
  } catch {
    return false;
  }
}

/**
 * What a thread does, the calling one and workers. Its text is the program of a worker, so it may use nothing from outside,
 * nor anything that a build puts outside: helpers for spread, destructuring and classes in older JavaScript, and for the
 * names of functions, which methods keep by themselves.
 */
function threadBody(exports: object, control: Int32Array, job: Float64Array) {
  const ticketWord = 0;
  const doneWord = 16;
  const sleepersWord = 32;
  const failedWord = 48;
  const limitWord = 49;
  const functions = Object.values(exports) as ((...values: number[]) => number)[];
  const body = {
    isOpen(ticket: number): boolean {
      return (ticket & 0xff) < ((ticket >>> 8) & 0xff);
    },

    runPiece(piece: number, worker: number): void {
      const along = [piece % job[2], Math.floor(piece / job[2]) % job[3], Math.floor(piece / (job[2] * job[3]))];
      const values: number[] = [];
      for (let i = 0, at = 4; i < job[1]; i++, at += 8) {
        const direction = job[at + 5];
        const chunk = job[at + 6];
        values.push(
          direction < 0
            ? job[at] + along[0] * job[at + 1] + along[1] * job[at + 2] + along[2] * job[at + 3] + worker * job[at + 4]
            : Math.min(chunk, job[at] - along[direction] * chunk),
        );
      }
      functions[job[0]].apply(null, values);
    },

    /** Takes pieces until none is left. The job cannot be replaced while a piece that was taken is unfinished. */
    runPieces(worker: number): void {
      while (body.isOpen(Atomics.load(control, ticketWord))) {
        const ticket = Atomics.add(control, ticketWord, 1);
        if (!body.isOpen(ticket)) return;
        try {
          body.runPiece(ticket & 0xff, worker);
        } catch {
          Atomics.store(control, failedWord, 1);
        }
        Atomics.add(control, doneWord, 1);
      }
    },

    /** Serves for ever. Looks for the next job a while before it sleeps: steps of training follow each other closely. */
    serve(worker: number): void {
      for (let spins = 0; ; spins++) {
        const limit = Atomics.load(control, limitWord);
        if (worker >= limit) Atomics.wait(control, limitWord, limit);
        const ticket = Atomics.load(control, ticketWord);
        if (body.isOpen(ticket)) {
          body.runPieces(worker);
          spins = 0;
        } else if (spins > 20_000) {
          Atomics.add(control, sleepersWord, 1);
          Atomics.wait(control, ticketWord, ticket);
          Atomics.sub(control, sleepersWord, 1);
          spins = 0;
        }
      }
    },
  };
  return body;
}

/** What a worker is given. */
interface Start {
  module: WasmModule;
  memory: WasmMemory;
  stack: number;
  index: number;
  at: number;
  job: number;
}

interface Worker {
  terminate(): unknown;
}

const BEGIN = `({ module, memory, stack, index, at, job }) => {
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  exports.__stack_pointer.value = stack;
  const control = new Int32Array(memory.buffer, at, ${CONTROL_BYTES / 4});
  threadBody(exports, control, new Float64Array(memory.buffer, job, ${JOB_BYTES / 8})).serve(index);
}`;

/**
 * @param failed called when the worker cannot serve. It ends before its first piece then: a kernel's failure is caught.
 */
function startWorker(start: Start, failed: (cause: unknown) => void): Worker {
  const program = `const threadBody = ${threadBody.toString()};\nconst begin = ${BEGIN};\n`;
  const threads = nodeThreads();
  if (threads) {
    const worker = new threads.Worker(`${program}begin(require('node:worker_threads').workerData);`, {
      eval: true,
      workerData: start,
      execArgv: [],
      name: 'matforge',
    });
    // It sleeps when there is nothing to do, which must not keep a program from ending.
    worker.unref();
    worker.on('error', failed);
    return worker;
  }
  const { Blob, URL, Worker } = globalThis as unknown as Page;
  const url = URL.createObjectURL(new Blob([`${program}onmessage = ({ data }) => begin(data);`]));
  const worker = new Worker(url, { name: 'matforge' });
  URL.revokeObjectURL(url);
  worker.onerror = ({ message }) =>
    failed(message ?? 'the page may not start them (content security policy: worker-src blob:)');
  worker.postMessage(start);
  return worker;
}

interface Page {
  Blob: new (parts: string[]) => object;
  URL: { createObjectURL(blob: object): string; revokeObjectURL(url: string): void };
  Worker: new (
    url: string,
    options: object,
  ) => Worker & { postMessage(message: object): void; onerror: ((event: { message?: string }) => void) | null };
  crossOriginIsolated?: boolean;
  SharedArrayBuffer?: unknown;
  navigator?: { hardwareConcurrency?: number };
}

type NodeThreads = typeof import('node:worker_threads');

function nodeThreads(): NodeThreads | undefined {
  if (typeof process === 'undefined') return undefined;
  const { getBuiltinModule } = process as { getBuiltinModule?: (name: string) => unknown };
  return getBuiltinModule?.('node:worker_threads') as NodeThreads | undefined;
}

/**
 * How many threads to use: what is asked for, MATFORGE_THREADS, or one for each processor, at most 16; 1 where memory
 * cannot be shared between threads.
 */
export function threadCount(wanted?: number): number {
  const { SharedArrayBuffer: sharing, crossOriginIsolated, navigator } = globalThis as unknown as Page;
  if (!sharing || !(nodeThreads() || crossOriginIsolated)) return 1;
  const given = wanted ?? Number(typeof process === 'undefined' ? undefined : process.env?.MATFORGE_THREADS);
  if (Number.isInteger(given) && given > 0) return Math.min(given, MOST_THREADS);
  return Math.min(processors(navigator), 16);
}

function processors(navigator?: { hardwareConcurrency?: number }): number {
  if (typeof process === 'undefined' || !process.versions?.node) return navigator?.hardwareConcurrency ?? 1;
  const { getBuiltinModule } = process as { getBuiltinModule?: (name: string) => unknown };
  const os = getBuiltinModule?.('node:os') as typeof import('node:os') | undefined;
  return Math.min(os?.availableParallelism() ?? 1, quota(getBuiltinModule?.('node:fs') as Files | undefined));
}

type Files = typeof import('node:fs');

/** Processors that a container may use at a time: threads beyond them would take turns. */
function quota(fs?: Files): number {
  try {
    const [time, period] = fs!.readFileSync('/sys/fs/cgroup/cpu.max', 'utf8').split(' ').map(Number);
    return time > 0 ? Math.max(1, Math.ceil(time / period)) : Number.POSITIVE_INFINITY;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

// ------------------------------------------------------------------------------------------------- sharing the work

type Call = (...values: number[]) => number;

/** Below this many numbers one thread is done before another has woken up. */
const LEAST = 1 << 15;
/** The same for multiplications in a product: 16 take as long as one number that comes from memory. */
const LEAST_PRODUCT = 16 * LEAST;
/** And for the numbers of an operand that are read once, in order. */
const LEAST_READ = 8 * LEAST;
/** Products with so few rows or columns have a kernel of their own (SGEMM_FEW_ROWS and SGEMM_FEW_COLUMNS of c/sgemm.h). */
const FEW_ROWS = 3;
const FEW_COLUMNS = 4;
/** Sums over pieces need memory for each piece: up to so many numbers in all there are more of them. */
const SMALL_SUM = 1 << 20;

/**
 * The kernels that have something to share, as functions of the same arguments that use the threads of a pool. What they
 * give does not depend on the number of threads: sums are cut up alike for any.
 */
export function sharedKernels(kernels: WasmExports, pool: Pool): Record<string, Call> {
  const shared: Record<string, Call> = { mf_sgemm: shareProduct(kernels, pool) };
  for (const [name, letters] of Object.entries(SHARES)) {
    if (kernels[name]) shared[name] = shareRows(name, [...letters], kernels, pool);
  }
  return shared;
}

/** Cuts a call by its rows or images; what the letters mean stands in c/common.h. */
function shareRows(name: string, letters: string[], kernels: WasmExports, pool: Pool): Call {
  const at = (letter: string): number => letters.indexOf(letter);
  const [rows, unit, inner, together, geometryAt] = [...'NuiqG'].map(at);
  const bytesAt = at('T') + 1;
  const sums = letters.flatMap((letter, i) => (letter === 'A' ? [i] : []));
  return (...values) => {
    const geometry = geometryAt < 0 ? null : pool.ints(values[geometryAt], GEOMETRY_INTS);
    const [images = 0, inH = 0, inW = 0, channels = 0, outH = 0, outW = 0, filters = 0, kernelH = 0, kernelW = 0] =
      geometry ?? [];
    const length = (unit < 0 ? 1 : values[unit]) * (inner < 0 ? 1 : values[inner]);
    const taps = outH * outW * kernelH * kernelW;
    const image = at('W') < 0 ? (taps * Math.max(channels, filters)) / 2 : (taps * channels * filters) / 16;
    const row = geometry ? image : bytesAt > 0 ? values[bytesAt] / 4 : length;
    const total = geometry ? images : values[rows];
    if (row * total < LEAST || (pool.size === 1 && sums.length === 0)) return kernels[name](...values);
    const result = geometry ? kernelH * kernelW * filters * (at('W') < 0 ? 1 : channels) : values[unit];
    const wanted = sums.length === 0 ? 2 * pool.size : 8 * result <= SMALL_SUM ? 8 : 4;
    const most = Math.min(wanted, Math.floor((row * total) / 8192), MOST_PIECES);
    // Vectors and cache lines stay whole.
    const group = together >= 0 ? values[together] : row === 1 ? 64 : 1;
    const chunk = Math.ceil(Math.ceil(total / most) / group) * group;
    const pieces = Math.ceil(total / chunk);
    if (pieces < 2) return kernels[name](...values);
    const moved: Record<string, (i: number) => number> = {
      R: () => 4 * length,
      S: () => 4 * (inner < 0 ? 1 : values[inner]),
      T: (i) => values[i + 1],
      I: () => 4 * inH * inW * channels,
      O: () => 4 * outH * outW * filters,
      P: () => 4 * outH * outW * channels,
    };
    const run = (partial: number): void => {
      const parts = letters.map((letter, i): Part => {
        const base = values[i];
        if (letter === 'N') return { base, along: 0, chunk };
        if (letter === 'G') return { base: pool.geometry(base, images, chunk), steps: [4 * GEOMETRY_INTS] };
        if (letter === 'A') return { base: partial + 4 * result * pieces * sums.indexOf(i), steps: [4 * result] };
        if (letter === 'W') {
          const bytes = Math.ceil(kernels.mf_conv_work(pool.geometry(values[geometryAt], images, chunk)) / 64) * 64;
          return { base: pool.work(bytes), own: bytes };
        }
        return base === 0 || !moved[letter] ? { base } : { base, steps: [chunk * moved[letter](i)] };
      });
      pool.run(name, parts, [pieces]);
    };
    if (sums.length === 0) run(0);
    else {
      pool.withMemory(4 * result * pieces * sums.length, (partial) => {
        run(partial);
        for (const [k, i] of sums.entries()) {
          kernels.mf_sum(1, pieces, result, partial + 4 * result * pieces * k, values[i], 1);
        }
      });
    }
    return 0;
  };
}

/** An operand as it stands in the transposed product. */
function flipped<T extends { transposed: number }>(operand: T): T {
  return { ...operand, transposed: 1 - operand.transposed };
}

/** Cuts a batch of products into batches, or each product into rectangles. */
function shareProduct(kernels: WasmExports, pool: Pool): Call {
  // Multiples of the tiles of both builds.
  const [tileRows, tileColumns] = [12, 8];
  return (...values) => {
    const [batch, ta, tb, m, n, k, a, stepA, b, stepB, c, accumulate] = values;
    const product = m * n * k;
    const { size } = pool;
    const isFlat = m <= FEW_ROWS;
    const isFew = k > 0 && (isFlat || n <= FEW_COLUMNS);
    if (size === 1 || product * batch < (isFew ? LEAST_READ : LEAST_PRODUCT)) return kernels.mf_sgemm(...values);
    const bytes = Math.ceil(kernels.mf_sgemm_work() / 64) * 64;
    const work = { base: pool.work(bytes), own: bytes };
    const fixed = (...numbers: number[]): Part[] => numbers.map((base) => ({ base }));
    if (batch >= 2 * size) {
      const chunk = Math.ceil(batch / (2 * size));
      const moved = (base: number, floats: number): Part => ({ base, steps: [4 * floats * chunk] });
      const head = [{ base: batch, along: 0, chunk }, ...fixed(ta, tb, m, n, k)];
      const operands = [moved(a, stepA), ...fixed(stepA), moved(b, stepB), ...fixed(stepB), moved(c, m * n)];
      pool.run('mf_sgemm', [...head, ...operands, ...fixed(accumulate), work], [Math.ceil(batch / chunk)]);
      return 0;
    }
    const [lda, ldb] = [ta ? m : k, tb ? k : n];
    if (isFew) {
      const [short, long] = isFlat ? [m, n] : [n, m];
      const left = { at: a, step: stepA, transposed: ta, ld: lda };
      const right = { at: b, step: stepB, transposed: tb, ld: ldb };
      const [few, many] = isFlat ? [left, right] : [flipped(right), flipped(left)];
      const chunk = Math.ceil(long / Math.ceil((2 * size) / batch) / 64) * 64;
      pool.run(
        'mf_sgemm_few',
        [
          ...fixed(few.transposed, many.transposed, short),
          { base: long, along: 0, chunk },
          ...fixed(k),
          { base: few.at, steps: [0, 4 * few.step] },
          ...fixed(few.ld),
          { base: many.at, steps: [4 * chunk * (many.transposed ? many.ld : 1), 4 * many.step] },
          ...fixed(many.ld),
          { base: c, steps: [4 * chunk * (isFlat ? 1 : n), 4 * m * n] },
          ...(isFlat ? fixed(n, 1) : fixed(1, n)),
          ...fixed(accumulate),
          work,
        ],
        [Math.ceil(long / chunk), batch],
      );
      return 0;
    }
    const [down, across] = grid(m, n, Math.ceil(((product * batch >= 1 << 26 ? 2 : 1) * size) / batch));
    const rows = Math.ceil(m / down / tileRows) * tileRows;
    const columns = Math.ceil(n / across / tileColumns) * tileColumns;
    pool.run(
      'mf_sgemm_part',
      [
        ...fixed(ta, tb),
        { base: m, along: 0, chunk: rows },
        { base: n, along: 1, chunk: columns },
        ...fixed(k),
        { base: a, steps: [4 * rows * (ta ? 1 : k), 0, 4 * stepA] },
        ...fixed(lda),
        { base: b, steps: [0, 4 * columns * (tb ? k : 1), 4 * stepB] },
        ...fixed(ldb),
        { base: c, steps: [4 * rows * n, 4 * columns, 4 * m * n] },
        ...fixed(n, accumulate),
        work,
      ],
      [Math.ceil(m / rows), Math.ceil(n / columns), batch],
    );
    return 0;
  };

  /** Of the grids with so many rectangles the one that copies least: each reads its rows and its columns. */
  function grid(m: number, n: number, wanted: number): [down: number, across: number] {
    let best: [number, number] = [1, 1];
    let least = Number.POSITIVE_INFINITY;
    for (let down = 1; down <= wanted; down++) {
      const across = Math.ceil(wanted / down);
      if ((down > 1 && m / down < tileRows) || (across > 1 && n / across < tileColumns)) continue;
      const copied = m / down + n / across;
      if (copied >= least) continue;
      least = copied;
      best = [down, across];
    }
    return best;
  }
}
