export {
  type AdamDirection,
  type AdamOptions,
  adamDirection,
  adamStep,
  causalSoftmax,
  gelu,
  layerNorm,
  logSoftmax,
  type SgdOptions,
  sgdStep,
  silu,
  softmaxCrossEntropy,
} from './fused.ts';
export { mendGradients } from './kernels/gradients.ts';
export * from './linalg.ts';
export { type HeapKernels, onHeap } from './native.ts';
export { type EngineInfo, engineInfo, type ReadyOptions, ready } from './ready.ts';
