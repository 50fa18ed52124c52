import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { heapModule, type OwnKernel } from '../backend.ts';
import { type Native, native } from '../native.ts';

type Info = ReturnType<typeof tf.backend_util.computeConv3DInfo>;
type Shape5D = [number, number, number, number, number];
type Triple = [number, number, number] | number;

interface Attributes {
  strides: Triple;
  pad: 'valid' | 'same' | number;
  dilations?: Triple;
  filterSize: Triple;
  dimRoundingMode?: 'floor' | 'round' | 'ceil';
  dataFormat?: string;
}

const GEOMETRY_BYTES = 96;

function convInfo(x: number[], filter: number[], attrs: Record<string, unknown>): Info | null {
  const { strides, pad, dilations, dataFormat } = attrs as unknown as Attributes;
  if (dataFormat !== undefined && dataFormat !== 'NDHWC') return null;
  const info = tf.backend_util.computeConv3DInfo(x as Shape5D, filter as Shape5D, strides, dilations ?? 1, pad);
  return info.inChannels === filter[3] ? info : null;
}

function poolInfo(x: number[], attrs: Record<string, unknown>): Info | null {
  const { filterSize, strides, pad, dimRoundingMode, dataFormat } = attrs as unknown as Attributes;
  if (dataFormat !== undefined && dataFormat !== 'NDHWC') return null;
  return tf.backend_util.computePool3DInfo(x as Shape5D, filterSize, strides, 1, pad, dimRoundingMode);
}

/** Writes the geometry for C into the work area and returns its address and that of the rest. */
function place(backend: BackendWasm, engine: Native, info: Info, needsWork: boolean): [geometry: number, work: number] {
  const write = (): number => {
    const at = engine.work(GEOMETRY_BYTES);
    new Int32Array(heapModule(backend).HEAPU8.buffer, at, 21).set([
      ...[info.batchSize, info.inDepth, info.inHeight, info.inWidth, info.inChannels],
      ...[info.outDepth, info.outHeight, info.outWidth, info.outChannels],
      ...[info.filterDepth, info.filterHeight, info.filterWidth],
      ...[info.strideDepth, info.strideHeight, info.strideWidth],
      ...[info.padInfo.front, info.padInfo.top, info.padInfo.left],
      ...[info.dilationDepth, info.dilationHeight, info.dilationWidth],
    ]);
    return at;
  };
  let geometry = write();
  if (needsWork) {
    engine.work(GEOMETRY_BYTES + engine.kernels.mf_conv3d_work(geometry));
    geometry = write();
  }
  return [geometry, geometry + GEOMETRY_BYTES];
}

const floats = (...tensors: tf.TensorInfo[]): boolean => tensors.every(({ dtype }) => dtype === 'float32');

function convolution(
  kernel: string,
  infoOf: (call: Parameters<OwnKernel>[0]) => Info | null,
  shapeOf: (info: Info) => number[],
  first: string,
  second: string,
): OwnKernel {
  return (call) => {
    const { inputs, backend } = call;
    const engine = native(backend);
    const [a, b] = [inputs[first], inputs[second]];
    const info = engine && floats(a, b) ? infoOf(call) : null;
    if (!engine || !info) return null;
    const out = backend.makeOutput(shapeOf(info), 'float32');
    const [geometry, work] = place(backend, engine, info, true);
    engine.kernels[kernel](geometry, engine.at(a), engine.at(b), engine.at(out), work);
    return out;
  };
}

/** tf.conv3d: patches times filter. */
export const conv3d: OwnKernel = convolution(
  'mf_conv3d',
  ({ inputs: { x, filter }, attrs }) => convInfo(x.shape, filter.shape, attrs),
  (info) => info.outShape,
  'x',
  'filter',
);

/** Gradient of tf.conv3d with respect to the volume. */
export const conv3dBackpropInput: OwnKernel = convolution(
  'mf_conv3d_back_input',
  ({ inputs: { filter }, attrs }) => convInfo(attrs.inputShape as number[], filter.shape, attrs),
  (info) => info.inShape,
  'dy',
  'filter',
);

/** Gradient of tf.conv3d with respect to the filter. */
export const conv3dBackpropFilter: OwnKernel = convolution(
  'mf_conv3d_back_filter',
  ({ inputs: { x }, attrs }) => convInfo(x.shape, attrs.filterShape as number[], attrs),
  (info) => info.filterShape,
  'x',
  'dy',
);

function pool(kernel: string): OwnKernel {
  return ({ inputs: { x }, attrs, backend }) => {
    const engine = native(backend);
    const info = engine && floats(x) ? poolInfo(x.shape, attrs) : null;
    if (!engine || !info) return null;
    const out = backend.makeOutput(info.outShape, 'float32');
    const [geometry] = place(backend, engine, info, false);
    engine.kernels[kernel](geometry, engine.at(x), engine.at(out));
    return out;
  };
}

/** tf.maxPool3d. */
export const maxPool3d: OwnKernel = pool('mf_max_pool3d');
/** tf.avgPool3d: the mean over the voxels of a window that lie in the volume. */
export const avgPool3d: OwnKernel = pool('mf_avg_pool3d');

function poolGradient(kernel: string, takesInput: boolean): OwnKernel {
  return ({ inputs: { dy, input }, attrs, backend }) => {
    const engine = native(backend);
    const info = engine && floats(dy, input) ? poolInfo(input.shape, attrs) : null;
    if (!engine || !info) return null;
    const out = backend.makeOutput(input.shape, 'float32');
    const [geometry] = place(backend, engine, info, false);
    const from = takesInput ? [engine.at(input), engine.at(dy)] : [engine.at(dy)];
    engine.kernels[kernel](geometry, ...from, engine.at(out));
    return out;
  };
}

/** Gradient of tf.maxPool3d: to the first maximum of each window. */
export const maxPool3dGrad: OwnKernel = poolGradient('mf_max_pool3d_back', true);
/** Gradient of tf.avgPool3d: each voxel's share is that of the forward pass, at the borders too. */
export const avgPool3dGrad: OwnKernel = poolGradient('mf_avg_pool3d_back', false);
