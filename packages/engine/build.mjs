// Compiles the C sources to WebAssembly and writes each module as base64 text into src/*.wasm.ts, which works alike in
// Node, browsers and tests. Needs clang-19 and lld-19; `node build.mjs --check` only compares and says what differs.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const COMMON = [
  '--target=wasm32',
  '-O3',
  // The engine unrolls by itself; what clang unrolls spills registers and costs sgemm a third of its speed.
  '-fno-unroll-loops',
  '-msimd128',
  '-mbulk-memory',
  '-mmutable-globals',
  '-fno-builtin',
  '-nostdlib',
  '-fvisibility=hidden',
  '-Wall',
  '-Wextra',
  '-Werror',
  '-Wl,--no-entry',
  '-Wl,--import-memory',
  '-Wl,--export-dynamic',
  '-Wl,--export=__stack_pointer',
  '-Wl,--strip-all',
];
const KERNELS = [
  'sgemm.c',
  'few.c',
  'direct.c',
  'elementwise.c',
  'rows.c',
  'conv.c',
  'fft.c',
  'volume.c',
  'morphology.c',
  'norm.c',
  'broadcast.c',
  'wave.c',
  'resize.c',
];

/** The modules: name of the generated source, C sources, and what is special. */
export const MODULES = [
  { name: 'kernels', sources: KERNELS, flags: [] },
  { name: 'kernels-relaxed', sources: KERNELS, flags: ['-mrelaxed-simd'] },
];

/** Whether the compiler is installed. */
export function hasCompiler() {
  try {
    execFileSync('clang-19', ['--version'], { stdio: 'ignore' });
    execFileSync('wasm-ld-19', ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** Compiles one module and returns its bytes. */
export function compile({ name, sources, flags }) {
  const folder = mkdtempSync(join(tmpdir(), 'matforge-engine-'));
  try {
    const out = join(folder, `${name}.wasm`);
    execFileSync('clang-19', [...COMMON, ...flags, ...sources, '-o', out], { cwd: join(here, 'c'), stdio: 'inherit' });
    return readFileSync(out);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** The ids of a module's sections; 11 and 12 belong to data, which these modules must not have. */
export function sections(bytes) {
  const ids = [];
  for (let at = 8; at < bytes.length; ) {
    ids.push(bytes[at++]);
    let size = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++];
      size += (byte & 127) * 2 ** shift;
      if (byte < 128) break;
    }
    at += size;
  }
  return ids;
}

/** The generated TypeScript of a module. */
export function source({ name }, bytes) {
  if (sections(bytes).some((id) => id === 11 || id === 12)) {
    throw new Error(`${name}: has a data section, which would overwrite the memory of the wasm backend.`);
  }
  return `// Written by build.mjs from c/*.c. Do not edit.\nexport const base64: string =\n  '${bytes.toString('base64')}';\n`;
}

/** Hash of all that the kernels are compiled from. */
function fingerprint() {
  const hash = createHash('sha256');
  const names = readdirSync(join(here, 'c')).filter((name) => /\.[ch]$/.test(name) && !name.startsWith('linalg'));
  for (const name of names.sort()) hash.update(`${name}\n`).update(readFileSync(join(here, 'c', name)));
  return hash.digest('hex').slice(0, 16);
}

/** The generated table of how threads share the work of each kernel. */
export function shares() {
  const found = KERNELS.flatMap((name) => [
    ...readFileSync(join(here, 'c', name), 'utf8').matchAll(/^SHARE\("([^"]*)"\)\s+EXPORT \w+ (mf_\w+)\(([^)]*)\)/gm),
  ]);
  const rows = found.map(([, letters, name, parameters]) => {
    if (parameters.split(',').length === letters.length) return `  ${name}: '${letters}',\n`;
    throw new Error(`${name}: SHARE("${letters}") has not a letter for each of (${parameters}).`);
  });
  return `// Written by build.mjs from c/*.c. Do not edit.\nexport const SHARES: Record<string, string> = {\n${rows.join('')}};\n/** Fingerprint of the C files: machine code must be made from the same. */\nexport const SOURCES = '${fingerprint()}';\n`;
}

function write(name, text, what) {
  const file = join(here, 'src', name);
  if (!process.argv.includes('--check')) writeFileSync(file, text);
  else if (readFileSync(file, 'utf8') !== text) {
    console.error(`${name}: the committed ${what} is not what the sources give.`);
    process.exitCode = 1;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  write('shares.ts', shares(), 'table');
  for (const module of MODULES) {
    const text = source(module, compile(module));
    write(`${module.name}.wasm.ts`, text, 'module');
    console.log(`${module.name}: ${Math.round((text.length * 3) / 4 / 1024)} KiB`);
  }
}
