import { ensure, MatforgeError, refuse } from '../errors.ts';

/** What may happen to what stands at the target. */
export interface WriteOptions {
  /** Replace what stands at the target. Default false: an existing target is refused and left as it is. */
  overwrite?: boolean;
}

/** What a file is written from: a text, bytes, or pieces made one after another. */
export type FileContent = string | Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

/**
 * Writes a file completely or not at all: to a temporary name in the same directory, flushed to the disk, then renamed.
 * On any failure the temporary file is removed and the target is what it was.
 *
 * @throws MatforgeError when the target exists (without `overwrite`), the directory is missing or not writable, or the
 *   disk is full.
 */
export async function writeFileAtomic(
  path: string,
  content: FileContent,
  { overwrite = false }: WriteOptions = {},
): Promise<void> {
  const fs = await nodeFs();
  const { basename, dirname, join, resolve } = await nodePath();
  const target = resolve(path);
  await refuseExisting(target, overwrite);
  const directory = dirname(target);
  const temporary = join(directory, temporaryName(basename(target)));
  try {
    // 'wx': never follow or overwrite something that is already there under the temporary name.
    const handle = await fs.open(temporary, 'wx');
    try {
      for await (const piece of pieces(content)) await writeAll(handle, piece);
      await handle.sync();
    } finally {
      await handle.close();
    }
    if (overwrite) await fs.rename(temporary, target);
    else await renameToFree(temporary, target);
    await syncDirectory(directory);
  } catch (cause) {
    await fs.rm(temporary, { force: true }).catch(() => {});
    throw fileError(cause, path, 'written');
  }
}

/**
 * Makes a directory completely or not at all: `fill` writes into a temporary directory beside the target, which is then
 * renamed. Missing parents are created. When `fill` throws, the temporary directory is removed and nothing has changed.
 * A target that is an empty directory counts as absent.
 *
 * @throws MatforgeError when the target exists (without `overwrite`) or cannot be written; whatever `fill` throws.
 */
export async function writeDirectoryAtomic<T>(
  directory: string,
  fill: (temporary: string) => Promise<T>,
  { overwrite = false }: WriteOptions = {},
): Promise<T> {
  const fs = await nodeFs();
  const { basename, dirname, join, resolve } = await nodePath();
  const target = resolve(directory);
  if (!(await isEmptyDirectory(target))) await refuseExisting(target, overwrite);
  const parent = dirname(target);
  const temporary = join(parent, temporaryName(basename(target)));
  try {
    await fs.mkdir(parent, { recursive: true });
    await fs.mkdir(temporary);
  } catch (cause) {
    throw fileError(cause, directory, 'created');
  }
  try {
    const result = await fill(temporary);
    await replaceDirectory(temporary, target, overwrite);
    await syncDirectory(parent);
    return result;
  } catch (cause) {
    await fs.rm(temporary, { recursive: true, force: true }).catch(() => {});
    throw fileError(cause, directory, 'written');
  }
}

async function replaceDirectory(temporary: string, target: string, overwrite: boolean): Promise<void> {
  const fs = await nodeFs();
  if (await isEmptyDirectory(target)) await fs.rmdir(target);
  else await refuseExisting(target, overwrite);
  const { basename, dirname, join } = await nodePath();
  const old = join(dirname(target), temporaryName(basename(target)));
  const moved = await fs.rename(target, old).then(
    () => true,
    (cause) => (cause.code === 'ENOENT' ? false : Promise.reject(cause)),
  );
  try {
    await fs.rename(temporary, target);
  } catch (cause) {
    if (moved) await fs.rename(old, target);
    throw cause;
  }
  if (moved) await fs.rm(old, { recursive: true, force: true });
}

/** Renames unless something has appeared at the target meanwhile: a hard link, unlike a rename, never replaces. */
async function renameToFree(temporary: string, target: string): Promise<void> {
  const fs = await nodeFs();
  try {
    await fs.link(temporary, target);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'EEXIST') refuseTaken(target);
    // File systems without hard links (FAT, some network mounts).
    await refuseExisting(target, false);
    return fs.rename(temporary, target);
  }
  await fs.unlink(temporary);
}

/** Refuses a path at which something stands, unless it may be overwritten. */
export async function refuseExisting(path: string, overwrite = false): Promise<void> {
  const fs = await nodeFs();
  const found = await fs
    .lstat(path)
    .catch((cause) => (isAbsent(cause) ? undefined : Promise.reject(fileError(cause, path, 'written'))));
  if (found && !overwrite) refuseTaken(path);
}

