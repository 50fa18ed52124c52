import { join } from 'node:path';
import { ready } from '@matforge/core';
import * as page from './backends-page.ts';
import { type BrowserBackend, openPage, type TestPage, unavailable } from './browser.ts';

// A software renderer compiles every shader on the CPU.
jest.setTimeout(240_000);

function expectMethod(result: Record<string, number>): void {
  const { variables, moved, leaked, restored, ...deviations } = result;
  for (const [what, deviation] of Object.entries(deviations)) {
    // null is what JSON makes of NaN.
    expect([what, deviation, deviation !== null && deviation < 1e-4]).toEqual([what, deviation, true]);
  }
  expect(Object.keys(deviations).sort()).toEqual(
    ['forward', 'gradients', 'losses', 'merged', 'start', 'trained', 'unmerged'].sort(),
  );
  expect(variables).toBeGreaterThanOrEqual(4);
  expect(moved).toBeGreaterThan(0.03);
  expect({ restored, leaked }).toEqual({ restored: 0, leaked: 0 });
}

function expectTrain({ trained, moved, leaked }: Record<string, number>): void {
  expect([trained, trained !== null && trained < 1e-4]).toEqual([trained, true]);
  expect(moved).toBeGreaterThan(0.03);
  expect(leaked).toBe(0);
}

function expectOps(result: Record<string, number | string>, refused: Record<string, RegExp> = {}): void {
  expect(Object.keys(result).length).toBeGreaterThanOrEqual(24);
  for (const [name, found] of Object.entries(result)) {
    if (refused[name]) expect(`${name}: ${found}`).toMatch(refused[name]);
    else expect([name, found, typeof found === 'number' && found < 1e-4]).toEqual([name, found, true]);
  }
}

describe('wasm beside cpu', () => {
  afterAll(() => ready());

  test.each(page.methodNames())('%s', async (name) => {
    expectMethod(await page.runMethod('wasm', name as never));
  });

  test('train()', async () => {
    expectTrain(await page.runTrain('wasm'));
  });

  test('ops and their gradients', async () => {
    expectOps(await page.runOps('wasm'));
  });
});

describe.each<BrowserBackend>(['webgl', 'webgpu'])('%s beside cpu', (backend) => {
  const skipped = unavailable(backend);
  const inBrowser = skipped ? test.skip : test;
  let browser: TestPage;
  beforeAll(async () => {
    if (!skipped) browser = await openPage(join(__dirname, 'backends-page.ts'), backend);
  });
  afterAll(() => browser?.close());

  inBrowser(`ready() starts it or says what to install${skipped}`, async () => {
    expect(await browser.call('makeReady', 'wobgl')).toMatch(
      /^MatforgeError: backend: .*no backend "wobgl"; .*wasm, cpu, webgl/,
    );
    if (backend === 'webgpu') {
      expect(await browser.call('makeReady', backend)).toMatch(/npm i @tensorflow\/tfjs-backend-webgpu and import it/);
      await browser.call('importWebgpu');
    }
    expect(await browser.call('makeReady', backend)).toBe(backend);
  });

  inBrowser(`ops and their gradients${skipped}`, async () => {
    // Factorisations run in JavaScript and need values at once.
    const refused = Object.fromEntries(
      ['qr', 'cholesky', 'eigh'].map((name) => [name, /cannot be read at once; await its data\(\) first, or do this/]),
    );
    expectOps(await browser.call('runOps', backend), backend === 'webgpu' ? refused : {});
  });

  (skipped ? test.skip : test).each(page.methodNames())(`%s, attached, trained, merged${skipped}`, async (name) => {
    expectMethod(await browser.call('runMethod', backend, name));
  });

  inBrowser(`train()${skipped}`, async () => {
    expectTrain(await browser.call('runTrain', backend));
  });

  inBrowser(`kernels that it lacks run on cpu or are refused by name${skipped}`, async () => {
    const { unique, bitwiseAnd, computed, draw } = await browser.call<Record<string, string>>('standIns', backend);
    expect({ unique, bitwiseAnd }).toEqual({ unique: '5 3 6', bitwiseAnd: '1 2 4 6' });
    if (backend === 'webgl') {
      expect(computed).toBe('4 4 4 4');
      expect(draw).toMatch(/^MatforgeError: tf op Draw: webgl has no kernel for it; draw with tf.browser.toPixels, or/);
    } else {
      expect(computed).toMatch(/^MatforgeError: tf op BitwiseAnd: webgpu has no kernel for it, .*ready\('wasm'\)/);
    }
  });

  inBrowser(`attaching there works or is refused with what to do${skipped}`, async () => {
    expect(await browser.call('attachThere', backend)).toMatch(
      backend === 'webgl' ? /^attached$/ : /^MatforgeError: webgpu: .*\(attach, merge.* after await ready\('wasm'\)/,
    );
  });
});
