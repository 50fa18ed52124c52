import { refuse } from '../errors.ts';
import { nodeFs, nodePath, writeFileAtomic } from './atomic.ts';

/** Where checkpoints and adapters are kept. `write` replaces a file completely or leaves it as it was. */
export interface CheckpointStorage {
  /** The file's bytes, or undefined when there is none. */
  read(name: string): Promise<Uint8Array | undefined>;
  write(name: string, bytes: Uint8Array): Promise<void>;
}

/** Keeps files in a directory, which is made when needed (Node only). */
export function directoryStorage(directory: string): CheckpointStorage {
  return {
    async read(name) {
      const [fs, { join }] = [await nodeFs(), await nodePath()];
      try {
        return new Uint8Array(await fs.readFile(join(directory, name)));
      } catch (cause) {
        if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
        refuse(join(directory, name), `could not be read: ${(cause as Error).message}`, { cause });
      }
    },
    async write(name, bytes) {
      const [fs, { join }] = [await nodeFs(), await nodePath()];
      await fs.mkdir(directory, { recursive: true }).catch((cause: Error) => {
        refuse(directory, `the directory could not be made: ${cause.message}`, { cause });
      });
      await writeFileAtomic(join(directory, name), bytes, { overwrite: true });
    },
  };
}

/** Keeps files in memory: for tests, and for the browser, where a page hands them on (a download, a database, a server). */
export function memoryStorage(): CheckpointStorage & { readonly files: Map<string, Uint8Array> } {
  const files = new Map<string, Uint8Array>();
  return {
    files,
    read: async (name) => files.get(name)?.slice(),
    write: async (name, bytes) => {
      files.set(name, bytes.slice());
    },
  };
}
