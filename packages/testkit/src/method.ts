import type { GoldenKind } from './golden.ts';
import { type LinearMethodSuite, testLinearMethod } from './linear-method.ts';
import type { Place } from './place.ts';
import { type StructuredSuite, testStructured } from './structured.ts';
import { type TransformationSuite, testTransformation } from './transformation.ts';

/** Everything that the methods of one package must pass, whatever runs it. */
export interface MethodSuites {
  /** Name of the package's method and of its golden file. */
  readonly id: string;
  readonly linear?: readonly LinearMethodSuite[];
  readonly structured?: readonly StructuredSuite[];
  readonly transformations?: readonly TransformationSuite[];
  /** What each kind of golden case computes. */
  readonly golden: Readonly<Record<string, GoldenKind>>;
}

/**
 * Declares the conformance tests of a package's methods.
 *
 * @param where the backend to run on, and where adapters are saved. Default `wasm` and directories.
 */
export function testConformance({ linear, structured, transformations }: MethodSuites, where: Place = {}): void {
  for (const suite of linear ?? []) testLinearMethod(suite, where);
  for (const suite of structured ?? []) testStructured(suite, where);
  for (const suite of transformations ?? []) testTransformation(suite, where);
}
