/** Float64 linear algebra on {@link Matrix}. */
export * as linalg from './dense.ts';
export { type Matrix, matrix, toMatrix, toTensor } from './matrix.ts';
export { type RandomizedSvdOptions, randomizedSvd, type ThinSvd, type ThinSvdOptions, thinSvd } from './tensor.ts';
