import { engineInfo } from '@matforge/engine';
import * as tf from '@tensorflow/tfjs';
import { insertZeros, sizeOf } from './shapes.ts';

interface Attributes {
  strides: number | number[];
  pad: unknown;
  dilations?: number | number[];
  dataFormat?: string;
  dimRoundingMode?: string;
}
type GradFunc = tf.GradConfig['gradFunc'];

const run = (kernel: string, inputs: Record<string, tf.Tensor>, attrs: object): tf.Tensor =>
  tf.engine().runKernel(kernel, inputs, attrs as tf.NamedAttrMap);

/**
 * Gradients of convolutions, of pooling and of elu, and the gradients of those, of any order. TensorFlow.js refuses the
 * first with dilation and most of the second.
 */
export function convolutionGradients(): tf.GradConfig[] {
  return [
    ...convolution('Conv2D', 'Conv2DBackpropInput', 'Conv2DBackpropFilter'),
    ...convolution(
      'DepthwiseConv2dNative',
      'DepthwiseConv2dNativeBackpropInput',
      'DepthwiseConv2dNativeBackpropFilter',
    ),
    ...convolution('Conv3D', 'Conv3DBackpropInputV2', 'Conv3DBackpropFilterV2'),
    linearIn('AvgPoolGrad', ['input'], (g, _, attrs) => run('AvgPool', { x: g }, attrs)),
    linearIn('AvgPool3DGrad', ['input'], (g, _, attrs) =>
      run('AvgPool3D', { x: g }, { dataFormat: 'NDHWC', ...attrs }),
    ),
    // A maximum takes its gradient from where it lies.
    linearIn('MaxPoolGrad', ['input', 'output'], (g, [input], attrs) => {
      const { filterSize, strides, pad } = attrs as unknown as { filterSize: number; strides: number; pad: 'same' };
      const { indexes } = tf.maxPoolWithArgmax(input as tf.Tensor4D, filterSize, strides, pad, true);
      return tf.gather(tf.reshape(g, [g.size]), tf.cast(indexes, 'int32'));
    }),
    {
      kernelName: 'EluGrad',
      inputsToSave: ['dy', 'y'],
      gradFunc: (g, [dy, y]) => ({
        dy: () => run('EluGrad', { dy: g as tf.Tensor, y }, {}),
        y: () => tf.mul(tf.mul(g as tf.Tensor, dy), tf.cast(tf.less(y, 0), 'float32')),
      }),
    },
  ];
}

/** A kernel that is linear in dy and, but for kinks, constant in its other inputs. */
function linearIn(
  kernelName: string,
  others: string[],
  toDy: (g: tf.Tensor, saved: tf.Tensor[], attrs: tf.NamedAttrMap) => tf.Tensor,
): tf.GradConfig {
  const gradFunc: GradFunc = (g, saved, attrs) => ({
    dy: () => toDy(g as tf.Tensor, saved, attrs),
    ...Object.fromEntries(others.map((name, i) => [name, () => tf.zerosLike(saved[i])])),
  });
  return { kernelName, inputsToSave: others, gradFunc };
}

/**
 * y(x, w), dx(dy, w) and dw(x, dy) are linear in each of their arguments, and ⟨y(x, w), dy⟩ = ⟨x, dx(dy, w)⟩ =
 * ⟨w, dw(x, dy)⟩: the gradients of each of the three are the other two.
 */
function convolution(forward: string, toInput: string, toFilter: string): tf.GradConfig[] {
  const y = (x: tf.Tensor, w: tf.Tensor, attrs: object): tf.Tensor => run(forward, { x, filter: w }, common(attrs));
  const dx = (dy: tf.Tensor, w: tf.Tensor, attrs: object, inputShape: number[]): tf.Tensor => {
    const { apart, rest } = dilated(attrs, w.rank - 2);
    return run(toInput, { dy, filter: apart ? spread(w, apart) : w }, { ...rest, inputShape });
  };
  const dw = (x: tf.Tensor, dy: tf.Tensor, attrs: object, shape: number[]): tf.Tensor => {
    const { apart, rest } = dilated(attrs, shape.length - 2);
    if (!apart) return run(toFilter, { x, dy }, { ...rest, filterShape: shape });
    const steps = shape.map((_, axis) => apart[axis] ?? 1);
    const filterShape = shape.map((n, axis) => (n - 1) * steps[axis] + 1);
    return tf.stridedSlice(
      run(toFilter, { x, dy }, { ...rest, filterShape }),
      shape.map(() => 0),
      filterShape,
      steps,
    );
  };
  const config = (kernelName: string, inputsToSave: string[], gradFunc: GradFunc): tf.GradConfig => ({
    kernelName,
    inputsToSave,
    gradFunc,
  });
  return [
    config(forward, ['x', 'filter'], (g, [x, w], attrs) => ({
      x: () => dx(g as tf.Tensor, w, attrs, x.shape),
      filter: () => dw(x, g as tf.Tensor, attrs, w.shape),
    })),
    config(toInput, ['dy', 'filter'], (g, [dy, w], attrs) => ({
      dy: () => y(g as tf.Tensor, w, attrs),
      filter: () => dw(g as tf.Tensor, dy, attrs, w.shape),
    })),
    config(toFilter, ['x', 'dy'], (g, [x, dy], attrs) => ({
      x: () => dx(dy, g as tf.Tensor, attrs, x.shape),
      dy: () => y(x, g as tf.Tensor, attrs),
    })),
  ];
}

const common = (attrs: object): Required<Attributes> => {
  const { strides, pad, dilations = 1, dataFormat, dimRoundingMode } = attrs as Attributes;
  return { strides, pad, dilations, dataFormat, dimRoundingMode } as Required<Attributes>;
};

/**
 * How far apart the filter's taps must be moved for a kernel that knows no dilation; not at all on the engine, whose
 * kernels do.
 */
function dilated(attrs: object, axes: number): { apart?: number[]; rest: Required<Attributes> } {
  const rest = common(attrs);
  const { dilations, dataFormat } = rest;
  const apart = Array.isArray(dilations) ? dilations : Array<number>(axes).fill(dilations);
  if (apart.every((d) => d === 1)) return { rest };
  const isChannelsLast = dataFormat === undefined || dataFormat.endsWith('C');
  if (isChannelsLast && engineInfo().kernels !== 'none') return { rest };
  return { apart, rest: { ...rest, dilations: 1 } };
}

/** The filter with zeros between its taps: with it, a convolution without dilation does the same. */
function spread(w: tf.Tensor, apart: number[]): tf.Tensor {
  let out = w;
  apart.forEach((step, axis) => {
    const [outer, inner] = [out.shape.slice(0, axis), out.shape.slice(axis + 1)];
    const rows = insertZeros(tf.reshape(out, [sizeOf(outer), out.shape[axis], sizeOf(inner)]), step);
    out = tf.reshape(rows, [...outer, rows.shape[1]!, ...inner]);
  });
  return out;
}
