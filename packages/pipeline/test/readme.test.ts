import { rmSync } from 'node:fs';
import { testReadme } from '@matforge/testkit';
import { importFromSource, runsDirectory } from './setup.ts';

let runs: string;
beforeAll(() => {
  importFromSource();
  runs = runsDirectory();
  process.env.RUNS = runs;
});
afterAll(() => {
  delete process.env.RUNS;
  rmSync(runs, { recursive: true, force: true });
});

testReadme(__dirname, require);
