// Compiles the addon for Windows on a Linux machine and puts it into prebuilds/: clang-19, lld-19, llvm-19 and mingw-w64
// (Debian: gcc-mingw-w64-x86-64-win32). GCC itself cannot be used there: it does not align wide vectors on the stack.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gatherSources } from './sources.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const headers = join(dirname(process.execPath), '..', 'include', 'node');
const scratch = mkdtempSync(join(tmpdir(), 'matforge-windows-'));
const clang = (...args) => execFileSync('clang-19', ['--target=x86_64-w64-windows-gnu', ...args], { stdio: 'inherit' });

try {
  gatherSources();
  const { targets } = JSON.parse(readFileSync(join(here, 'binding.gyp'), 'utf8'));
  const objects = targets.flatMap(({ target_name: target, sources, defines = [] }) =>
    sources.map((source) => {
      const object = join(scratch, `${basename(source, '.c')}.o`);
      const own = target === 'kernels' ? ['-mavx2', '-mfma', '-ffp-contract=off'] : [];
      clang(
        ...['-std=gnu11', '-O3', '-fvisibility=hidden', '-Wno-unknown-pragmas', ...own],
        ...['-I', headers, '-I', join(here, 'c'), '-I', join(here, 'c', 'shim')],
        // What Node exports is found in the program itself, not in a library.
        ...['-DNAPI_EXTERN=', ...defines.map((name) => `-D${name}`)],
        ...['-c', join(here, source), '-o', object],
      );
      return object;
    }),
  );
  const missing = execFileSync('llvm-nm-19', ['-u', ...objects], { encoding: 'utf8' });
  const fromNode = [...new Set(missing.match(/\b(napi|uv)_\w+/g))].sort();
  const definition = join(scratch, 'node.def');
  const library = join(scratch, 'libnode.a');
  writeFileSync(definition, ['LIBRARY node.exe', 'EXPORTS', ...fromNode, ''].join('\n'));
  execFileSync('llvm-dlltool-19', ['-m', 'i386:x86-64', '-d', definition, '-l', library]);
  const result = join(here, 'prebuilds', 'win32-x64', 'matforge_engine.node');
  mkdirSync(dirname(result), { recursive: true });
  const link = ['-fuse-ld=lld-19', '-shared', '-static-libgcc', '-Wl,--strip-all', '-Wl,--no-insert-timestamp'];
  clang(...link, ...objects, library, '-o', result);
  console.log(`engine-native: ${result}`);
} finally {
  rmSync(scratch, { recursive: true });
}
