import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  addType,
  castBig,
  type FixedType,
  fixedType,
  formatType,
  fractionBits,
  hiBig,
  loBig,
  mulType,
  OVERFLOW_MODES,
  QUANTIZATION_MODES,
  subType,
} from '@matforge/qfx';
import { castFunction, container, int64, rawRange } from '../src/casts.ts';
import { QFX_AP_HEADER } from '../src/qfx-ap.ts';
import { decimal } from '../src/text.ts';
import { random } from './graphs.ts';
import { removeTemporary, temporary } from './units.ts';

const has = (command: string): boolean => spawnSync(command, ['--version']).status === 0;
const withC = has('gcc') ? test : test.skip;
const withCpp = has('g++') ? test : test.skip;

const UNDEFINED = ['-O0', '-fsanitize=undefined', '-fno-sanitize-recover=all'];

afterAll(removeTemporary);

/** Compiles one source and returns what the program prints, word by word. */
function output(compiler: string, file: string, text: string, flags: string[]): string[] {
  const directory = temporary();
  writeFileSync(join(directory, file), text);
  writeFileSync(join(directory, 'qfx_ap.h'), QFX_AP_HEADER);
  const program = join(directory, 'program');
  const compiled = spawnSync(compiler, [...flags, '-o', program, join(directory, file)], { encoding: 'utf8' });
  if (compiled.status !== 0) throw new Error(compiled.stderr.slice(0, 3000));
  const { stdout, stderr, status } = spawnSync(program, [], { encoding: 'utf8', maxBuffer: 1 << 28 });
  expect([stderr, status]).toEqual(['', 0]);
  return stdout.trim().split(/\s+/);
}

const next = random(5);
const between = (low: number, high: number): number => low + Math.floor(next() * (high - low + 1));

function everyMode(W: number, I: number, signed: boolean): FixedType[] {
  return QUANTIZATION_MODES.flatMap((Q) =>
    OVERFLOW_MODES.filter((O) => (O === 'AP_WRAP_SM' ? signed : O !== 'AP_SAT_SYM' || !signed || W > 1)).map((O) =>
      fixedType(W, I, { signed, Q, O }),
    ),
  );
}

/** Values of a word: the ends, the ties around zero, and random ones. */
function wordsOf(W: number, signed: boolean, step: bigint, count: number): bigint[] {
  const [low, high] = rawRange({ W, signed });
  const around = [low, low + 1n, -1n, 0n, 1n, high - 1n, high];
  for (let k = -5n; k <= 5n; k++) around.push((k * step) / 2n, (k * step) / 2n + 1n, (k * step) / 2n - 1n);
  for (let i = 0; i < count; i++) {
    const bits = (BigInt(Math.floor(next() * 2 ** 32)) << 32n) | BigInt(Math.floor(next() * 2 ** 32));
    around.push(low + (bits % (high - low + 1n)));
  }
  return [...new Set(around)].filter((v) => v >= low && v <= high);
}

test('decimals have all digits and end', () => {
  expect(decimal(-3, 4)).toBe('-0.1875');
  expect(decimal(5n, -3)).toBe('40.0');
  expect(decimal(1, 20)).toBe('0.00000095367431640625');
  expect(decimal(0, 7)).toBe('0.0');
  for (let i = 0; i < 200; i++) {
    const raw = between(-(2 ** 40), 2 ** 40);
    const F = between(-20, 40);
    expect(Number(decimal(raw, F))).toBe(raw * 2 ** -F);
  }
});

withC(
  `the C cast equals the exact cast in every mode, from 63 bits too${has('gcc') ? '' : ' (skipped: no gcc)'}`,
  () => {
    // Source width, signedness and shift: narrow, wide, the last bit of int64, and shifts that C cannot write.
    const sources: [number, boolean, number][] = [
      ...[-3, -1, 0, 1, 2, 5, 12].map((sh): [number, boolean, number] => [12, true, sh]),
      ...[-3, 0, 1, 4].map((sh): [number, boolean, number] => [9, false, sh]),
      ...[1, 40, 61, 62, 63, 64, 70].map((sh): [number, boolean, number] => [63, true, sh]),
      ...[1, 30, 62, 63, 64].map((sh): [number, boolean, number] => [63, false, sh]),
    ];
    const functions: string[] = [];
    const expected: bigint[] = [];
    const calls: string[] = [];
    for (const [W, signed, sh] of sources) {
      const targets = [...everyMode(5, 3, true), ...everyMode(4, 2, false), ...everyMode(1, 1, true)];
      for (const [i, target] of targets.entries()) {
        // Every mode meets every third shift of its group, which is enough to see each branch of each mode.
        if (i % 3 !== (sh + 3) % 3) continue;
        const name = `cast${functions.length}`;
        const fraction = fractionBits(target) + sh;
        const type = container(target.W, target.signed);
        functions.push(castFunction(name, type, fraction, rawRange({ W, signed }), target));
        const words = wordsOf(W, signed, 1n << BigInt(Math.max(sh, 0)), 8);
        const values = `static const int64_t v_${name}[] = {${words.map(int64).join(', ')}};`;
        functions.push(values);
        calls.push(`for (int i = 0; i < ${words.length}; i++) printf("%d ", (int)${name}(v_${name}[i]));`);
        for (const v of words) expected.push(castBig(v, fraction, target));
      }
    }
    const program = [
      '#include <stdint.h>\n#include <stdio.h>',
      ...functions,
      'int main(void)\n{',
      ...calls,
      'return 0;\n}\n',
    ].join('\n');
    const flags = ['-std=c99', '-pedantic', '-Wall', '-Wextra', '-Werror', ...UNDEFINED];
    const got = output('gcc', 'casts.c', program, flags);
    expect(got.length).toBe(expected.length);
    expect(got.map(BigInt)).toEqual(expected);
  },
  120_000,
);

