import { ensure } from '../errors.ts';
import { fileError, nodeFs } from './atomic.ts';

/** Something whose bytes are read by ranges: a file, a browser's File or Blob, or bytes in memory. */
export interface ByteSource {
  /** For messages. */
  readonly name: string;
  readonly size: number;
  read(offset: number, length: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

const CHUNK = 2 ** 30;

/** Opens a path (Node), a Blob or File (browser), or bytes; read errors name the file, early ends are refused. */
export async function openSource(source: string | Blob | Uint8Array): Promise<ByteSource> {
  if (typeof source === 'string') return openFile(source);
  if (source instanceof Uint8Array) {
    return {
      name: 'bytes in memory',
      size: source.length,
      read: async (offset, length) => source.subarray(offset, offset + length),
      close: async () => {},
    };
  }
  return {
    name: 'name' in source ? String(source.name) : 'blob',
    size: source.size,
    read: async (offset, length) => new Uint8Array(await source.slice(offset, offset + length).arrayBuffer()),
    close: async () => {},
  };
}

async function openFile(path: string): Promise<ByteSource> {
  const fs = await nodeFs();
  try {
    const handle = await fs.open(path, 'r');
    const status = await handle.stat();
    if (!status.isFile()) {
      await handle.close();
      throw Object.assign(new Error('not a file'), { code: 'EISDIR' });
    }
    const { size } = status;
    const read = async (offset: number, length: number): Promise<Uint8Array> => {
      const bytes = new Uint8Array(length);
      for (let at = 0; at < length; ) {
        const { bytesRead } = await handle.read(bytes, at, Math.min(CHUNK, length - at), offset + at);
        ensure(
          bytesRead > 0,
          path,
          () => `ends at byte ${offset + at}, ${length - at} bytes too early; it is truncated`,
        );
        at += bytesRead;
      }
      return bytes;
    };
    return { name: path, size, read, close: () => handle.close() };
  } catch (cause) {
    throw fileError(cause, path, 'read');
  }
}
