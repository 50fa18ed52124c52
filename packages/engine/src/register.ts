import * as tf from '@tensorflow/tfjs';
import type { Kernel, OwnKernel } from './backend.ts';
import { orViaCpu, viaCpu } from './fill.ts';
import * as data from './kernels/data.ts';
import { einsum } from './kernels/einsum.ts';

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
};

/** Stock kernels that give wrong numbers; the cpu backend's are right. */
const WRONG = [
  'Conv3DBackpropInputV2',
  'MaxPoolGrad',
  'MaxPool3D',
  'MaxPool3DGrad',
  'Dilation2D',
  'Dilation2DBackpropInput',
  'Dilation2DBackpropFilter',
];

/** Registers everything that training needs on the wasm backend; again and again without harm. */
export function registerKernels(own: Record<string, OwnKernel>): void {
  const stock = stockKernels();
  const ours = { ...PORTABLE, ...own };
  const names = new Set([
    ...stock.keys(),
    ...tf.getKernelsForBackend('cpu').map(({ kernelName }) => kernelName),
    ...Object.keys(ours),
  ]);
  for (const kernelName of names) {
    const before = stock.get(kernelName);
    const fallback =
      before && !WRONG.includes(kernelName)
        ? orViaCpu(kernelName, before.kernelFunc as unknown as Kernel)
        : viaCpu(kernelName);
    const kernel = ours[kernelName] ? withFallback(ours[kernelName], fallback) : fallback;
    if (tf.getKernel(kernelName, 'wasm')) tf.unregisterKernel(kernelName, 'wasm');
    tf.registerKernel({
      kernelName,
      backendName: 'wasm',
      // Stock kernels call each other's functions, so each is still set up even where it is replaced.
      setupFunc: before?.setupFunc,
      disposeFunc: before?.disposeFunc,
      kernelFunc: kernel as unknown as tf.KernelFunc,
    });
  }
}

function withFallback(kernel: OwnKernel, fallback: Kernel): Kernel {
  return (args) => kernel(args) ?? fallback(args);
}
