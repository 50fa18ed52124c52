import { linalgWasm } from './linalg.wasm.ts';
import { webAssembly } from './webassembly.ts';

// Memory of a WebAssembly instance never shrinks: after a problem this large the instance is dropped.
const KEEP_BYTES = 64 * 2 ** 20;

interface Exports {
  memory: { readonly buffer: ArrayBuffer };
  reset(): void;
  take(count: number): number;
  multiply(
    m: number,
    n: number,
    k: number,
    a: number,
    aRow: number,
    aColumn: number,
    b: number,
    bRow: number,
    bColumn: number,
    c: number,
  ): void;
  qr(m: number, n: number, a: number, q: number): void;
  qr_pivoted(m: number, n: number, a: number, q: number, order: number): void;
  triangular_solve(
    n: number,
    columns: number,
    t: number,
    upper: number,
    transposed: number,
    unit: number,
    b: number,
  ): void;
  lu(m: number, n: number, a: number, order: number): number;
  cholesky(n: number, a: number): number;
  eigh(n: number, a: number, values: number, vectors: number): number;
  svd(m: number, n: number, a: number, u: number, values: number, v: number): number;
  svd_gram(m: number, n: number, a: number, u: number, values: number, v: number): number;
}

let compiled: object | undefined;
let instance: Exports | undefined;

function open(): Exports {
  if (instance) return instance;
  if (!webAssembly)
    throw new Error('linalg: this platform has no WebAssembly; use one that has (Node >= 20, browsers).');
  if (!compiled) {
    const binary = atob(linalgWasm);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    if (!webAssembly.validate(bytes)) {
      throw new Error('linalg: this platform lacks WebAssembly SIMD, which float64 linear algebra needs.');
    }
    compiled = new webAssembly.Module(bytes);
  }
  instance = new webAssembly.Instance(compiled, {}).exports as unknown as Exports;
  return instance;
}

/** Space on the module's memory for one call. */
interface Work {
  kernels: Exports;
  /** Copies values in. */
  put(values: ArrayLike<number>): number;
  /** Room for `count` numbers. */
  room(count: number): number;
  /** Copies results out. */
  get(at: number, count: number): Float64Array;
  getIndices(at: number, count: number): Int32Array;
}

function work<T>(run: (w: Work) => T): T {
  const kernels = open();
  kernels.reset();
  let broken = true;
  try {
    const result = run({
      kernels,
      put(values) {
        const at = kernels.take(values.length);
        new Float64Array(kernels.memory.buffer, at, values.length).set(values);
        return at;
      },
      room: (count) => kernels.take(count),
      get: (at, count) => new Float64Array(kernels.memory.buffer, at, count).slice(),
      getIndices: (at, count) => new Int32Array(kernels.memory.buffer, at, count).slice(),
    });
    broken = false;
    return result;
  } catch (error) {
    // The module traps, and does nothing else that could throw, where its memory cannot grow.
    throw new Error('linalg: out of memory: the matrices and their work space do not fit into 4 GiB.', {
      cause: error,
    });
  } finally {
    if (broken || kernels.memory.buffer.byteLength > KEEP_BYTES) instance = undefined;
  }
}

/** A row-major float64 operand of {@link linalg64}.multiply, read as its transpose when `transposed`. */
export interface Factor64 {
  rows: number;
  cols: number;
  data: ArrayLike<number>;
  transposed?: boolean;
}

/**
 * Dense float64 kernels in WebAssembly, synchronous, one thread. Matrices are row-major arrays; arguments are never
 * changed; nothing is checked but memory: @matforge/core has the checked interface.
 */
