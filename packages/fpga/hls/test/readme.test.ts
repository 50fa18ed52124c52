import { spawnSync } from 'node:child_process';
import { testReadme } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { removeTemporary, temporary } from './units.ts';

const home = process.cwd();

// The example writes its project beside itself.
beforeAll(async () => {
  await tf.setBackend('cpu');
  process.chdir(temporary());
});
afterAll(() => {
  process.chdir(home);
  removeTemporary();
});

if (spawnSync('gcc', ['--version']).status === 0) testReadme(__dirname, require);
else test.skip('the example of the README runs and prints what it says (skipped: no gcc)', () => {});
