import { ready } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { gpt2, KeyValueCache, llama, loadPretrained, MatforgeTiedHead } from '../src/index.ts';
import {
  bertConfig,
  bertShapes,
  gpt2Config,
  gpt2Shapes,
  largestDifference,
  randomWeights,
  vitConfig,
  vitShapes,
  withDirectory,
  writePretrained,
} from './checkpoints.ts';
import {
  erf,
  referenceBertClassifier,
  referenceBertEncoder,
  referenceBertMaskedLm,
  referenceBertPooled,
  referenceGpt2,
  referenceVit,
  type Weights,
} from './reference.ts';

const int = (rows: number[][]) => tf.tensor2d(rows, undefined, 'int32');

/** The model of a checkpoint, used and disposed; checks that nothing stays. */
async function withModel(config: object, weights: Weights, use: (model: tf.LayersModel) => Promise<void>) {
  const before = tf.memory().numTensors;
  const model = await withDirectory(async (directory) => {
    await writePretrained(directory, config, weights);
    return loadPretrained(directory);
  });
  await use(model);
  model.dispose();
  expect(tf.memory().numTensors).toBe(before);
}

test('the reference’s erf', () => {
  // Abramowitz & Stegun, table 7.1.
  expect(erf(0.5)).toBeCloseTo(0.5204998778, 10);
  expect(erf(-1)).toBeCloseTo(-0.8427007929, 10);
  expect(erf(3.5)).toBeCloseTo(0.9999992569, 10);
});

