export { calibrationFor } from './calibration.ts';
export {
  type GoldenCase,
  type GoldenInputs,
  type GoldenKind,
  type GoldenResult,
  readGolden,
  testGolden,
} from './golden.ts';
export { lossAndGradients } from './gradients.ts';
export { denseModel, type LinearMethodSuite, testLinearMethod } from './linear-method.ts';
export { testReadme } from './readme.ts';
export { testReproduction } from './reproduction.ts';
export { type StructuredCase, type StructuredSuite, testStructured } from './structured.ts';
export { type TransformationSuite, testTransformation } from './transformation.ts';
