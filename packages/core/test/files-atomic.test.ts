import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MatforgeError, readJsonFile, readTextFile, writeDirectoryAtomic, writeFileAtomic } from '../src/index.ts';

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'matforge-atomic-'));
});
afterEach(() => {
  jest.restoreAllMocks();
  rmSync(directory, { recursive: true });
});
const inside = (...names: string[]) => join(directory, ...names);

/** Lets the next writes of every file fail as they do when the system says `code`. */
async function failWrites(code: string): Promise<void> {
  const handle = await open(inside('probe'), 'w');
  const prototype = Object.getPrototypeOf(handle) as FileHandle;
  await handle.close();
  rmSync(inside('probe'));
  jest.spyOn(prototype, 'write').mockRejectedValue(Object.assign(new Error(code), { code }));
}

describe('writeFileAtomic', () => {
  test('writes texts, bytes and pieces', async () => {
    await writeFileAtomic(inside('text'), 'grün');
    await writeFileAtomic(inside('bytes'), Uint8Array.of(1, 2));
    await writeFileAtomic(
      inside('pieces'),
      (async function* () {
        yield Uint8Array.of(1);
        yield Uint8Array.of(2, 3);
      })(),
    );
    expect(readFileSync(inside('text'), 'utf8')).toBe('grün');
    expect([...readFileSync(inside('bytes'))]).toEqual([1, 2]);
    expect([...readFileSync(inside('pieces'))]).toEqual([1, 2, 3]);
    expect(readdirSync(directory)).toHaveLength(3);
  });

  test('refuses what exists before it asks for the first piece, links that lead nowhere included', async () => {
    writeFileSync(inside('there'), 'old');
    symlinkSync(inside('nowhere'), inside('link'));
    const pieces = jest.fn(function* () {
      yield Uint8Array.of(1);
    });
    for (const name of ['there', 'link']) {
      await expect(writeFileAtomic(inside(name), { [Symbol.iterator]: pieces })).rejects.toThrow(
        new RegExp(`${name}: exists already.*overwrite: true`),
      );
    }
    expect(pieces).not.toHaveBeenCalled();
    expect(readFileSync(inside('there'), 'utf8')).toBe('old');
  });

  test('refuses what has appeared while it was writing', async () => {
    const pieces = (function* () {
      yield Uint8Array.of(1);
      writeFileSync(inside('late'), 'first');
    })();
    await expect(writeFileAtomic(inside('late'), pieces)).rejects.toThrow(/exists already/);
    expect(readFileSync(inside('late'), 'utf8')).toBe('first');
    expect(readdirSync(directory)).toEqual(['late']);
  });

  test('a failing source leaves the old file and nothing else', async () => {
    writeFileSync(inside('file'), 'old');
    const pieces = (function* () {
      yield Uint8Array.of(1);
      throw new Error('source lost');
    })();
    await expect(writeFileAtomic(inside('file'), pieces, { overwrite: true })).rejects.toThrow('source lost');
    expect(readFileSync(inside('file'), 'utf8')).toBe('old');
    expect(readdirSync(directory)).toEqual(['file']);
  });

  test('a full disk is named, the old file stays, the temporary one goes', async () => {
    writeFileSync(inside('file'), 'old');
    await failWrites('ENOSPC');
    const written = writeFileAtomic(inside('file'), 'new', { overwrite: true });
    await expect(written).rejects.toThrow(/file: could not be written: the disk is full/);
    await expect(written).rejects.toThrow(MatforgeError);
    expect(readFileSync(inside('file'), 'utf8')).toBe('old');
    expect(readdirSync(directory)).toEqual(['file']);
  });

  test('missing and impossible directories are named', async () => {
    writeFileSync(inside('file'), '');
    await expect(writeFileAtomic(inside('none', 'x'), '')).rejects.toThrow(
      /none\/x: could not be written: .*does not exist/,
    );
    await expect(writeFileAtomic(inside('file', 'x'), '')).rejects.toThrow(/is a file, not a directory/);
    mkdirSync(inside('sub'));
    await expect(writeFileAtomic(inside('sub'), '', { overwrite: true })).rejects.toThrow(
      /sub: could not be written: it is a directory/,
    );
    expect(readdirSync(directory).sort()).toEqual(['file', 'sub']);
  });

  const linux = process.platform === 'linux' ? test : test.skip;
  linux('a directory that may not be written to is named (skipped outside Linux: needs /sys)', async () => {
    await expect(writeFileAtomic('/sys/matforge', '')).rejects.toThrow(
      /\/sys\/matforge: could not be written: (permission|the file system is read-only)/,
    );
  });
});