export const linalg64 = {
  /** a · b, [m, k] by [k, n] after transposition. */
  multiply(a: Factor64, b: Factor64): Float64Array {
    const [m, k] = a.transposed ? [a.cols, a.rows] : [a.rows, a.cols];
    const n = b.transposed ? b.rows : b.cols;
    if (m === 0 || n === 0 || k === 0) return new Float64Array(m * n);
    return work((w) => {
      const [pa, pb, pc] = [w.put(a.data), w.put(b.data), w.room(m * n)];
      const [aRow, aColumn] = a.transposed ? [1, a.cols] : [a.cols, 1];
      const [bRow, bColumn] = b.transposed ? [1, b.cols] : [b.cols, 1];
      w.kernels.multiply(m, n, k, pa, aRow, aColumn, pb, bRow, bColumn, pc);
      return w.get(pc, m * n);
    });
  },

  /** Thin QR: q [m, k], r [k, n], k = min(m, n), no negative entry on the diagonal of r. */
  qr(m: number, n: number, a: ArrayLike<number>): { q: Float64Array; r: Float64Array } {
    const k = Math.min(m, n);
    return work((w) => {
      const [pa, pq] = [w.put(a), w.room(m * k)];
      w.kernels.qr(m, n, pa, pq);
      return { q: w.get(pq, m * k), r: w.get(pa, k * n) };
    });
  },

  /** Thin QR of the columns order[0], order[1], … of a: diagonal of r falling, lowest index first among equals. */
  qrPivoted(m: number, n: number, a: ArrayLike<number>): { q: Float64Array; r: Float64Array; order: Int32Array } {
    const k = Math.min(m, n);
    return work((w) => {
      const [pa, pq, po] = [w.put(a), w.room(m * k), w.room(n)];
      w.kernels.qr_pivoted(m, n, pa, pq, po);
      return { q: w.get(pq, m * k), r: w.get(pa, k * n), order: w.getIndices(po, n) };
    });
  },

  /** Packed L (unit, below the diagonal) and U of the rows order[0], order[1], … of a; sign of that permutation. */
  lu(m: number, n: number, a: ArrayLike<number>): { packed: Float64Array; order: Int32Array; sign: number } {
    return work((w) => {
      const [pa, po] = [w.put(a), w.room(m)];
      const sign = w.kernels.lu(m, n, pa, po);
      return { packed: w.get(pa, m * n), order: w.getIndices(po, m), sign };
    });
  },

  /** Lower factor of a symmetric positive definite matrix; `failed` is the first bad pivot's index, or -1. */
  cholesky(n: number, a: ArrayLike<number>): { l: Float64Array; failed: number } {
    return work((w) => {
      const pa = w.put(a);
      const failed = w.kernels.cholesky(n, pa) - 1;
      return { l: w.get(pa, n * n), failed };
    });
  },

  /** Solves t · x = b for a triangular t [n, n] (or its transpose) and b [n, columns]. */
  triangularSolve(
    n: number,
    columns: number,
    t: ArrayLike<number>,
    b: ArrayLike<number>,
    options: { upper: boolean; transposed?: boolean; unit?: boolean },
  ): Float64Array {
    return work((w) => {
      const [pt, pb] = [w.put(t), w.put(b)];
      w.kernels.triangular_solve(n, columns, pt, +options.upper, +!!options.transposed, +!!options.unit, pb);
      return w.get(pb, n * columns);
    });
  },

  /** Eigenvalues, rising, and eigenvectors in columns, from the lower triangle of a. `failed` counts unconverged values. */
  eigh(
    n: number,
    a: ArrayLike<number>,
    vectors = true,
  ): { values: Float64Array; vectors: Float64Array; failed: number } {
    return work((w) => {
      const [pa, pv, pz] = [w.put(a), w.room(n), vectors ? w.room(n * n) : 0];
      const failed = w.kernels.eigh(n, pa, pv, pz);
      return { values: w.get(pv, n), vectors: w.get(pz, vectors ? n * n : 0), failed };
    });
  },

  /**
   * Thin SVD of a tall matrix, m >= n >= 1: u [m, n], s falling, v [n, n]. By bidiagonalisation, or, with `gram`, through
   * the eigenproblem of aᵀa (faster; values below 1e-8 of the largest are noise).
   */
  svd(
    m: number,
    n: number,
    a: ArrayLike<number>,
    { vectors = true, gram = false }: { vectors?: boolean; gram?: boolean } = {},
  ): { u: Float64Array; s: Float64Array; v: Float64Array; failed: number } {
    return work((w) => {
      const pa = w.put(a);
      const [pu, ps, pv] = [vectors ? w.room(m * n) : 0, w.room(n), vectors ? w.room(n * n) : 0];
      const kernel = gram && vectors ? w.kernels.svd_gram : w.kernels.svd;
      const failed = kernel(m, n, pa, pu, ps, pv);
      return { u: w.get(pu, vectors ? m * n : 0), s: w.get(ps, n), v: w.get(pv, vectors ? n * n : 0), failed };
    });
  },
};