describe.each(['cpu', 'wasm'])('logits equal a float64 reference on %s', (backend) => {
  beforeAll(() => ready(backend));

  test.each([{}, { n_inner: 28 }])('gpt2 %o, at once and with a cache', async (change) => {
    const config = { ...gpt2Config, ...change };
    const weights = randomWeights(gpt2Shapes(config), 2);
    const ids = [3, 17, 0, 30, 5, 5, 22, 9];
    const expected = referenceGpt2(weights, config, ids);
    await withModel(config, weights, async (model) => {
      const all = tf.tidy(() => model.apply(int([ids])) as tf.Tensor);
      expect(await largestDifference(all, expected)).toBeLessThan(1e-4);
      const cache = new KeyValueCache();
      const prompt = cache.run(3, () => model.apply(int([ids.slice(0, 3)])) as tf.Tensor);
      expect(await largestDifference(prompt, expected.slice(0, 3))).toBeLessThan(1e-4);
      for (let t = 3; t < ids.length; t++) {
        const next = cache.run(1, () => model.apply(int([[ids[t]]])) as tf.Tensor);
        expect(await largestDifference(next, [expected[t]])).toBeLessThan(1e-4);
      }
      cache.dispose();
    });
  });

  describe('bert', () => {
    const ids = [
      [3, 17, 0, 28, 5, 5, 22],
      [9, 8, 7, 1, 1, 0, 0],
    ];
    const mask = [
      [1, 1, 1, 1, 1, 1, 1],
      [1, 1, 1, 1, 1, 0, 0],
    ];
    const types = [
      [0, 0, 0, 1, 1, 1, 1],
      [0, 0, 1, 1, 1, 0, 0],
    ];
    const run = (model: tf.LayersModel) => tf.tidy(() => model.apply([int(ids), int(mask), int(types)]) as tf.Tensor);
    const both = (reference: (row: number) => Float64Array[]) => [...reference(0), ...reference(1)];

    test('masked language model, with padding and token types', async () => {
      const weights = randomWeights(bertShapes(bertConfig), 3);
      const expected = both((row) => referenceBertMaskedLm(weights, bertConfig, ids[row], mask[row], types[row]));
      await withModel(bertConfig, weights, async (model) => {
        expect(await largestDifference(run(model), expected)).toBeLessThan(1e-4);
      });
    });

    test('classification', async () => {
      const config = {
        ...bertConfig,
        architectures: ['BertForSequenceClassification'],
        id2label: { 0: 'no', 1: 'maybe', 2: 'yes' },
      };
      const weights = randomWeights(bertShapes(config), 4);
      const expected = both((row) => referenceBertClassifier(weights, config, ids[row], mask[row], types[row]));
      await withModel(config, weights, async (model) => {
        expect(await largestDifference(run(model), expected)).toBeLessThan(1e-4);
      });
    });

    test('without a head: hidden states and pooled output', async () => {
      const config = { ...bertConfig, architectures: ['BertModel'] };
      const weights = randomWeights(bertShapes(config), 5);
      const hidden = (row: number) => referenceBertEncoder(weights, config, '', ids[row], mask[row], types[row]);
      await withModel(config, weights, async (model) => {
        const [states, pooled] = run(model) as unknown as tf.Tensor[];
        expect(await largestDifference(states, both(hidden))).toBeLessThan(1e-4);
        const expected = both((row) => referenceBertPooled(weights, '', hidden(row)));
        expect(await largestDifference(pooled, expected)).toBeLessThan(1e-4);
      });
    });
  });

  test.each([{}, { num_channels: 1, qkv_bias: false, patch_size: 2 }])('vit %o', async (change) => {
    const config = { ...vitConfig, ...change };
    const weights = randomWeights(vitShapes(config), 6);
    const image = Array.from({ length: 8 }, (_, row) =>
      Array.from({ length: 8 }, (_, column) =>
        Array.from({ length: config.num_channels }, (_, channel) => Math.sin(row * 1.7 + column * 0.9 + channel * 2.3)),
      ),
    );
    await withModel(config, weights, async (model) => {
      const logits = tf.tidy(() => model.apply(tf.tensor4d([image])) as tf.Tensor);
      expect(await largestDifference(logits, referenceVit(weights, config, image))).toBeLessThan(1e-4);
    });
  });

  test('padding on the right changes no score before it (option attentionMask)', async () => {
    const sizes = { vocabSize: 20, hiddenSize: 16, layers: 2, heads: 2, attentionMask: true, initializerRange: 0.3 };
    for (const model of [llama(sizes), gpt2(sizes)]) {
      const scores = (tokens: number[], mask: number[]) =>
        tf.tidy(() => {
          const logits = model.apply([int([tokens]), int([mask])]) as tf.Tensor3D;
          return Array.from(tf.slice(logits, [0, 0, 0], [1, 3, 20]).dataSync());
        });
      const alone = scores([4, 9, 2], [1, 1, 1]);
      const padded = scores([4, 9, 2, 0, 0], [1, 1, 1, 0, 0]);
      padded.forEach((value, i) => {
        expect(Math.abs(value - alone[i])).toBeLessThan(1e-5);
      });
      const hidden = scores([4, 9, 2], [1, 0, 1]);
      expect(Math.max(...hidden.slice(40).map((value, i) => Math.abs(value - alone[i + 40])))).toBeGreaterThan(1e-2);
      model.dispose();
    }
  });
});

test('more positions than the model has are refused, and a tied head needs its embedding', async () => {
  await ready('cpu');
  const model = gpt2({ vocabSize: 5, hiddenSize: 4, layers: 1, heads: 1, maxPositions: 3 });
  expect(() => tf.tidy(() => void model.apply(int([[1, 2, 3, 4]])))).toThrow(
    'transformer.positions: 4 positions given, the model has 3; use a shorter text',
  );
  model.dispose();
  const hidden = tf.input({ shape: [null, 4] });
  const other = tf.layers.dense({ units: 4 }).apply(hidden) as tf.SymbolicTensor;
  const head = new MatforgeTiedHead({ name: 'head', vocabSize: 5 }).apply([hidden, other]) as tf.SymbolicTensor;
  const wrong = tf.model({ inputs: hidden, outputs: head });
  expect(() => tf.tidy(() => void wrong.apply(tf.ones([1, 2, 4])))).toThrow(
    'must come straight from an embedding layer',
  );
  wrong.dispose();
});
