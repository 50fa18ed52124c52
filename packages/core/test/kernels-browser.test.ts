import { existsSync, readFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import { join, normalize } from 'node:path';
import { transformSync } from '@swc/core';
import * as tf from '@tensorflow/tfjs';
import * as tfWasm from '@tensorflow/tfjs-backend-wasm';
import { type Browser, chromium, type Page } from 'playwright-core';

const executablePath = [
  process.env['CHROMIUM'],
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
]
  .filter((path) => path !== undefined)
  .find(existsSync);
const inBrowser = executablePath ? describe : describe.skip;
const skipped = executablePath ? '' : ' (skipped: chromium not found; set CHROMIUM or install it)';

const sources = { '/src/': join(__dirname, '../src'), '/engine/': join(__dirname, '../../engine/src') };
// A software renderer compiles every shader on the CPU.
jest.setTimeout(180_000);
const require = createRequire(__filename);
const bundle = (name: string, path: string): string => join(require.resolve(`${name}/package.json`), '..', path);

const named = (names: string[], object: string): string =>
  names
    .filter((name) => /^[A-Za-z_]\w*$/.test(name) && name !== 'default')
    .map((name) => `export const ${name} = ${object}.${name};`)
    .join('\n');

/** Modules as a page loads them: our sources without their types, tfjs and gpu.js from their browser bundles, no wasm backend. */
function respond(path: string): { type: string; body: string } | undefined {
  const script = (body: string) => ({ type: 'text/javascript', body });
  if (path === '/') {
    const imports = {
      '@tensorflow/tfjs': '/tfjs.mjs',
      '@tensorflow/tfjs-backend-wasm': '/wasm.mjs',
      '@matforge/engine': '/engine/index.ts',
      'gpu.js': '/gpu.mjs',
    };
    const body = `<!doctype html><script src="/tf.js"></script><script type="importmap">${JSON.stringify({ imports })}</script>`;
    return { type: 'text/html', body };
  }
  if (path === '/tf.js') return script(readFileSync(bundle('@tensorflow/tfjs', 'dist/tf.min.js'), 'utf8'));
  if (path === '/tfjs.mjs') return script(named(Object.keys(tf), 'globalThis.tf'));
  if (path === '/wasm.mjs') return script(`const stub = {};\n${named(Object.keys(tfWasm), 'stub')}`);
  if (path === '/gpu.mjs')
    return script(`const module = { exports: {} };
      new Function('module', 'exports', ${JSON.stringify(readFileSync(bundle('gpu.js', 'dist/gpu-browser.min.js'), 'utf8'))})
        .call(globalThis, module, module.exports);
      export default module.exports;`);
  const root = Object.entries(sources).find(([prefix]) => path.startsWith(prefix));
  const file = root && normalize(join(root[1], path.slice(root[0].length)));
  if (!file?.startsWith(root![1]) || !existsSync(file)) return undefined;
  const options = { jsc: { target: 'es2022', parser: { syntax: 'typescript' } }, module: { type: 'es6' } } as const;
  return script(transformSync(readFileSync(file, 'utf8'), options).code);
}

inBrowser('in a browser', () => {
  let server: Server;
  let browser: Browser;
  let page: Page;
  beforeAll(async () => {
    server = createServer((request, response) => {
      const answer = respond(new URL(request.url ?? '/', 'http://localhost').pathname);
      response.writeHead(answer ? 200 : 404, { 'content-type': answer?.type ?? 'text/plain' }).end(answer?.body);
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    browser = await chromium.launch({ executablePath });
    page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
  });
  afterAll(async () => {
    await browser?.close();
    server?.close();
  });

  /** Runs the text of an async function body in the page, with our modules and helpers in scope. */
  const evaluate = (body: string): Promise<unknown> =>
    page.evaluate(`(async () => {
      const tf = globalThis.tf;
      const { defineElementwiseKernel, cubicBSplineBasis, tableKernel } = await import('/src/kernels/index.ts');
      const ops = await import('/src/ops/index.ts');
      const deviation = (a, b) => {
        const [x, y] = [a.dataSync(), b.dataSync()];
        return x.length === y.length ? x.reduce((w, v, i) => Math.max(w, Math.abs(v - y[i]) / (1 + Math.abs(y[i]))), 0) : 1e9;
      };
      ${body}
    })()`);

  test.each(['webgl2', 'webasm'])(`kernels run through gpu.js by %s${skipped}`, async (mode) => {
    const result = (await evaluate(`
      await tf.setBackend('webgl');
      const make = () => tableKernel([0.3, -1, 2, 0.5, 1.5, -0.7, 0.1], { low: -1, high: 1, interpolation: 'b-spline' });
      const [plain, fast] = [make(), await make().ready({ executor: 'gpu.js', modes: ['${mode}'] })];
      const [basis, quick] = [cubicBSplineBasis({ low: -1, high: 1, intervals: 5 }), cubicBSplineBasis({ low: -1, high: 1, intervals: 5 })];
      await quick.ready({ executor: 'gpu.js', modes: ['${mode}'] });
      const x = tf.randomUniform([20000], -1.2, 1.2, 'float32', 7);
      const slope = (f) => tf.grad((t) => f(t).square().sum())(x);
      return {
        backend: tf.getBackend(), executor: fast.executor,
        values: deviation(fast(x), plain(x)), slopes: deviation(slope(fast), slope(plain)),
        basis: deviation(quick(x), basis(x)), basisSlopes: deviation(slope(quick), slope(basis)),
      };`)) as Record<string, number | string>;
    expect(result).toMatchObject({ backend: 'webgl', executor: `gpu.js:${mode}` });
    for (const what of ['values', 'slopes', 'basis', 'basisSlopes']) expect(result[what]).toBeLessThan(1e-4);
  });

  test(`ops and their gradients on webgl equal those on cpu${skipped}`, async () => {
    const result = (await evaluate(`
      const make = (shape, seed) => tf.randomUniform(shape, -1, 1, 'float32', seed);
      const cases = {
        einsum: [(a, b) => ops.einsum('bqhd,bkhd->bhqk', a, b), [2, 3, 2, 4], [2, 5, 2, 4]],
        batchMatMul: [(a, b) => ops.batchMatMul(a, b), [2, 1, 3, 4], [5, 4, 2]],
        rfft: [(a) => { const z = ops.rfft(a); return tf.concat([z.real, z.imag], -1); }, [3, 12]],
        irfft: [(a, b) => ops.irfft({ real: a, imag: b }, 13), [3, 7], [3, 7]],
        correlate: [(a, b) => ops.circularCorrelate(a, b), [2, 3, 12], [3, 12]],
        topk: [(a) => ops.topk(a, 3).values, [2, 3, 8]],
        cumprod: [(a) => ops.cumprod(a, 1, true, true), [3, 5]],
        scatterNd: [(a) => ops.scatterNd(tf.tensor2d([[0], [2], [0]], [3, 1], 'int32'), a, [4, 2]), [3, 2]],
        stridedSlice: [(a) => ops.stridedSlice(a, [2, 3], [-4, 0], [-1, -2]), [3, 4]],
        depthToSpace: [(a) => ops.depthToSpace(a, 2), [2, 2, 3, 8]],
        where: [(a, b) => ops.where(tf.greater(a, 0.1), a.mul(b), b), [3, 4], [4]],
        qr: [(a) => { const { q, r } = ops.qr(a); return ops.batchMatMul(q, tf.exp(r)); }, [2, 4, 3]],
      };
      const run = async (backend, f, shapes) => {
        await tf.setBackend(backend);
        const xs = shapes.map((shape, i) => make(shape, i + 1));
        const y = f(...xs);
        const grads = tf.grads((...ts) => f(...ts).square().sum())(xs);
        return [y, ...grads].map((t) => tf.tensor(t.dataSync(), t.shape));
      };
      const worst = {};
      for (const [name, [f, ...shapes]] of Object.entries(cases)) {
        const [expected, got] = [await run('cpu', f, shapes), await run('webgl', f, shapes)];
        worst[name] = Math.max(...expected.map((e, i) => String(e.shape) === String(got[i].shape) ? deviation(got[i], e) : 1e9));
      }
      return worst;`)) as Record<string, number>;
    expect(Object.keys(result)).toHaveLength(12);
    for (const [name, worst] of Object.entries(result))
      expect([name, worst < 1e-4, worst]).toEqual([name, true, worst]);
  });
});
