import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createTokenizer, loadTokenizer, saveTokenizer, trainTokenizer } from '../src/index.ts';
import { withDirectory } from './checkpoints.ts';

const book = () => readFile(join(__dirname, '../../../LICENSE'), 'utf8');

describe('trainTokenizer', () => {
  test('merges the most frequent pair first, the smaller ids among equals', () => {
    // Words: "low" ×3 (with and without blank), "lot" ×2. Pairs: lo 5, ow 3, ot 2, Ġl 4.
    const json = trainTokenizer('low low low lot lot', { vocabSize: 260, specialTokens: [] });
    // lo (5); then Ġ+lo (4); then lo… remaining: Ġlo+w 2, Ġlo+t 2, lo+w 1: the tie goes to the smaller id of t.
    expect(json.model.merges).toEqual([
      ['l', 'o'],
      ['Ġ', 'lo'],
      ['Ġlo', 't'],
      ['Ġlo', 'w'],
    ]);
    expect(createTokenizer(json).encode('low lot')).toEqual(
      ['lo', 'w', 'Ġlot'].map((token) => json.model.vocab[token]),
    );
  });

  test('gives every token an id of its own and the wanted size', async () => {
    const json = trainTokenizer(await book(), { vocabSize: 512 });
    const ids = Object.values(json.model.vocab).sort((a, b) => a - b);
    expect(ids).toEqual(Array.from({ length: 512 }, (_, i) => i));
    const tokenizer = createTokenizer(json);
    expect(tokenizer.vocabSize).toBe(512);
    expect(tokenizer.tokenId('<|endoftext|>')).toBe(0);
    expect(json.model.merges.every(([a, b]) => a + b in json.model.vocab)).toBe(true);
  });

  test('reads back any text: every byte has a token', async () => {
    const tokenizer = createTokenizer(trainTokenizer(await book(), { vocabSize: 400 }));
    const texts = [await book(), "Zażółć gęślą jaźń — 漢字 🚀\u0000\u00ad\n\n  \t end . , ' n't ", ''];
    for (const text of texts) expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  });

  test('compresses: the tokens of the training text get fewer as the vocabulary grows', async () => {
    const text = await book();
    const counts = [257, 512, 1024].map(
      (vocabSize) => createTokenizer(trainTokenizer(text, { vocabSize })).encode(text).length,
    );
    expect(counts[0]).toBe(Buffer.byteLength(text));
    expect(counts[1]).toBeLessThan(0.6 * counts[0]);
    expect(counts[2]).toBeLessThan(0.8 * counts[1]);
  });

  test('keeps special tokens whole, in training and in use', () => {
    const json = trainTokenizer(`${'<|end|>'.repeat(50)}abab`, { vocabSize: 300, specialTokens: ['<|end|>'] });
    expect(json.model.merges).toEqual([['a', 'b']]);
    const tokenizer = createTokenizer(json);
    expect(tokenizer.encode('<|end|>ab')).toEqual([0, json.model.vocab['ab']]);
    expect(tokenizer.decode([0, json.model.vocab['ab']])).toBe('ab');
    expect(tokenizer.decode([0, json.model.vocab['ab']], { skipSpecialTokens: false })).toBe('<|end|>ab');
  });

  test('refuses a vocabulary that cannot hold the bytes, and unknown options', () => {
    expect(() => trainTokenizer('a', { vocabSize: 256 })).toThrow(
      'trainTokenizer.vocabSize: must be at least 257 (256 bytes and 1 special tokens), got 256',
    );
    expect(() => trainTokenizer('a', { vocabSize: 300, minFrequence: 2 } as never)).toThrow(
      'did you mean "minFrequency"',
    );
  });
});

test('saveTokenizer and loadTokenizer keep the ids; an existing file is not overwritten unasked', async () => {
  await withDirectory(async (directory) => {
    const tokenizer = createTokenizer(trainTokenizer(await book(), { vocabSize: 300 }));
    await saveTokenizer(tokenizer, directory);
    const loaded = await loadTokenizer(directory);
    expect(loaded.encode('the work of the licensor')).toEqual(tokenizer.encode('the work of the licensor'));
    expect(loaded.vocabSize).toBe(300);
    await expect(saveTokenizer(tokenizer, directory)).rejects.toThrow('tokenizer.json');
    await expect(loadTokenizer(`${directory}/none`)).rejects.toThrow('tokenizer.json');
  });
});

test('a WordPiece tokenizer with its special tokens', () => {
  const vocab = Object.fromEntries(['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'un', '##able', 'the'].map((t, i) => [t, i]));
  const special = (content: string) => ({ id: vocab[content], content, special: true });
  const tokenizer = createTokenizer({
    added_tokens: ['[PAD]', '[UNK]', '[CLS]', '[SEP]'].map(special),
    normalizer: { type: 'BertNormalizer', clean_text: true, handle_chinese_chars: true, lowercase: true },
    pre_tokenizer: { type: 'BertPreTokenizer' },
    post_processor: { type: 'BertProcessing', sep: ['[SEP]', 3], cls: ['[CLS]', 2] },
    decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
    model: { type: 'WordPiece', unk_token: '[UNK]', continuing_subword_prefix: '##', vocab } as never,
  });
  expect(tokenizer.encode('The Unable dog')).toEqual([2, 6, 4, 5, 1, 3]);
  expect(tokenizer.encode('unable', { addSpecialTokens: false })).toEqual([4, 5]);
});

test('what is no tokenizer is refused', () => {
  expect(() => createTokenizer({ added_tokens: [] } as never)).toThrow('tokenizer.json: cannot be read');
});
