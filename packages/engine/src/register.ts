import * as tf from '@tensorflow/tfjs';
import { type Kernel, type OwnKernel, whole } from './backend.ts';
import { orViaCpu, viaCpu } from './fill.ts';
import { batchNorm, registerBatchNormKernel } from './kernels/batch-norm.ts';
import * as broadcast from './kernels/broadcast.ts';
import * as complex from './kernels/complex.ts';
import * as conv from './kernels/conv.ts';
import * as data from './kernels/data.ts';
import { einsum } from './kernels/einsum.ts';
import { fft, ifft } from './kernels/fft.ts';
import { mendGradients, registerGradients } from './kernels/gradients.ts';
import { localResponse } from './kernels/local-response.ts';
import * as matmul from './kernels/matmul.ts';
import * as morphology from './kernels/morphology.ts';
import * as resize from './kernels/resize.ts';
import * as rows from './kernels/rows.ts';
import * as volume from './kernels/volume.ts';
import * as wave from './kernels/wave.ts';

const STOCK = Symbol.for('matforge.engine.stock');

/** The kernels of the wasm backend as tfjs brings them; remembered once per tfjs, whoever asks. */
function stockKernels(): Map<string, tf.KernelConfig> {
  const home = tf.engine() as unknown as { [STOCK]?: Map<string, tf.KernelConfig> };
  home[STOCK] ??= new Map(tf.getKernelsForBackend('wasm').map((config) => [config.kernelName, config]));
  return home[STOCK];
}

/** Kernels of ours that need nothing but JavaScript: always there, SIMD or not. */
const PORTABLE: Record<string, OwnKernel> = {
  Identity: data.identity,
  Cast: data.cast,
  Complex: data.complex,
  Real: data.real,
  Imag: data.imag,
  ComplexAbs: data.complexAbs,
  UnsortedSegmentSum: data.unsortedSegmentSum,
  Einsum: einsum,
  Cumsum: broadcast.fromFront('Cumsum'),
  Cumprod: broadcast.fromFront('Cumprod'),
};

/** Kernels of ours in C: there where WebAssembly has SIMD. */
const NATIVE: Record<string, OwnKernel> = {
  BatchMatMul: matmul.batchMatMul,
  _FusedMatMul: matmul.fusedMatMul,
  Conv2D: conv.conv2d,
  FusedConv2D: conv.conv2d,
  Conv2DBackpropInput: conv.conv2dBackpropInput,
  Conv2DBackpropFilter: conv.conv2dBackpropFilter,
  DepthwiseConv2dNative: conv.depthwise,
  FusedDepthwiseConv2D: conv.depthwise,
  DepthwiseConv2dNativeBackpropInput: conv.depthwiseBackpropInput,
  DepthwiseConv2dNativeBackpropFilter: conv.depthwiseBackpropFilter,
  MaxPool: conv.maxPool,
  MaxPoolGrad: conv.maxPoolGrad,
  AvgPool: conv.avgPool,
  AvgPoolGrad: conv.avgPoolGrad,
  Conv3D: volume.conv3d,
  Conv3DBackpropInputV2: volume.conv3dBackpropInput,
  Conv3DBackpropFilterV2: volume.conv3dBackpropFilter,
  MaxPool3D: volume.maxPool3d,
  MaxPool3DGrad: volume.maxPool3dGrad,
  AvgPool3D: volume.avgPool3d,
  AvgPool3DGrad: volume.avgPool3dGrad,
  Dilation2D: morphology.dilation2d,
  Dilation2DBackpropInput: morphology.dilation2dBackpropInput,
  Dilation2DBackpropFilter: morphology.dilation2dBackpropFilter,
  FusedBatchNorm: batchNorm,
  Exp: rows.unary('exp'),
  Tanh: rows.unary('tanh'),
  Erf: rows.unary('erf'),
  Sigmoid: rows.unary('sigmoid'),
  Log: rows.unary('log'),
  Softplus: rows.unary('softplus'),
  Elu: rows.unary('elu'),
  Selu: rows.unary('selu'),
  Relu: rows.unary('relu'),
  Relu6: rows.unary('relu6'),
  Square: rows.unary('square'),
  Sqrt: rows.unary('sqrt'),
  Rsqrt: rows.unary('rsqrt'),
  Neg: rows.unary('neg'),
  Step: rows.step,
  Add: complex.orSamePairs(rows.binary('add')),
  Sub: complex.orSamePairs(rows.binary('sub')),
  Multiply: complex.orProduct(rows.binary('mul')),
  RealDiv: rows.binary('div'),
  Sign: rows.unary('sign'),
  Reciprocal: rows.unary('reciprocal'),
  Expm1: rows.unary('expm1'),
  Log1p: rows.unary('log1p'),
  LeakyRelu: broadcast.leakyRelu,
  ClipByValue: broadcast.clip,
  Prelu: broadcast.prelu,
  Pow: broadcast.pow,
  Maximum: broadcast.maximum,
  Minimum: broadcast.minimum,
  SquaredDifference: broadcast.squaredDifference,
  Equal: broadcast.equal,
  NotEqual: broadcast.notEqual,
  Greater: broadcast.greater,
  GreaterEqual: broadcast.greaterEqual,
  Less: broadcast.less,
  LessEqual: broadcast.lessEqual,
  LogicalAnd: broadcast.logicalAnd,
  LogicalOr: broadcast.logicalOr,
  Select: broadcast.select,
  Softmax: rows.softmax,
  Sum: rows.sum,
  Mean: rows.mean,
  Max: broadcast.max,
  Min: broadcast.min,
  All: broadcast.all,
  Any: broadcast.any,
  Cumsum: broadcast.cumsum,
  Tile: broadcast.tile,
  Reverse: broadcast.reverse,
  StridedSlice: broadcast.stridedSlice,
  DepthToSpace: broadcast.depthToSpace,
  SpaceToBatchND: broadcast.spaceToBatch,
  BatchToSpaceND: broadcast.batchToSpace,
  ResizeBilinearGrad: resize.resizeBilinearGrad,
  ResizeNearestNeighborGrad: resize.resizeNearestNeighborGrad,
  LRN: localResponse,
  LRNGrad: localResponse,
  Sin: wave.sin,
  Cos: wave.cos,
  GatherV2: complex.orPairs(rows.gather, complex.withAxis),
  UnsortedSegmentSum: rows.segmentSum,
  Transpose: complex.orPairs(rows.transpose, complex.withPermutation),
  Slice: complex.orPairs(rows.slice, complex.withSlice),
  SplitV: complex.orPairs(rows.split, complex.withAxis),
  Concat: complex.orPairs(rows.concat, complex.withAxis),
  Pack: complex.orPairs(rows.pack, complex.withNewAxis),
  Unpack: complex.orPairs(rows.unpack, complex.withAxis),
  Reshape: complex.reshape,
  Cast: broadcast.orToBool(complex.cast),
  Complex: complex.complex,
  Real: complex.real,
  Imag: complex.imag,
  ComplexAbs: complex.complexAbs,
  FFT: fft,
  IFFT: ifft,
};

