import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { heapModule, type OwnKernel } from '../backend.ts';
import { native } from '../native.ts';

/** Which two rows of an image a row of the resized one is made of, and the share of the second. */
type Source = [first: number, second: number, share: number];
type SourceOf = (at: number, length: number, scale: number, isHalf: boolean, isAligned: boolean) => Source;

const between: SourceOf = (at, length, scale, isHalf) => {
  const place = isHalf ? scale * (at + 0.5) - 0.5 : scale * at;
  const first = Math.max(0, Math.floor(place));
  const second = Math.min(length - 1, Math.max(0, Math.ceil(place)));
  return [first, second, first === second ? 0 : place - first];
};

const nearest: SourceOf = (at, length, scale, isHalf, isAligned) => {
  const place = isHalf ? scale * (at + 0.5) : scale * at;
  const index = Math.max(0, Math.min(length - 1, isAligned ? Math.round(place) : Math.floor(place)));
  return [index, index, 0];
};

const SOURCE_BYTES = 12;

function write(backend: BackendWasm, at: number, sources: Source[]): void {
  const { buffer } = heapModule(backend).HEAPU8;
  const [ints, floats] = [new Int32Array(buffer, at), new Float32Array(buffer, at)];
  sources.forEach(([first, second, share], i) => {
    ints[3 * i] = first;
    ints[3 * i + 1] = second;
    floats[3 * i + 2] = share;
  });
}

function gradient(sourceOf: SourceOf): OwnKernel {
  return ({ inputs: { images, dy }, attrs, backend }) => {
    const engine = native(backend);
    if (!engine || images.dtype !== 'float32' || dy.dtype !== 'float32') return null;
    const isAligned = Boolean(attrs.alignCorners);
    const isHalf = Boolean(attrs.halfPixelCenters);
    const [batch, height, width, channels] = images.shape;
    const [, outHeight, outWidth] = dy.shape;
    const sources = (length: number, out: number): Source[] => {
      const scale = isAligned && out > 1 ? (length - 1) / (out - 1) : length / out;
      return Array.from({ length: out }, (_, at) => sourceOf(at, length, scale, isHalf, isAligned));
    };
    const result = backend.makeOutput(images.shape, 'float32');
    const rows = engine.work(SOURCE_BYTES * (outHeight + outWidth));
    const columns = rows + SOURCE_BYTES * outHeight;
    write(backend, rows, sources(height, outHeight));
    write(backend, columns, sources(width, outWidth));
    engine.kernels.mf_resize_back(
      ...[batch, height, width, channels, outHeight, outWidth],
      ...[rows, columns, engine.at(dy), engine.at(result)],
    );
    return result;
  };
}

/** Gradient of tf.image.resizeBilinear. */
export const resizeBilinearGrad: OwnKernel = gradient(between);
/** Gradient of tf.image.resizeNearestNeighbor. */
export const resizeNearestNeighborGrad: OwnKernel = gradient(nearest);
