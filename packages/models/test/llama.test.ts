import { attach, detach, random } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { generate, KeyValueCache, languageModelLoss, llama, loadPretrained } from '../src/index.ts';
import { llamaConfig, llamaShapes, randomWeights, withDirectory, writePretrained } from './checkpoints.ts';
import { referenceLlama } from './reference.ts';

beforeAll(() => tf.setBackend('cpu'));

const ids = [3, 17, 0, 36, 5, 5, 22, 9, 30, 1];

/** Largest difference between the model's output and the reference's. */
async function difference(output: tf.Tensor, expected: Float64Array[]): Promise<number> {
  const got = await output.data();
  output.dispose();
  const flat = expected.flatMap((row) => Array.from(row));
  expect(got.length).toBe(flat.length);
  return Math.max(...flat.map((value, i) => Math.abs(value - got[i])));
}

const variants: [string, object][] = [
  ['grouped-query attention', {}],
  ['multi-head attention, tied head', { num_key_value_heads: 6, tie_word_embeddings: true }],
  [
    'one key head, head_dim of its own, biases',
    { num_key_value_heads: 1, head_dim: 6, attention_bias: true, mlp_bias: true },
  ],
  [
    'mistral with a sliding window',
    { model_type: 'mistral', architectures: ['MistralForCausalLM'], sliding_window: 4 },
  ],
  ['qwen2 biases', { model_type: 'qwen2', architectures: ['Qwen2ForCausalLM'] }],
  [
    'llama3 rope scaling',
    {
      rope_theta: 100,
      rope_scaling: {
        rope_type: 'llama3',
        factor: 4,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 16,
      },
    },
  ],
  ['linear rope scaling', { rope_scaling: { rope_type: 'linear', factor: 2 } }],
];

test.each(variants)('llama: logits equal a float64 reference: %s', async (_, change) => {
  const config = { ...llamaConfig, ...change };
  const weights = randomWeights(llamaShapes(config), 1);
  const before = tf.memory().numTensors;
  const model = await withDirectory(async (directory) => {
    await writePretrained(directory, config, weights);
    return loadPretrained(directory);
  });
  const input = tf.tensor2d([ids], undefined, 'int32');
  expect(await difference(model.predict(input) as tf.Tensor, referenceLlama(weights, config, ids))).toBeLessThan(1e-4);

  // The cached path: a prompt of 4, then token by token.
  const cache = new KeyValueCache();
  const expected = referenceLlama(weights, config, ids);
  const step = (from: number, to: number) =>
    cache.run(to - from, () => model.apply(tf.tensor2d([ids.slice(from, to)], undefined, 'int32')) as tf.Tensor);
  expect(await difference(step(0, 4), expected.slice(0, 4))).toBeLessThan(1e-4);
  for (let t = 4; t < ids.length; t++) {
    expect(await difference(step(t, t + 1), [expected[t]])).toBeLessThan(1e-4);
  }
  cache.dispose();
  input.dispose();
  model.dispose();
  expect(tf.memory().numTensors).toBe(before);
});
