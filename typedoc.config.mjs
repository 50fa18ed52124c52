import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { workspacePackages } from './scripts/workspace.mjs';

/** @type {Partial<import('typedoc').TypeDocOptions>} */
export default {
  name: 'matforge',
  entryPoints: workspacePackages()
    .filter(({ name }) => name !== 'matforge')
    .map(({ directory }) => join(directory, 'src/index.ts'))
    .filter((file) => existsSync(file)),
  entryPointStrategy: 'expand',
  tsconfig: './tsconfig.docs.json',
  out: 'docs/api',
  readme: 'README.md',
  excludePrivate: true,
  skipErrorChecking: true,
};
