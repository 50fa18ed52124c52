import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { transformSync } from '@swc/core';
import { build } from 'esbuild';
import { decodeBase64 } from '../src/base64.ts';
import { base64 as plain } from '../src/kernels.wasm.ts';
import { base64 as relaxed } from '../src/kernels-relaxed.wasm.ts';
import { asShared } from '../src/shared.ts';
import { SHARES } from '../src/shares.ts';
import { Pool, sharedKernels, threadCount } from '../src/threads.ts';
import { type WasmExports, type WasmMemory, webAssembly } from '../src/webassembly.ts';

const { Memory } = webAssembly as unknown as {
  Memory: new (options: { initial: number; maximum: number; shared: boolean }) => WasmMemory;
};

// ---------------------------------------------------------------------------------------------- kernels, one by one

const memory = new Memory({ initial: 2048, maximum: 65536, shared: true });
let next = 1 << 16;
const malloc = (bytes: number): number => {
  const at = next;
  next += Math.ceil(bytes / 64) * 64;
  return at;
};
const bytes = [relaxed, plain].map(decodeBase64).find((each) => webAssembly!.validate(each))!;
const compiled = new webAssembly!.Module(asShared(bytes));
const kernels = new webAssembly!.Instance(compiled, { env: { memory } }).exports as WasmExports;
kernels.__stack_pointer.value = malloc(1 << 16) + (1 << 16);
const pool = new Pool({ memory, malloc, free: () => {} }, compiled, kernels, 3);
const shared = sharedKernels(kernels, pool);
afterAll(() => pool.resize(1));

const floats = (at: number, count: number) => new Float32Array(memory.buffer, at, count);
let seed = 1;
/** Floats on the heap, all different; the scale keeps exponentials small. */
function filled(count: number): number {
  const at = malloc(4 * count);
  const from = seed++;
  floats(at, count).forEach((_, i, all) => {
    all[i] = Math.sin(12.9898 * (i + 1) + 78.233 * from);
  });
  return at;
}
const positive = (count: number): number => {
  const at = filled(count);
  floats(at, count).forEach((value, i, all) => {
    all[i] = value * value + 0.01;
  });
  return at;
};

interface Example {
  args: number[];
  /** Address and length of each result. */
  results: [at: number, count: number][];
}

/** 13 rows of 2,999 numbers: nothing divides anything. */
const [ROWS, N] = [13, 2999];
const ALL = ROWS * N;
const out = (count = ALL): [number, number] => [malloc(4 * count), count];
const example = (results: [number, number][], ...args: (number | [number, number])[]): Example => ({
  args: args.map((value) => (Array.isArray(value) ? value[0] : value)),
  results,
});

/** Seven images, so that three threads get unequal parts. */
function geometry(channels: number, filters: number, kernel: number, stride: number, padding: number): number {
  const at = malloc(64);
  const side = Math.floor((20 + 2 * padding - kernel) / stride) + 1;
  const numbers = [7, 20, 20, channels, side, side, filters, kernel, kernel, stride, stride, padding, padding, 1, 1];
  new Int32Array(memory.buffer, at, 15).set(numbers);
  return at;
}
const IMAGE = 7 * 20 * 20;

