import { ensure, openSource, writeFileAtomic } from '@matforge/core';
import { createDataset, type Dataset, runs } from './dataset.ts';
import { type FileSource, Growing, lines, reopen } from './files.ts';

/** Options of {@link text}. */
export interface TextOptions {
  /** Token ids of a text. */
  tokenize(text: string): ArrayLike<number> | Promise<ArrayLike<number>>;
  /** Tokens in one row. */
  length: number;
  /** Tokens from the start of one row to the start of the next. Default `length`: no token is an input twice. */
  stride?: number;
  /** Token put behind every document, usually the tokenizer's end-of-text token. Default: none. */
  separator?: number;
  /** Number of tokens that the tokenizer knows; every token must lie below it. */
  vocabulary?: number;
  /** Path of a file to hold the tokens (4 bytes each) instead of memory. It must not exist and is not deleted. */
  spill?: string;
  /** Name for messages. Default 'text'. */
  name?: string;
}

/**
 * Text for next-token prediction: the documents' tokens, one behind the other, cut into rows of `length`. xs and ys are
 * int32 `[length]`; ys is xs moved on by one token. Tokens that do not fill a last row are left out.
 *
 * @throws MatforgeError when a token is no integer or out of range, or the text is shorter than one row and one token.
 */
export async function text(
  documents: string | Iterable<string> | AsyncIterable<string>,
  { tokenize, length, stride = length, separator, vocabulary, spill, name = 'text' }: TextOptions,
): Promise<Dataset> {
  for (const [field, value] of Object.entries({ length, stride })) {
    ensure(Number.isInteger(value) && value > 0, `${name}: ${field}`, () => `must be a positive integer, is ${value}`);
  }
  async function* tokens(): AsyncGenerator<Int32Array> {
    for await (const document of typeof documents === 'string' ? [documents] : documents) {
      const ids = await tokenize(document);
      checkTokens(ids, vocabulary, name);
      yield Int32Array.from(ids);
      if (separator !== undefined) yield Int32Array.of(separator);
    }
  }
  const { count, open } = spill === undefined ? await inMemory(tokens()) : await onDisk(tokens(), spill);
  const size = Math.floor((count - 1 - length) / stride) + 1;
  ensure(
    size >= 1,
    name,
    () => `has ${count} tokens; a row of ${length} needs ${length + 1}. Give more text or a smaller length`,
  );
  const feature = { dtype: 'int32' as const, shape: [length] };
  return createDataset({
    name,
    size,
    features: { xs: feature, ys: feature },
    open: async () => {
      const { read, close } = await open();
      return {
        read: async (rows) => {
          const xs = new Int32Array(rows.length * length);
          const ys = new Int32Array(rows.length * length);
          for (const [at, first, number] of runs(rows)) {
            const window = await read(first * stride, (number - 1) * stride + length + 1);
            for (let i = 0; i < number; i++) {
              xs.set(window.subarray(i * stride, i * stride + length), (at + i) * length);
              ys.set(window.subarray(i * stride + 1, i * stride + length + 1), (at + i) * length);
            }
          }
          return { xs, ys };
        },
        close,
      };
    },
  });
}

interface Tokens {
  count: number;
  open(): Promise<{ read(start: number, count: number): Int32Array | Promise<Int32Array>; close(): Promise<void> }>;
}

async function inMemory(tokens: AsyncIterable<Int32Array>): Promise<Tokens> {
  const growing = new Growing(new Int32Array());
  for await (const ids of tokens) growing.push(ids);
  const all = growing.finish();
  return {
    count: all.length,
    open: async () => ({ read: (start, count) => all.subarray(start, start + count), close: async () => {} }),
  };
}

async function onDisk(tokens: AsyncIterable<Int32Array>, path: string): Promise<Tokens> {
  let count = 0;
  async function* bytes(): AsyncGenerator<Uint8Array> {
    for await (const ids of tokens) {
      count += ids.length;
      yield new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength);
    }
  }
  await writeFileAtomic(path, bytes());
  return {
    count,
    open: async () => {
      const file = await reopen(path, 4 * count);
      return {
        read: async (start, number) => new Int32Array((await file.read(4 * start, 4 * number)).slice().buffer),
        close: () => file.close(),
      };
    },
  };
}

function checkTokens(ids: ArrayLike<number>, vocabulary = 2 ** 31, name: string): void {
  for (let i = 0; i < ids.length; i++) {
    ensure(
      Number.isInteger(ids[i]) && ids[i] >= 0 && ids[i] < vocabulary,
      name,
      () =>
        `the tokenizer gave ${ids[i]}, accepted are integers from 0 to ${vocabulary - 1}; do tokenizer and vocabulary belong together?`,
    );
  }
}

/**
 * A UTF-8 text file piece by piece, each of whole lines and of about `pieceBytes`, for {@link text}: the file may be larger
 * than memory.
 */
export async function* textFile(
  source: FileSource,
  { pieceBytes = 2 ** 20 }: { pieceBytes?: number } = {},
): AsyncGenerator<string> {
  const bytes = await openSource(source);
  try {
    let piece: string[] = [];
    let start = 0;
    for await (const line of lines(bytes)) {
      piece.push(line.text, '\n');
      if (line.end - start < pieceBytes && line.end < bytes.size) continue;
      yield piece.join('');
      piece = [];
      start = line.end;
    }
  } finally {
    await bytes.close();
  }
}
