// Compiles linalg.c to WebAssembly and writes it, base64, to ../src/linalg.wasm.ts. `--check` compares instead of writing.
// Needs clang and lld 19 (Debian: apt-get install clang-19 lld-19). CLANG and WASM_LD name other ones.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const source = fileURLToPath(new URL('linalg.c', import.meta.url));
const output = fileURLToPath(new URL('../src/linalg.wasm.ts', import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), 'linalg-'));
try {
  const binary = join(scratch, 'linalg.wasm');
  const object = join(scratch, 'linalg.o');
  const tool = (name, args) => execFileSync(name, args, { stdio: 'inherit' });
  const target = ['--target=wasm32', '-O3', '-msimd128', '-mbulk-memory'];
  const language = [
    '-ffreestanding',
    '-fno-builtin',
    '-ffp-contract=off',
    '-fvisibility=hidden',
    '-Wall',
    '-Wextra',
    '-Werror',
  ];
  tool(process.env.CLANG ?? 'clang-19', [...target, ...language, '-c', source, '-o', object]);
  const layout = ['--no-entry', '--strip-all', '--stack-first', '-z', 'stack-size=131072'];
  tool(process.env.WASM_LD ?? 'wasm-ld-19', [...layout, object, '-o', binary]);
  const text = `// Made from c/linalg.c by c/linalg.build.mjs.\nexport const linalgWasm =\n  '${readFileSync(binary).toString('base64')}';\n`;
  if (!process.argv.includes('--check')) writeFileSync(output, text);
  else if (readFileSync(output, 'utf8') !== text)
    throw new Error('src/linalg.wasm.ts is not what c/linalg.c compiles to.');
  console.log(`linalg.wasm: ${readFileSync(binary).length} bytes`);
} finally {
  rmSync(scratch, { recursive: true });
}
