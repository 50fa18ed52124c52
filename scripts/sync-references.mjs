// Writes every package's tsconfig.json from its package.json, and the root list, so that `tsc -b` knows the order.
import { writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { root, workspacePackages } from './workspace.mjs';

const packages = workspacePackages();
const directoryOf = new Map(packages.map(({ name, directory }) => [name, directory]));

for (const { directory, manifest } of packages) {
  const needed = { ...manifest.dependencies, ...manifest.peerDependencies };
  const references = Object.keys(needed)
    .filter((name) => directoryOf.has(name))
    .sort()
    .map((name) => ({ path: relative(directory, directoryOf.get(name)) }));
  const config = {
    extends: relative(directory, join(root, 'tsconfig.base.json')),
    compilerOptions: { rootDir: 'src', outDir: 'dist' },
    include: ['src'],
    references,
  };
  // One line where the formatter wants one line.
  const text = JSON.stringify(config, null, 2).replace(/\[\s+("src")\s+\]/, '[$1]');
  writeFileSync(join(directory, 'tsconfig.json'), `${text}\n`);
}
const references = packages.map(({ directory }) => ({ path: relative(root, directory) }));
writeFileSync(join(root, 'tsconfig.json'), `${JSON.stringify({ files: [], references }, null, 2)}\n`);
