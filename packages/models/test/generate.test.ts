import { attach, defineLinearMethod, detach, normal, ready, trainable } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { z } from 'zod';
import { bert, type GenerateOptions, generate, gpt2, llama } from '../src/index.ts';

const sizes = { vocabSize: 23, hiddenSize: 16, layers: 2, heads: 4, initializerRange: 0.4, seed: 7 };
const makers = {
  llama: () => llama({ ...sizes, kvHeads: 2 }),
  gpt2: () => gpt2({ ...sizes, maxPositions: 24 }),
};

/** y + x·A·B with both factors away from zero, so that attaching it changes every layer. */
const lowRank = defineLinearMethod({
  info: {
    id: 'test-low-rank',
    title: 'test',
    family: 'lora-family',
    kind: 'adapter',
    paper: { title: 'test', year: 2024 },
  },
  config: z.object({}),
  tensors: ({ inDim, outDim }) => ({ A: trainable([inDim, 2], normal(0.5)), B: trainable([2, outDim], normal(0.5)) }),
  forward: (x, { A, B }, { base }) => {
    const flat = tf.reshape(x, [-1, A.shape[0] as number]);
    const delta = tf.matMul(tf.matMul(flat, A as tf.Tensor2D), B as tf.Tensor2D);
    const y = base.apply(x);
    return tf.add(y, tf.reshape(delta, y.shape));
  },
});

/** Greedy continuation by running the whole text at every step. */
function greedy(model: tf.LayersModel, prompt: number[], count: number): number[] {
  const text = [...prompt];
  for (let i = 0; i < count; i++) {
    const next = tf.tidy(() => {
      const logits = model.predict(tf.tensor2d([text], undefined, 'int32')) as tf.Tensor3D;
      return tf.argMax(tf.slice(logits, [0, text.length - 1, 0], [1, 1, sizes.vocabSize]), 2).dataSync()[0];
    });
    text.push(next);
  }
  return text.slice(prompt.length);
}

describe.each(['cpu', 'wasm'])('generate on %s', (backend) => {
  let before: number;
  beforeAll(() => ready(backend));
  beforeEach(() => {
    before = tf.memory().numTensors;
  });
  afterEach(() => expect(tf.memory().numTensors).toBe(before));

  test.each(Object.keys(makers) as (keyof typeof makers)[])(
    '%s: greedy generation with the cache is that of full runs, also with an adapter',
    async (name) => {
      const model = makers[name]();
      const plain = await generate(model, [5, 1, 19], { maxNewTokens: 12 });
      expect(plain).toEqual(greedy(model, [5, 1, 19], 12));
      await attach(model, lowRank({}), { targets: 'all-linear', seed: 1 });
      const adapted = await generate(model, [5, 1, 19], { maxNewTokens: 12 });
      expect(adapted).toEqual(greedy(model, [5, 1, 19], 12));
      expect(adapted).not.toEqual(plain);
      detach(model);
      expect(await generate(model, [5, 1, 19], { maxNewTokens: 12 })).toEqual(plain);
      model.dispose();
    },
  );

  test('several prompts run as if each were alone; a stop token ends its row only', async () => {
    const model = makers.llama();
    const prompts = [
      [5, 1, 19],
      [0, 2, 11],
      [7, 7, 7],
    ];
    const alone = [];
    for (const prompt of prompts) alone.push(await generate(model, prompt, { maxNewTokens: 8 }));
    expect(await generate(model, prompts, { maxNewTokens: 8 })).toEqual(alone);
    const stop = alone[1][3];
    const cut = (tokens: number[]) => (tokens.includes(stop) ? tokens.slice(0, tokens.indexOf(stop)) : tokens);
    expect(await generate(model, prompts, { maxNewTokens: 8, stopTokens: [stop] })).toEqual(alone.map(cut));
    model.dispose();
  });

  test('draws depend on the seed alone, and follow temperature, top-k and top-p', async () => {
    const model = makers.llama();
    const draw = (options: object) => generate(model, [5], { maxNewTokens: 15, temperature: 1.5, ...options });
    expect(await draw({ seed: 3 })).toEqual(await draw({ seed: 3 }));
    expect(await draw({ seed: 3 })).not.toEqual(await draw({ seed: 4 }));
    const likeliest = await generate(model, [5], { maxNewTokens: 15 });
    expect(await draw({ topK: 1 })).toEqual(likeliest);
    expect(await draw({ topP: 1e-6 })).toEqual(likeliest);
    expect(await draw({ temperature: 1e-3 })).toEqual(likeliest);
    model.dispose();
  });

  test('onToken sees every token; an abort stops between tokens and frees the cache', async () => {
    const model = makers.gpt2();
    const seen: number[] = [];
    const controller = new AbortController();
    const onToken = (token: number) => {
      seen.push(token);
      if (seen.length === 4) controller.abort();
    };
    const running = generate(model, [5, 1], { maxNewTokens: 10, onToken, signal: controller.signal });
    await expect(running).rejects.toMatchObject({ name: 'AbortError' });
    expect(seen).toEqual(await generate(model, [5, 1], { maxNewTokens: 4 }));
    model.dispose();
  });
});

