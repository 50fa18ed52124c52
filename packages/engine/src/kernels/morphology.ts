import * as tf from '@tensorflow/tfjs';
import { heapModule, type OwnKernel } from '../backend.ts';
import { native } from '../native.ts';

const WINDOW_BYTES = 64;

type Attributes = {
  strides: [number, number] | number;
  pad: 'valid' | 'same';
  dilations: [number, number] | number;
};

function dilation(kernel: string, result: 'y' | 'x' | 'filter'): OwnKernel {
  return ({ inputs, attrs, backend }) => {
    const engine = native(backend);
    const { x, filter, dy } = inputs;
    if (!engine || [x, filter, dy].some((tensor) => tensor && tensor.dtype !== 'float32')) return null;
    const { strides, pad, dilations } = attrs as unknown as Attributes;
    const info = tf.backend_util.computeDilation2DInfo(
      x.shape as [number, number, number, number],
      filter.shape as [number, number, number],
      strides,
      pad,
      'NHWC',
      dilations,
    );
    const out = backend.makeOutput(result === 'y' ? info.outShape : inputs[result].shape, 'float32');
    const window = engine.work(WINDOW_BYTES);
    new Int32Array(heapModule(backend).HEAPU8.buffer, window, 14).set([
      ...[info.batchSize, info.inHeight, info.inWidth, info.inChannels, info.outHeight, info.outWidth],
      ...[info.filterHeight, info.filterWidth, info.strideHeight, info.strideWidth],
      ...[info.padInfo.top, info.padInfo.left, info.dilationHeight, info.dilationWidth],
    ]);
    const at = [x, filter, ...(dy ? [dy] : []), out].map((tensor) => engine.at(tensor));
    engine.kernels[kernel](window, ...at);
    return out;
  };
}

/** tf.dilation2d. */
export const dilation2d: OwnKernel = dilation('mf_dilation', 'y');
/** Gradient of tf.dilation2d with respect to the image: to the first maximum of each window. */
export const dilation2dBackpropInput: OwnKernel = dilation('mf_dilation_back_input', 'x');
/** Gradient of tf.dilation2d with respect to the filter. */
export const dilation2dBackpropFilter: OwnKernel = dilation('mf_dilation_back_filter', 'filter');
