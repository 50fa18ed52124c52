import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { linalg64 } from '../src/linalg.ts';

const hasCompiler =
  spawnSync('clang-19', ['--version']).status === 0 && spawnSync('wasm-ld-19', ['--version']).status === 0;

describe('linalg64', () => {
  it('multiplies', () => {
    const a = { rows: 2, cols: 3, data: [1, 2, 3, 4, 5, 6] };
    expect(Array.from(linalg64.multiply(a, { ...a, transposed: true }))).toEqual([14, 32, 32, 77]);
    expect(Array.from(linalg64.multiply({ ...a, transposed: true }, a))).toEqual([17, 22, 27, 22, 29, 36, 27, 36, 45]);
  });

  it('leaves its arguments alone and repeats itself bit for bit', () => {
    const a = Float64Array.from({ length: 50 * 40 }, (_, i) => Math.sin(i * i));
    const copy = a.slice();
    const [first, second] = [linalg64.svd(50, 40, a), linalg64.svd(50, 40, a)];
    expect(a).toEqual(copy);
    expect(first).toEqual(second);
  });

  it.each([
    [200, 200],
    [200, 64],
    [257, 129],
  ])('orthonormal columns for %i x %i of one rank, whose residuals sink below the normal numbers', (rows, columns) => {
    const ones = new Float64Array(rows * columns).fill(1);
    const tiny = ones.map((_, i) => 1e-318 * ((i % 7) + 1));
    const worst = (q: Float64Array, width: number): number => {
      const a = { rows, cols: width, data: q };
      const gram = linalg64.multiply({ ...a, transposed: true }, a);
      return gram.reduce((most, value, i) => Math.max(most, Math.abs(value - (i % (width + 1) === 0 ? 1 : 0))), 0);
    };
    for (const a of [ones, tiny]) {
      expect(worst(linalg64.qr(rows, columns, a).q, columns)).toBeLessThan(1e-13);
      expect(worst(linalg64.qrPivoted(rows, columns, a).q, columns)).toBeLessThan(1e-13);
      expect(worst(linalg64.svd(rows, columns, a).u, columns)).toBeLessThan(1e-13);
    }
  });

  it('gives large work space back', () => {
    // Twice 72 MB pass the limit above which the instance, whose memory cannot shrink, is dropped.
    const ones = { rows: 9e6, cols: 1, data: new Float64Array(9e6).fill(1) };
    expect(Array.from(linalg64.multiply({ ...ones, transposed: true }, ones))).toEqual([9e6]);
    expect(linalg64.cholesky(2, [4, 0, 2, 5]).l).toEqual(Float64Array.of(2, 0, 1, 2));
  });

  it('says so when memory is exhausted, and works on afterwards', () => {
    const fake = { length: 2 ** 29 } as ArrayLike<number>;
    expect(() => linalg64.qr(2 ** 15, 2 ** 14, fake)).toThrow(/linalg: out of memory/);
    expect(linalg64.cholesky(1, [9])).toEqual({ l: Float64Array.of(3), failed: -1 });
  });

  it('knows a matrix that is not positive definite', () => {
    expect(linalg64.cholesky(2, [1, 0, 2, 1]).failed).toBe(1);
  });

  const check = hasCompiler ? it : it.skip;
  check(`the module is what linalg.c compiles to${hasCompiler ? '' : ' (skipped: no clang-19 and wasm-ld-19)'}`, () => {
    const script = fileURLToPath(new URL('../c/linalg.build.mjs', `file://${__filename}`));
    expect(execFileSync(process.execPath, [script, '--check'], { encoding: 'utf8' })).toMatch(
      /linalg\.wasm: \d+ bytes/,
    );
    expect(readFileSync(script.replace('linalg.build.mjs', 'linalg.c'), 'utf8')).not.toMatch(
      /#include <(?!wasm_simd128)/,
    );
  });
});
