import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readSafetensors, ready, writeCheckpoint } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import {
  bert,
  cnn,
  configOf,
  fromConfig,
  gpt2,
  llama,
  loadPretrained,
  mlp,
  savePretrained,
  vit,
} from '../src/index.ts';
import {
  bertConfig,
  bertShapes,
  gpt2Config,
  gpt2Shapes,
  llamaConfig,
  llamaShapes,
  randomWeights,
  vitConfig,
  vitShapes,
  withDirectory,
  writePretrained,
} from './checkpoints.ts';
import type { Weights } from './reference.ts';

let before: number;
beforeAll(() => ready('cpu'));
beforeEach(() => {
  before = tf.memory().numTensors;
});
afterEach(() => expect(tf.memory().numTensors).toBe(before));

/** name → shape and values of all tensors in a directory. */
async function contents(directory: string): Promise<Record<string, { shape: number[]; data: Float32Array }>> {
  const files = (await readdir(directory)).filter((file) => file.endsWith('.safetensors'));
  const result: Record<string, { shape: number[]; data: Float32Array }> = {};
  for (const file of files) {
    const { tensors } = await readSafetensors(join(directory, file));
    for (const [name, tensor] of Object.entries(tensors)) {
      result[name] = { shape: tensor.shape, data: (await tensor.data()) as Float32Array };
    }
    tf.dispose(tensors);
  }
  return result;
}

const kinds: [string, { model_type: string }, (config: object) => Record<string, number[]>][] = [
  ['llama', llamaConfig, llamaShapes],
  ['llama, tied', { ...llamaConfig, tie_word_embeddings: true } as never, llamaShapes],
  ['gpt2', gpt2Config, gpt2Shapes],
  ['bert', bertConfig, bertShapes],
  ['bert without a head', { ...bertConfig, architectures: ['BertModel'] } as never, bertShapes],
  ['vit', vitConfig, vitShapes],
];

test.each(kinds)(
  '%s: what is loaded and saved again is the same file: keys, shapes, bits',
  async (_, config, shapes) => {
    const weights = randomWeights(shapes(config), 8);
    await withDirectory(async (directory) => {
      await writePretrained(directory, { ...config, bos_token_id: 1 }, weights);
      const model = await loadPretrained(directory);
      const copy = join(directory, 'copy');
      await savePretrained(model, copy);
      const saved = await contents(copy);
      expect(Object.keys(saved).sort()).toEqual(Object.keys(weights).sort());
      for (const [key, { shape, data }] of Object.entries(weights)) {
        expect(saved[key].shape).toEqual(shape);
        expect(saved[key].data).toEqual(Float32Array.from(data));
      }
      const written = JSON.parse(await readFile(join(copy, 'config.json'), 'utf8'));
      expect(written).toMatchObject({ ...config, bos_token_id: 1, dtype: 'float32', torch_dtype: 'float32' });
      model.dispose();
    });
  },
);

