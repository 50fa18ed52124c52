import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { build, type Plugin } from 'esbuild';
import { type Browser, chromium, type Page } from 'playwright-core';

/** Backends of TensorFlow.js that only a browser has. */
export type BrowserBackend = 'webgl' | 'webgpu';

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
};

const AVAILABLE: Record<BrowserBackend, string> = {
  webgl: "document.createElement('canvas').getContext('webgl2') !== null",
  webgpu: '(await navigator.gpu?.requestAdapter() ?? null) !== null',
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
      const folders = ['.', 'lora-family', 'structured'].map((family) => join(packages, family, name));
      const folder = folders.find((each) => existsSync(join(each, 'package.json')));
      return folder ? { path: join(folder, 'src', `${part}.ts`) } : { external: true };
    });
    onResolve({ filter: /^(node:|gpu\.js$)/ }, () => ({ external: true }));
  },
};

/** A page that runs a module of ours. */
export interface TestPage {
  page: Page;
  /** Calls a function that the module exports, with and for what JSON can carry. */
  call<Result>(name: string, ...args: unknown[]): Promise<Result>;
  close(): Promise<void>;
}

/** Bundles a module from source, opens it in a browser that has the backend. The caller closes it. */
export async function openPage(entry: string, backend: BrowserBackend): Promise<TestPage> {
  const { outputFiles } = await build({
    entryPoints: [entry],
    bundle: true,
    write: false,
    format: 'iife',
    globalName: 'exported',
    target: 'es2022',
    logLevel: 'error',
    plugins: [fromSource],
    // The sources name TensorFlow.js packages that the workspace root has.
    nodePaths: [join(__dirname, '../node_modules')],
  });
  const script = outputFiles[0].text;
  const server = createServer(({ url }, response) => {
    const [type, body] =
      url === '/'
        ? ['text/html', '<!doctype html><meta charset="utf-8"><script src="/page.js"></script>']
        : ['text/javascript', script];
    response.writeHead(200, { 'content-type': type }).end(body);
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
    await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
    const call = <Result>(name: string, ...args: unknown[]): Promise<Result> =>
      page.evaluate(`exported[${JSON.stringify(name)}](...${JSON.stringify(args)})`);
    return { page, call, close };
  } catch (error) {
    await close();
    throw error;
  }
}
