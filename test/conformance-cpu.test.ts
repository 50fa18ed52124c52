import { ready } from '@matforge/core';
import { testConformance, testGolden } from '@matforge/testkit';
import { suiteFolders, suitesOf } from './conformance.ts';

// The environment shares one tfjs between test files, and the others expect its usual backend.
afterAll(() => ready());

for (const folder of suiteFolders) {
  const suites = suitesOf(folder);
  testConformance(suites, { backend: 'cpu', files: 'memory', small: true });
  testGolden(suites.id, folder, suites.golden, { backend: 'cpu' });
}
