import { Tokenizer as LibraryTokenizer } from '@huggingface/tokenizers';
import { ensure, option, parseConfig, readJsonFile, refuse, writeFileAtomic } from '@matforge/core';
import * as z from 'zod';

/** A `tokenizer.json` as Hugging Face's libraries read it. */
export interface TokenizerJson {
  model: { type: string; vocab: Record<string, number>; merges: [string, string][]; [key: string]: unknown };
  added_tokens: { id: number; content: string; special: boolean; [key: string]: unknown }[];
  [key: string]: unknown;
}

/** Text to token ids and back. */
export interface Tokenizer {
  /** Number of ids: one more than the largest. */
  readonly vocabSize: number;
  /** Ids of a text, with the special tokens that the tokenizer adds around one (`addSpecialTokens: false` for none). */
  encode(text: string, options?: { addSpecialTokens?: boolean }): number[];
  /** Text of the ids, without special tokens (`skipSpecialTokens: false` keeps them). */
  decode(ids: ArrayLike<number>, options?: { skipSpecialTokens?: boolean }): string;
  /** Id of a token, e.g. of `<|endoftext|>`. */
  tokenId(token: string): number | undefined;
  /** The tokenizer.json object. */
  readonly json: TokenizerJson;
  /** The tokenizer_config.json object. */
  readonly config: Record<string, unknown>;
}

/**
 * Opens a tokenizer.json object (BPE, WordPiece or Unigram).
 *
 * @param config the matching tokenizer_config.json object, where there is one
 * @throws MatforgeError when the object is not a tokenizer.
 */
export function createTokenizer(json: TokenizerJson, config: Record<string, unknown> = {}): Tokenizer {
  let library: LibraryTokenizer;
  try {
    // Unless asked to, decoding must not tidy blanks before punctuation: the text would not come back as it was.
    library = new LibraryTokenizer(json, { clean_up_tokenization_spaces: false, ...config });
  } catch (cause) {
    refuse('tokenizer.json', `cannot be read as a tokenizer: ${(cause as Error).message}`, { cause });
  }
  const largest = [...library.get_vocab(true).values()].reduce((top, id) => Math.max(top, id), -1);
  return {
    vocabSize: largest + 1,
    json,
    config,
    encode: (text, { addSpecialTokens = true } = {}) =>
      library.encode(text, { add_special_tokens: addSpecialTokens }).ids,
    decode: (ids, { skipSpecialTokens = true } = {}) =>
      ids.length === 0 ? '' : library.decode(Array.from(ids), { skip_special_tokens: skipSpecialTokens }),
    tokenId: (token) => library.token_to_id(token),
  };
}

/**
 * Opens the tokenizer of a Hugging Face directory: `tokenizer.json` and, where present, `tokenizer_config.json`.
 *
 * @throws MatforgeError when `tokenizer.json` is missing, malformed or not a tokenizer.
 */
export async function loadTokenizer(directory: string): Promise<Tokenizer> {
  const { access } = await import(/* webpackIgnore: true */ /* @vite-ignore */ 'node:fs/promises');
  const json = (await readJsonFile(`${directory}/tokenizer.json`)) as TokenizerJson;
  const configFile = `${directory}/tokenizer_config.json`;
  const hasConfig = await access(configFile).then(
    () => true,
    () => false,
  );
  return createTokenizer(json, hasConfig ? ((await readJsonFile(configFile)) as Record<string, unknown>) : {});
}

/**
 * Writes `tokenizer.json` and `tokenizer_config.json` into a directory, beside the model's files if it holds some.
 *
 * @throws MatforgeError when a file exists (without `overwrite`) or cannot be written.
 */
export async function saveTokenizer(
  tokenizer: Tokenizer,
  directory: string,
  { overwrite = false }: { overwrite?: boolean } = {},
): Promise<void> {
  const { mkdir } = await import(/* webpackIgnore: true */ /* @vite-ignore */ 'node:fs/promises');
  await mkdir(directory, { recursive: true });
  const config = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    clean_up_tokenization_spaces: false,
    ...tokenizer.config,
  };
  const write = (name: string, value: unknown) =>
    writeFileAtomic(`${directory}/${name}`, `${JSON.stringify(value, null, 2)}\n`, { overwrite });
  await write('tokenizer.json', tokenizer.json);
  await write('tokenizer_config.json', config);
}

const trainOptions = z.object({
  vocabSize: option.count(),
  specialTokens: z.array(z.string().min(1)).default(['<|endoftext|>']),
  minFrequency: option.count().default(2),
});

/** Options of {@link trainTokenizer}, as given. */
export interface TrainTokenizerOptions {
  /** Number of ids wanted: special tokens, 256 bytes, and merges. */
  vocabSize: number;
  /** Tokens that stand for themselves and get the first ids. Default `<|endoftext|>`. */
  specialTokens?: string[];
  /** A pair that is rarer is not merged, even if the vocabulary stays smaller than wanted. Default 2. */
  minFrequency?: number;
}

