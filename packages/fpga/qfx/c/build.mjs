// Compiles cast.c to WebAssembly and writes it as base64 text into src/cast.wasm.ts. Needs clang-19 and lld-19;
// `node c/build.mjs --check` only compares.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, '..', 'src', 'cast.wasm.ts');
const folder = mkdtempSync(join(tmpdir(), 'qfx-'));
try {
  const out = join(folder, 'cast.wasm');
  const flags = [
    ...['--target=wasm32', '-O3', '-msimd128', '-fno-builtin', '-nostdlib', '-fvisibility=hidden', '-Wall', '-Wextra'],
    ...['-Werror', '-Wl,--no-entry', '-Wl,--import-memory', '-Wl,--export-dynamic', '-Wl,--strip-all'],
  ];
  execFileSync('clang-19', [...flags, join(here, 'cast.c'), '-o', out], { stdio: 'inherit' });
  const text = [
    '// Made by c/build.mjs from c/cast.c.',
    `export const CAST_WASM = '${readFileSync(out).toString('base64')}';`,
    '',
  ].join('\n');
  if (!process.argv.includes('--check')) writeFileSync(target, text);
  else if (readFileSync(target, 'utf8') !== text) {
    console.error('src/cast.wasm.ts is not what c/cast.c compiles to; run node c/build.mjs');
    process.exitCode = 1;
  }
} finally {
  rmSync(folder, { recursive: true });
}
