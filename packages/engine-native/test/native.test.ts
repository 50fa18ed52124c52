import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { transformSync } from '@swc/core';
import * as tf from '@tensorflow/tfjs';
import fc from 'fast-check';
import { causalSoftmax, engineInfo, gelu, layerNorm, ready, softmaxCrossEntropy } from '../../engine/src/index.ts';
import { SOURCES } from '../../engine/src/shares.ts';
import { nativeIsa, nativeSources, nativeThreads, openNative, whyNot } from '../src/index.ts';

const folder = join(__dirname, '..');
const present = nativeIsa() !== null;
const withAddon = present ? it : it.skip;
const why = present ? '' : ` (skipped: ${whyNot()})`;

/** Fingerprint of the sources of the addon in the tree. */
function currentSources(): string {
  const script = `import { fingerprint } from ${JSON.stringify(`file://${folder}/sources.mjs`)}; console.log(fingerprint())`;
  return spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' }).stdout.trim();
}

/** A heap of our own. */
function heapOf(megabytes: number): { bytes: Uint8Array; floats: Float32Array } {
  const bytes = new Uint8Array(megabytes << 20);
  return { bytes, floats: new Float32Array(bytes.buffer) };
}

function fill(floats: Float32Array, from: number, count: number, seed: number): void {
  let state = seed * 7919 + 12345;
  for (let i = from; i < from + count; i++) {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    floats[i] = state / 2 ** 30 - 1;
  }
}

interface Shape {
  batch: number;
  m: number;
  n: number;
  k: number;
  ta: boolean;
  tb: boolean;
  accumulate: boolean;
}
const A = 64;
const B = A + 4e5;
const C = B + 4e5;

/** Fills the operands and the old result of a product, and returns what it has to become. */
function prepare(floats: Float32Array, { batch, m, n, k, ta, tb, accumulate }: Shape): Float64Array {
  fill(floats, A, batch * m * k, 1);
  fill(floats, B, batch * n * k, 2);
  const expected = new Float64Array(batch * m * n);
  resetResult(floats, expected.length);
  for (let b = 0; b < batch; b++) {
    for (let i = 0; i < m; i++) {
      for (let p = 0; p < k; p++) {
        const x = floats[A + b * m * k + (ta ? p * m + i : i * k + p)];
        for (let j = 0; j < n; j++) {
          expected[(b * m + i) * n + j] += x * floats[B + b * n * k + (tb ? j * k + p : p * n + j)];
        }
      }
    }
  }
  if (accumulate) for (let i = 0; i < expected.length; i++) expected[i] += floats[C + i];
  return expected;
}

/** Old values of C, with marks on both sides. */
function resetResult(floats: Float32Array, count: number): void {
  fill(floats, C, count, 3);
  floats[C - 1] = 77;
  floats[C + count] = 78;
}

