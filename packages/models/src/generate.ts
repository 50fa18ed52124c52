import { ensure, option, parseConfig, type Random, random, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { KeyValueCache } from './cache.ts';
import { MatforgePositions } from './layers.ts';

const generateOptions = z.object({
  maxNewTokens: option.count().default(64),
  temperature: z.number('must be a number ≥ 0').min(0, 'must be a number ≥ 0').default(0),
  topK: option.count().optional(),
  topP: z.number('must be in (0, 1]').gt(0, 'must be in (0, 1]').max(1, 'must be in (0, 1]').optional(),
  seed: option.seed().default(0),
});

/** Options of {@link generate}. */
export interface GenerateOptions {
  /** Most tokens to add. Default 64. */
  maxNewTokens?: number;
  /** 0 takes the likeliest token; above 0, tokens are drawn from softmax(logits / temperature). Default 0. */
  temperature?: number;
  /** Only the k likeliest tokens can be drawn. */
  topK?: number;
  /** Only the likeliest tokens that together reach probability p can be drawn (Holtzman et al. 2020). */
  topP?: number;
  /** Seed of the draws. Default 0. */
  seed?: number;
  /** Tokens that end a text; they are not part of the result. */
  stopTokens?: readonly number[];
  /** Stops between tokens. */
  signal?: AbortSignal;
  /** Called with each new token, and its row when several prompts run together. */
  onToken?: (token: number, row: number) => void;
}

/**
 * Continues a text token by token. The model runs once on the prompt and then on one token a step; keys and values of
 * earlier tokens are cached. All its layers run as always, so attached adapters act too.
 *
 * @param model a causal language model of this package with the one input `input_ids`
 * @param tokens the prompt, or several of equal length
 * @returns the new tokens (per prompt), without the prompt and without the stop token
 * @throws MatforgeError for an empty prompt, a token outside of the vocabulary, a wrong option, more positions than the
 *   model has, or scores that are not finite; the signal's reason when aborted.
 */
export async function generate(
  model: tf.LayersModel,
  tokens: readonly number[] | Int32Array,
  options?: GenerateOptions,
): Promise<number[]>;
export async function generate(
  model: tf.LayersModel,
  tokens: readonly (readonly number[])[],
  options?: GenerateOptions,
): Promise<number[][]>;
export async function generate(
  model: tf.LayersModel,
  tokens: readonly number[] | Int32Array | readonly (readonly number[])[],
  { stopTokens = [], signal, onToken, ...rest }: GenerateOptions = {},
): Promise<number[] | number[][]> {
  const options = parseConfig('generate', generateOptions, rest);
  const several = Array.isArray(tokens[0]);
  const prompts = (several ? tokens : [tokens]) as ArrayLike<number>[];
  checkPrompts(model, prompts, options.maxNewTokens);
  const stop = new Set(stopTokens);
  const streams = prompts.map((_, row) => random(options.seed).fork(row));
  const results: number[][] = prompts.map(() => []);
  const running = prompts.map(() => true);
  const cache = new KeyValueCache();
  try {
    let next = prompts.map((prompt) => Array.from(prompt));
    for (let step = 0; step < options.maxNewTokens; step++) {
      signal?.throwIfAborted();
      const rows = await scoresOfLast(model, cache, next);
      next = rows.map((scores, row) => {
        // Finished rows keep their place in the batch; what they are fed is never read.
        if (!running[row]) return [0];
        const token = choose(scores, options, streams[row]);
        if (stop.has(token)) running[row] = false;
        else {
          results[row].push(token);
          onToken?.(token, row);
        }
        return [token];
      });
      if (!running.includes(true)) break;
    }
  } finally {
    cache.dispose();
  }
  return several ? results : results[0];
}

/** Scores of the token after each row's last one. */
async function scoresOfLast(model: tf.LayersModel, cache: KeyValueCache, rows: number[][]): Promise<Float32Array[]> {
  const width = rows[0].length;
  const last = cache.run(width, () => {
    const logits = model.apply(tf.tensor2d(rows, [rows.length, width], 'int32')) as tf.Tensor3D;
    return tf.slice(logits, [0, width - 1, 0], [rows.length, 1, logits.shape[2]]);
  });
  const values = (await last.data()) as Float32Array;
  last.dispose();
  const size = values.length / rows.length;
  return rows.map((_, row) => values.subarray(row * size, (row + 1) * size));
}

function checkPrompts(model: tf.LayersModel, prompts: ArrayLike<number>[], maxNewTokens: number): void {
  ensure(
    model.inputs.length === 1 && model.outputs.length === 1,
    'generate.model',
    () => `must have one input and one output, has inputs ${model.inputNames.join(', ')}`,
  );
  const vocabulary = model.outputs[0].shape[2] as number;
  const length = prompts[0]?.length ?? 0;
  ensure(length > 0, 'generate.tokens', () => 'the prompt is empty; give at least one token, e.g. the start token');
  for (const prompt of prompts) {
    ensure(
      prompt.length === length,
      'generate.tokens',
      () => `prompts differ in length: ${length} and ${prompt.length}`,
    );
    for (let i = 0; i < length; i++) {
      const token = prompt[i];
      if (!Number.isInteger(token) || token < 0 || token >= vocabulary) {
        refuse('generate.tokens', `token ${token} at ${i} is not in the vocabulary 0 … ${vocabulary - 1}`);
      }
    }
  }
  for (const layer of model.layers) {
    if (!(layer instanceof MatforgePositions)) continue;
    const { maxPositions } = layer.options;
    // The last token is returned without being fed back.
    const needed = length + maxNewTokens - 1;
    ensure(
      needed <= maxPositions,
      'generate.maxNewTokens',
      () => `prompt ${length} and ${maxNewTokens} new tokens need ${needed} positions, the model has ${maxPositions}`,
    );
  }
}

/** The next token: the likeliest, or drawn as temperature, top-k and top-p say. */
function choose(
  scores: Float32Array,
  { temperature, topK, topP }: z.output<typeof generateOptions>,
  stream: Random,
): number {
  let best = 0;
  for (let i = 0; i < scores.length; i++) {
    if (!Number.isFinite(scores[i])) refuse('generate.model', `the score of token ${i} is ${scores[i]}`);
    if (scores[i] > scores[best]) best = i;
  }
  if (temperature === 0) return best;
  const weight = (i: number) => Math.exp((scores[i] - scores[best]) / temperature);
  let candidates = Array.from(scores, (_, i) => i);
  if (topK !== undefined || topP !== undefined) candidates.sort((a, b) => scores[b] - scores[a] || a - b);
  if (topK !== undefined) candidates = candidates.slice(0, topK);
  if (topP !== undefined) {
    const total = candidates.reduce((sum, i) => sum + weight(i), 0);
    let kept = 0;
    for (let mass = 0; kept < candidates.length && mass < topP * total; kept++) mass += weight(candidates[kept]);
    candidates = candidates.slice(0, Math.max(1, kept));
  }
  let rest = stream.next() * candidates.reduce((sum, i) => sum + weight(i), 0);
  for (const i of candidates) {
    rest -= weight(i);
    if (rest < 0) return i;
  }
  return candidates[candidates.length - 1];
}
