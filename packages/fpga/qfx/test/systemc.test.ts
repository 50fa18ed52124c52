import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { random } from '@matforge/core';
import {
  castBig,
  castNumber,
  type FixedType,
  fixedType,
  fractionBits,
  hiBig,
  loBig,
  OVERFLOW_MODES,
  QUANTIZATION_MODES,
} from '../src/index.ts';

const HEADER = '/usr/include/systemc.h';
const COUNT = 60_000;

interface Vector {
  type: FixedType;
  v: bigint;
  fraction: number;
}

/** Random types of every width and mode, with values near the steps, ties and ends of their ranges. */
function vectors(): Vector[] {
  const { integer } = random(20);
  const widths = [1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 31, 32, 33, 48, 53, 54, 62, 63, 64];
  const made: Vector[] = [];
  while (made.length < COUNT) {
    const W = widths[integer(widths.length)];
    const signed = integer(2) === 0;
    const Q = QUANTIZATION_MODES[integer(QUANTIZATION_MODES.length)];
    const O = OVERFLOW_MODES[integer(OVERFLOW_MODES.length)];
    if ((O === 'AP_WRAP_SM' && !signed) || (O === 'AP_SAT_SYM' && signed && W === 1)) continue;
    const type = fixedType(W, W - 12 + integer(24), { signed, Q, O });
    // A raw value in or around the range, in quarter or finer steps.
    const extra = integer(4);
    const bits = BigInt(1 + integer(Math.min(W + 2, 60 - extra)));
    let v = BigInt(Math.floor(random(made.length).next() * 2 ** 52)) % (1n << bits);
    if (integer(4) === 0) v = (integer(2) === 0 ? loBig(type) : hiBig(type)) + BigInt(integer(5) - 2);
    if (integer(2) === 0) v = -v;
    v = (v << BigInt(extra)) + BigInt(integer(2 ** extra));
    if (v >= 1n << 62n || v <= -(1n << 62n)) continue;
    // Now and then far outside the range, which is the only way past 62 bits.
    const beyond = integer(4) === 0 ? integer(16) : 0;
    made.push({ type, v, fraction: fractionBits(type) + extra - beyond });
  }
  return made;
}

const present = existsSync(HEADER);
const run = present ? test : test.skip;

run(`${COUNT} casts agree with SystemC${present ? '' : ' (skipped: libsystemc-dev is not installed)'}`, () => {
  const directory = mkdtempSync(join(tmpdir(), 'qfx-systemc-'));
  try {
    const program = join(directory, 'cast');
    execFileSync('g++', ['-O0', '-w', join(__dirname, 'systemc.cpp'), '-o', program, '-lsystemc']);
    const all = vectors();
    const lines = all.map(({ type: { signed, W, I, Q, O }, v, fraction }) =>
      [signed ? 1 : 0, W, I, QUANTIZATION_MODES.indexOf(Q), OVERFLOW_MODES.indexOf(O), v, fraction].join(' '),
    );
    const file = join(directory, 'vectors.txt');
    writeFileSync(file, `${lines.join('\n')}\n`);
    const out = execFileSync(program, {
      input: readFileSync(file),
      maxBuffer: 1 << 28,
      env: { ...process.env, SYSTEMC_DISABLE_COPYRIGHT_MESSAGE: '1' },
    });
    const expected = out.toString().trim().split('\n');
    expect(expected).toHaveLength(COUNT);
    const wrong: string[] = [];
    all.forEach(({ type, v, fraction }, i) => {
      const got = castBig(v, fraction, type);
      if (String(got) !== expected[i]) wrong.push(`${lines[i]}: ${got} and not ${expected[i]}`);
      // The double path must agree wherever the value is a double.
      if (type.W <= 53 && Number.isSafeInteger(Number(v))) {
        const double = castNumber(Number(v) * 2 ** -fraction, type);
        if (String(double) !== expected[i]) wrong.push(`${lines[i]}: ${double} (double) and not ${expected[i]}`);
      }
    });
    expect(wrong.slice(0, 5)).toEqual([]);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
