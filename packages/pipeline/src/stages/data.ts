import { option, readTextFile, refuse } from '@matforge/core';
import * as datasets from '@matforge/datasets';
import { createTokenizer, trainTokenizer } from '@matforge/models';
import * as z from 'zod';
import { defineStage } from '../stage.ts';
import type { NamedData } from '../state.ts';

const IMAGES = { mnist: () => datasets.mnist(), 'fashion-mnist': () => datasets.fashionMnist() };
const TEXTS = {
  'moby-dick': () => datasets.mobyDick(),
  'state-of-the-union': () => datasets.stateOfTheUnion(),
};

/** Images with labels: MNIST or Fashion-MNIST. */
export const data = defineStage({
  name: 'data',
  about: 'opens a set of images with labels under a name',
  gives: ['data'],
  options: z.object({
    /** Name that later stages use. */
    name: z.string().min(1),
    dataset: z.enum(['mnist', 'fashion-mnist']),
    /** Training images, drawn with the run's seed. Default all. */
    train: option.count().optional(),
    /** Test images. Default all. */
    test: option.count().optional(),
  }),
  async run(state, { name, dataset, train, test }, { seed, tell }) {
    const images = await IMAGES[dataset]();
    const opened: NamedData = {
      task: 'classification',
      train: train === undefined ? images.train : images.train.shuffle(seed).take(train),
      test: test === undefined ? images.test : images.test.shuffle(seed).take(test),
    };
    tell({ type: 'log', text: `${dataset}: ${opened.train.size} images to train on, ${opened.test.size} to test` });
    return { ...state, data: { ...state.data, [name]: opened } };
  },
});

/** Text as rows of tokens for next-token prediction; the first text trains the tokenizer. */
export const text = defineStage({
  name: 'text',
  about: 'opens a text under a name, as rows of tokens',
  gives: ['data'],
  options: z.object({
    name: z.string().min(1),
    dataset: z.enum(['moby-dick', 'state-of-the-union']).optional(),
    /** A UTF-8 file in place of a dataset. */
    file: z.string().optional(),
    /** Tokens per row. */
    length: option.count().default(64),
    /** Size of the vocabulary that the first text's byte-level BPE is trained to. */
    vocabulary: option.count().default(1024),
    /** Only this many characters, from the beginning. */
    characters: option.count().optional(),
    /** Share of the text, at its end, that is kept for testing. */
    testShare: z.number().gt(0).lt(1).default(0.05),
  }),
  async run(state, { name, dataset, file, length, vocabulary, characters, testShare }, { tell }) {
    const whole = await readText(dataset, file);
    const content = characters === undefined ? whole : whole.slice(0, characters);
    const tokenizer = state.tokenizer ?? createTokenizer(trainTokenizer(content, { vocabSize: vocabulary }));
    const tokens = Int32Array.from(tokenizer.encode(content, { addSpecialTokens: false }));
    const cut = Math.floor(tokens.length * (1 - testShare));
    const rows = (part: Int32Array) =>
      datasets.text([''], { tokenize: () => part, length, vocabulary: tokenizer.vocabSize });
    const testTokens = tokens.slice(cut);
    const opened: NamedData = {
      task: 'language',
      train: await rows(tokens.slice(0, cut)),
      test: await rows(testTokens),
      testTokens,
    };
    tell({
      type: 'log',
      text: `${dataset ?? file}: ${content.length} characters, ${tokens.length} tokens, ${testTokens.length} of them to test`,
    });
    return { ...state, tokenizer, data: { ...state.data, [name]: opened } };
  },
});

async function readText(dataset: keyof typeof TEXTS | undefined, file: string | undefined): Promise<string> {
  if (dataset && file) refuse('text', 'give either "dataset" or "file", not both');
  if (dataset) return TEXTS[dataset]();
  if (!file) return refuse('text', 'needs "dataset" or "file"');
  return readTextFile(file);
}
