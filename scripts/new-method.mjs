// pnpm new:method <family> <name> [--title "…"] [--arxiv 2401.00001] [--year 2024]
// Makes a method package that builds, passes its tests and installs: a low-rank adapter to be replaced by the paper's.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { root } from './workspace.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    title: { type: 'string' },
    arxiv: { type: 'string' },
    year: { type: 'string' },
    'no-install': { type: 'boolean' },
  },
});
const [family, name] = positionals;
const families = readdirSync(join(root, 'packages'), { withFileTypes: true })
  .filter((entry) => entry.isDirectory() && !existsSync(join(root, 'packages', entry.name, 'package.json')))
  .map((entry) => entry.name);
const usage = 'usage: pnpm new:method <family> <name> [--title "Paper title"] [--arxiv 2401.00001] [--year 2024]';
if (!family || !name) fail(`${usage}\nfamilies so far: ${families.join(', ')}`);
for (const word of [family, name]) {
  if (!/^[a-z][a-z0-9]*(-[a-z0-9]+)*$/.test(word)) fail(`"${word}" is not lower case with hyphens\n${usage}`);
}
const directory = join(root, 'packages', family, name);
if (existsSync(directory)) fail(`${directory} exists already`);

const identifier = name.replace(/-(.)/g, (_, letter) => letter.toUpperCase());
const title = values.title ?? name;
const year = Number(values.year ?? new Date().getFullYear());

const manifest = {
  name: `@matforge/${name}`,
  version: '1.0.0',
  description: `${title}.`,
  license: 'Apache-2.0',
  type: 'module',
  sideEffects: false,
  exports: {
    '.': { types: './dist/index.d.ts', default: './dist/index.js' },
    './reproduce': { types: './dist/reproduce.d.ts', default: './dist/reproduce.js' },
    './package.json': './package.json',
  },
  files: ['dist', 'src', 'README.md'],
  scripts: { build: 'tsc -b', test: `jest -c ../../../jest.config.mjs packages/${family}/${name}/` },
  engines: { node: '>=20' },
  dependencies: { zod: 'catalog:' },
  peerDependencies: { '@matforge/core': 'workspace:^', '@tensorflow/tfjs': '^4.22.0' },
  devDependencies: {
    '@matforge/core': 'workspace:*',
    '@matforge/testkit': 'workspace:*',
    '@tensorflow/tfjs': 'catalog:',
  },
};

const paper = `title: '${title.replaceAll("'", "\\'")}',${values.arxiv ? ` arxiv: '${values.arxiv}',` : ''} year: ${year}`;

const files = {
  'package.json': `${JSON.stringify(manifest, null, 2)}\n`,
  'src/index.ts': `import {
  defineLinearMethod,
  kaimingUniform,
  lowRankApply,
  lowRankOptions,
  lowRankProduct,
  lowRankScale,
  trainable,
  zeros,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';

/** ${title}: y = x·W + b + s·(x·A)·B. */
export const ${identifier} = defineLinearMethod({
  info: {
    id: '${name}',
    title: '${title.replaceAll("'", "\\'")}',
    family: '${family}',
    kind: 'adapter',
    paper: { ${paper} },
  },
  config: z.object({ ...lowRankOptions }),
  tensors: ({ inDim, outDim, config: { rank } }) => ({
    A: trainable([inDim, rank], kaimingUniform),
    B: trainable([rank, outDim], zeros),
  }),
  forward: (x, { A, B }, { config, base, dropout }) =>
    tf.add(base.apply(x), lowRankApply(dropout(x), A, B, lowRankScale(config))),
  kernel: ({ A, B }, { config, base }) => tf.add(base.kernel, lowRankProduct(A, B, lowRankScale(config))),
});
`,
  'src/reproduce.ts': `import { type Reproduction, ready } from '@matforge/core';
import { adaptAndTest, blobTransfer } from '@matforge/core/tasks';
import { ${identifier} } from './index.ts';

/** The paper's claim at small scale. */
export async function reproduce(): Promise<Reproduction> {
  await ready();
  const task = blobTransfer(0);
  const accuracy = await adaptAndTest(task, ${identifier}({ rank: 4, alpha: 8 }));
  task.dispose();
  return {
    claim: 'accuracy after transfer above 0.8',
    rows: [{ seed: 0, accuracy }],
    held: accuracy > 0.8,
    details: 'Blob transfer, rank 4, Adam 1e-2, 300 full-batch steps.',
  };
}
`,
  'test/suite.ts': `import type { MethodSuites } from '@matforge/testkit';
import { ${identifier} } from '../src/index.ts';

export const suites: MethodSuites = {
  id: '${name}',
  linear: [
    {
      configured: ${identifier}({ rank: 2 }),
      parameters: (inDim, outDim) => 2 * (inDim + outDim),
      refused: [[{ rank: 0 }, /${name}\\.rank: must be a positive integer, got 0/]],
    },
  ],
  // What each kind of case in golden.json computes.
  golden: {},
};
`,
  [`test/${name}.test.ts`]: `import { testConformance } from '@matforge/testkit';
import { suites } from './suite.ts';

testConformance(suites);
`,
  'test/reproduce.test.ts': `import { testReproduction } from '@matforge/testkit';
import { reproduce } from '../src/reproduce.ts';

testReproduction('${name}', reproduce);
`,
  'test/readme.test.ts': `import { testReadme } from '@matforge/testkit';

testReadme(__dirname, require);
`,
  'README.md': `# @matforge/${name}

${title}. Say here what it does and when to choose it.

\`\`\`sh
npm i @matforge/core @matforge/${name} @tensorflow/tfjs @tensorflow/tfjs-backend-wasm
\`\`\`

\`\`\`ts
import { attach, count, ready } from '@matforge/core';
import { ${identifier} } from '@matforge/${name}';
import * as tf from '@tensorflow/tfjs';

await ready();
const model = tf.sequential({ layers: [tf.layers.dense({ name: 'head', units: 10, inputShape: [32] })] });
await attach(model, ${identifier}({ rank: 4 }), { targets: ['head'] });
console.log(count(model).trainable); // prints 168
\`\`\`

## Measured

\`npx matforge reproduce ${name}\` runs the claim and prints the table.

## Paper

${title}${values.arxiv ? `, [arXiv ${values.arxiv}](https://arxiv.org/abs/${values.arxiv})` : ''}, ${year}.
`,
};
for (const [path, content] of Object.entries(files)) {
  const file = join(directory, path);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, content);
}
writeFileSync(
  join(root, '.changeset', `${name}.md`),
  `---\n"@matforge/${name}": minor\n---\n\nFirst version of ${title}.\n`,
);
execFileSync(process.execPath, [join(root, 'scripts', 'sync-references.mjs')]);
if (!values['no-install']) {
  execFileSync('pnpm', ['install', '--prefer-offline', '--no-frozen-lockfile'], { cwd: root, stdio: 'inherit' });
  execFileSync(join(root, 'node_modules', '.bin', 'tsc'), ['-b'], { cwd: root, stdio: 'inherit' });
  execFileSync(process.execPath, [join(root, 'scripts', 'methods-table.mjs')], { stdio: 'inherit' });
}
console.log(`packages/${family}/${name} is ready: pnpm exec jest packages/${family}/${name}`);

function fail(message) {
  console.error(message);
  process.exit(2);
}