test.each([
  [
    'llama',
    () =>
      llama({
        vocabSize: 9,
        hiddenSize: 8,
        layers: 1,
        heads: 2,
        kvHeads: 1,
        ropeScaling: { type: 'linear', factor: 2 },
      }),
  ],
  ['mistral', () => llama({ vocabSize: 9, hiddenSize: 8, layers: 1, heads: 2, slidingWindow: 3 })],
  [
    'qwen2',
    () => llama({ vocabSize: 9, hiddenSize: 8, layers: 1, heads: 2, attentionBias: 'qkv', tieWordEmbeddings: true }),
  ],
  ['gpt2', () => gpt2({ vocabSize: 9, hiddenSize: 8, layers: 1, heads: 2 })],
  ['bert', () => bert({ vocabSize: 9, hiddenSize: 8, layers: 1, heads: 2, head: 'classification', classes: 3 })],
  ['vit', () => vit({ imageSize: 4, patchSize: 2, hiddenSize: 8, layers: 1, heads: 2, classes: 3 })],
  ['mlp', () => mlp({ input: [3, 2], hidden: [5, 4], outputs: 3, activation: 'tanh' })],
  ['cnn', () => cnn({ input: [8, 8, 2], filters: [3, 4], outputs: 3 })],
])(
  '%s: a new model survives savePretrained and loadPretrained, and all but mlp and cnn model.save too',
  async (type, make) => {
    const model = make();
    expect(configOf(model).model_type).toBe(type);
    const inputs = model.inputs.map(({ shape, dtype }) =>
      dtype === 'int32' ? tf.tensor2d([[1, 0, 1, 1]], undefined, 'int32') : tf.ones(shape.map((size) => size ?? 1)),
    );
    const run = (of: tf.LayersModel) => tf.tidy(() => Array.from((of.apply(inputs) as tf.Tensor).dataSync()));
    const expected = run(model);
    expect(expected.some((value) => Math.abs(value) > 1e-4)).toBe(true);
    await withDirectory(async (directory) => {
      await savePretrained(model, join(directory, 'saved'));
      const loaded = await loadPretrained(join(directory, 'saved'));
      expect(run(loaded)).toEqual(expected);
      expect(configOf(loaded).model_type).toBe(type);

      let artifacts: tf.io.ModelArtifacts | undefined;
      const handler = tf.io.withSaveHandler(async (given) => {
        artifacts = given;
        return { modelArtifactsInfo: { dateSaved: new Date(), modelTopologyType: 'JSON' } };
      });
      await loaded.save(handler);
      const restored = await tf.loadLayersModel(tf.io.fromMemory(artifacts as tf.io.ModelArtifacts));
      expect(run(restored)).toEqual(expected);
      if (type !== 'mlp' && type !== 'cnn') {
        expect(configOf(restored)).toEqual(configOf(loaded));
        await savePretrained(restored, join(directory, 'again'));
        expect(await contents(join(directory, 'again'))).toEqual(await contents(join(directory, 'saved')));
      }
      restored.dispose();
      loaded.dispose();
    });
    tf.dispose(inputs);
    model.dispose();
  },
);

