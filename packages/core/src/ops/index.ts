export { gelu } from './activations.ts';
export type { Attributes, Op, OpDefinition, Pullback } from './define-op.ts';
export { defineOp, stopGradient } from './define-op.ts';
export { einsum } from './einsum.ts';
export type { ComplexPair } from './fourier.ts';
export { circularConvolve, circularCorrelate, fft, ifft, irfft, rfft } from './fourier.ts';
export { repairGradients } from './gradients.ts';
export { cumprod, depthToSpace, gatherNd, scatterNd, stridedSlice, topk, where } from './indexing.ts';
export { batchMatMul, linear } from './matmul.ts';
