// `pnpm bench`: training steps and products on @matforge/engine, on the stock wasm backend and on PyTorch, side by side.
// Build first (`pnpm build`). Each variant runs in processes of its own, in turn, and the least time counts.
//
//   node bench/run.mjs [--rounds 2] [--json FILE] [--python /usr/bin/python3] [--node PATH] [--quick]
//
// --node names a second Node whose WebAssembly has relaxed SIMD (22 and later), to be timed as well.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { SIZES } from './workloads.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '2' },
    json: { type: 'string', default: join(here, 'results', 'steps.json') },
    python: { type: 'string', default: '' },
    node: { type: 'string', default: '' },
    quick: { type: 'boolean', default: false },
  },
});

/** One number for everything that the JavaScript variants load: a rebuild in the middle of a run must not go unnoticed. */
function fingerprint() {
  const hash = createHash('sha256');
  for (const name of ['engine/dist', 'engine-native/dist', 'engine-native/prebuilds']) {
    const folder = join(here, '..', 'packages', name);
    if (!existsSync(folder)) continue;
    for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
      if (entry.isFile()) hash.update(readFileSync(join(entry.parentPath ?? entry.path, entry.name)));
    }
  }
  return hash.digest('hex').slice(0, 16);
}

function start(command, args, environment = {}) {
  const { status, stdout, stderr } = spawnSync(command, args, {
    encoding: 'utf8',
    env: { ...process.env, ...environment },
    maxBuffer: 1 << 26,
    timeout: 300_000,
  });
  if (status !== 0) throw new Error(`${command} ${args[0]}: ended with ${status}\n${(stderr ?? '').slice(-2000)}`);
  return stdout
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line));
}

const hasTorch = (python) => spawnSync(python, ['-c', 'import torch']).status === 0;
const python = [options.python, 'python3', '/usr/bin/python3'].filter(Boolean).find(hasTorch);
const worker = join(here, 'worker.mjs');
const one = { MATFORGE_NATIVE: '0' };
const torch = (environment) => () =>
  start(python, [join(here, 'torch_peer.py'), JSON.stringify(SIZES)], {
    OMP_NUM_THREADS: '1',
    OPENBLAS_NUM_THREADS: '1',
    ...environment,
  });

// `expect` is what a process must say of itself before its times go under this name.
const variants = {
  engine: { run: () => start(process.execPath, [worker, 'engine'], one), expect: { kernels: 'simd', native: null } },
  ...(options.node
    ? {
        'engine, relaxed SIMD': {
          run: () => start(options.node, [worker, 'engine'], one),
          expect: { kernels: 'relaxed', native: null },
        },
      }
    : {}),
  'stock wasm': {
    run: () => start(process.execPath, [worker, 'stock'], one),
    expect: { kernels: 'none', native: null },
  },
  ...(python
    ? {
        'PyTorch SkylakeX': { run: torch({ OPENBLAS_CORETYPE: 'SkylakeX' }), expect: { blas: 'openblas' } },
        'PyTorch as installed': { run: torch({}), expect: {} },
      }
    : {}),
};

const built = fingerprint();
const results = {};
const left = [];
const rounds = options.quick ? 1 : Number(options.rounds);
for (let round = 0; round < rounds; round++) {
  for (const [variant, { run, expect }] of Object.entries(variants)) {
    // The stock backend takes seconds a step: once is enough.
    if (left.some((reason) => reason.startsWith(variant)) || (variant === 'stock wasm' && round > 0)) continue;
    const lines = run();
    if (fingerprint() !== built) throw new Error('bench: the packages were rebuilt during the run; start again.');
    const said = lines.find(({ name }) => name === 'memory') ?? {};
    const odd = Object.keys(expect).find((key) => said[key] !== expect[key]);
    if (odd) {
      left.push(`${variant}: left out, ${odd} is ${said[odd]} and should be ${expect[odd]}`);
      delete results[variant];
      continue;
    }
    for (const { name, ms, ...more } of lines) {
      results[variant] ??= {};
      const before = results[variant][name];
      results[variant][name] = { ms: Math.min(ms, before?.ms ?? ms), all: [...(before?.all ?? []), ms], ...more };
    }
  }
}
if (!results.engine) throw new Error(`bench: nothing to compare with. ${left.join('; ')}`);

const names = Object.keys(results.engine ?? {}).filter((name) => name !== 'memory');
const columns = Object.keys(results);
const cell = (text, width) => String(text).padStart(width);
const widths = columns.map((column) => Math.max(column.length, 10) + 2);
console.log(`\nmilliseconds, and in brackets the time as a multiple of the engine's`);
console.log(''.padEnd(18) + columns.map((column, i) => cell(column, widths[i] + 8)).join(''));
for (const name of names) {
  const own = results.engine[name].ms;
  const row = columns.map((column, i) => {
    const ms = results[column][name]?.ms;
    if (ms === undefined) return cell('-', widths[i] + 8);
    return cell(`${ms < 10 ? ms.toFixed(2) : ms.toFixed(0)} (${(ms / own).toFixed(2)}x)`, widths[i] + 8);
  });
  console.log(name.padEnd(18) + row.join(''));
}
console.log('\nGFLOP/s');
for (const name of names.filter((text) => text.startsWith('matmul'))) {
  const n = Number(name.split(' ')[1]);
  const rate = (ms) => (ms === undefined ? '-' : ((2 * n ** 3) / ms / 1e6).toFixed(1));
  console.log(
    name.padEnd(18) + columns.map((column, i) => cell(rate(results[column][name]?.ms), widths[i] + 8)).join(''),
  );
}
const exponent = (column) => {
  const [small, large] = [256, 1024].map((n) => results[column][`matmul ${n} nn`]?.ms);
  return small && large ? Math.log2(large / small) / 2 : undefined;
};
console.log(
  `\nexponent of matmul's growth: ${columns.map((column) => `${column} ${exponent(column)?.toFixed(2)}`).join(', ')}`,
);

for (const reason of left) console.log(reason);
for (const column of columns) {
  const { kernels, native, blas, core } = results[column].memory ?? {};
  console.log(`${column}: ${JSON.stringify({ kernels, native, blas, core })}`);
}
console.log(
  `load average ${os
    .loadavg()
    .map((load) => load.toFixed(1))
    .join(' ')} on ${os.cpus().length} cores`,
);

const record = {
  date: new Date().toISOString(),
  node: process.version,
  cpu: os.cpus()[0]?.model,
  cores: os.cpus().length,
  load: os.loadavg(),
  built,
  left,
  sizes: SIZES,
  results,
};
mkdirSync(dirname(options.json), { recursive: true });
writeFileSync(`${options.json}.part`, `${JSON.stringify(record, null, 2)}\n`);
renameSync(`${options.json}.part`, options.json);
console.log(`\nwritten: ${options.json}`);
