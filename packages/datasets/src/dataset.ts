import { ensure, random, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** What one row of a dataset holds on one side. */
export interface Feature {
  dtype: 'float32' | 'int32';
  /** Shape of one row's value; `[]` for a number. */
  shape: number[];
  /** Names of the classes, when the value is a class index. */
  classes?: string[];
}

/** Inputs and targets. */
export interface Features {
  xs: Feature;
  ys: Feature;
}

/** Rows as tensors of shape `[rows, ...feature.shape]`. The caller disposes of them. */
export interface Batch {
  xs: tf.Tensor;
  ys: tf.Tensor;
}

/** How {@link Dataset.batches} cuts and orders the rows. */
export interface BatchOptions {
  /** Shuffles the rows; the same seed and epoch give the same batches. Without it rows come in the dataset's order. */
  seed?: number;
  /** Number of the pass over the data; every epoch of a seed has its own order. Default 0. */
  epoch?: number;
  /** Leave out a last batch with fewer rows. Default false. */
  dropLast?: boolean;
  /** Batches to pass over without reading them, to go on where a run stopped. Default 0. */
  skip?: number;
}

/** Rows of a file or of arrays, in an order. Every operation returns a new dataset over the same rows; nothing is copied. */
export interface Dataset {
  /** Where the rows come from, for messages. */
  readonly name: string;
  /** Number of rows. */
  readonly size: number;
  readonly features: Features;
  /** The first `n` rows. */
  take(n: number): Dataset;
  /** All rows in the order that the seed gives. */
  shuffle(seed: number): Dataset;
  /**
   * Two datasets without a common row: `round(fraction · size)` rows, and the rest. With a seed the rows are drawn at
   * random, without one the first part is the beginning.
   */
  split(fraction: number, seed?: number): [Dataset, Dataset];
  /** Batches of `batchSize` rows, read when they are asked for. The caller disposes of each batch. */
  batches(batchSize: number, options?: BatchOptions): AsyncIterable<Batch>;
  /** All rows at once. */
  toTensors(): Promise<Batch>;
}

/** The numbers of some rows, one behind the other. */
export type RowValues = { xs: Float32Array | Int32Array; ys: Float32Array | Int32Array };

/** Rows by number, from memory or from a file. */
export interface RowSource {
  name: string;
  size: number;
  features: Features;
  /** Opens the rows for one pass; a file is held open only that long. */
  open(): Promise<{ read(rows: Int32Array): RowValues | Promise<RowValues>; close(): Promise<void> }>;
}

/** Makes a dataset of a source of rows, in the order given. Default: the order of the source. */
export function createDataset(source: RowSource, order?: Int32Array): Dataset {
  const { name, features } = source;
  const size = order?.length ?? source.size;
  const rowAt = order ?? Int32Array.from({ length: size }, (_, i) => i);
  const permuted = (seed: number): Int32Array =>
    random(seed)
      .permutation(size)
      .map((i) => rowAt[i]);
  const count = (value: number, field: string, least: number): void =>
    ensure(
      Number.isInteger(value) && value >= least,
      `${name}: ${field}`,
      () => `must be an integer from ${least} on, is ${value}`,
    );

  async function* batches(
    batchSize: number,
    { seed, epoch = 0, dropLast = false, skip = 0 }: BatchOptions = {},
  ): AsyncGenerator<Batch> {
    const rows =
      seed === undefined
        ? rowAt
        : random(seed)
            .fork(epoch)
            .permutation(size)
            .map((i) => rowAt[i]);
    const end = dropLast ? size - (size % batchSize) : size;
    const reader = await source.open();
    try {
      for (let start = skip * batchSize; start < end; start += batchSize) {
        yield toBatch(source, rows.subarray(start, Math.min(start + batchSize, end)), reader);
      }
    } finally {
      await reader.close();
    }
  }

  return {
    name,
    size,
    features,
    take(n) {
      count(n, 'take', 0);
      ensure(n <= size, `${name}: take`, () => `asks for ${n} rows, there are ${size}`);
      return createDataset(source, rowAt.slice(0, n));
    },
    shuffle: (seed) => createDataset(source, permuted(seed)),
    split(fraction, seed) {
      const first = Math.round(fraction * size);
      ensure(
        first > 0 && first < size,
        `${name}: split`,
        () => `a fraction of ${fraction} of ${size} rows leaves one side empty; give a fraction between 0 and 1`,
      );
      const rows = seed === undefined ? rowAt : permuted(seed);
      return [createDataset(source, rows.slice(0, first)), createDataset(source, rows.slice(first))];
    },
    batches(batchSize, options) {
      count(batchSize, 'batchSize', 1);
      count(options?.skip ?? 0, 'skip', 0);
      count(options?.epoch ?? 0, 'epoch', 0);
      return batches(batchSize, options);
    },
    async toTensors() {
      const reader = await source.open();
      try {
        return await toBatch(source, rowAt, reader);
      } finally {
        await reader.close();
      }
    },
  };
}

async function toBatch(
  { name, features }: RowSource,
  rows: Int32Array,
  reader: Awaited<ReturnType<RowSource['open']>>,
): Promise<Batch> {
  const values = await reader.read(rows);
  for (const side of ['xs', 'ys'] as const) {
    ensureFinite(values[side], `${name}: ${side}`, (i) => rows[Math.floor(i / (values[side].length / rows.length))]);
  }
  return {
    xs: tf.tensor(values.xs, [rows.length, ...features.xs.shape], features.xs.dtype),
    ys: tf.tensor(values.ys, [rows.length, ...features.ys.shape], features.ys.dtype),
  };
}

function ensureFinite(values: Float32Array | Int32Array, field: string, rowOf: (index: number) => number): void {
  if (values instanceof Int32Array) return;
  for (let i = 0; i < values.length; i++) {
    // x - x is 0 for every finite x and NaN for NaN and infinity: every value of every batch passes here.
    if (values[i] - values[i] !== 0) {
      refuse(field, `row ${rowOf(i)} holds ${values[i]}; clean the data or leave the row out`);
    }
  }
}

/** Options of {@link arrays}. */
export interface ArraysOptions {
  name?: string;
  /** Values of all rows one after another. Uint8Array is multiplied by `scale` and given out as float32. */
  xs: Uint8Array | Float32Array | Int32Array;
  /** Int32Array: classes or tokens. Float32Array: numbers to be met. */
  ys: Float32Array | Int32Array;
  /** Shape of one row of xs. */
  shape: number[];
  /** Shape of one row of ys. Default `[]`. */
  targetShape?: number[];
  /** Names or number of classes; ys must lie below it. */
  classes?: string[] | number;
  /** Factor of the xs. Default 1/255 for Uint8Array, 1 else. */
  scale?: number;
}

/**
 * A dataset of rows that are in memory.
 *
 * @throws MatforgeError when the lengths disagree, a value is NaN or infinite, or a class is out of range.
 */
export function arrays({ name = 'arrays', xs, ys, shape, targetShape = [], classes, scale }: ArraysOptions): Dataset {
  const width = tf.util.sizeFromShape(shape);
  const targetWidth = tf.util.sizeFromShape(targetShape);
  const size = ys.length / targetWidth;
  ensure(
    xs.length === size * width,
    `${name}: xs`,
    () => `${xs.length} values do not make ${size} rows of shape [${shape}]`,
  );
  const names = classNames(classes);
  if (xs instanceof Float32Array) ensureFinite(xs, `${name}: xs`, (i) => Math.floor(i / width));
  ensureFinite(ys, `${name}: ys`, (i) => Math.floor(i / targetWidth));
  if (names) ensureClasses(ys, names, `${name}: ys`);
  const factor = scale ?? (xs instanceof Uint8Array ? 1 / 255 : 1);
  const whole = xs instanceof Int32Array && factor === 1;
  const source: RowSource = {
    name,
    size,
    features: {
      xs: { dtype: whole ? 'int32' : 'float32', shape },
      ys: {
        dtype: ys instanceof Int32Array ? 'int32' : 'float32',
        shape: targetShape,
        ...(names && { classes: names }),
      },
    },
    open: async () => ({
      read: (rows) => ({
        xs: gather(
          xs,
          rows,
          width,
          whole ? new Int32Array(rows.length * width) : new Float32Array(rows.length * width),
          factor,
        ),
        ys: gather(
          ys,
          rows,
          targetWidth,
          ys instanceof Int32Array
            ? new Int32Array(rows.length * targetWidth)
            : new Float32Array(rows.length * targetWidth),
        ),
      }),
      close: async () => {},
    }),
  };
  return createDataset(source);
}

export function gather<T extends Float32Array | Int32Array>(
  from: ArrayLike<number>,
  rows: Int32Array,
  width: number,
  into: T,
  factor = 1,
): T {
  for (let i = 0; i < rows.length; i++) {
    const start = rows[i] * width;
    for (let j = 0; j < width; j++) into[i * width + j] = from[start + j] * factor;
  }
  return into;
}

export function classNames(classes: string[] | number | undefined): string[] | undefined {
  return typeof classes === 'number' ? Array.from({ length: classes }, (_, i) => String(i)) : classes;
}

export function ensureClasses(labels: ArrayLike<number>, classes: string[], field: string): void {
  for (let i = 0; i < labels.length; i++) {
    ensure(
      Number.isInteger(labels[i]) && labels[i] >= 0 && labels[i] < classes.length,
      field,
      () =>
        `label ${labels[i]} of row ${i} is out of range; there are ${classes.length} classes, 0 … ${classes.length - 1}`,
    );
  }
}

/** Stretches of consecutive rows, so that neighbours are read with one access: [position in rows, first row, count]. */
export function* runs(rows: Int32Array): Generator<[number, number, number]> {
  for (let at = 0; at < rows.length; ) {
    let count = 1;
    while (at + count < rows.length && rows[at + count] === rows[at] + count) count++;
    yield [at, rows[at], count];
    at += count;
  }
}