test('the frequencies of drawn tokens are those of softmax(logits / temperature), cut by top-k and top-p', async () => {
  await ready('cpu');
  const model = llama({ ...sizes, layers: 1, initializerRange: 0.6 });
  const logits = tf.tidy(() =>
    Array.from((model.apply(tf.tensor2d([[5]], undefined, 'int32')) as tf.Tensor).dataSync()),
  );
  const expectedOf = (temperature: number, keep: (order: number[], p: number[]) => number[]) => {
    const weights = logits.map((value) => Math.exp(value / temperature));
    const total = weights.reduce((a, b) => a + b, 0);
    const p = weights.map((weight) => weight / total);
    const order = logits.map((_, i) => i).sort((a, b) => p[b] - p[a]);
    const kept = new Set(keep(order, p));
    const mass = [...kept].reduce((sum, i) => sum + p[i], 0);
    return p.map((value, i) => (kept.has(i) ? value / mass : 0));
  };
  const untilMass = (order: number[], p: number[]) => {
    let mass = 0;
    return order.filter((i) => {
      const needed = mass < 0.7;
      mass += p[i];
      return needed;
    });
  };
  const cases: [object, number[]][] = [
    [{ temperature: 1 }, expectedOf(1, (order) => order)],
    [{ temperature: 2, topK: 3 }, expectedOf(2, (order) => order.slice(0, 3))],
    [{ temperature: 1, topP: 0.7 }, expectedOf(1, untilMass)],
  ];
  const draws = 2000;
  for (const [options, expected] of cases) {
    const counts = logits.map(() => 0);
    const rows = await generate(
      model,
      Array.from({ length: draws }, () => [5]),
      { maxNewTokens: 1, seed: 11, ...options },
    );
    for (const [token] of rows) counts[token]++;
    counts.forEach((count, i) => {
      // Four standard deviations of a binomial count.
      const deviation = Math.sqrt(draws * expected[i] * (1 - expected[i]));
      expect(Math.abs(count - draws * expected[i])).toBeLessThanOrEqual(4 * deviation);
    });
  }
  model.dispose();
});

describe('generate refuses', () => {
  let model: tf.LayersModel;
  beforeAll(async () => {
    await ready('cpu');
    model = makers.gpt2();
  });
  afterAll(() => model.dispose());

  test.each([
    [[], {}, 'the prompt is empty'],
    [[[1, 2], [3]], {}, 'prompts differ in length: 2 and 1'],
    [[23], {}, 'token 23 at 0 is not in the vocabulary 0 … 22'],
    [[1.5], {}, 'token 1.5 at 0'],
    [[1], { maxNewTokens: 0 }, 'generate.maxNewTokens: must be a positive integer, got 0'],
    [[1], { temperature: -1 }, 'generate.temperature: must be a number ≥ 0, got -1'],
    [[1], { topP: 0 }, 'generate.topP: must be in (0, 1], got 0'],
    [[1], { topp: 1 }, 'did you mean "topP"?'],
    [[1, 2, 3], { maxNewTokens: 23 }, 'prompt 3 and 23 new tokens need 25 positions, the model has 24'],
  ])('%j with %j', async (tokens, options, message) => {
    await expect(generate(model, tokens as number[], options as GenerateOptions)).rejects.toThrow(message);
  });

  test('a model that is no causal language model, and one whose weights are not finite', async () => {
    const encoder = bert({ ...sizes, maxPositions: 8 });
    await expect(generate(encoder, [1])).rejects.toThrow('must have one input and one output');
    encoder.dispose();
    const broken = makers.llama();
    const head = broken.getLayer('lm_head');
    const nan = tf.fill([16, 23], Number.NaN);
    head.setWeights([nan]);
    nan.dispose();
    await expect(generate(broken, [1])).rejects.toThrow('the score of token 0 is NaN');
    broken.dispose();
  });

  test('the last position can be used', async () => {
    expect(await generate(model, [1, 2, 3], { maxNewTokens: 22 })).toHaveLength(22);
  });
});