/** Stock kernels that give wrong numbers; the cpu backend's are right. */
const WRONG = [
  'Conv3DBackpropInputV2',
  'MaxPool',
  'MaxPoolGrad',
  'MaxPoolWithArgmax',
  'MaxPool3D',
  'MaxPool3DGrad',
  'Dilation2D',
  'Dilation2DBackpropInput',
  'Dilation2DBackpropFilter',
];

/** Registers everything that training needs on the wasm backend; again and again without harm. */
export function registerKernels(withNative: boolean): void {
  const stock = stockKernels();
  const ours = withNative ? { ...PORTABLE, ...NATIVE } : PORTABLE;
  const names = new Set([
    ...stock.keys(),
    ...tf.getKernelsForBackend('cpu').map(({ kernelName }) => kernelName),
    ...Object.keys(ours),
  ]);
  for (const kernelName of names) {
    // Ops of matforge itself bring their own kernels for every backend.
    if (kernelName.startsWith('Matforge')) continue;
    const before = stock.get(kernelName);
    const fallback =
      before && !WRONG.includes(kernelName)
        ? orViaCpu(kernelName, before.kernelFunc as unknown as Kernel)
        : viaCpu(kernelName);
    // What ours declines goes to the other implementations in turn, JavaScript of ours among them.
    const chain = [PORTABLE[kernelName], ours[kernelName]].filter((own, i, all) => own && all.indexOf(own) === i);
    const kernel = chain.reduce<Kernel>((next, own) => withFallback(own, next), fallback);
    if (tf.getKernel(kernelName, 'wasm')) tf.unregisterKernel(kernelName, 'wasm');
    tf.registerKernel({
      kernelName,
      backendName: 'wasm',
      // Stock kernels call each other's functions, so each is still set up even where it is replaced.
      setupFunc: before?.setupFunc,
      disposeFunc: before?.disposeFunc,
      kernelFunc: whole(kernel) as unknown as tf.KernelFunc,
    });
  }
  mendGradients();
  if (!withNative) return;
  registerBatchNormKernel();
  registerGradients();
}

function withFallback(kernel: OwnKernel, fallback: Kernel): Kernel {
  return (args) => kernel(args) ?? fallback(args);
}
