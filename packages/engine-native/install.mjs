// Sees to it that there is a binary for this machine: the one in prebuilds/, or one compiled here. Without either, nothing
// is lost but speed, so this never fails. `--build` compiles in any case and puts the result into prebuilds/; for another
// machine, as in `CC=aarch64-linux-gnu-gcc node install.mjs --build=linux-arm64`.
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gatherSources } from './sources.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const own = `${process.platform}-${process.arch}`;
const option = process.argv.find((argument) => argument.startsWith('--build'));
const target = option?.split('=')[1] ?? own;
const prebuilt = join(here, 'prebuilds', target, 'matforge_engine.node');
const compiled = join(here, 'build', 'Release', 'matforge_engine.node');

/** In a process of its own, which a damaged file may end. */
function loads(path) {
  const load = `process.dlopen({ exports: {} }, ${JSON.stringify(path)})`;
  return spawnSync(process.execPath, ['-e', load], { stdio: 'ignore' }).status === 0;
}

/** node-gyp as the running package manager names it, or the one that npm brings along. */
function nodeGyp() {
  const require = createRequire(join(dirname(process.execPath), '..', 'lib', 'node_modules', 'npm', 'package.json'));
  if (process.env.npm_config_node_gyp) return process.env.npm_config_node_gyp;
  try {
    return require.resolve('node-gyp/bin/node-gyp.js');
  } catch {
    return undefined;
  }
}

function compile() {
  const gyp = nodeGyp();
  if (!gyp) return 'node-gyp was not found';
  gatherSources();
  // Headers beside the running Node save node-gyp a download.
  const prefix = join(dirname(process.execPath), '..');
  const headers = existsSync(join(prefix, 'include', 'node', 'node_api.h')) ? [`--nodedir=${prefix}`] : [];
  const run = spawnSync(process.execPath, [gyp, 'rebuild', '--silent', `--arch=${target.split('-')[1]}`, ...headers], {
    cwd: here,
    // C only: linked by the C compiler, so that no C++ library is needed.
    env: { ...process.env, LINK: process.env.CC ?? 'cc' },
    encoding: 'utf8',
    timeout: 300_000,
  });
  if (run.status === 0 && existsSync(compiled)) return undefined;
  const nothing = 'node-gyp ended without a word: it needs a C compiler, make and Python';
  return (run.stderr || run.stdout || String(run.error ?? nothing)).trim().split('\n').slice(-5).join('\n');
}

if (option) {
  const problem = compile();
  if (problem) {
    console.error(`engine-native: not compiled: ${problem}`);
    process.exitCode = 1;
  } else {
    mkdirSync(dirname(prebuilt), { recursive: true });
    copyFileSync(compiled, prebuilt);
    // What was compiled for another machine must not be taken for ours.
    if (target !== own) rmSync(join(here, 'build'), { recursive: true });
    console.log(`engine-native: ${prebuilt}`);
  }
} else if (![prebuilt, compiled].some((path) => existsSync(path) && loads(path))) {
  const problem = ['linux', 'darwin'].includes(process.platform) ? compile() : `no binary for ${own} yet`;
  if (problem)
    console.log(`engine-native: runs without its addon, that is at the speed of @matforge/engine alone (${problem})`);
}
