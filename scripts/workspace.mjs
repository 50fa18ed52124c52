import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Every package under packages/, one or two folders deep: `{ name, directory, manifest }`, ordered by name. */
export function workspacePackages() {
  const found = [];
  const visit = (directory, depth) => {
    const file = join(directory, 'package.json');
    if (existsSync(file)) {
      const manifest = JSON.parse(readFileSync(file, 'utf8'));
      found.push({ name: manifest.name, directory, manifest });
    } else if (depth < 2) {
      for (const entry of readdirSync(directory, { withFileTypes: true })) {
        if (entry.isDirectory() && entry.name !== 'node_modules') visit(join(directory, entry.name), depth + 1);
      }
    }
  };
  const packages = join(root, 'packages');
  if (existsSync(packages)) visit(packages, 0);
  return found.sort((a, b) => (a.name < b.name ? -1 : 1));
}
