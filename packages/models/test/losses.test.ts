import { ready, train } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { classificationLoss, compileLanguageModel, languageModelLoss, llama, mlp, perplexity } from '../src/index.ts';

const int = (rows: number[][]) => tf.tensor2d(rows, undefined, 'int32');
const sizes = { vocabSize: 13, hiddenSize: 16, layers: 2, heads: 4, initializerRange: 0.3, seed: 3 };

/** -log softmax(scores)[label], in float64. */
function surprise(scores: ArrayLike<number>, label: number): number {
  const top = Math.max(...Array.from(scores));
  const total = Array.from(scores).reduce((sum, score) => sum + Math.exp(score - top), 0);
  return Math.log(total) + top - scores[label];
}

describe.each(['cpu', 'wasm'])('losses on %s', (backend) => {
  let before: number;
  beforeAll(() => ready(backend));
  beforeEach(() => {
    before = tf.memory().numTensors;
  });
  afterEach(() => expect(tf.memory().numTensors).toBe(before));

  test('languageModelLoss is the mean surprise of the labels that count', () => {
    const rows = [
      [2, -1, 0.5],
      [0, 0, 30],
      [1, 1, 1],
      [-4, 3, 0],
    ];
    const logits = tf.tensor3d(rows.flat(), [2, 2, 3]);
    const value = (labels: number[][], options?: object) =>
      tf.tidy(() => languageModelLoss(int(labels), logits, options).dataSync()[0]);
    const mean = (pairs: [number, number][]) =>
      pairs.reduce((sum, [row, label]) => sum + surprise(rows[row], label), 0) / pairs.length;
    expect(
      value([
        [0, 1],
        [2, 1],
      ]),
    ).toBeCloseTo(
      mean([
        [0, 0],
        [1, 1],
        [2, 2],
        [3, 1],
      ]),
      5,
    );
    expect(
      value([
        [0, -100],
        [-100, 1],
      ]),
    ).toBeCloseTo(
      mean([
        [0, 0],
        [3, 1],
      ]),
      5,
    );
    expect(
      value(
        [
          [0, 2],
          [2, 2],
        ],
        { ignoreIndex: 2 },
      ),
    ).toBeCloseTo(mean([[0, 0]]), 5);
    expect(
      value(
        [
          [2, 0],
          [2, 1],
        ],
        { shift: true },
      ),
    ).toBeCloseTo(
      mean([
        [0, 0],
        [2, 1],
      ]),
      5,
    );
    expect(
      value([
        [-100, -100],
        [-100, -100],
      ]),
    ).toBe(0);
    expect(() => value([[0], [1]])).toThrow('one label per position is needed');
    logits.dispose();
  });

  test('its gradient is (softmax - one-hot) / count on rows that count and 0 elsewhere', () => {
    const logits = tf.tensor3d([2, -1, 0.5, 1, 1, 1], [1, 2, 3]);
    const gradient = tf.tidy(() =>
      tf
        .grad((x) => languageModelLoss(int([[0, -100]]), x as tf.Tensor))(logits)
        .dataSync(),
    );
    const total = Math.exp(2) + Math.exp(-1) + Math.exp(0.5);
    [Math.exp(2) / total - 1, Math.exp(-1) / total, Math.exp(0.5) / total, 0, 0, 0].forEach((expected, i) => {
      expect(gradient[i]).toBeCloseTo(expected, 5);
    });
    logits.dispose();
  });

  test('classificationLoss takes one-hot and class labels', () => {
    const rows = [
      [2, -1, 0.5],
      [0, 0, 3],
    ];
    const logits = tf.tensor2d(rows);
    const expected = (surprise(rows[0], 1) + surprise(rows[1], 2)) / 2;
    for (const labels of [
      tf.tensor2d([
        [0, 1, 0],
        [0, 0, 1],
      ]),
      tf.tensor1d([1, 2]),
      tf.tensor2d([[1], [2]]),
    ]) {
      const value = classificationLoss(labels, logits);
      expect(value.dataSync()[0]).toBeCloseTo(expected, 5);
      tf.dispose([labels, value]);
    }
    logits.dispose();
  });

  test('perplexity is exp of the mean surprise over windows, every token counted once', async () => {
    const model = llama({ ...sizes, kvHeads: 2 });
    const tokens = Array.from({ length: 24 }, (_, i) => (i * i + 3) % 13);
    let total = 0;
    // 23 predictions in windows of 5: four full ones and one of 3.
    for (let start = 0; start < 23; start += 5) {
      const width = Math.min(5, 23 - start);
      const logits = tf.tidy(() => (model.apply(int([tokens.slice(start, start + width)])) as tf.Tensor).dataSync());
      for (let t = 0; t < width; t++) total += surprise(logits.slice(t * 13, (t + 1) * 13), tokens[start + t + 1]);
    }
    for (const batchSize of [1, 3]) {
      const got = await perplexity(model, tokens, { window: 5, batchSize });
      expect(Math.abs(got / Math.exp(total / 23) - 1)).toBeLessThan(1e-5);
    }
    await expect(perplexity(model, [1])).rejects.toThrow('needs at least 2 tokens, got 1');
    await expect(perplexity(model, tokens, { window: 0 })).rejects.toThrow('perplexity.window');
    await expect(perplexity(model, tokens, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      name: 'AbortError',
    });
    model.dispose();
  });
});