withCpp(
  `the stand-in ap_fixed casts, grows and compares exactly${has('g++') ? '' : ' (skipped: no g++)'}`,
  () => {
    const lines: string[] = [];
    const expected: string[] = [];
    const set = (name: string, type: FixedType, raw: bigint): string =>
      `${formatType(type)} ${name}; ${name}.v = ${raw < 0n ? `-(qfx::int128)${-raw}ull` : `(qfx::int128)${raw}ull`};`;
    const anyRaw = (type: FixedType): bigint => {
      const words = wordsOf(type.W, type.signed, 4n, 6);
      return words[between(0, words.length - 1)];
    };
    // Casts: every mode, from small, wide and 64-bit words.
    for (const target of [...everyMode(6, 3, true), ...everyMode(5, -1, false), ...everyMode(40, 12, true)]) {
      for (const source of [fixedType(12, 6), fixedType(64, 20), fixedType(64, 30, { signed: false })]) {
        const raw = anyRaw(source);
        lines.push(`{ ${set('a', source, raw)} ${formatType(target)} b = a; print(b.v); }`);
        expected.push(`${castBig(raw, fractionBits(source), target)}`);
      }
    }
    // Width growth of * + -, and comparison.
    for (let i = 0; i < 60; i++) {
      const type = (): FixedType => {
        const W = between(1, 40);
        return fixedType(W, between(-3, W + 3), { signed: next() < 0.5 });
      };
      const [a, b] = [type(), type()];
      const [ra, rb] = [anyRaw(a), anyRaw(b)];
      const [Fa, Fb] = [fractionBits(a), fractionBits(b)];
      const F = Math.max(Fa, Fb);
      const [xa, xb] = [ra << BigInt(F - Fa), rb << BigInt(F - Fb)];
      lines.push(
        `{ ${set('a', a, ra)} ${set('b', b, rb)} print((a * b).v); print((a + b).v); print((a - b).v);`,
        'print((a * b).width); print((a + b).width); print((a - b).width); print(a < b); print(a > b); print(a == b); }',
      );
      expected.push(`${ra * rb}`, `${xa + xb}`, `${xa - xb}`);
      expected.push(`${mulType(a, b).W}`, `${addType(a, b).W}`, `${subType(a, b).W}`);
      expected.push(`${Number(xa < xb)}`, `${Number(xa > xb)}`, `${Number(xa === xb)}`);
    }
    // Literals, slices and integer shifts.
    for (let i = 0; i < 40; i++) {
      const W = between(2, 50);
      const type = fixedType(W, between(-3, W + 3), { signed: next() < 0.5 });
      const raw = anyRaw(type);
      const bits = BigInt.asUintN(W, raw);
      const n = between(0, W - 1);
      lines.push(
        `{ ${formatType(type)} a = ${decimal(raw, fractionBits(type))}; print(a.v);`,
        `ap_uint<${W}> u; u(${W - 1}, 0) = a(${W - 1}, 0); print(u.v); u <<= ${n}; print(u.v);`,
        `ap_int<${W}> s; s(${W - 1}, 0) = a(${W - 1}, 0); print((s >> ${n}).v); print(s.to_int64()); }`,
      );
      const signed = BigInt.asIntN(W, raw);
      expected.push(
        `${raw}`,
        `${bits}`,
        `${BigInt.asUintN(W, bits << BigInt(n))}`,
        `${signed >> BigInt(n)}`,
        `${signed}`,
      );
    }
    const program = `#include "qfx_ap.h"
#include <cstdio>
static void print(qfx::int128 v)
{
    char digits[48];
    int n = 0;
    const bool negative = v < 0;
    do { const int d = int(v % 10); digits[n++] = char('0' + (d < 0 ? -d : d)); v /= 10; } while (v != 0);
    if (negative) putchar('-');
    while (n > 0) putchar(digits[--n]);
    putchar(' ');
}
int main()
{
${lines.join('\n')}
    return 0;
}
`;
    const got = output('g++', 'types.cpp', program, ['-std=c++14', '-Wall', '-Wextra', ...UNDEFINED]);
    expect(got).toEqual(expected);
  },
  120_000,
);

test('ranges of the types are those of the words', () => {
  for (const type of [fixedType(8, 3), fixedType(64, 1), fixedType(64, 1, { signed: false })]) {
    expect(rawRange(type)).toEqual([loBig(type), hiBig(type)]);
  }
});
