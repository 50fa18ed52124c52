export type { RunContext, RunEvent } from './context.ts';
export { cloneModel, loadModel, saveModel } from './model-files.ts';
export {
  configuredMethod,
  type InstalledMethod,
  type InstalledPackage,
  importPackage,
  imports,
  installedMethods,
  installedPackages,
  isLinear,
  loadMethod,
  type OptimizerMethod,
  reproduction,
} from './packages.ts';
export { type Pipeline, pipeline, type RunOptions, type RunResult, run, validate } from './pipeline.ts';
export { type LineChart, lineChart } from './plot.ts';
export { defineStage, type Part, type Stage, type StageDefinition, type StageFactory } from './stage.ts';
export { stages } from './stages/index.ts';
export type { NamedData, State } from './state.ts';
export { type PipelineFile, parsePipeline, readPipeline } from './yaml.ts';
