export type { GradientHook } from '../host/hooks.ts';
export { addGradientHook, gradientHooks, suspendGradientHooks } from '../host/hooks.ts';
export { CHECKPOINT_FILE } from './checkpoint.ts';
export type { BatchOptions, EpochInfo, Tensors, TrainingBatch, TrainingData } from './data.ts';
export * from './loop.ts';
export type { FunctionModel, LossContext, LossFunction, LossOption, MetricOption } from './trainee.ts';
