export * from './errors.ts';
export * from './files/index.ts';
export * from './kernels/index.ts';
export * from './linalg/index.ts';
export * from './ops/index.ts';
export * from './optim/index.ts';
export * from './tensors/random.ts';
export * from './train/index.ts';
