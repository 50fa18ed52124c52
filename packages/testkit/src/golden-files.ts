import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type GoldenCase, type GoldenKind, testGoldenCases } from './golden.ts';
import type { Place } from './place.ts';

/**
 * Declares one jest test per golden case of a method, and one that every kind in the file is covered.
 *
 * The cases come from `test/golden.json` beside the test, or from `$MATFORGE_GOLDEN_DIR/<method>.json` when that is set.
 *
 * @param directory the test's own directory (`__dirname`).
 * @param where the backend to run on. Default `wasm`.
 */
export function testGolden(
  method: string,
  directory: string,
  kinds: Record<string, GoldenKind>,
  where: Place = {},
): void {
  const { cases, path } = readGolden(method, directory);
  testGoldenCases(method, cases, kinds, path, where);
}

/** The cases of a method, from the package or from `MATFORGE_GOLDEN_DIR`. */
export function readGolden(method: string, directory: string): { cases: GoldenCase[]; path: string } {
  const elsewhere = process.env.MATFORGE_GOLDEN_DIR;
  const path = elsewhere ? join(elsewhere, `${method}.json`) : join(directory, 'golden.json');
  if (!existsSync(path)) throw new Error(`${path} does not exist; golden cases of ${method} belong there`);
  return { cases: JSON.parse(readFileSync(path, 'utf8')).cases, path };
}