describe('loading', () => {
  const weights = () => randomWeights(gpt2Shapes(gpt2Config), 9);
  const load = (config: object, tensors: Weights, use: (directory: string) => Promise<void>, shard?: number) =>
    withDirectory(async (directory) => {
      await writePretrained(directory, config, tensors, shard);
      await use(directory);
    });
  const wte = (model: tf.LayersModel) => model.getLayer('transformer.wte').getWeights()[0].dataSync();

  test('reads shards', async () => {
    await load(
      gpt2Config,
      weights(),
      async (directory) => {
        expect(
          (await readdir(directory)).filter((file) => /^model-.*\.safetensors$/.test(file)).length,
        ).toBeGreaterThan(2);
        const model = await loadPretrained(directory);
        expect(wte(model)).toEqual(Float32Array.from(weights()['transformer.wte.weight'].data));
        model.dispose();
      },
      8000,
    );
  });

  test('understands a checkpoint of the base model, its buffers and tied copies', async () => {
    const bare = Object.fromEntries(
      Object.entries(weights()).map(([key, value]) => [key.replace('transformer.', ''), value]),
    );
    bare['h.0.attn.bias'] = { shape: [1, 1, 2, 2], data: new Float64Array(4) };
    bare['lm_head.weight'] = bare['wte.weight'];
    await load(gpt2Config, bare, async (directory) => {
      const model = await loadPretrained(directory);
      expect(wte(model)).toEqual(Float32Array.from(weights()['transformer.wte.weight'].data));
      model.dispose();
    });
  });

  test('takes half precision, and writes it', async () => {
    const model = gpt2({ vocabSize: 9, hiddenSize: 8, layers: 1, heads: 2 });
    await withDirectory(async (directory) => {
      await savePretrained(model, join(directory, 'half'), { dtype: 'BF16' });
      const loaded = await loadPretrained(join(directory, 'half'));
      const [exact, rounded] = [wte(model), wte(loaded)];
      exact.forEach((value, i) => {
        // bfloat16 keeps 8 significant bits.
        expect(Math.abs(rounded[i] - value)).toBeLessThanOrEqual(Math.abs(value) * 2 ** -8);
      });
      expect(rounded).not.toEqual(exact);
      expect(JSON.parse(await readFile(join(directory, 'half', 'config.json'), 'utf8')).torch_dtype).toBe('bfloat16');
      loaded.dispose();
    });
    model.dispose();
  });

  test('lists every missing and unexpected key and wrong shape, and leaves nothing behind', async () => {
    const broken = weights();
    delete broken['transformer.h.0.ln_1.weight'];
    delete broken['transformer.h.1.mlp.c_fc.bias'];
    broken['transformer.extra.weight'] = { shape: [1], data: new Float64Array(1) };
    broken['transformer.wpe.weight'] = { shape: [3, 20], data: new Float64Array(60) };
    await load(gpt2Config, broken, async (directory) => {
      await expect(loadPretrained(directory)).rejects.toThrow(
        'missing: transformer.h.0.ln_1.weight, transformer.h.1.mlp.c_fc.bias; unexpected: transformer.extra.weight; ' +
          'transformer.wpe.weight has shape [3,20], config.json asks for [32,20]',
      );
    });
  });

  test('a new head on old weights: left-over keys ignored, missing ones drawn from the seed', async () => {
    const masked = randomWeights(bertShapes(bertConfig), 10);
    await load(bertConfig, masked, async (directory) => {
      const options = {
        head: 'classification',
        ignoreUnexpected: /^cls\./,
        initializeMissing: /^(classifier|bert\.pooler)\./,
      } as const;
      await expect(loadPretrained(directory, { head: 'classification' })).rejects.toThrow(
        'missing: bert.pooler.dense.weight',
      );
      const model = await loadPretrained(directory, { ...options, seed: 3 });
      const kernel = (of: tf.LayersModel, name: string) => of.getLayer(name).getWeights()[0].dataSync();
      expect(kernel(model, 'bert.embeddings.word_embeddings')).toEqual(
        Float32Array.from(masked['bert.embeddings.word_embeddings.weight'].data),
      );
      expect(kernel(model, 'classifier').some((value) => value !== 0)).toBe(true);
      expect(configOf(model).architectures).toEqual(['BertForSequenceClassification']);
      const other = await loadPretrained(directory, { ...options, seed: 4 });
      expect(kernel(other, 'classifier')).not.toEqual(kernel(model, 'classifier'));
      model.dispose();
      other.dispose();
    });
  });

  test('refuses a value that is not finite', async () => {
    const broken = weights();
    broken['transformer.h.1.attn.c_attn.bias'].data[7] = Number.NaN;
    await load(gpt2Config, broken, async (directory) => {
      await expect(loadPretrained(directory)).rejects.toThrow('transformer.h.1.attn.c_attn.bias: value NaN at index 7');
    });
  });

  test('refuses a directory without config, without weights, and a truncated file', async () => {
    await withDirectory(async (directory) => {
      await expect(loadPretrained(directory)).rejects.toThrow('config.json');
      await writeFile(join(directory, 'config.json'), JSON.stringify(gpt2Config));
      await expect(loadPretrained(directory)).rejects.toThrow('model.safetensors');
      await writeCheckpoint(directory, { a: { dtype: 'F32', shape: [100], data: new Float32Array(100) } });
      const file = join(directory, 'model.safetensors');
      await writeFile(file, (await readFile(file)).subarray(0, 200));
      await expect(loadPretrained(directory)).rejects.toThrow('model.safetensors');
    });
  });
});

test('savePretrained does not overwrite unasked', async () => {
  const model = mlp({ input: 2, outputs: 2 });
  await withDirectory(async (directory) => {
    await savePretrained(model, join(directory, 'a'));
    await expect(savePretrained(model, join(directory, 'a'))).rejects.toThrow('exists');
    await savePretrained(model, join(directory, 'a'), { overwrite: true });
  });
  model.dispose();
});

