import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as core from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as datasets from '../src/index.ts';

test('the example of the README prints what the README says', async () => {
  await tf.setBackend('cpu');
  const readme = readFileSync(join(__dirname, '..', 'README.md'), 'utf8');
  const code = /```js\n([\s\S]*?)```/.exec(readme)![1];
  const output = /```text\n([\s\S]*?)```/.exec(readme)![1];
  const printed: string[] = [];
  const modules = { '@matforge/core': core, '@matforge/datasets': datasets, '@tensorflow/tfjs': tf };
  const body = code
    .replace(/import \* as (\w+) from '(.*)';/g, "const $1 = modules['$2'];")
    .replace(/import (\{.*\}) from '(.*)';/g, "const $1 = modules['$2'];");
  const AsyncFunction = (async () => {}).constructor as new (
    ...source: string[]
  ) => (...values: unknown[]) => Promise<void>;
  await new AsyncFunction('modules', 'console', body)(modules, {
    log: (...values: unknown[]) => printed.push(values.join(' ')),
  });
  expect(`${printed.join('\n')}\n`).toBe(output);
});
