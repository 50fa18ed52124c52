export { calibrationFor } from './calibration.ts';
export {
  type GoldenCase,
  type GoldenInputs,
  type GoldenKind,
  type GoldenResult,
  testGoldenCases,
} from './golden.ts';
export { readGolden, testGolden } from './golden-files.ts';
export { lossAndGradients } from './gradients.ts';
export { denseModel, type LinearMethodSuite, testLinearMethod } from './linear-method.ts';
export { type MethodSuites, testConformance } from './method.ts';
export type { Place } from './place.ts';
export { testReadme } from './readme.ts';
export { testReproduction } from './reproduction.ts';
export { type StructuredCase, type StructuredSuite, testStructured } from './structured.ts';
export { type TransformationSuite, testTransformation } from './transformation.ts';
