import { execFileSync, spawnSync } from 'node:child_process';
import { resolve } from 'node:path';
import { base64 as plain } from '../src/kernels.wasm.ts';
import { base64 as relaxed } from '../src/kernels-relaxed.wasm.ts';

const hasCompiler = ['clang-19', 'wasm-ld-19'].every((tool) => spawnSync(tool, ['--version']).status === 0);
const check = hasCompiler ? it : it.skip;

/** The ids of a module's sections. */
function sections(bytes: Uint8Array): number[] {
  const ids: number[] = [];
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

describe('the WebAssembly modules', () => {
  check(`are what their C sources compile to${hasCompiler ? '' : ' (skipped: no clang-19 and wasm-ld-19)'}`, () => {
    const script = resolve(process.cwd(), 'packages/engine/build.mjs');
    expect(execFileSync('node', [script, '--check'], { encoding: 'utf8' })).toMatch(/kernels-relaxed: \d+ KiB/);
  });

  it.each([
    ['plain', plain],
    ['relaxed', relaxed],
  ])('%s has no data section, which would overwrite the memory it shares', (_, base64) => {
    const ids = sections(Buffer.from(base64, 'base64'));
    expect(ids).toContain(10);
    expect(ids.filter((id) => id === 11 || id === 12)).toEqual([]);
  });
});