test.each([
  [{ model_type: 't5' }, 'config.model_type: "t5" is not supported; supported are llama, mistral'],
  [{ ...llamaConfig, num_attention_heads: 5 }, 'hiddenSize 24 and heads 5 give 4.8'],
  [{ ...llamaConfig, num_key_value_heads: 4 }, 'llama.kvHeads: must divide heads 6, got 4'],
  [{ ...llamaConfig, hidden_size: undefined }, 'config.hiddenSize: must be a positive integer, got undefined'],
  [
    { ...llamaConfig, hidden_act: 'mish' },
    'config.activation: must be one of "relu", "tanh", "silu", "gelu", "gelu_new", got "mish"',
  ],
  [
    { ...llamaConfig, rope_scaling: { rope_type: 'yarn', factor: 2 } },
    'type yarn is not supported; linear and llama3 are',
  ],
  [{ ...bertConfig, architectures: ['BertForQuestionAnswering'] }, 'BertForQuestionAnswering is not supported'],
  [{ ...bertConfig, position_embedding_type: 'relative_key' }, 'relative_key is not supported'],
  [{ ...vitConfig, patch_size: 3 }, 'vit.patchSize: must divide imageSize 8, got 3'],
])('fromConfig refuses %j', (config, message) => {
  expect(() => fromConfig(config as never)).toThrow(message);
});

test('weights depend on the seed and the name alone; GPT-2 starts its residual projections smaller', () => {
  const sizes = { vocabSize: 50, hiddenSize: 64, layers: 2, heads: 2 };
  const kernel = (model: tf.LayersModel, name: string) => model.getLayer(name).getWeights()[0].dataSync();
  const deviation = (values: ArrayLike<number>) =>
    Math.sqrt(Array.from(values).reduce((sum, value) => sum + value * value, 0) / values.length);
  const models = [gpt2({ ...sizes, seed: 1 }), gpt2({ ...sizes, seed: 1 }), gpt2({ ...sizes, seed: 2 })];
  const [first, same, other] = models.map((model) => kernel(model, 'transformer.h.0.attn.c_attn'));
  expect(first).toEqual(same);
  expect(first).not.toEqual(other);
  expect(deviation(first)).toBeGreaterThan(0.0195);
  expect(deviation(first)).toBeLessThan(0.0205);
  expect(deviation(kernel(models[0], 'transformer.h.1.mlp.c_proj')) * Math.sqrt(4)).toBeCloseTo(0.02, 3);
  expect(kernel(models[0], 'transformer.h.0.attn.c_proj')).not.toEqual(
    kernel(models[0], 'transformer.h.1.attn.c_proj'),
  );
  for (const model of models) model.dispose();
});

test('mlp and cnn: layers, shapes, options', () => {
  const names = (model: tf.LayersModel) => model.layers.map(({ name }) => name);
  const network = mlp({ input: 4, hidden: [8, 6], outputs: 3, outputActivation: 'softmax' });
  expect(names(network)).toEqual(['inputs', 'layers.0', 'layers.1', 'head']);
  expect(network.countParams()).toBe(4 * 8 + 8 + 8 * 6 + 6 + 6 * 3 + 3);
  const sums = tf.tidy(() => tf.sum(network.predict(tf.ones([2, 4])) as tf.Tensor, 1).dataSync());
  for (const sum of sums) expect(sum).toBeCloseTo(1, 5);
  const images = cnn({ input: [28, 28, 1], filters: [8, 16], hidden: [32], outputs: 10 });
  expect(names(images)).toEqual(['inputs', 'conv.0', 'pool.0', 'conv.1', 'pool.1', 'flatten', 'layers.0', 'head']);
  expect(images.outputs[0].shape).toEqual([null, 10]);
  expect(images.countParams()).toBe(80 + 1168 + 7 * 7 * 16 * 32 + 32 + 330);
  expect(() => mlp({ input: 4, outputs: 0 })).toThrow('mlp.outputs: must be a positive integer, got 0');
  expect(() => mlp({ input: 4, outputs: 1, layers: [3] } as never)).toThrow('mlp.layers: unknown option');
  expect(() => cnn({ input: [7, 7, 1], filters: [1, 1, 1], outputs: 2 })).toThrow(
    '3 poolings by 2 need images of 8 pixels, got 7',
  );
  network.dispose();
  images.dispose();
});