const EXAMPLES: Record<string, () => Example> = {
  mf_unary: () => ((y) => example([y], 0, ALL, filled(ALL), y))(out()),
  mf_unary_back: () => ((y) => example([y], 9, ALL, filled(ALL), filled(ALL), y))(out()),
  mf_binary: () => ((y) => example([y], 2, ALL, filled(ALL), filled(ALL), y))(out()),
  mf_binary_row: () => ((y) => example([y], 1, ROWS, N, filled(ALL), filled(N), y))(out()),
  mf_bias_act: () => ((y) => example([y], ROWS, N, y, filled(N), 1, 0, 0))(out()),
  mf_adam: () =>
    ((w, m, v) =>
      example(
        [w, m, v],
        ...[ALL, filled(ALL), filled(ALL), filled(ALL), positive(ALL)],
        ...[w, m, v],
        ...[0.1, 0.9, 0.999, 0.1, 0.001, 1e-8, 0.5, 0.6, 0.01],
      ))(out(), out(), out()),
  mf_sgd: () =>
    ((w, u) => example([w, u], ALL, filled(ALL), filled(ALL), filled(ALL), w, u, 0.1, 0.9, 1, 0.01))(out(), out()),
  mf_clip: () => ((y) => example([y], ALL, -0.3, 0.4, filled(ALL), y))(out()),
  mf_softmax: () => ((y) => example([y], ROWS, N, filled(ALL), y))(out()),
  // Blocks of three queries stay together.
  mf_causal_softmax: () => ((y) => example([y], 12, 3, N, 0.5, filled(12 * N), y))(out(12 * N)),
  mf_softmax_back: () => ((y) => example([y], ROWS, N, 0.5, filled(ALL), filled(ALL), y))(out()),
  mf_log_softmax: () => ((y) => example([y], ROWS, N, filled(ALL), y))(out()),
  mf_log_softmax_back: () => ((y) => example([y], ROWS, N, filled(ALL), filled(ALL), y))(out()),
  mf_cross_entropy_back: () => {
    const labels = malloc(4 * ROWS);
    new Int32Array(memory.buffer, labels, ROWS).set(Array.from({ length: ROWS }, (_, i) => 200 * i - 1));
    const y = out();
    return example([y], ROWS, N, filled(ALL), labels, filled(ROWS), y);
  },
  mf_layer_norm: () =>
    ((y, mean, rstd) => example([y, mean, rstd], ROWS, N, filled(ALL), filled(N), filled(N), 1e-5, y, mean, rstd))(
      ...([out(), out(ROWS), out(ROWS)] as const),
    ),
  mf_layer_norm_back: () =>
    ((dx, dgamma, dbeta) =>
      example(
        [dx, dgamma, dbeta],
        ...[ROWS, N, filled(ALL), filled(N), filled(ALL), filled(ROWS), positive(ROWS)],
        ...[dx, dgamma, dbeta],
      ))(...([out(), out(N), out(N)] as const)),
  mf_sum: () => ((y) => example([y], 11, 59, 101, filled(11 * 59 * 101), y, 0.5))(out(11 * 101)),
  mf_copy_rows: () => ((y) => example([y], ROWS, 4 * N, filled(2 * ALL), 8 * N, y, 4 * N))(out()),
  mf_conv: () =>
    ((y) => example([y], geometry(5, 6, 3, 1, 1), filled(IMAGE * 5), filled(270), y, malloc(1 << 23)))(out(IMAGE * 6)),
  mf_conv_back_filter: () =>
    ((y) => example([y], geometry(5, 6, 3, 1, 1), filled(IMAGE * 5), filled(IMAGE * 6), y, malloc(1 << 23)))(out(270)),
  mf_conv_back_input: () =>
    ((y) => example([y], geometry(5, 6, 3, 1, 1), filled(IMAGE * 6), filled(270), y, malloc(1 << 23)))(out(IMAGE * 5)),
  mf_depthwise: () =>
    ((y) => example([y], geometry(6, 12, 3, 1, 1), filled(IMAGE * 6), filled(108), y))(out(IMAGE * 12)),
  mf_depthwise_back_input: () =>
    ((y) => example([y], geometry(6, 12, 3, 1, 1), filled(IMAGE * 12), filled(108), y))(out(IMAGE * 6)),
  mf_depthwise_back_filter: () =>
    ((y) => example([y], geometry(6, 12, 3, 1, 1), filled(IMAGE * 6), filled(IMAGE * 12), y))(out(108)),
  mf_max_pool: () => ((y) => example([y], geometry(51, 51, 2, 2, 0), filled(IMAGE * 51), y))(out(700 * 51)),
  mf_max_pool_back: () =>
    ((y) => example([y], geometry(51, 51, 2, 2, 0), filled(IMAGE * 51), filled(700 * 51), y))(out(IMAGE * 51)),
  mf_avg_pool: () => ((y) => example([y], geometry(51, 51, 2, 2, 0), filled(IMAGE * 51), y))(out(700 * 51)),
  mf_avg_pool_back: () => ((y) => example([y], geometry(51, 51, 2, 2, 0), filled(700 * 51), y))(out(IMAGE * 51)),
  mf_affine: () => ((y) => example([y], ROWS, N, filled(ALL), filled(N), filled(N), filled(N), y))(out()),
  mf_batch_norm_back: () =>
    ((dx, sum, dot) =>
      example([dx, sum, dot], ROWS, N, filled(ALL), filled(ALL), filled(N), positive(N), dx, sum, dot))(
      ...([out(), out(N), out(N)] as const),
    ),
};

/** Results of a call, from the same start. */
function outcome(call: () => unknown, { results }: Example): number[][] {
  for (const [at, count] of results) floats(at, count).fill(0.25);
  call();
  return results.map(([at, count]) => [...floats(at, count)]);
}

