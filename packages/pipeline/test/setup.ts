import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { imports } from '../src/index.ts';

/** The workspace's examples folder, from which every package is found. */
export const examples = join(__dirname, '..', '..', '..', 'examples');

/** Packages are imported from source, as everything in these tests is. */
export function importFromSource(): void {
  imports.load = (id) => require(id);
}

/** A new directory for runs. */
export function runsDirectory(): string {
  return mkdtempSync(join(tmpdir(), 'matforge-runs-'));
}
