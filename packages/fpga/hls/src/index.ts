export {
  type ComparisonReport,
  type CompileOptions,
  type Csim,
  type CsimResult,
  compile,
  compileUnits,
  findCompiler,
  type LayerComparison,
} from './csim.ts';
export type { Unit } from './driver.ts';
export type { EmitOptions, Flavour, Hls4mlAliases, IoType, LayerOptions } from './options.ts';
export { resolveOptions } from './options.ts';
export { type Plan, plan } from './plan.ts';
export { type ProfileRow, profile, profileSvg, type TensorRole } from './profile.ts';
export {
  emitC,
  emitHls,
  emitProject,
  type Project,
  type ProjectOptions,
  readProject,
  writeProject,
} from './project.ts';
export type { EstimateReport, LayerEstimate } from './report.ts';
export { type RawSample, type SampleOptions, testbenchSamples } from './samples.ts';
