import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { type BuildOptions, build, type Plugin } from 'esbuild';
import { type Browser, chromium, type Page } from 'playwright-core';

/** Backends of TensorFlow.js as a page has them; `webgl` and `webgpu` only there. */
export type BrowserBackend = 'webgl' | 'webgpu' | 'wasm';

const executablePath = [
  process.env['CHROMIUM'],
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
]
  .filter((path) => path !== undefined)
  .find(existsSync);

const ARGS = ['--no-sandbox', '--no-first-run', '--disable-background-networking', '--disable-sync'];
// Both render in software, so that a machine without a graphics card computes the same.
const RENDERER: Record<BrowserBackend, string[]> = {
  webgl: ['--enable-unsafe-swiftshader'],
  webgpu: ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-features=Vulkan'],
  wasm: [],
};

const AVAILABLE: Record<BrowserBackend, string> = {
  webgl: "document.createElement('canvas').getContext('webgl2') !== null",
  webgpu: '(await navigator.gpu?.requestAdapter() ?? null) !== null',
  wasm: "typeof WebAssembly === 'object'",
};

/**
 * Why a backend cannot be tested here, as the ending of a test's name: '' where it can. Asks a browser, and waits for its
 * answer, because jest wants the names of tests at once.
 */
export function unavailable(backend: BrowserBackend): string {
  if (!executablePath) return ' (skipped: chromium not found; set CHROMIUM or install it)';
  const script = `
    const { chromium } = require(${JSON.stringify(require.resolve('playwright-core'))});
    (async () => {
      const browser = await chromium.launch(${JSON.stringify(launchOptions(backend))});
      const page = await browser.newPage();
      await page.route('**', (route) => route.fulfill({ contentType: 'text/html', body: '<!doctype html>' }));
      await page.goto('http://localhost/');
      console.log('available', await page.evaluate(${JSON.stringify(`(async () => ${AVAILABLE[backend]})()`)}));
      await browser.close();
    })();`;
  const { stdout, stderr } = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8', timeout: 40_000 });
  if (stdout?.includes('available true')) return '';
  const reason = stdout?.includes('available false') ? 'no adapter' : `chromium did not start: ${firstError(stderr)}`;
  return ` (skipped: ${reason} for ${backend})`;
}

const firstError = (text: string | null): string => text?.match(/^.*Error.*$/m)?.[0].slice(0, 120) ?? 'no answer';

function launchOptions(backend: BrowserBackend) {
  return { executablePath, args: [...ARGS, ...RENDERER[backend]] };
}

const packages = join(__dirname, '../packages');

/** Workspace packages come from their sources: `@matforge/<name>` is a folder of that name, one or two deep. */
const fromSource: Plugin = {
  name: 'from-source',
  setup({ onResolve }) {
    onResolve({ filter: /^@matforge\// }, ({ path }) => {
      const [, name, part = 'index'] = path.split('/');
      const families = ['.', 'lora-family', 'structured', 'optim', 'watermark'];
      const folder = families
        .map((family) => join(packages, family, name))
        .find((each) => existsSync(join(each, 'package.json')));
      return folder ? { path: join(folder, 'src', `${part}.ts`) } : { external: true };
    });
    onResolve({ filter: /^gpu\.js$/ }, () => ({
      path: join(packages, 'core/node_modules/gpu.js/dist/gpu-browser.min.js'),
    }));
    // What runs in Node alone, such as the README runner of testkit, falls away where a page does not use it.
    onResolve({ filter: /^(node:|@swc\/core$)/ }, () => ({ external: true }));
  },
};

/** What jest's `expect` asks of Node, for a page: an assertion prints neither files nor colours there. */
const ABSENT: Record<string, string> = {
  process: 'module.exports = process;',
  'util/types': `module.exports = {
    isDate: (value) => value instanceof Date, isRegExp: (value) => value instanceof RegExp,
    isNativeError: (value) => value instanceof Error, isPromise: (value) => value instanceof Promise,
  };`,
  'stack-utils': 'module.exports = class { static nodeInternals() { return []; } };',
  'graceful-fs': 'module.exports = {};',
  path: "module.exports = { sep: '/', resolve: () => '/', basename: () => '', join: (...parts) => parts.join('/') };",
  url: 'module.exports = {};',
};

