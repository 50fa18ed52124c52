import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { heapModule, type OwnKernel } from '../backend.ts';
import { type Native, native } from '../native.ts';
import { epilogue, finish } from './matmul.ts';

type Info = ReturnType<typeof tf.backend_util.computeConv2DInfo>;
type Shape4D = [number, number, number, number];
type Pair = [number, number] | number;

interface ConvAttrs {
  strides: Pair;
  pad: 'valid' | 'same' | number | tf.backend_util.ExplicitPadding;
  dataFormat?: string;
  dilations?: Pair;
  dimRoundingMode?: 'floor' | 'round' | 'ceil';
}

const GEOMETRY_BYTES = 64;

function convInfo(x: number[], filter: number[], attrs: Record<string, unknown>, depthwise: boolean): Info | null {
  const { strides, pad, dataFormat, dilations, dimRoundingMode } = attrs as unknown as ConvAttrs;
  if (dataFormat !== undefined && dataFormat !== 'NHWC') return null;
  return tf.backend_util.computeConv2DInfo(
    x as Shape4D,
    filter as Shape4D,
    strides,
    dilations ?? [1, 1],
    pad,
    dimRoundingMode,
    depthwise,
  );
}

function poolInfo(x: number[], attrs: Record<string, unknown>): Info {
  const { filterSize, strides, pad, dimRoundingMode } = attrs as unknown as ConvAttrs & { filterSize: Pair };
  return tf.backend_util.computePool2DInfo(x as Shape4D, filterSize, strides, 1, pad, dimRoundingMode);
}

/** Writes the geometry for C into the work area and returns its address and that of the rest. */
function place(backend: BackendWasm, engine: Native, info: Info, needsWork: boolean): [geometry: number, work: number] {
  const write = (): number => {
    const at = engine.work(GEOMETRY_BYTES);
    new Int32Array(heapModule(backend).HEAPU8.buffer, at, 15).set([
      info.batchSize,
      info.inHeight,
      info.inWidth,
      info.inChannels,
      info.outHeight,
      info.outWidth,
      info.outChannels,
      info.filterHeight,
      info.filterWidth,
      info.strideHeight,
      info.strideWidth,
      info.padInfo.top,
      info.padInfo.left,
      info.dilationHeight,
      info.dilationWidth,
    ]);
    return at;
  };
  let geometry = write();
  if (needsWork) {
    engine.work(GEOMETRY_BYTES + engine.kernels.mf_conv_work(geometry));
    geometry = write();
  }
  return [geometry, geometry + GEOMETRY_BYTES];
}

/** The geometry with the outputs that there were: rounding of their number is not passed on to gradients. */
function withOutputs(info: Info, dy: tf.TensorInfo): Info {
  return { ...info, outHeight: dy.shape[1], outWidth: dy.shape[2] };
}

const floats = (...tensors: tf.TensorInfo[]): boolean => tensors.every(({ dtype }) => dtype === 'float32');

/** tf.conv2d and tf.fused.conv2d: patches times filter. */
export const conv2d: OwnKernel = ({ inputs, attrs, backend }) => {
  const engine = native(backend);
  const { x, filter } = inputs;
  const info = convInfo(x.shape, filter.shape, attrs, false);
  if (!engine || !info || !floats(x, filter) || info.inChannels !== filter.shape[2]) return null;
  const after = epilogue(engine, info.outChannels, inputs, attrs);
  if (!after) return null;
  const out = backend.makeOutput(info.outShape, 'float32');
  const [geometry, work] = place(backend, engine, info, true);
  engine.kernels.mf_conv(geometry, engine.at(x), engine.at(filter), engine.at(out), work);
  finish(engine, info.batchSize * info.outHeight * info.outWidth, info.outChannels, engine.at(out), after);
  return out;
};

/** Gradient of tf.conv2d with respect to the image. */
export const conv2dBackpropInput: OwnKernel = ({ inputs: { dy, filter }, attrs, backend }) => {
  const engine = native(backend);
  const info = convInfo(attrs.inputShape as number[], filter.shape, attrs, false);
  if (!engine || !info || !floats(dy, filter)) return null;
  const out = backend.makeOutput(info.inShape, 'float32');
  const [geometry, work] = place(backend, engine, withOutputs(info, dy), true);
  engine.kernels.mf_conv_back_input(geometry, engine.at(dy), engine.at(filter), engine.at(out), work);
  return out;
};