describe('writeDirectoryAtomic', () => {
  const fill = async (temporary: string) => writeFileSync(join(temporary, 'x'), 'new');

  test('appears complete, with missing parents, or over an empty directory', async () => {
    await writeDirectoryAtomic(inside('a', 'b'), async (temporary) => {
      expect(readdirSync(inside('a'))).not.toContain('b');
      await fill(temporary);
    });
    expect(readFileSync(inside('a', 'b', 'x'), 'utf8')).toBe('new');
    mkdirSync(inside('empty'));
    expect(await writeDirectoryAtomic(inside('empty'), async (temporary) => fill(temporary).then(() => 7))).toBe(7);
    expect(readdirSync(inside('empty'))).toEqual(['x']);
    expect(readdirSync(directory).sort()).toEqual(['a', 'empty']);
  });

  test('what exists is refused before any work, replaced as a whole when asked', async () => {
    mkdirSync(inside('run'));
    writeFileSync(inside('run', 'old'), '');
    const never = jest.fn(fill);
    await expect(writeDirectoryAtomic(inside('run'), never)).rejects.toThrow(/run: exists already/);
    expect(never).not.toHaveBeenCalled();
    await writeDirectoryAtomic(inside('run'), fill, { overwrite: true });
    expect(readdirSync(inside('run'))).toEqual(['x']);
    expect(readdirSync(directory)).toEqual(['run']);
  });

  test('a failure in the middle changes nothing', async () => {
    mkdirSync(inside('run'));
    writeFileSync(inside('run', 'old'), '');
    const failing = async (temporary: string) => {
      await fill(temporary);
      throw new Error('stopped');
    };
    await expect(writeDirectoryAtomic(inside('run'), failing, { overwrite: true })).rejects.toThrow('stopped');
    await expect(writeDirectoryAtomic(inside('other'), failing)).rejects.toThrow('stopped');
    expect(readdirSync(directory)).toEqual(['run']);
    expect(readdirSync(inside('run'))).toEqual(['old']);
  });

  test('a full disk while filling is named', async () => {
    await failWrites('ENOSPC');
    const full = writeDirectoryAtomic(inside('run'), (temporary) => writeFileAtomic(join(temporary, 'x'), 'data'));
    await expect(full).rejects.toThrow(/the disk is full/);
    expect(readdirSync(directory)).toEqual([]);
  });
});

describe('reading texts', () => {
  test('JSON comes back; damage is named with its file', async () => {
    writeFileSync(inside('good.json'), '{"a":[1]}');
    writeFileSync(inside('bad.json'), '{"a":');
    writeFileSync(inside('latin1'), Uint8Array.of(0x67, 0xfc));
    expect(await readJsonFile(inside('good.json'))).toEqual({ a: [1] });
    await expect(readJsonFile(inside('bad.json'))).rejects.toThrow(/bad\.json: is not JSON/);
    await expect(readTextFile(inside('latin1'))).rejects.toThrow(/latin1: is not a text in UTF-8/);
    await expect(readTextFile(inside('none'))).rejects.toThrow(/none: could not be read: .*does not exist/);
    await expect(readTextFile(inside('good.json'), { maxBytes: 3 })).rejects.toThrow(/9 bytes; at most 3/);
  });
});