// How GPT-2 cuts a text into words, each with the blank before it.
const words = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/**
 * Trains a byte-level BPE tokenizer (Sennrich et al. 2016, over bytes as in GPT-2): starting from the 256 bytes, the
 * most frequent pair of neighbours within words becomes a new token, again and again. Every text can be encoded.
 *
 * @returns a tokenizer.json object; {@link createTokenizer} opens it, Hugging Face's libraries read it
 * @throws MatforgeError when `vocabSize` has no room for special tokens and bytes, or an option is wrong.
 */
export function trainTokenizer(text: string, options: TrainTokenizerOptions): TokenizerJson {
  const { vocabSize, specialTokens, minFrequency } = parseConfig('trainTokenizer', trainOptions, options);
  const specials = [...new Set(specialTokens)];
  const least = specials.length + 256;
  ensure(
    vocabSize >= least,
    'trainTokenizer.vocabSize',
    () => `must be at least ${least} (256 bytes and ${specials.length} special tokens), got ${vocabSize}`,
  );
  const names = [...specials, ...[...byteCharacters()].sort()];
  const idOfByte = byteCharacters().map((character) => names.indexOf(character, specials.length));
  const trainer = new PairCounts(countWords(text, specials), idOfByte);
  const merges: [string, string][] = [];
  const ids = new Map(names.map((name, id) => [name, id]));
  while (names.length < vocabSize) {
    const pair = trainer.mostFrequent(minFrequency);
    if (!pair) break;
    const [left, right] = pair.map((id) => names[id]);
    // A pair that spells a token which exists already leads to that token.
    const merged = ids.get(left + right) ?? names.push(left + right) - 1;
    ids.set(left + right, merged);
    merges.push([left, right]);
    trainer.merge(...pair, merged);
  }
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: specials.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: { ...byteLevel, trim_offsets: false },
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(ids),
      merges,
    },
  };
}

/** The printable character that stands for each byte: itself where it prints, else one from U+0100 on. */
function byteCharacters(): string[] {
  let spare = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    return String.fromCharCode(prints ? byte : spare++);
  });
}

function countWords(text: string, specials: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>();
  const pieces = specials.reduce((parts, special) => parts.flatMap((part) => part.split(special)), [text]);
  for (const piece of pieces) {
    for (const [word] of piece.matchAll(words)) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  return counts;
}

/** Words as token ids, and how often each pair of neighbours occurs in them. */
class PairCounts {
  readonly #words: { ids: number[]; count: number }[] = [];
  readonly #counts = new Map<number, number>();
  readonly #places = new Map<number, Set<number>>();

  constructor(counts: Map<string, number>, idOfByte: number[]) {
    const encoder = new TextEncoder();
    for (const [word, count] of counts) {
      const ids = Array.from(encoder.encode(word), (byte) => idOfByte[byte]);
      this.#words.push({ ids, count });
      this.#count(this.#words.length - 1, 1);
    }
  }

  /** The pair with the largest count, the smaller ids first among equals. */
  mostFrequent(least: number): [number, number] | undefined {
    let best = -1;
    let bestCount = least - 1;
    for (const [pair, count] of this.#counts) {
      if (count > bestCount || (count === bestCount && pair < best)) [best, bestCount] = [pair, count];
    }
    return best < 0 ? undefined : [Math.floor(best / STRIDE), best % STRIDE];
  }

  merge(left: number, right: number, merged: number): void {
    for (const place of this.#places.get(left * STRIDE + right) ?? []) {
      this.#count(place, -1);
      const { ids } = this.#words[place];
      let kept = 0;
      for (let i = 0; i < ids.length; i++) {
        const here = ids[i] === left && ids[i + 1] === right;
        ids[kept++] = here ? merged : ids[i];
        if (here) i++;
      }
      ids.length = kept;
      this.#count(place, 1);
    }
    this.#places.delete(left * STRIDE + right);
  }

  #count(place: number, sign: 1 | -1): void {
    const { ids, count } = this.#words[place];
    for (let i = 0; i + 1 < ids.length; i++) {
      const pair = ids[i] * STRIDE + ids[i + 1];
      const total = (this.#counts.get(pair) ?? 0) + sign * count;
      if (total > 0) this.#counts.set(pair, total);
      else this.#counts.delete(pair);
      if (sign < 0) continue;
      const places = this.#places.get(pair);
      if (places) places.add(place);
      else this.#places.set(pair, new Set([place]));
    }
  }
}

/** Two ids make one number: id · STRIDE + id. */
const STRIDE = 2 ** 26;
