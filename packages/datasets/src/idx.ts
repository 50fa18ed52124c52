import { type ByteSource, ensure } from '@matforge/core';
import { arrays, classNames, createDataset, type Dataset, ensureClasses, gather, runs } from './dataset.ts';
import { type FileSource, MAX_MEMORY_BYTES, reopen, unpacked, withSource } from './files.ts';

/** The values of an IDX file. */
export interface IdxArray {
  shape: number[];
  data: Uint8Array | Int32Array | Float32Array;
}

/** Options of {@link idx}. */
export interface IdxOptions {
  /** IDX file of rank 2 or more, first axis the rows; plain or gzip. */
  images: FileSource;
  /** IDX file of rank 1 with integers, as many as there are images; plain or gzip. */
  labels: FileSource;
  /** Names or number of classes. Default: the largest label plus 1. */
  classes?: string[] | number;
  /** Factor of the values. Default 1/255 for unsigned bytes, which gives 0 … 1; 1 for other types. */
  scale?: number;
  /** Name for messages. Default: the images' file. */
  name?: string;
  /** Larger image files stay on the disk and are read by ranges. Default 256 MiB. gzip is always held in memory. */
  maxMemoryBytes?: number;
}

/**
 * Images and labels in IDX, the format of MNIST. Images of shape `[n, h, w]` become xs `[n, h, w, 1]`, other shapes stay;
 * float32. Labels become ys `[n]`, int32.
 *
 * @throws MatforgeError when a file does not start as IDX does, is truncated or too long, the counts differ, or a label is
 *   out of range.
 */
export async function idx({
  images,
  labels,
  classes,
  scale,
  name,
  maxMemoryBytes = MAX_MEMORY_BYTES,
}: IdxOptions): Promise<Dataset> {
  const { shape: labelShape, data: labelData } = await readIdx(labels);
  const labelFile = describe(labels);
  ensure(
    labelShape.length === 1 && !(labelData instanceof Float32Array),
    labelFile,
    () => `labels must be integers of rank 1, this file has shape [${labelShape}]; are images and labels exchanged?`,
  );
  const ys = Int32Array.from(labelData);
  const known = classNames(classes ?? ys.reduce((most, label) => Math.max(most, label), -1) + 1)!;
  ensureClasses(ys, known, labelFile);

  return withSource(images, async (packed) => {
    const bytes = await unpacked(packed);
    const { shape, offset, type } = await readPrefix(bytes);
    ensure(
      shape.length >= 2,
      bytes.name,
      () => `images need rank 2 or more, this file has shape [${shape}]; are images and labels exchanged?`,
    );
    ensure(
      shape[0] === ys.length,
      bytes.name,
      () => `holds ${shape[0]} images, ${labelFile} holds ${ys.length} labels`,
    );
    const rowShape = shape.length === 3 ? [...shape.slice(1), 1] : shape.slice(1);
    const factor = scale ?? (type.code === 0x08 ? 1 / 255 : 1);
    const title = name ?? bytes.name;
    if (bytes !== packed || bytes.size <= maxMemoryBytes) {
      const data = type.decode(await bytes.read(offset, bytes.size - offset));
      const xs = data instanceof Int32Array ? Float32Array.from(data) : data;
      return arrays({ name: title, xs, ys, shape: rowShape, classes: known, scale: factor });
    }
    const width = shape.slice(1).reduce((product, extent) => product * extent, 1);
    const rowBytes = width * type.bytes;
    const { size } = bytes;
    return createDataset({
      name: title,
      size: ys.length,
      features: { xs: { dtype: 'float32', shape: rowShape }, ys: { dtype: 'int32', shape: [], classes: known } },
      open: async () => {
        const file = await reopen(images, size);
        return {
          read: async (rows) => {
            const xs = new Float32Array(rows.length * width);
            for (const [at, first, count] of runs(rows)) {
              const values = type.decode(await file.read(offset + first * rowBytes, count * rowBytes));
              for (let i = 0; i < values.length; i++) xs[at * width + i] = values[i] * factor;
            }
            return { xs, ys: gather(ys, rows, 1, new Int32Array(rows.length)) };
          },
          close: () => file.close(),
        };
      },
    });
  });
}

/** Reads a whole IDX file, plain or gzip. Integers wider than a byte become int32, floats float32. */
export async function readIdx(source: FileSource): Promise<IdxArray> {
  return withSource(source, async (packed) => {
    const bytes = await unpacked(packed);
    const { shape, offset, type } = await readPrefix(bytes);
    return { shape, data: type.decode(await bytes.read(offset, bytes.size - offset)) };
  });
}

function describe(source: FileSource): string {
  return typeof source === 'string' ? source : 'labels';
}

interface ElementType {
  code: number;
  bytes: number;
  decode(bytes: Uint8Array): IdxArray['data'];
}

const numbers =
  <T extends Int32Array | Float32Array>(
    width: number,
    make: (n: number) => T,
    get: (view: DataView, at: number) => number,
  ) =>
  (bytes: Uint8Array): T => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const values = make(bytes.length / width);
    for (let i = 0; i < values.length; i++) values[i] = get(view, i * width);
    return values;
  };
const ints = (n: number): Int32Array => new Int32Array(n);
const floats = (n: number): Float32Array => new Float32Array(n);

/** IDX is big-endian. */
const TYPES: ElementType[] = [
  { code: 0x08, bytes: 1, decode: (bytes) => bytes },
  { code: 0x09, bytes: 1, decode: numbers(1, ints, (view, at) => view.getInt8(at)) },
  { code: 0x0b, bytes: 2, decode: numbers(2, ints, (view, at) => view.getInt16(at)) },
  { code: 0x0c, bytes: 4, decode: numbers(4, ints, (view, at) => view.getInt32(at)) },
  { code: 0x0d, bytes: 4, decode: numbers(4, floats, (view, at) => view.getFloat32(at)) },
  { code: 0x0e, bytes: 8, decode: numbers(8, floats, (view, at) => view.getFloat64(at)) },
];

async function readPrefix(bytes: ByteSource): Promise<{ shape: number[]; offset: number; type: ElementType }> {
  const magic = await bytes.read(0, Math.min(4, bytes.size));
  const type = TYPES.find(({ code }) => code === magic[2]);
  ensure(
    magic.length === 4 && magic[0] === 0 && magic[1] === 0 && type && magic[3] > 0,
    bytes.name,
    () =>
      `is not an IDX file: it starts with ${hex(magic)}, IDX with 00 00, a type (08, 09, 0b, 0c, 0d, 0e) and a rank`,
  );
  const rank = magic[3];
  const offset = 4 + 4 * rank;
  ensure(
    bytes.size >= offset,
    bytes.name,
    () => `ends within its header, at byte ${bytes.size} of ${offset}; it is truncated`,
  );
  const head = await bytes.read(4, 4 * rank);
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const shape = Array.from({ length: rank }, (_, i) => view.getUint32(4 * i));
  const expected = shape.reduce((product, extent) => product * extent, type.bytes);
  ensure(
    bytes.size - offset === expected,
    bytes.name,
    () =>
      `shape [${shape}] takes ${expected} bytes, the file has ${bytes.size - offset}; it is ${bytes.size - offset < expected ? 'truncated' : 'not what its header says'}`,
  );
  return { shape, offset, type };
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(' ') || 'nothing';
}