describe('training on wasm', () => {
  let before: number;
  beforeAll(() => ready());
  beforeEach(() => {
    before = tf.memory().numTensors;
  });
  afterEach(() => expect(tf.memory().numTensors).toBe(before));

  test('fit, evaluate and fitDataset train with it', async () => {
    // The text counts round and round: each token tells the next.
    const texts = Array.from({ length: 16 }, (_, row) => Array.from({ length: 9 }, (_, t) => (row + t) % 13));
    const xs = int(texts.map((text) => text.slice(0, -1)));
    const ys = int(texts.map((text) => text.slice(1)));
    const model = llama({ ...sizes, layers: 1, initializerRange: 0.1, kvHeads: 2 });
    const optimizer = tf.train.adam(0.02);
    compileLanguageModel(model, optimizer);
    const first = model.evaluate(xs, ys) as tf.Scalar;
    expect(first.dataSync()[0]).toBeGreaterThan(2);
    await model.fit(xs, ys, { epochs: 15, batchSize: 8, shuffle: false, verbose: 0 });
    const dataset = tf.data.generator(function* () {
      for (const text of texts) yield { xs: text.slice(0, -1), ys: text.slice(1) };
    });
    const batches = dataset.batch(8).map((batch) => {
      const { xs, ys } = batch as { xs: tf.Tensor; ys: tf.Tensor };
      return { xs: tf.cast(xs, 'int32'), ys: tf.cast(ys, 'int32') };
    });
    await model.fitDataset(batches, { epochs: 10, verbose: 0 });
    const last = model.evaluate(xs, ys) as tf.Scalar;
    expect(last.dataSync()[0]).toBeLessThan(0.1);
    expect(await perplexity(model, [3, 4, 5, 6, 7, 8, 9, 10, 11], { window: 8 })).toBeLessThan(1.2);
    tf.dispose([xs, ys, first, last]);
    model.dispose();
    optimizer.dispose();
  });

  test('the training loop of core takes token labels on a model that compileLanguageModel compiled', async () => {
    const texts = Array.from({ length: 16 }, (_, row) => Array.from({ length: 9 }, (_, t) => (row + t) % 13));
    const data = { xs: int(texts.map((text) => text.slice(0, -1))), ys: int(texts.map((text) => text.slice(1))) };
    const model = llama({ ...sizes, layers: 1, initializerRange: 0.1, kvHeads: 2 });
    const optimizer = tf.train.adam(0.02);
    compileLanguageModel(model, optimizer);
    const first = await perplexity(model, texts[0], { window: 8 });
    await train(model, data, { steps: 40, batchSize: 8, seed: 1 });
    expect(first).toBeGreaterThan(8);
    expect(await perplexity(model, texts[0], { window: 8 })).toBeLessThan(1.3);
    tf.dispose(data);
    model.dispose();
    optimizer.dispose();
  });
});

test('compile with classificationLoss trains a network on one-hot labels', async () => {
  await ready('cpu');
  const model = mlp({ input: 2, hidden: [16], outputs: 2, seed: 5 });
  const points = Array.from({ length: 64 }, (_, i) => [Math.cos(i) * (1 + (i % 2)), Math.sin(i) * (1 + (i % 2))]);
  const xs = tf.tensor2d(points);
  const ys = tf.oneHot(
    tf.tensor1d(
      points.map((_, i) => i % 2),
      'int32',
    ),
    2,
  );
  model.compile({ optimizer: tf.train.adam(0.05), loss: classificationLoss, metrics: ['accuracy'] });
  const history = await model.fit(xs, ys, { epochs: 60, verbose: 0 });
  expect(history.history.acc.at(-1)).toBeGreaterThan(0.95);
  tf.dispose([xs, ys]);
  model.dispose();
});
