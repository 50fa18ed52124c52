// Random checkpoints as transformers writes them: keys and shapes spelled out from the Hugging Face models.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { random, writeCheckpoint } from '@matforge/core';
import type * as tf from '@tensorflow/tfjs';
import type { Weights } from './reference.ts';

type Shapes = Record<string, number[]>;

const linear = (name: string, out: number, width: number, bias = true): Shapes => ({
  [`${name}.weight`]: [out, width],
  ...(bias && { [`${name}.bias`]: [out] }),
});
const norm = (name: string, width: number): Shapes => ({ [`${name}.weight`]: [width], [`${name}.bias`]: [width] });
const blocks = (count: number, shapes: (l: number) => Shapes): Shapes =>
  Object.assign({}, ...Array.from({ length: count }, (_, l) => shapes(l)));

export const llamaConfig = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 37,
  hidden_size: 24,
  intermediate_size: 40,
  num_hidden_layers: 2,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  hidden_act: 'silu',
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: false,
  attention_bias: false,
};
// biome-ignore lint/suspicious/noExplicitAny: a config.json.
export function llamaShapes(c: any): Shapes {
  const size = c.head_dim ?? c.hidden_size / c.num_attention_heads;
  const kv = c.num_key_value_heads * size;
  const qkvBias = c.attention_bias === true || c.model_type === 'qwen2';
  return {
    'model.embed_tokens.weight': [c.vocab_size, c.hidden_size],
    ...blocks(c.num_hidden_layers, (l) => {
      const p = `model.layers.${l}`;
      return {
        [`${p}.input_layernorm.weight`]: [c.hidden_size],
        [`${p}.post_attention_layernorm.weight`]: [c.hidden_size],
        ...linear(`${p}.self_attn.q_proj`, c.num_attention_heads * size, c.hidden_size, qkvBias),
        ...linear(`${p}.self_attn.k_proj`, kv, c.hidden_size, qkvBias),
        ...linear(`${p}.self_attn.v_proj`, kv, c.hidden_size, qkvBias),
        ...linear(`${p}.self_attn.o_proj`, c.hidden_size, c.num_attention_heads * size, c.attention_bias === true),
        ...linear(`${p}.mlp.gate_proj`, c.intermediate_size, c.hidden_size, c.mlp_bias === true),
        ...linear(`${p}.mlp.up_proj`, c.intermediate_size, c.hidden_size, c.mlp_bias === true),
        ...linear(`${p}.mlp.down_proj`, c.hidden_size, c.intermediate_size, c.mlp_bias === true),
      };
    }),
    'model.norm.weight': [c.hidden_size],
    ...(c.tie_word_embeddings ? {} : { 'lm_head.weight': [c.vocab_size, c.hidden_size] }),
  };
}

export const gpt2Config = {
  architectures: ['GPT2LMHeadModel'],
  model_type: 'gpt2',
  vocab_size: 31,
  n_embd: 20,
  n_layer: 2,
  n_head: 4,
  n_positions: 32,
  activation_function: 'gelu_new',
  layer_norm_epsilon: 1e-5,
};
// biome-ignore lint/suspicious/noExplicitAny: a config.json.
export function gpt2Shapes(c: any): Shapes {
  const d = c.n_embd;
  const inner = c.n_inner ?? 4 * d;
  const conv1d = (name: string, width: number, out: number) => ({
    [`${name}.weight`]: [width, out],
    [`${name}.bias`]: [out],
  });
  return {
    'transformer.wte.weight': [c.vocab_size, d],
    'transformer.wpe.weight': [c.n_positions, d],
    ...blocks(c.n_layer, (l) => {
      const p = `transformer.h.${l}`;
      return {
        ...norm(`${p}.ln_1`, d),
        ...norm(`${p}.ln_2`, d),
        ...conv1d(`${p}.attn.c_attn`, d, 3 * d),
        ...conv1d(`${p}.attn.c_proj`, d, d),
        ...conv1d(`${p}.mlp.c_fc`, d, inner),
        ...conv1d(`${p}.mlp.c_proj`, inner, d),
      };
    }),
    ...norm('transformer.ln_f', d),
  };
}

