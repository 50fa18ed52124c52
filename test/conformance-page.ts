// Runs in a browser, or in Node for the names: the conformance suites of methods, collected and run one by one.
import { type ReadyOptions, ready } from '@matforge/core';
import { type GoldenCase, type MethodSuites, type Place, testConformance, testGoldenCases } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { type Collected, collect } from './collect.ts';

/** Cases of golden files by method. */
export type Goldens = Record<string, GoldenCase[]>;

/** The tests of methods at a place. */
export function collectSuites(all: readonly MethodSuites[], goldens: Goldens, place: Place): Collected[] {
  return collect(() => {
    for (const suites of all) {
      testConformance(suites, place);
      testGoldenCases(suites.id, goldens[suites.id], suites.golden, 'test/golden.json', place);
    }
  });
}

/** What a page exports: {@link collectSuites} and a way to run what was collected. */
export function pageOf(all: readonly MethodSuites[]) {
  let tests: Collected[] = [];
  return {
    async start(goldens: Goldens, place: Place, options?: ReadyOptions): Promise<string[]> {
      if (place.backend === 'webgpu') {
        await import('@tensorflow/tfjs-backend-webgpu');
        // For small products tfjs takes a workgroup for each number, which a software renderer needs 100 times as long for
        // as for its tiles. What it takes itself is compared with cpu in backends.test.ts.
        tf.env().set('WEBGPU_MATMUL_PROGRAM_TYPE', 2);
      }
      // Shaders take shapes as values: a software renderer would compile them anew for every shape.
      if (place.backend === 'webgl') tf.env().set('WEBGL_USE_SHAPES_UNIFORMS', true);
      await ready(place.backend, options);
      tests = collectSuites(all, goldens, place);
      return tests.map(({ path }) => path.join(' › '));
    },
    /** What went wrong in a test, '' where nothing did. */
    async run(index: number): Promise<string> {
      try {
        await tests[index].run();
        return '';
      } catch (error) {
        return String((error as Error)?.stack ?? error);
      }
    },
  };
}
