// Writes docs/methods.md from the built packages; with --check only says whether it is up to date.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { root, workspacePackages } from './workspace.mjs';

const file = join(root, 'docs', 'methods.md');
const rows = [];
for (const { name, directory } of workspacePackages()) {
  const entry = join(directory, 'dist', 'index.js');
  if (!existsSync(entry) || ['matforge', '@matforge/testkit'].includes(name)) continue;
  const exported = await import(pathToFileURL(entry).href);
  for (const value of Object.values(exported)) {
    if (typeof value === 'function' && value.info?.id && value.config) rows.push({ name, directory, method: value });
  }
}
rows.sort((a, b) => compare(a.method.info.family, b.method.info.family) || compare(a.method.info.id, b.method.info.id));

const text = `# Methods

Every method of the workspace, as its package describes itself. Written by \`pnpm docs:methods\`.

| family | method | kind | mergeable | options | paper |
| --- | --- | --- | --- | --- | --- |
${rows.map(line).join('\n')}
`;

if (process.argv.includes('--check')) {
  if (!existsSync(file) || readFileSync(file, 'utf8') !== text) {
    console.error('docs/methods.md is out of date; run pnpm docs:methods');
    process.exit(1);
  }
} else {
  writeFileSync(file, text);
  console.log(`docs/methods.md: ${rows.length} methods`);
}

function line({ name, directory, method }) {
  const { id, title, family, kind, paper } = method.info;
  const path = `../${directory.slice(root.length + 1)}`;
  const options = Object.keys(method.config.shape)
    .map((option) => `\`${option}\``)
    .join(', ');
  const source = paper.arxiv
    ? `[${paper.title}](https://arxiv.org/abs/${paper.arxiv}), ${paper.year}`
    : `${paper.title}, ${paper.year}`;
  const mergeable = method.contract === 'linear' ? (method.kernel ? (method.mergeable ? 'in part' : 'yes') : 'no') : '';
  return `| ${family} | [${title}](${path}) \`${name.replace('@matforge/', '') === id ? id : name}\` | ${kind} | ${mergeable} | ${options} | ${source} |`;
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}