describe('a kernel that threads share', () => {
  beforeEach(() => jest.restoreAllMocks());

  it.each(Object.keys(SHARES))('%s gives what one thread gives, bit for bit', (name) => {
    expect(Object.keys(EXAMPLES)).toContain(name);
    const given = EXAMPLES[name]();
    pool.resize(1);
    const expected = outcome(() => shared[name](...given.args), given);
    pool.resize(3);
    const run = jest.spyOn(pool, 'run');
    const got = outcome(() => shared[name](...given.args), given);
    expect(run).toHaveBeenCalledTimes(1);
    expect(run.mock.calls[0][2][0]).toBeGreaterThan(1);
    got.forEach((numbers, i) => {
      // All of it, and not what was there before.
      expect(numbers.some((value) => value !== 0.25 && value !== 0)).toBe(true);
      // Sums are cut into pieces for one thread too.
      expect([name, i, numbers.findIndex((value, k) => !Object.is(value, expected[i][k]))]).toEqual([name, i, -1]);
    });
  });

  it.each(Object.entries(SHARES).filter(([, letters]) => letters.includes('A')))(
    '%s, a sum over pieces, gives what it gives in one piece, to rounding',
    (name) => {
      const given = EXAMPLES[name]();
      const expected = outcome(() => kernels[name](...given.args), given);
      outcome(() => shared[name](...given.args), given).forEach((numbers, i) => {
        const scale = expected[i].reduce((most, value) => Math.max(most, Math.abs(value)), 0);
        const worst = numbers.reduce((most, value, k) => Math.max(most, Math.abs(value - expected[i][k])), 0);
        expect([name, i, worst <= 1e-5 * scale ? 'same' : worst / scale]).toEqual([name, i, 'same']);
      });
    },
  );

  it.each([
    ['rectangles of one product', 1, 121, 203, 97],
    ['few products, each in rectangles', 3, 97, 131, 77],
    ['a batch', 40, 33, 29, 35],
    ['few rows left over', 1, 39, 400, 300],
    ['few columns', 1, 500, 9, 333],
    ['a row', 1, 1, 1317, 203],
    ['three rows, two products', 2, 3, 517, 203],
    ['a column', 1, 1317, 1, 203],
    ['four columns, three products', 3, 517, 4, 203],
  ])('mf_sgemm: %s, every transposition', (_, batch, m, n, k) => {
    const run = jest.spyOn(pool, 'run');
    const [a, b, work] = [filled(batch * m * k), filled(batch * n * k), malloc(kernels.mf_sgemm_work())];
    for (const [ta, tb, accumulate] of [
      [0, 0, 0],
      [1, 0, 1],
      [0, 1, 0],
      [1, 1, 1],
    ]) {
      const c = out(batch * m * n);
      const args = [batch, ta, tb, m, n, k, a, m * k, b, n * k, c[0], accumulate, work];
      const given = { args, results: [c] };
      const expected = outcome(() => kernels.mf_sgemm(...args), given);
      expect(outcome(() => shared.mf_sgemm(...args), given)).toEqual(expected);
    }
    expect(run).toHaveBeenCalledTimes(4);
  });

  it('is worked on by the other threads too', async () => {
    const [m, c] = [192, out(192 * 192)];
    const bytesEach = Math.ceil(kernels.mf_sgemm_work() / 64) * 64;
    const [a, b] = [filled(m * m), filled(m * m)];
    const panels = () =>
      [1, 2].map((worker) => floats(pool.work(bytesEach) + worker * bytesEach, 64).some((x) => x !== 0));
    floats(pool.work(bytesEach), (3 * bytesEach) / 4).fill(0);
    for (let tries = 0; tries < 500 && panels().includes(false); tries++) {
      shared.mf_sgemm(1, 0, 0, m, m, m, a, 0, b, 0, c[0], 0, 0);
      await new Promise((done) => setTimeout(done, 10));
    }
    expect(panels()).toEqual([true, true]);
  });

  it('takes no more memory however often the number of threads changes', () => {
    const given = EXAMPLES.mf_softmax();
    const expected = outcome(() => kernels.mf_softmax(...given.args), given);
    const turn = (count: number): void => {
      pool.resize(count);
      expect(outcome(() => shared.mf_softmax(...given.args), given)).toEqual(expected);
    };
    [2, 4, 1, 3].forEach(turn);
    const before = next;
    for (let i = 0; i < 50; i++) turn(1 + (i % 4));
    expect(next).toBe(before);
    pool.resize(3);
  });

  it('fails on the calling thread when it fails on another', () => {
    // Far beyond the end of the memory.
    const outside = [0, 0, 8, 8, 8, 2 ** 31, 8, 2 ** 31, 8, 2 ** 31, 8, 0, 2 ** 31].map((base) => ({ base }));
    expect(() => pool.run('mf_sgemm_part', outside, [3])).toThrow(/mf_sgemm_part failed on a worker thread/);
    // And the threads are there for the next.
    const given = EXAMPLES.mf_softmax();
    const expected = outcome(() => kernels.mf_softmax(...given.args), given);
    expect(outcome(() => shared.mf_softmax(...given.args), given)).toEqual(expected);
  });

  it('stays with one thread when it is small, and when threads are given up', () => {
    const run = jest.spyOn(pool, 'run');
    const [x, y] = [filled(100), out(100)];
    shared.mf_unary(0, 100, x, y[0]);
    expect(floats(y[0], 1)[0]).toBeCloseTo(Math.exp(floats(x, 1)[0]), 6);
    pool.resize(1);
    const given = EXAMPLES.mf_softmax();
    shared.mf_softmax(...given.args);
    pool.resize(3);
    expect(run).not.toHaveBeenCalled();
  });
});