export const bertConfig = {
  architectures: ['BertForMaskedLM'],
  model_type: 'bert',
  vocab_size: 29,
  hidden_size: 24,
  intermediate_size: 36,
  num_hidden_layers: 2,
  num_attention_heads: 3,
  max_position_embeddings: 20,
  type_vocab_size: 2,
  hidden_act: 'gelu',
  layer_norm_eps: 1e-12,
};
// biome-ignore lint/suspicious/noExplicitAny: a config.json.
export function bertShapes(c: any): Shapes {
  const d = c.hidden_size;
  const kind = c.architectures[0];
  const base = kind === 'BertModel' ? '' : 'bert.';
  return {
    [`${base}embeddings.word_embeddings.weight`]: [c.vocab_size, d],
    [`${base}embeddings.position_embeddings.weight`]: [c.max_position_embeddings, d],
    [`${base}embeddings.token_type_embeddings.weight`]: [c.type_vocab_size, d],
    ...norm(`${base}embeddings.LayerNorm`, d),
    ...blocks(c.num_hidden_layers, (l) => {
      const p = `${base}encoder.layer.${l}`;
      return {
        ...linear(`${p}.attention.self.query`, d, d),
        ...linear(`${p}.attention.self.key`, d, d),
        ...linear(`${p}.attention.self.value`, d, d),
        ...linear(`${p}.attention.output.dense`, d, d),
        ...norm(`${p}.attention.output.LayerNorm`, d),
        ...linear(`${p}.intermediate.dense`, c.intermediate_size, d),
        ...linear(`${p}.output.dense`, d, c.intermediate_size),
        ...norm(`${p}.output.LayerNorm`, d),
      };
    }),
    ...(kind === 'BertForMaskedLM'
      ? {
          ...linear('cls.predictions.transform.dense', d, d),
          ...norm('cls.predictions.transform.LayerNorm', d),
          'cls.predictions.bias': [c.vocab_size],
        }
      : linear(`${base}pooler.dense`, d, d)),
    ...(kind === 'BertForSequenceClassification' && linear('classifier', Object.keys(c.id2label).length, d)),
  };
}

export const vitConfig = {
  architectures: ['ViTForImageClassification'],
  model_type: 'vit',
  image_size: 8,
  patch_size: 4,
  num_channels: 3,
  hidden_size: 24,
  intermediate_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 3,
  hidden_act: 'gelu',
  layer_norm_eps: 1e-12,
  qkv_bias: true,
  id2label: { 0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e' },
};
// biome-ignore lint/suspicious/noExplicitAny: a config.json.
export function vitShapes(c: any): Shapes {
  const d = c.hidden_size;
  return {
    'vit.embeddings.cls_token': [1, 1, d],
    'vit.embeddings.position_embeddings': [1, 1 + (c.image_size / c.patch_size) ** 2, d],
    'vit.embeddings.patch_embeddings.projection.weight': [d, c.num_channels, c.patch_size, c.patch_size],
    'vit.embeddings.patch_embeddings.projection.bias': [d],
    ...blocks(c.num_hidden_layers, (l) => {
      const p = `vit.encoder.layer.${l}`;
      return {
        ...norm(`${p}.layernorm_before`, d),
        ...norm(`${p}.layernorm_after`, d),
        ...linear(`${p}.attention.attention.query`, d, d, c.qkv_bias),
        ...linear(`${p}.attention.attention.key`, d, d, c.qkv_bias),
        ...linear(`${p}.attention.attention.value`, d, d, c.qkv_bias),
        ...linear(`${p}.attention.output.dense`, d, d),
        ...linear(`${p}.intermediate.dense`, c.intermediate_size, d),
        ...linear(`${p}.output.dense`, d, c.intermediate_size),
      };
    }),
    ...norm('vit.layernorm', d),
    ...linear('classifier', Object.keys(c.id2label).length, d),
  };
}

/** Random float32 weights, large enough that attention and activations are far from linear. */
export function randomWeights(shapes: Shapes, seed: number): Weights {
  return Object.fromEntries(
    Object.entries(shapes).map(([key, shape]) => {
      const stream = random(seed).fork(key);
      const size = shape.reduce((a, b) => a * b, 1);
      const isNorm = /(norm|LayerNorm|ln_.)\.weight$/.test(key);
      const scale = shape.length > 1 && !key.includes('embed') ? 1.5 / Math.sqrt(shape[shape.length - 1]) : 0.5;
      const draw = () => Math.fround(isNorm ? 1 + 0.3 * stream.gaussian() : scale * stream.gaussian());
      return [key, { shape, data: Float64Array.from({ length: size }, draw) }];
    }),
  );
}

/** A directory that is removed afterwards. */
export async function withDirectory<T>(use: (directory: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(tmpdir(), 'matforge-models-'));
  try {
    return await use(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Writes config.json and model.safetensors (or shards). */
export async function writePretrained(
  directory: string,
  config: object,
  weights: Weights,
  maxShardBytes?: number,
): Promise<void> {
  await writeFile(join(directory, 'config.json'), JSON.stringify(config));
  const tensors = Object.fromEntries(
    Object.entries(weights).map(([key, { shape, data }]) => [key, { dtype: 'F32' as const, shape, data }]),
  );
  await writeCheckpoint(directory, tensors, { maxShardBytes });
}

/** Largest difference between a tensor (which is disposed) and the reference's rows. */
export async function largestDifference(output: tf.Tensor, expected: Float64Array[]): Promise<number> {
  const got = await output.data();
  output.dispose();
  const flat = expected.flatMap((row) => Array.from(row));
  expect(got.length).toBe(flat.length);
  return flat.reduce((largest, value, i) => Math.max(largest, Math.abs(value - got[i])), 0);
}
