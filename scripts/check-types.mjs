// Type-checks tests, examples and scripts of every package against the built declarations, in one program.
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { root, workspacePackages } from './workspace.mjs';

const config = {
  extends: '../tsconfig.base.json',
  compilerOptions: {
    composite: false,
    noEmit: true,
    declaration: false,
    declarationMap: false,
    sourceMap: false,
    types: ['node', 'jest'],
    paths: Object.fromEntries(
      workspacePackages().flatMap(({ name, directory }) => [
        [name, [`../${relative(root, directory)}/dist/index.d.ts`]],
        [`${name}/*`, [`../${relative(root, directory)}/dist/*.d.ts`]],
      ]),
    ),
  },
  include: [...workspacePackages().map(({ directory }) => relative(root, directory)), '.', 'examples'].map(
    (directory) => `../${directory}/test/**/*.ts`,
  ),
};
const file = join(root, '.tools', 'tsconfig.tests.json');
writeFileSync(file, `${JSON.stringify(config, null, 2)}\n`);
const { status } = spawnSync(join(root, 'node_modules', '.bin', 'tsc'), ['-p', file], { cwd: root, stdio: 'inherit' });
process.exit(status ?? 1);
