/// <reference types="jest" />
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { format } from 'node:util';
import { transformSync } from '@swc/core';

/**
 * Declares a test that runs the TypeScript examples of the package's README in order, as one program, and compares what
 * they print with the comments behind the printing lines: `console.log(1 + 1); // prints 2`.
 *
 * @param directory the test's own directory (`__dirname`).
 * @param load the test's own `require`, so that the example's imports resolve as the package's do.
 */
export function testReadme(directory: string, load: NodeJS.Require): void {
  test('the example of the README runs and prints what it says', async () => {
    const source = examples(readFileSync(join(directory, '..', 'README.md'), 'utf8'));
    const expected = [...source.matchAll(/console\.log\(.*\);? *\/\/ prints (.*)$/gm)].map(([, text]) => text.trim());
    expect(expected.length).toBeGreaterThan(0);
    const printed: string[] = [];
    const log = jest.spyOn(console, 'log').mockImplementation((...values: unknown[]) => {
      printed.push(format(...values));
    });
    try {
      await run(source, load);
    } finally {
      log.mockRestore();
    }
    expect(printed).toEqual(expected);
  }, 60_000);
}

function examples(markdown: string): string {
  return [...markdown.matchAll(/^```ts\n([\s\S]*?)^```/gm)].map(([, code]) => code).join('\n');
}

async function run(source: string, load: NodeJS.Require): Promise<void> {
  const { code } = transformSync(source, {
    jsc: { target: 'es2022', parser: { syntax: 'typescript' } },
    module: { type: 'commonjs' },
  });
  const AsyncFunction = (async () => {}).constructor as new (
    ...names: string[]
  ) => (...values: unknown[]) => Promise<void>;
  await new AsyncFunction('require', 'exports', 'module', code)(load, {}, { exports: {} });
}
