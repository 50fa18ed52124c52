import { ready } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { KeyValueCache, loadPretrained } from '../src/index.ts';
import {
  largestDifference,
  llamaConfig,
  llamaShapes,
  randomWeights,
  withDirectory,
  writePretrained,
} from './checkpoints.ts';
import { referenceLlama } from './reference.ts';

const ids = [3, 17, 0, 36, 5, 5, 22, 9, 30, 1];

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

describe.each(['cpu', 'wasm'])('llama on %s', (backend) => {
  beforeAll(() => ready(backend));

  test.each(variants)('logits equal a float64 reference, at once and with a cache: %s', async (_, change) => {
    const config = { ...llamaConfig, ...change };
    const weights = randomWeights(llamaShapes(config), 1);
    const expected = referenceLlama(weights, config, ids);
    const before = tf.memory().numTensors;
    const model = await withDirectory(async (directory) => {
      await writePretrained(directory, config, weights);
      return loadPretrained(directory);
    });
    const run = (from: number, to: number) =>
      model.apply(tf.tensor2d([ids.slice(from, to)], undefined, 'int32')) as tf.Tensor;
    expect(
      await largestDifference(
        tf.tidy(() => run(0, ids.length)),
        expected,
      ),
    ).toBeLessThan(1e-4);

    const cache = new KeyValueCache();
    expect(
      await largestDifference(
        cache.run(4, () => run(0, 4)),
        expected.slice(0, 4),
      ),
    ).toBeLessThan(1e-4);
    for (let t = 4; t < ids.length; t++) {
      expect(
        await largestDifference(
          cache.run(1, () => run(t, t + 1)),
          [expected[t]],
        ),
      ).toBeLessThan(1e-4);
    }
    cache.dispose();
    model.dispose();
    expect(tf.memory().numTensors).toBe(before);
  });
});