function refuseTaken(path: string): never {
  return refuse(
    path,
    'exists already and is left as it is; choose another name, or pass overwrite: true to replace it',
  );
}

async function isEmptyDirectory(path: string): Promise<boolean> {
  const fs = await nodeFs();
  return fs.readdir(path).then(
    (names) => names.length === 0,
    () => false,
  );
}

async function* pieces(content: FileContent): AsyncIterable<Uint8Array> {
  if (typeof content === 'string') yield new TextEncoder().encode(content);
  else if (content instanceof Uint8Array) yield content;
  else yield* content;
}

/** One system call moves at most 2 GiB. */
const CHUNK = 2 ** 30;

async function writeAll(handle: import('node:fs/promises').FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    at += (await handle.write(bytes, at, Math.min(CHUNK, bytes.length - at))).bytesWritten;
  }
}

/** The rename itself must reach the disk; where directories cannot be flushed (Windows) the system does it in its time. */
async function syncDirectory(directory: string): Promise<void> {
  const fs = await nodeFs();
  const handle = await fs.open(directory, 'r').catch(() => undefined);
  await handle?.sync().catch(() => {});
  await handle?.close();
}

function temporaryName(name: string): string {
  const unique = Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) =>
    byte.toString(16).padStart(2, '0'),
  ).join('');
  return `.${name}.${unique}.tmp`;
}

function isAbsent(cause: unknown): boolean {
  return ['ENOENT', 'ENOTDIR'].includes((cause as NodeJS.ErrnoException)?.code ?? '');
}

const REASONS: Record<string, string> = {
  ENOENT: 'the file or its directory does not exist',
  ENOTDIR: 'a part of its path is a file, not a directory',
  EISDIR: 'it is a directory, not a file',
  EACCES: 'permission denied; choose a place you may use',
  EPERM: 'permission denied; choose a place you may use',
  EROFS: 'the file system is read-only',
  ENOSPC: 'the disk is full; free some space and try again',
  EDQUOT: 'the disk quota is used up; free some space and try again',
  EFBIG: 'the file would be larger than the system allows',
  EMFILE: 'too many files are open',
};

/** The system's error as one that names the file and says what to do; any other error unchanged. */
export function fileError(cause: unknown, path: string, action: string): unknown {
  if (cause instanceof MatforgeError) return cause;
  const code = (cause as NodeJS.ErrnoException)?.code;
  if (typeof code !== 'string' || !(code in REASONS)) return cause;
  return new MatforgeError(path, `could not be ${action}: ${REASONS[code]} (${code})`, { cause });
}

/** Reads a text file of at most `maxBytes` bytes as UTF-8. */
export async function readTextFile(
  path: string,
  { maxBytes = MAX_TEXT_BYTES }: { maxBytes?: number } = {},
): Promise<string> {
  const fs = await nodeFs();
  let bytes: Uint8Array;
  try {
    const { size } = await fs.stat(path);
    ensure(size <= maxBytes, path, () => `has ${size} bytes; at most ${maxBytes} are read as one text`);
    bytes = await fs.readFile(path);
  } catch (cause) {
    throw fileError(cause, path, 'read');
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    refuse(path, 'is not a text in UTF-8', { cause });
  }
}

const MAX_TEXT_BYTES = 2 ** 28;

/** Reads a JSON file of UTF-8 text. */
export async function readJsonFile(path: string): Promise<unknown> {
  const text = await readTextFile(path);
  try {
    return JSON.parse(text);
  } catch (cause) {
    refuse(path, `is not JSON: ${(cause as Error).message}`, { cause });
  }
}

/** Node's file system, loaded only where a file is touched, so that browsers can load this package. */
export function nodeFs(): Promise<typeof import('node:fs/promises')> {
  return import(/* webpackIgnore: true */ /* @vite-ignore */ 'node:fs/promises').catch(refusePaths);
}

export function nodePath(): Promise<typeof import('node:path')> {
  return import(/* webpackIgnore: true */ /* @vite-ignore */ 'node:path').catch(refusePaths);
}

function refusePaths(cause: unknown): never {
  refuse(
    'path',
    'there is no file system here, paths work in Node only; in a browser give save and load memoryStorage(), ' +
      'openSafetensors a File, a Blob or bytes, and write with encodeSafetensors',
    { cause },
  );
}