const withoutNode: Plugin = {
  name: 'without-node',
  setup({ onResolve, onLoad }) {
    const names = new RegExp(`^(${Object.keys(ABSENT).join('|')})$`);
    onResolve({ filter: names }, ({ path }) => ({ path, namespace: 'absent' }));
    onLoad({ filter: names, namespace: 'absent' }, ({ path }) => ({ contents: ABSENT[path] }));
  },
};

async function bundle(options: BuildOptions): Promise<string> {
  const { outputFiles } = await build({
    bundle: true,
    format: 'iife',
    target: 'es2022',
    logLevel: 'error',
    ...options,
    write: false,
  });
  return (outputFiles as { text: string }[])[0].text;
}

/** jest's own `expect` as a script that sets the global. It is a bundle of its own: our sources get no shims of Node. */
const expectScript = (): Promise<string> =>
  bundle({
    stdin: { contents: "globalThis.expect = require('expect').expect;", resolveDir: __dirname },
    plugins: [withoutNode],
    define: { global: 'globalThis', __dirname: '"/"' },
    banner: {
      js: `{ const process = { env: {}, argv: [], platform: 'browser', versions: {}, cwd: () => '/', stdout: {}, stderr: {} };
        const Buffer = { isBuffer: () => false };`,
    },
    footer: { js: '}' },
  });

/** A page that runs a module of ours. */
export interface TestPage {
  page: Page;
  /** Calls a function that the module exports, with and for what JSON can carry. */
  call<Result>(name: string, ...args: unknown[]): Promise<Result>;
  close(): Promise<void>;
}

/** Options of {@link openPage}. */
export interface PageOptions {
  /** Gives the page jest's `expect` as a global. Default false. */
  expect?: boolean;
  /** Serves the page with the headers that make it cross-origin isolated, so that it may share memory. Default false. */
  isolated?: boolean;
}

/**
 * Bundles a module from source and opens it in a browser that has the backend. The caller closes it. The page finds the
 * files of the wasm backend under `/wasm/`.
 *
 * @param entry a file, or a module's text, whose imports are then relative to this folder.
 */
export async function openPage(
  entry: string | { readonly text: string },
  backend: BrowserBackend,
  { expect = false, isolated = false }: PageOptions = {},
): Promise<TestPage> {
  const script = await bundle({
    ...(typeof entry === 'string'
      ? { entryPoints: [entry] }
      : { stdin: { contents: entry.text, resolveDir: __dirname, loader: 'ts' as const } }),
    globalName: 'exported',
    plugins: [fromSource],
    // The sources name TensorFlow.js packages that the workspace root has.
    nodePaths: [join(__dirname, '../node_modules')],
  });
  const scripts: Record<string, string> = { '/page.js': script };
  if (expect) scripts['/expect.js'] = await expectScript();
  const html = `<!doctype html><meta charset="utf-8">${Object.keys(scripts)
    .sort()
    .map((url) => `<script src="${url}"></script>`)
    .join('')}`;
  const wasmFiles = join(__dirname, '../node_modules/@tensorflow/tfjs-backend-wasm/dist');
  const headers = isolated
    ? { 'cross-origin-opener-policy': 'same-origin', 'cross-origin-embedder-policy': 'require-corp' }
    : {};
  const server = createServer(({ url = '/' }, response) => {
    const send = (type: string, body: string | Uint8Array) =>
      response.writeHead(200, { 'content-type': type, ...headers }).end(body);
    const wasm = url.match(/^\/wasm\/([\w-]+\.wasm)$/)?.[1];
    if (url === '/') send('text/html', html);
    else if (scripts[url]) send('text/javascript', scripts[url]);
    else if (wasm) send('application/wasm', readFileSync(join(wasmFiles, wasm)));
    else response.writeHead(404, headers).end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  let browser: Browser | undefined;
  const close = async () => {
    await browser?.close();
    server.close();
  };
  try {
    browser = await chromium.launch(launchOptions(backend));
    const page = await browser.newPage();
    const broken: Error[] = [];
    page.on('pageerror', (error) => broken.push(error));
    await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
    if (broken.length > 0) throw broken[0];
    const call = <Result>(name: string, ...args: unknown[]): Promise<Result> =>
      page.evaluate(`exported[${JSON.stringify(name)}](...${JSON.stringify(args)})`);
    return { page, call, close };
  } catch (error) {
    await close();
    throw error;
  }
}
