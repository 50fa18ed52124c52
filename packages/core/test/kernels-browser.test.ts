import { join } from 'node:path';
import { openPage, type TestPage, unavailable } from '../../../test/browser.ts';

// A software renderer compiles every shader on the CPU.
jest.setTimeout(180_000);

const skipped = unavailable('webgl');
const inBrowser = skipped ? test.skip : test;

let page: TestPage;
beforeAll(async () => {
  if (!skipped) page = await openPage(join(__dirname, 'kernels-page.ts'), 'webgl');
});
afterAll(() => page?.close());

inBrowser.each(['webgl2', 'webasm'])(`kernels run through gpu.js by %s in a browser${skipped}`, async (mode) => {
  const result = await page.call<Record<string, number | string>>('compareKernels', mode);
  expect(result).toMatchObject({ backend: 'webgl', executor: `gpu.js:${mode}` });
  for (const what of ['values', 'slopes', 'basis', 'basisSlopes']) expect(result[what]).toBeLessThan(1e-4);
});