/** Gradient of tf.conv2d with respect to the filter. */
export const conv2dBackpropFilter: OwnKernel = ({ inputs: { x, dy }, attrs, backend }) => {
  const engine = native(backend);
  const info = convInfo(x.shape, attrs.filterShape as number[], attrs, false);
  if (!engine || !info || !floats(x, dy)) return null;
  const out = backend.makeOutput(info.filterShape, 'float32');
  const [geometry, work] = place(backend, engine, withOutputs(info, dy), true);
  engine.kernels.mf_conv_back_filter(geometry, engine.at(x), engine.at(dy), engine.at(out), work);
  return out;
};

/** tf.depthwiseConv2d and its fused form. */
export const depthwise: OwnKernel = ({ inputs, attrs, backend }) => {
  const engine = native(backend);
  const { x, filter } = inputs;
  const info = convInfo(x.shape, filter.shape, attrs, true);
  if (!engine || !info || !floats(x, filter)) return null;
  const after = epilogue(engine, info.outChannels, inputs, attrs);
  if (!after) return null;
  const out = backend.makeOutput(info.outShape, 'float32');
  const [geometry] = place(backend, engine, info, false);
  engine.kernels.mf_depthwise(geometry, engine.at(x), engine.at(filter), engine.at(out));
  finish(engine, info.batchSize * info.outHeight * info.outWidth, info.outChannels, engine.at(out), after);
  return out;
};

/** Gradient of tf.depthwiseConv2d with respect to the image. */
export const depthwiseBackpropInput: OwnKernel = ({ inputs: { dy, filter }, attrs, backend }) => {
  const engine = native(backend);
  const info = convInfo(attrs.inputShape as number[], filter.shape, attrs, true);
  if (!engine || !info || !floats(dy, filter)) return null;
  const out = backend.makeOutput(info.inShape, 'float32');
  const [geometry] = place(backend, engine, withOutputs(info, dy), false);
  engine.kernels.mf_depthwise_back_input(geometry, engine.at(dy), engine.at(filter), engine.at(out));
  return out;
};

/** Gradient of tf.depthwiseConv2d with respect to the filter. */
export const depthwiseBackpropFilter: OwnKernel = ({ inputs: { x, dy }, attrs, backend }) => {
  const engine = native(backend);
  const info = convInfo(x.shape, attrs.filterShape as number[], attrs, true);
  if (!engine || !info || !floats(x, dy)) return null;
  const out = backend.makeOutput(info.filterShape, 'float32');
  const [geometry] = place(backend, engine, withOutputs(info, dy), false);
  engine.kernels.mf_depthwise_back_filter(geometry, engine.at(x), engine.at(dy), engine.at(out));
  return out;
};

function pool(kernel: string): OwnKernel {
  return ({ inputs: { x }, attrs, backend }) => {
    const engine = native(backend);
    const info = poolInfo(x.shape, attrs);
    if (!engine || !floats(x) || info.dataFormat !== 'channelsLast') return null;
    const out = backend.makeOutput(info.outShape, 'float32');
    const [geometry] = place(backend, engine, info, false);
    engine.kernels[kernel](geometry, engine.at(x), engine.at(out));
    return out;
  };
}

/** tf.maxPool. */
export const maxPool: OwnKernel = pool('mf_max_pool');
/** tf.avgPool: the mean over the pixels of a window that lie in the image. */
export const avgPool: OwnKernel = pool('mf_avg_pool');

/** Gradient of tf.maxPool: to the first maximum of each window, whatever its sign. */
export const maxPoolGrad: OwnKernel = ({ inputs: { dy, input }, attrs, backend }) => {
  const engine = native(backend);
  if (!engine || !floats(dy, input)) return null;
  const info = poolInfo(input.shape, attrs);
  const out = backend.makeOutput(input.shape, 'float32');
  const [geometry] = place(backend, engine, withOutputs(info, dy), false);
  engine.kernels.mf_max_pool_back(geometry, engine.at(input), engine.at(dy), engine.at(out));
  return out;
};

/** Gradient of tf.avgPool: each pixel's share is that of the forward pass, at the borders of 'same' padding too. */
export const avgPoolGrad: OwnKernel = ({ inputs: { dy, input }, attrs, backend }) => {
  const engine = native(backend);
  if (!engine || !floats(dy, input)) return null;
  const info = poolInfo(input.shape, attrs);
  const out = backend.makeOutput(input.shape, 'float32');
  const [geometry] = place(backend, engine, withOutputs(info, dy), false);
  engine.kernels.mf_avg_pool_back(geometry, engine.at(dy), engine.at(out));
  return out;
};
