import * as tf from '@tensorflow/tfjs';
import { during } from '../blocking.ts';
import { ensure, refuse } from '../errors.ts';

/** A dense float64 matrix, row-major: entry (i, j) is `data[i * cols + j]`. */
export interface Matrix {
  readonly rows: number;
  readonly cols: number;
  readonly data: Float64Array;
}

/**
 * Makes a matrix of its size and, optionally, its entries: a flat row-major list, nested rows, or a function of (i, j).
 * Without entries it is zero.
 */
export function matrix(
  rows: number,
  cols: number,
  entries?: ArrayLike<number> | readonly ArrayLike<number>[] | ((i: number, j: number) => number),
): Matrix {
  ensure(isSize(rows) && isSize(cols), 'matrix', () => `its size must be whole numbers >= 0, got ${rows} x ${cols}.`);
  const data = new Float64Array(rows * cols);
  if (typeof entries === 'function') {
    for (let i = 0; i < rows; i++) for (let j = 0; j < cols; j++) data[i * cols + j] = entries(i, j);
  } else if (entries && rows > 0 && typeof entries[0] === 'object') {
    const lists = entries as readonly ArrayLike<number>[];
    ensure(lists.length === rows, 'matrix', () => `expected ${rows} rows, got ${lists.length}.`);
    for (let i = 0; i < rows; i++) {
      ensure(lists[i].length === cols, 'matrix', () => `row ${i} has ${lists[i].length} entries instead of ${cols}.`);
      data.set(lists[i], i * cols);
    }
  } else if (entries) {
    const list = entries as ArrayLike<number>;
    ensure(
      list.length === data.length,
      'matrix',
      () => `${rows} x ${cols} needs ${data.length} entries, got ${list.length}.`,
    );
    data.set(list);
  }
  return { rows, cols, data };
}

function isSize(n: number): boolean {
  return Number.isInteger(n) && n >= 0;
}

/**
 * Reads a tensor of rank 1 (a column) or 2 into a float64 matrix. Waits for the device (`dataSync`).
 *
 * @throws MatforgeError for any other rank or a dtype that is not a number.
 */
export function toMatrix(tensor: tf.Tensor, name = 'tensor'): Matrix {
  if (tensor.rank !== 1 && tensor.rank !== 2) {
    refuse(name, `a matrix has rank 2 (or 1: a column), got shape [${tensor.shape}]; reshape it first.`);
  }
  if (tensor.dtype === 'string' || tensor.dtype === 'complex64')
    refuse(name, `entries must be real, got ${tensor.dtype}.`);
  const [rows, cols = 1] = tensor.shape;
  return { rows, cols, data: Float64Array.from(during('toMatrix', () => tensor.dataSync())) };
}

/** A matrix as a float32 tensor [rows, cols]. */
export function toTensor({ rows, cols, data }: Matrix): tf.Tensor2D {
  return tf.tensor2d(Float32Array.from(data), [rows, cols], 'float32');
}
