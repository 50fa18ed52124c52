export type {
  ElementwiseKernel,
  ElementwiseKernelDefinition,
  GradientFunction,
  ReadyKernelOptions,
} from './elementwise.ts';
export { defineElementwiseKernel } from './elementwise.ts';
export type { KernelBody } from './source.ts';
export type { SplineGrid, TableKernelOptions } from './splines.ts';
export { cubicBSplineBasis, tableKernel } from './splines.ts';