/** Largest error of the result; infinite where a neighbour of it was touched. */
function errorOf(floats: Float32Array, expected: Float64Array): number {
  if (floats[C - 1] !== 77 || floats[C + expected.length] !== 78) return Number.POSITIVE_INFINITY;
  let worst = 0;
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs(expected[i] - floats[C + i]);
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

describe('the addon', () => {
  withAddon(`multiplies any shapes with every instruction set and number of threads${why}`, () => {
    const { bytes, floats } = heapOf(8);
    const { kernels } = openNative(() => bytes)!;
    const best = nativeIsa()!;
    const threads = nativeThreads();
    const side = fc.integer({ min: 0, max: 70 });
    const shapes = fc.record({
      batch: fc.integer({ min: 1, max: 3 }),
      m: side,
      n: side,
      k: fc.integer({ min: 0, max: 300 }),
      ta: fc.boolean(),
      tb: fc.boolean(),
      accumulate: fc.boolean(),
    });
    const examples: [Shape][] = [
      [{ batch: 1, m: 300, n: 130, k: 513, ta: false, tb: false, accumulate: true }],
      [{ batch: 1, m: 131, n: 261, k: 257, ta: true, tb: true, accumulate: false }],
      [{ batch: 1, m: 300, n: 8, k: 256, ta: false, tb: false, accumulate: false }],
      [{ batch: 1, m: 1, n: 300, k: 256, ta: false, tb: true, accumulate: false }],
      [{ batch: 1, m: 1, n: 1300, k: 301, ta: false, tb: true, accumulate: true }],
      [{ batch: 2, m: 3, n: 301, k: 601, ta: true, tb: false, accumulate: false }],
      [{ batch: 1, m: 1300, n: 2, k: 301, ta: false, tb: false, accumulate: true }],
    ];
    const kinds = best === 'avx512' ? (['avx512', 'avx2'] as const) : [best];
    fc.assert(
      fc.property(shapes, (shape) => {
        const { batch, m, n, k, ta, tb, accumulate } = shape;
        const expected = prepare(floats, shape);
        for (const isa of kinds) {
          expect(nativeIsa(isa)).toBe(isa);
          const results = [1, 3].map((count) => {
            nativeThreads(count);
            resetResult(floats, expected.length);
            kernels.mf_sgemm(batch, +ta, +tb, m, n, k, 4 * A, m * k, 4 * B, n * k, 4 * C, +accumulate, 0);
            // Sums of k products of numbers up to 1.
            expect(errorOf(floats, expected)).toBeLessThanOrEqual(2e-7 * (k + 1));
            return floats.slice(C, C + expected.length);
          });
          expect(Buffer.from(results[1].buffer).equals(Buffer.from(results[0].buffer))).toBe(true);
        }
      }),
      { numRuns: 60, seed: 11, examples },
    );
    nativeIsa(best);
    nativeThreads(threads);
  });

  withAddon(`carries NaN and infinity through a product${why}`, () => {
    const { bytes, floats } = heapOf(1);
    const { kernels } = openNative(() => bytes)!;
    floats.set([1, 2, Number.NaN, 4], 16);
    floats.set([Number.POSITIVE_INFINITY, 0, 1, 1], 32);
    kernels.mf_sgemm(1, 0, 0, 2, 2, 2, 64, 0, 128, 0, 256, 0, 0);
    expect(Array.from(floats.slice(64, 68))).toEqual([Number.POSITIVE_INFINITY, 2, Number.NaN, Number.NaN]);
  });

  withAddon(`follows a heap that moves${why}`, () => {
    let heap = heapOf(1);
    const { kernels } = openNative(() => heap.bytes)!;
    const multiply = () => {
      heap.floats[16] = 3;
      heap.floats[32] = 2;
      kernels.mf_sgemm(1, 0, 0, 1, 1, 1, 64, 0, 128, 0, 256, 0, 0);
      return heap.floats[64];
    };
    expect(multiply()).toBe(6);
    heap = heapOf(2);
    expect(heap.floats[64]).toBe(0);
    expect(multiply()).toBe(6);
  });

  withAddon(`refuses calls that are not its kind${why}`, () => {
    const { kernels } = openNative(() => new Uint8Array(64))!;
    expect(() => kernels.mf_sgemm(1, 0)).toThrow(/too few arguments/);
    const unary = kernels.mf_unary as unknown as (...values: unknown[]) => number;
    expect(() => unary('0', 1, 2, 3)).toThrow(/numbers only/);
    const odd = openNative(() => new Float32Array(4) as unknown as Uint8Array)!;
    expect(() => odd.kernels.mf_unary(0, 0, 0, 0)).toThrow(/Uint8Array/);
    expect(() => nativeThreads(0)).toThrow(/nativeThreads: count must be/);
    expect(() => nativeThreads(2.5)).toThrow(/got 2.5/);
  });

  withAddon(`stands in only for kernels with the same number of arguments${why}`, () => {
    const reference = {
      mf_sgemm: (..._: number[]) => 0,
      mf_softmax: (_rows: number, _n: number, _x: number, _y: number) => 0,
    };
    expect(Object.keys(openNative(() => new Uint8Array(64), reference)!.kernels)).toEqual(['mf_softmax']);
  });

  withAddon(`is made from the sources as they are now${why}`, () => {
    // When this fails: node packages/engine-native/install.mjs --build
    expect(nativeSources()).toBe(currentSources());
  });

  it('every prebuilt binary is made from the sources as they are now', () => {
    const prebuilds = join(folder, 'prebuilds');
    const platforms = readdirSync(prebuilds).sort();
    expect(platforms).toEqual(['linux-arm64', 'linux-x64', 'win32-x64']);
    // When this fails: install.mjs --build, --build=linux-arm64 and windows.mjs, see the README.
    const fingerprints = platforms.map((platform) => {
      const binary = readFileSync(join(prebuilds, platform, 'matforge_engine.node'));
      return binary.includes(currentSources()) && binary.includes(SOURCES);
    });
    expect(fingerprints).toEqual([true, true, true]);
  });

  withAddon(`serves the engine that it is made for, and says so of another${why}`, () => {
    expect(whyNot(SOURCES)).toBeUndefined();
    expect(whyNot('another')).toMatch(
      /belongs to another version of @matforge\/engine; install the two in the same version/,
    );
  });
});

describe('the engine with the addon', () => {
  withAddon(`gives the same numbers as with WebAssembly alone${why}`, async () => {
    await ready();
    expect(engineInfo().native).toBe(process.env.MATFORGE_NATIVE === '0' ? null : nativeIsa());
    const normal = (shape: number[], seed: number) => tf.randomNormal(shape, 0, 1, 'float32', seed);
    const outputs = (): tf.Tensor[] => {
      const labels = tf.tensor1d([3, 0, 5, 1, 2, 2], 'int32');
      const image = normal([2, 9, 9, 5], 1);
      const filter = normal([3, 3, 5, 7], 2);
      const loss = (x: tf.Tensor, w: tf.Tensor): tf.Scalar => {
        const y = tf.relu(tf.conv2d(x as tf.Tensor4D, w as tf.Tensor4D, 2, 'same'));
        const pooled = tf.avgPool(tf.maxPool(y as tf.Tensor4D, 2, 1, 'valid'), 2, 1, 'valid');
        const z = tf.softmax(tf.matMul(tf.tanh(pooled.reshape([2, -1])), normal([63, 11], 3)));
        return tf.sum(tf.square(tf.logSoftmax(z))) as tf.Scalar;
      };
      const x = normal([3, 50], 5);
      return [
        ...tf.grads(loss)([image, filter]),
        loss(image, filter),
        ...[tf.exp, tf.erf, tf.sigmoid, tf.softplus, tf.elu, tf.selu, tf.relu6].map((op) => op(x)),
        tf.log(tf.abs(x)),
        tf.transpose(normal([4, 5, 6, 7], 6), [2, 0, 3, 1]),
        tf.sum(normal([5, 6, 7], 7), [0, 2]),
        tf.gather(normal([6, 11], 4), labels),
        tf.unsortedSegmentSum(normal([6, 4], 8) as tf.Tensor2D, labels, 6),
      ];
    };
    const compute = () => tf.tidy(() => outputs().map((tensor) => Array.from(tensor.dataSync() as Float32Array)));
    const backend = tf.backend() as unknown as { wasm: { HEAPU8: Uint8Array } } & Record<
      symbol,
      Record<'kernels' | 'wasm', Record<string, (...numbers: number[]) => number>>
    >;
    const host = backend[Symbol.for('matforge.engine.native')];
    const before = host.kernels;
    host.kernels = host.wasm;
    const expected = compute();
    const called = new Set<string>();
    const watched: typeof before = {};
    for (const [name, kernel] of Object.entries(openNative(() => backend.wasm.HEAPU8)!.kernels)) {
      watched[name] = (...numbers) => {
        called.add(name);
        return kernel(...numbers);
      };
    }
    host.kernels = { ...host.wasm, ...watched };
    try {
      compute().forEach((values, output) => {
        const error = Math.max(
          ...values.map((value, j) => Math.abs(value - expected[output][j]) / (1 + Math.abs(value))),
        );
        expect([output, error < 2e-5]).toEqual([output, true]);
      });
    } finally {
      host.kernels = before;
    }
    for (const name of ['mf_sgemm', 'mf_conv', 'mf_conv_back_filter', 'mf_max_pool_back', 'mf_unary']) {
      expect(called).toContain(name);
    }
  });
});

describe('threads', () => {
  withAddon(`share every kernel's work without changing a bit${why}`, async () => {
    await ready();
    const backend = tf.backend() as unknown as { wasm: { HEAPU8: Uint8Array } } & Record<
      symbol,
      { kernels: Record<string, unknown>; wasm: Record<string, unknown> }
    >;
    const host = backend[Symbol.for('matforge.engine.native')];
    const before = host.kernels;
    const threads = nativeThreads();
    host.kernels = { ...host.wasm, ...openNative(() => backend.wasm.HEAPU8)!.kernels };
    const normal = (shape: number[], seed: number) => tf.randomNormal(shape, 0, 1, 'float32', seed);
    const compute = () =>
      tf.tidy(() => {
        const x = normal([257, 301], 1);
        const [gamma, beta] = [normal([301], 2), normal([301], 3)];
        const image = normal([7, 24, 24, 9], 4) as tf.Tensor4D;
        const labels = tf.range(0, 257, 1, 'int32') as tf.Tensor1D;
        const weigh = (y: tf.Tensor): tf.Scalar => tf.sum(tf.mul(y, tf.cos(tf.range(0, y.size)).reshape(y.shape)));
        const rows = (a: tf.Tensor): tf.Scalar =>
          tf.addN([
            weigh(layerNorm(a, gamma as tf.Tensor1D, beta as tf.Tensor1D)),
            weigh(gelu(a)),
            weigh(causalSoftmax(a.slice([0, 0], [256, 301]).reshape([2, 128, 301]), 0.5)),
            weigh(tf.softmax(a)),
            weigh(tf.logSoftmax(a)),
            weigh(softmaxCrossEntropy(a as tf.Tensor2D, labels)),
          ]) as tf.Scalar;
        const images = (a: tf.Tensor): tf.Scalar => {
          const y = tf.conv2d(a as tf.Tensor4D, normal([3, 3, 9, 8], 5) as tf.Tensor4D, 1, 'same');
          const z = tf.depthwiseConv2d(y as tf.Tensor4D, normal([3, 3, 8, 2], 6) as tf.Tensor4D, 2, 'valid');
          return tf.add(
            weigh(tf.maxPool(z as tf.Tensor4D, 2, 2, 'same')),
            weigh(tf.avgPool(z as tf.Tensor4D, 3, 2, 'same')),
          );
        };
        const values = [tf.grad(rows)(x), tf.grad(images)(image), tf.concat([x, x], 1), tf.sum(x, 1), tf.exp(x)];
        return values.map((value) => Buffer.from(value.dataSync().slice().buffer).toString('base64'));
      });
    try {
      nativeThreads(1);
      const alone = compute();
      for (const count of [2, 3, 5]) {
        nativeThreads(count);
        expect(compute().map((bits, i) => bits === alone[i])).toEqual(alone.map(() => true));
      }
    } finally {
      host.kernels = before;
      nativeThreads(threads);
    }
  });
});

describe('without a working binary', () => {
  const scratch = mkdtempSync(join(tmpdir(), 'engine-native-'));
  afterAll(() => rmSync(scratch, { recursive: true }));

  const ask = (place: string) => {
    const script = `import { whyNot, openNative, nativeThreads } from ${JSON.stringify(`file://${place}/dist/index.js`)};
      console.log(JSON.stringify([openNative(() => new Uint8Array(8)) === null, whyNot() ?? '', nativeThreads()]));`;
    const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' });
    return JSON.parse(child.stdout || `"${child.stderr}"`) as [boolean, string, number];
  };

  /** The package without binaries and C sources, compiled to JavaScript. */
  const bare = (name: string): string => {
    const place = join(scratch, name, 'package');
    mkdirSync(join(place, 'dist'), { recursive: true });
    for (const file of ['package.json', 'install.mjs', 'sources.mjs', 'binding.gyp']) {
      cpSync(join(folder, file), join(place, file));
    }
    const source = readFileSync(join(folder, 'src/index.ts'), 'utf8');
    const { code } = transformSync(source, { jsc: { target: 'es2022', parser: { syntax: 'typescript' } } });
    writeFileSync(join(place, 'dist/index.js'), code);
    return place;
  };

  it('says that there is none', () => {
    expect(ask(bare('none'))).toEqual([true, `there is no binary for ${process.platform}-${process.arch}`, 1]);
  });

  it('says what is wrong with a broken one', () => {
    const place = bare('broken');
    const at = join(place, 'prebuilds', `${process.platform}-${process.arch}`);
    mkdirSync(at, { recursive: true });
    writeFileSync(join(at, 'matforge_engine.node'), 'not a shared library');
    const [isNull, problem, threads] = ask(place);
    expect([isNull, threads]).toEqual([true, 1]);
    expect(problem).toMatch(/matforge_engine\.node/);
  });

  withAddon(`says so of one that is cut off, which would end the process${why}`, () => {
    const place = bare('cut');
    const own = join('prebuilds', `${process.platform}-${process.arch}`, 'matforge_engine.node');
    mkdirSync(dirname(join(place, own)), { recursive: true });
    const whole = readFileSync(join(folder, own));
    for (const length of [1000, whole.length >> 1, whole.length - 1]) {
      writeFileSync(join(place, own), whole.subarray(0, length));
      const [isNull, problem, threads] = ask(place);
      expect([length, isNull, threads]).toEqual([length, true, 1]);
      // Other systems look themselves before they map a file.
      expect(problem).toMatch(process.platform === 'linux' ? /is cut off; install the package again/ : /./);
    }
  });

  it('installing succeeds without a compiler, over a damaged binary too', () => {
    const place = bare('no-compiler');
    const own = join(place, 'prebuilds', `${process.platform}-${process.arch}`);
    mkdirSync(own, { recursive: true });
    const whole = readFileSync(join(folder, 'prebuilds/linux-x64/matforge_engine.node'));
    writeFileSync(join(own, 'matforge_engine.node'), whole.subarray(0, 1000));
    const run = spawnSync(process.execPath, [join(place, 'install.mjs')], {
      encoding: 'utf8',
      env: { PATH: '/nowhere', HOME: scratch },
    });
    expect([run.status, run.stderr]).toEqual([0, '']);
    expect(run.stdout).toMatch(/engine-native: runs without its addon/);
    expect(existsSync(join(place, 'build/Release/matforge_engine.node'))).toBe(false);
  });
});
