import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { ReadyOptions } from '@matforge/core';
import { type MethodSuites, type Place, readGolden } from '@matforge/testkit';
import { type BrowserBackend, openPage, type PageOptions, type TestPage, unavailable } from './browser.ts';
import { collectSuites, type Goldens } from './conformance-page.ts';

const packages = join(__dirname, '../packages');

/** Test folders of every package that says what each backend must give. */
export const suiteFolders: readonly string[] = readdirSync(packages, { withFileTypes: true })
  .filter((family) => family.isDirectory() && !existsSync(join(packages, family.name, 'package.json')))
  .flatMap(({ name }) => readdirSync(join(packages, name)).map((method) => join(packages, name, method, 'test')))
  .filter((folder) => existsSync(join(folder, 'suite.ts')))
  .sort();

/** The suites of a package, by its test folder. */
export const suitesOf = (folder: string): MethodSuites => require(join(folder, 'suite.ts')).suites;

/** A page's text that exports what runs the suites of all packages. */
const pageText = (): string => `
  import { pageOf } from './conformance-page.ts';
  ${suiteFolders.map((folder, i) => `import { suites as s${i} } from ${JSON.stringify(join(folder, 'suite.ts'))};`).join('\n')}
  export const { start, run } = pageOf([${suiteFolders.map((_, i) => `s${i}`).join(', ')}]);`;

/** Tests that a backend cannot pass: by their names, why, and what it says instead. */
export interface Refusal {
  readonly tests: RegExp;
  readonly why: string;
  readonly message: RegExp;
}

/** Options of {@link testInBrowser}. */
export interface InBrowser extends PageOptions {
  readonly place: Place & { readonly backend: BrowserBackend };
  /** Options of `ready`, for `wasm`. */
  readonly ready?: ReadyOptions;
  readonly refusals?: readonly Refusal[];
  /** Which tests run; default all. */
  readonly only?: RegExp;
}

/** Declares one jest test for every test of every package's suites, each run in one and the same page. */
export function testInBrowser({ place, ready, refusals = [], only = /./, ...options }: InBrowser): void {
  const skipped = unavailable(place.backend);
  const all = suiteFolders.map((folder) => ({ folder, suites: suitesOf(folder) }));
  const goldens: Goldens = Object.fromEntries(
    all.map(({ folder, suites }) => [
      suites.id,
      existsSync(join(folder, 'golden.json')) ? readGolden(suites.id, folder).cases : [],
    ]),
  );
  const names = collectSuites(
    all.map(({ suites }) => suites),
    goldens,
    place,
  ).map(({ path }) => path.join(' › '));

  let page: TestPage;
  beforeAll(async () => {
    if (skipped) return;
    page = await openPage({ text: pageText() }, place.backend, { expect: true, ...options });
    const declared = await page.call<string[]>('start', goldens, place, ready);
    expect(declared).toEqual(names);
  });
  afterAll(() => page?.close());

  test('every refusal in the table is one of a test', () => {
    expect(refusals.filter(({ tests }) => !names.some((name) => tests.test(name)))).toEqual([]);
  });

  for (const [index, name] of names.entries()) {
    if (!only.test(name)) continue;
    const refusal = refusals.find(({ tests }) => tests.test(name));
    const title = `${name}${refusal ? ` (refused: ${refusal.why})` : ''}${skipped}`;
    (skipped ? test.skip : test)(title, async () => {
      const failure = await page.call<string>('run', index);
      if (refusal) expect(failure).toMatch(refusal.message);
      else if (failure) throw new Error(failure);
    });
  }
}