test("a worker's program needs nothing from outside when it is made for older JavaScript", () => {
  const source = readFileSync(resolve(process.cwd(), 'packages/engine/src/threads.ts'), 'utf8');
  const { code } = transformSync(source, { jsc: { target: 'es5', parser: { syntax: 'typescript' } } });
  const from = code.indexOf('function threadBody(');
  const body = code.slice(from, code.indexOf('\n}', from));
  expect(body).toMatch(/serve: function/);
  // Helpers begin with an underscore.
  expect(body).not.toMatch(/\b_\w+\(/);
});

describe('asShared', () => {
  const limits = (flags: number, ...numbers: number[]) => [flags, ...numbers];
  const binary = (id: number, ...body: number[]) =>
    Uint8Array.from([0, 97, 115, 109, 1, 0, 0, 0, id, body.length, ...body]);

  it('sets the bit of a declared and of an imported memory, and gives it a maximum', () => {
    const most = [128, 128, 4];
    expect(asShared(binary(5, 1, ...limits(1, 2, 3)))).toEqual(binary(5, 1, ...limits(3, 2, 3)));
    expect(asShared(binary(5, 1, ...limits(0, 2)))).toEqual(binary(5, 1, ...limits(3, 2), ...most));
    // A function and a global are imported before it.
    const before = [1, 101, 1, 102, 0, 0, 1, 101, 1, 103, 3, 127, 0, 1, 101, 1, 109, 2];
    expect(asShared(binary(2, 3, ...before, ...limits(0, 2)))).toEqual(
      binary(2, 3, ...before, ...limits(3, 2), ...most),
    );
  });

  it('leaves binaries without a memory alone', () => {
    const types = binary(1, 1, 96, 0, 0);
    expect(asShared(types)).toEqual(types);
  });
});

describe('threadCount', () => {
  const before = process.env.MATFORGE_THREADS;
  afterEach(() => {
    process.env.MATFORGE_THREADS = before;
  });

  it('is what is asked for, then MATFORGE_THREADS, then the number of processors', () => {
    process.env.MATFORGE_THREADS = '3';
    expect(threadCount(2)).toBe(2);
    expect(threadCount()).toBe(3);
    process.env.MATFORGE_THREADS = 'many';
    expect(threadCount()).toBeGreaterThanOrEqual(1);
    expect(threadCount()).toBeLessThanOrEqual(Math.min(require('node:os').availableParallelism(), 16));
    expect(threadCount(1000)).toBe(32);
  });

  it('is no more than a container may use at a time', () => {
    delete process.env.MATFORGE_THREADS;
    const fs = require('node:fs');
    jest.spyOn(require('node:os'), 'availableParallelism').mockReturnValue(12);
    const read = jest.spyOn(fs, 'readFileSync');
    for (const [content, count] of [
      ['250000 100000\n', 3],
      ['50000 100000\n', 1],
      ['max 100000\n', 12],
    ] as const) {
      read.mockReturnValue(content);
      expect([content, threadCount()]).toEqual([content, count]);
    }
    read.mockImplementation(() => {
      throw new Error('ENOENT');
    });
    expect(threadCount()).toBe(12);
    jest.restoreAllMocks();
  });
});

// ------------------------------------------------------------------------------------------- whole programs in Node

describe('a program', () => {
  const STEPS = 12;
  const run = promisify(execFile);
  let folder: string;
  beforeAll(async () => {
    // Beside the package, so that the program finds TensorFlow.js.
    folder = await mkdtemp(resolve(process.cwd(), 'packages/engine/node_modules/.threads-'));
    for (const [name, options] of Object.entries({ program: {}, small: { minify: true, keepNames: true } })) {
      await build({
        entryPoints: [resolve(process.cwd(), 'packages/engine/test/threads-program.ts')],
        outfile: join(folder, `${name}.mjs`),
        bundle: true,
        format: 'esm',
        platform: 'node',
        external: ['@tensorflow/*', '@matforge/engine-native'],
        logLevel: 'error',
        ...options,
      });
    }
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  async function program(what: string, flags: string[] = [], threads?: string, name = 'program') {
    const { MATFORGE_THREADS: _, ...env } = process.env;
    const { stdout, stderr } = await run(process.execPath, [...flags, join(folder, `${name}.mjs`), what], {
      env: { ...env, MATFORGE_NATIVE: '0', ...(threads && { MATFORGE_THREADS: threads }) },
      cwd: tmpdir(),
      timeout: 50_000,
    });
    return { ...JSON.parse(stdout.slice(stdout.indexOf('{'))), stderr };
  }

  it('trains on two and on three threads as on one, and ends by itself', async () => {
    const one = await program('train', [], '1');
    const [two, twoAgain, three] = await Promise.all(['2', '2', '3'].map((count) => program('train', [], count)));
    expect([one, two, three].map(({ threads, isShared }) => [threads, isShared])).toEqual([
      [1, false],
      [2, true],
      [3, true],
    ]);
    expect(one.losses).toHaveLength(STEPS);
    expect(one.losses[STEPS - 1]).toBeLessThan(0.7 * one.losses[0]);
    // Bit for bit.
    for (const { losses } of [two, twoAgain, three]) expect(losses).toEqual(one.losses);
    // The heap grew in the middle, and no tensor was left.
    expect(two.grew).toBeGreaterThan(1.5);
    expect(two.leaked).toBe(0);
  });

  it('gets as many threads as it asks for, more and fewer later on', async () => {
    expect(await program('ask')).toMatchObject({ asked: [2, 3, 1, 2], isShared: true, same: true });
  });

  it.each([
    ['the backend was started before, on a memory of its own', 'late', []],
    ['the platform has no SharedArrayBuffer', 'no-sharing', []],
  ])('goes on with one thread where %s', async (_, what, flags: string[]) => {
    const { threads, isShared, last } = await program(what, flags, '2');
    expect({ threads, isShared }).toEqual({ threads: 1, isShared: false });
    expect(last).toBe((await program('train', [], '1')).losses[STEPS - 1]);
  });

  it('goes on with one thread where workers are forbidden, and says so once', async () => {
    const { losses, stderr } = await program('forbidden', [], '2');
    expect(losses).toEqual((await program('train', [], '1')).losses);
    expect(stderr.match(/engine: no worker threads, going on with 1: .*forbidden/g)).toHaveLength(1);
  });

  it('keeps its threads when a bundler minifies it and keeps the names of functions', async () => {
    const { threads, same, stderr } = await program('settled', [], '3', 'small');
    expect({ threads, same, stderr }).toEqual({ threads: 3, same: true, stderr: '' });
  });

  it('goes on with one thread where workers do not start, and says so once', async () => {
    const { threads, same, stderr } = await program('broken', [], '3');
    expect({ threads, same }).toEqual({ threads: 1, same: true });
    expect(stderr.match(/engine: no worker threads, going on with 1: .*absent is not defined/g)).toHaveLength(1);
  });

  it('gets a clear error when the shared heap cannot grow, and goes on', async () => {
    const { message, after } = await program('full', [], '2');
    expect(message).toMatch(
      /engine: out of memory: a float32 tensor of shape \[.*\] needs \d+ bytes and the wasm heap of/,
    );
    expect(after).toBe(6);
  });

  it('refuses a number of threads that is none', async () => {
    expect((await program('wrong')).message).toMatch(/engine: threads of ready is 0; give a whole number from 1 on\./);
  });
});
