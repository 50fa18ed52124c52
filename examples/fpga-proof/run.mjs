// The proof that the training forward pass, the simulator, C99 and C++ return the same bits, with accuracies.
//   node examples/fpga-proof/run.mjs [mlp] [cnn] [residual]   (after `pnpm build`; needs gcc and g++)
// writes results.json and docs/fpga-proof.md; experiments that are not named keep their results.
//   node examples/fpga-proof/run.mjs --report                 writes the document anew
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { transformFileSync } from '@swc/core';

const here = fileURLToPath(new URL('.', import.meta.url));
// Node 20 does not read TypeScript, and what the tests run is what runs here.
mkdirSync(join(here, 'dist'), { recursive: true });
for (const name of ['cifar10', 'proof', 'experiments', 'report']) {
  const { code } = transformFileSync(join(here, `${name}.ts`), {
    swcrc: false,
    jsc: { target: 'es2022', parser: { syntax: 'typescript' }, rewriteRelativeImportExtensions: true },
    module: { type: 'es6' },
  });
  writeFileSync(join(here, 'dist', `${name}.js`), code);
}
const { experiments } = await import('./dist/experiments.js');
const { prove } = await import('./dist/proof.js');
const { report } = await import('./dist/report.js');

const file = join(here, 'results.json');
const read = () => (existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {});
const asked = process.argv.slice(2);
const names = asked.includes('--report') ? [] : asked.length > 0 ? asked : Object.keys(experiments);
for (const name of names) {
  if (!experiments[name]) throw new Error(`no experiment ${name}; there are ${Object.keys(experiments).join(', ')}`);
  const { ready } = await import('@matforge/core');
  await ready();
  const result = await prove(await experiments[name](join(here, '.cache')), (row) => console.log(JSON.stringify(row)));
  // Read again: another experiment may have ended meanwhile.
  writeFileSync(file, `${JSON.stringify({ ...read(), [name]: result }, null, 2)}\n`);
}
const results = read();
const ordered = Object.keys(experiments).flatMap((name) => (results[name] ? [results[name]] : []));
writeFileSync(join(here, '..', '..', 'docs', 'fpga-proof.md'), report(ordered));
