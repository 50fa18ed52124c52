import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import * as engine from '../src/index.ts';

describe('README', () => {
  it('shows an example that runs and learns', async () => {
    const text = readFileSync(resolve(process.cwd(), 'packages/engine/README.md'), 'utf8');
    const example = /```js\n([\s\S]*?)```/.exec(text)![1];
    const body = example
      .replace("import * as tf from '@tensorflow/tfjs';", '')
      .replace(/import (\{.*\}) from '@matforge\/engine';/, 'const $1 = engine;');
    expect(body).not.toContain('import ');
    const printed: string[] = [];
    const log = { log: (...words: unknown[]) => printed.push(words.join(' ')) };
    const AsyncFunction = Object.getPrototypeOf(async () => {}).constructor;
    await engine.ready();
    const before = tf.memory().numTensors;
    await new AsyncFunction('tf', 'engine', 'console', body)(tf, engine, log);
    const [first, last] = printed.map((line) => Number(/loss ([\d.]+)/.exec(line)![1]));
    expect(first).toBeGreaterThan(1);
    expect(last).toBeLessThan(0.1 * first);
    // What a program keeps: its data, variables and the optimizer's moments, however many steps it makes.
    expect(tf.memory().numTensors - before).toBeLessThan(30);
    tf.disposeVariables();
  });
});
