export * from './backend.ts';
export * from './contracts/config.ts';
export * from './contracts/info.ts';
export * from './contracts/linear-method.ts';
export * from './contracts/reproduction.ts';
export * from './errors.ts';
export * from './files/index.ts';
export * from './host/active.ts';
export { type LoadOptions, load, type SaveOptions, save } from './host/adapter-files.ts';
export { type AttachOptions, attach, detach } from './host/attach.ts';
export type { Batch, Calibration } from './host/calibrate.ts';
export * from './host/functional.ts';
export * from './host/hooks.ts';
export { BASE, type BiasOption } from './host/host.ts';
export { type MergeOptions, merge, mergeAndUnload, unmerge } from './host/merge.ts';
export { runsHooks } from './host/optimizer-hooks.ts';
export { matchesName, matchPattern, namedLayers, selectSites, sitesOf, type Targets } from './host/sites.ts';
export {
  defineStructuredLayer,
  StructuredLayer,
  type StructuredLayerArgs,
  type StructuredLayerClass,
  type StructuredLayerOptions,
} from './host/structured-layer.ts';
export * from './host/structured-models.ts';
export * from './kernels/index.ts';
export * from './linalg/index.ts';
export * from './ops/index.ts';
export * from './optim/index.ts';
export * from './tensors/initializers.ts';
export * from './tensors/low-rank.ts';
export * from './tensors/random.ts';
export {
  type BalancedFactors,
  balancedFactors,
  defineStructuredMethod,
  ensureFactor,
  ensureInput,
  ensureKernel,
  factor,
  learningRateMultipliers,
  muP,
  muPDeviation,
  projectionError,
  type StructuredConfig,
  type StructuredDefinition,
  type StructuredFamily,
  type StructuredInit,
  type StructuredKernel,
  type StructuredMethod,
  type StructuredShape,
  type StructuredSize,
  structuredFamily,
  structuredOptions,
} from './tensors/structured.ts';
export * from './tensors/torch-random.ts';
export * from './train/index.ts';
