import { ensure, refuse } from '@matforge/core';
import { arrays, classNames, createDataset, type Dataset, gather, runs } from './dataset.ts';
import { type FileSource, Growing, MAX_MEMORY_BYTES, reopen, withSource } from './files.ts';

/** Options that CSV and JSON lines have in common. */
export interface RecordOptions {
  /** 'class': the label is a class, by name or number, and ys is int32. 'number': ys is float32. Default 'class'. */
  target?: 'class' | 'number';
  /** Names or number of classes. Default: as found, in alphabetical order, or 0 … largest when all labels are integers. */
  classes?: string[] | number;
  /** Shape of one row of xs. Default: `[columns]`, or the nesting of the first row. */
  shape?: number[];
  /** Factor of the xs, e.g. 1/255. Default 1. */
  scale?: number;
  /** Rows of larger files stay on the disk; only their places are kept in memory. Default 256 MiB. */
  maxMemoryBytes?: number;
}

/** One row of a file that has been read. */
export interface Row {
  xs: ArrayLike<number>;
  label: string | number;
  /** Position of the byte behind the record. */
  end: number;
  /** File and line, for messages. */
  where: string;
}

export interface RecordFile {
  source: FileSource;
  /** All rows in order. Called once: what is wrong anywhere in the file is found here, before any training. */
  scan(): AsyncIterable<Row>;
  /** Byte at which the first row starts. */
  start(): number;
  /** Shape of the first row's xs. */
  shape(): number[];
  /** The xs of consecutive records. */
  parse(bytes: Uint8Array): ArrayLike<number>[];
}

/** Reads the rows once, then keeps them, or, for a large file, where each one lies. */
export async function recordDataset(
  file: RecordFile,
  { target = 'class', classes, shape, scale = 1, maxMemoryBytes = MAX_MEMORY_BYTES }: RecordOptions,
): Promise<Dataset> {
  const { name, size: bytes } = await withSource(file.source, async ({ name, size }) => ({ name, size }));
  ensure(
    target === 'class' || target === 'number',
    `${name}: target`,
    () => `is ${JSON.stringify(target)}; accepted are 'class' and 'number'`,
  );
  const keep = bytes <= maxMemoryBytes;
  const values = new Growing(new Float32Array());
  const ends = new Growing(new Float64Array());
  const labels = target === 'class' ? classLabels(classNames(classes)) : numberLabels();
  let width = 0;
  let rowShape: number[] = [];
  for await (const { xs, label, end, where } of file.scan()) {
    if (labels.length === 0) {
      rowShape = shape ?? file.shape();
      width = rowShape.reduce((product, extent) => product * extent, 1);
    }
    ensure(xs.length === width, where, () => `has ${xs.length} values where shape [${rowShape}] needs ${width}`);
    labels.push(label, where);
    if (keep) values.push(xs);
    else ends.push([end]);
  }
  ensure(labels.length > 0, name, () => 'holds no rows');
  const { ys, names } = labels.finish();
  if (keep) return arrays({ name, xs: values.finish(), ys, shape: rowShape, classes: names, scale });

  const place = ends.finish();
  const startOf = (row: number): number => (row === 0 ? file.start() : place[row - 1]);
  return createDataset({
    name,
    size: labels.length,
    features: {
      xs: { dtype: 'float32', shape: rowShape },
      ys: { dtype: ys instanceof Int32Array ? 'int32' : 'float32', shape: [], ...(names && { classes: names }) },
    },
    open: async () => {
      const opened = await reopen(file.source, bytes);
      return {
        read: async (rows) => {
          const xs = new Float32Array(rows.length * width);
          for (const [at, first, count] of runs(rows)) {
            const start = startOf(first);
            const records = file.parse(await opened.read(start, place[first + count - 1] - start));
            ensure(
              records.length === count && records.every((record) => record.length === width),
              name,
              () => 'has changed since it was opened; open it anew',
            );
            for (const [i, record] of records.entries()) {
              for (let j = 0; j < width; j++) xs[(at + i) * width + j] = Math.fround(record[j]) * scale;
            }
          }
          return {
            xs,
            ys: gather(
              ys,
              rows,
              1,
              ys instanceof Int32Array ? new Int32Array(rows.length) : new Float32Array(rows.length),
            ),
          };
        },
        close: () => opened.close(),
      };
    },
  });
}

interface Labels {
  readonly length: number;
  push(label: string | number, where: string): void;
  finish(): { ys: Int32Array | Float32Array; names?: string[] };
}

function numberLabels(): Labels {
  const ys = new Growing(new Float32Array());
  return {
    get length() {
      return ys.length;
    },
    push: (label, where) => ys.push([toNumber(label, `${where}: label`)]),
    finish: () => ({ ys: ys.finish() }),
  };
}

function classLabels(names: string[] | undefined): Labels {
  const found: string[] = [];
  const indexOf = new Map(names?.map((name, i) => [name, i]));
  const ys = new Growing(new Int32Array());
  const known = (label: string, where: string): number => {
    const index = indexOf.get(label) ?? (/^\d+$/.test(label) ? Number(label) : -1);
    return index >= 0 && index < names!.length
      ? index
      : refuse(
          `${where}: label`,
          `${JSON.stringify(label)} is out of range; the ${names!.length} classes are ${names!.slice(0, 20).join(', ')}`,
        );
  };
  const seen = (label: string, where: string): number => {
    ensure(label !== '', `${where}: label`, () => 'is empty');
    if (!indexOf.has(label)) indexOf.set(label, found.push(label) - 1);
    return indexOf.get(label)!;
  };
  return {
    get length() {
      return ys.length;
    },
    push: (label, where) => ys.push([(names ? known : seen)(String(label), where)]),
    finish() {
      const indices = ys.finish();
      if (names) return { ys: indices, names };
      const integers = found.every((label) => /^\d{1,6}$/.test(label));
      const classes = integers
        ? classNames(found.reduce((most, label) => Math.max(most, Number(label)), 0) + 1)!
        : [...found].sort();
      const final = found.map((label) => (integers ? Number(label) : classes.indexOf(label)));
      return { ys: indices.map((index) => final[index]), names: classes };
    },
  };
}

/** A finite number written as one; anything else is refused. */
export function toNumber(value: unknown, where: string): number {
  const number = typeof value === 'string' && value.trim() !== '' ? Number(value) : value;
  return typeof number === 'number' && Number.isFinite(number)
    ? number
    : refuse(
        where,
        `${JSON.stringify(value) ?? 'nothing'} is not a finite number; clean the data or leave the row out`,
      );
}
