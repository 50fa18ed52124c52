import { join } from 'node:path';
import { ready } from '@matforge/core';
import { openPage, type TestPage, unavailable } from './browser.ts';
import { product, type Trained, trainSmall } from './wasm-page.ts';

jest.setTimeout(60_000);

const skipped = unavailable('wasm');
const inBrowser = skipped ? test.skip : test;

/** Largest |a-b|/(1+|b|); NaN where one is. */
function deviation(a: readonly number[], b: readonly number[]): number {
  expect(a.length).toBe(b.length);
  return a.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b[i]) / (1 + Math.abs(b[i]))), 0);
}

describe.each([
  ['cross-origin isolated', true],
  ['not isolated', false],
])('wasm in a page that is %s', (_, isolated) => {
  let page: TestPage;
  beforeAll(async () => {
    if (!skipped) page = await openPage(join(__dirname, 'wasm-page.ts'), 'wasm', { isolated });
  });
  afterAll(() => page?.close());

  inBrowser(`says what it needs when it does not find its files${skipped}`, async () => {
    expect(await page.call('start')).toMatch(/In a browser give ready\(\{ wasmPaths \}\)/);
    // TensorFlow.js remembers that it failed.
    expect(await page.call('start', { wasmPaths: '/wasm/' })).toMatch(
      /Reload the page and give wasmPaths in the first call/,
    );
    await page.page.reload();
  });

  inBrowser(`trains to Node's numbers on matforge's kernels${skipped}`, async () => {
    const [here, there] = [
      await trainSmall(),
      await page.call<Trained>('trainSmall', { wasmPaths: '/wasm/', threads: 2 }),
    ];
    const info = await page.call<{ kernels: string }>('pageInfo');
    // Memory can be shared with a worker in an isolated page alone.
    expect(info).toMatchObject({ isolated, backend: 'wasm', threads: isolated ? 2 : 1 });
    expect(info.kernels).toMatch(/relaxed|simd/);
    expect(here.losses.length).toBe(12);
    expect(here.losses.at(-1)).toBeLessThan(0.8 * here.losses[0]);
    expect(deviation(there.losses, here.losses)).toBeLessThan(1e-4);
    expect(deviation(there.outputs, here.outputs)).toBeLessThan(1e-4);
    expect(there.weights.length).toBe(4);
    for (const [i, values] of there.weights.entries()) expect(deviation(values, here.weights[i])).toBeLessThan(1e-4);
  });

  inBrowser(`multiplies on as many threads as it says${skipped}`, async () => {
    await ready();
    const here = product();
    expect(deviation(await page.call('product'), here)).toBeLessThan(1e-4);
    // The first product starts a worker and waits for none.
    if (isolated && page.page.workers().length === 0) await page.page.waitForEvent('worker');
    expect(page.page.workers()).toHaveLength(isolated ? 1 : 0);
    for (let i = 0; i < 20; i++) expect(deviation(await page.call('product'), here)).toBeLessThan(1e-4);
  });

  inBrowser(`refuses to save to a path, and says to what${skipped}`, async () => {
    expect(await page.call('saveToPath')).toMatch(
      /^MatforgeError: path: there is no file system here.*give save and load memoryStorage\(\)/,
    );
  });
});
