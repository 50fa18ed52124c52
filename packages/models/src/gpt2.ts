import { ensure, option, parseConfig, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import {
  add,
  apply,
  dense,
  embedding,
  type HuggingFaceConfig,
  initialize,
  type Node,
  rememberConfig,
  tokenInput,
} from './architecture.ts';
import { activationNames } from './functions.ts';
import {
  MatforgeActivation,
  MatforgeAttention,
  MatforgeLayerNorm,
  MatforgePositions,
  MatforgeTiedHead,
} from './layers.ts';

/** Options of {@link gpt2}. */
export const gpt2Options = z.object({
  /** Number of tokens. */
  vocabSize: option.count(),
  /** Width of the residual stream. */
  hiddenSize: option.count(),
  /** Width of the feed-forward part. Default 4 · hiddenSize. */
  intermediateSize: option.count().optional(),
  /** Number of blocks. */
  layers: option.count(),
  /** Heads; must divide `hiddenSize`. */
  heads: option.count(),
  /** Rows of the position table: the longest text. */
  maxPositions: option.count().default(1024),
  layerNormEps: option.positive().default(1e-5),
  activation: z.enum(activationNames).default('gelu_new'),
  /** Adds the input `attention_mask` [batch, positions], 1 for tokens and 0 for padding on the right. */
  attentionMask: z.boolean().default(false),
  /** Standard deviation of the initial weights. */
  initializerRange: option.positive().default(0.02),
  seed: option.seed().default(0),
});

/** Options of {@link gpt2}, as given. */
export type Gpt2Options = z.input<typeof gpt2Options>;

type Parsed = z.output<typeof gpt2Options>;

/**
 * GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each part, GELU, the output head tied to the token
 * embedding.
 *
 * Input `input_ids` [batch, positions] int32, output logits [batch, positions, vocabSize]. Layers are named like the
 * checkpoint's modules: `transformer.wte`, `transformer.h.0.attn.c_attn`, …, `transformer.ln_f`, `lm_head`.
 *
 * @throws MatforgeError naming the option that is wrong.
 */
export function gpt2(options: Gpt2Options): tf.LayersModel {
  const parsed = parseConfig('gpt2', gpt2Options, options);
  return buildGpt2(parsed, gpt2Config(parsed));
}

/** Builds the model; `config` is what it remembers and writes as config.json. */
export function buildGpt2(options: Parsed, config: HuggingFaceConfig, fill = true): tf.LayersModel {
  const { hiddenSize, heads, layers, vocabSize, maxPositions } = options;
  ensure(hiddenSize % heads === 0, 'gpt2.heads', () => `must divide hiddenSize ${hiddenSize}, got ${heads}`);
  const architecture = JSON.stringify(config);
  const norm = (name: string, x: Node, extra = {}) =>
    apply(new MatforgeLayerNorm({ name, epsilon: options.layerNormEps, ...extra }), x);
  const tokens = tokenInput('input_ids');
  const mask = options.attentionMask ? [tokenInput('attention_mask')] : [];
  const embedded = apply(embedding('transformer.wte', vocabSize, hiddenSize), tokens);
  const positions = apply(new MatforgePositions({ name: 'transformer.positions', maxPositions }), tokens);

  let x = add(
    'transformer.embeddings',
    embedded,
    apply(embedding('transformer.wpe', maxPositions, hiddenSize), positions),
  );
  for (let i = 0; i < layers; i++) {
    const block = `transformer.h.${i}`;
    const attention = new MatforgeAttention({
      name: `${block}.attn`,
      heads,
      kvHeads: heads,
      headDim: hiddenSize / heads,
      causal: true,
      fused: true,
      masked: options.attentionMask,
    });
    const qkv = apply(dense(`${block}.attn.c_attn`, 3 * hiddenSize, true), norm(`${block}.ln_1`, x));
    const attended = apply(attention, qkv, ...mask);
    x = add(`${block}.attn.residual`, x, apply(dense(`${block}.attn.c_proj`, hiddenSize, true), attended));

    const wide = apply(
      dense(`${block}.mlp.c_fc`, options.intermediateSize ?? 4 * hiddenSize, true),
      norm(`${block}.ln_2`, x),
    );
    const active = apply(new MatforgeActivation({ name: `${block}.mlp.act`, activation: options.activation }), wide);
    x = add(`${block}.mlp.residual`, x, apply(dense(`${block}.mlp.c_proj`, hiddenSize, true), active));
  }
  x = norm('transformer.ln_f', x, { architecture });
  const logits = apply(new MatforgeTiedHead({ name: 'lm_head', vocabSize }), x, embedded);

  const model = tf.model({ inputs: [tokens, ...mask], outputs: logits, name: 'gpt2' });
  if (fill) {
    // Projections back into the residual stream start smaller, by the number of them (GPT-2 paper, section 2.3).
    const residual = options.initializerRange / Math.sqrt(2 * layers);
    initialize(model, options.seed, ({ name }) => (name.endsWith('.c_proj') ? residual : options.initializerRange));
  }
  return rememberConfig(model, config);
}

/** The config.json of these options. */
export function gpt2Config(options: Parsed): HuggingFaceConfig {
  return {
    architectures: ['GPT2LMHeadModel'],
    model_type: 'gpt2',
    vocab_size: options.vocabSize,
    n_embd: options.hiddenSize,
    n_inner: options.intermediateSize ?? null,
    n_layer: options.layers,
    n_head: options.heads,
    n_positions: options.maxPositions,
    n_ctx: options.maxPositions,
    activation_function: options.activation,
    layer_norm_epsilon: options.layerNormEps,
    initializer_range: options.initializerRange,
    tie_word_embeddings: true,
  };
}

/** The options that a config.json of model_type gpt2 stands for. */
export function gpt2FromConfig(config: HuggingFaceConfig, extra: { seed?: number; attentionMask?: boolean }): Parsed {
  if (config.tie_word_embeddings === false) refuse('config.tie_word_embeddings', 'false is not supported for gpt2');
  for (const field of ['scale_attn_by_inverse_layer_idx', 'reorder_and_upcast_attn', 'add_cross_attention']) {
    if (config[field] === true) refuse(`config.${field}`, 'true is not supported');
  }
  return parseConfig('config', gpt2Options, {
    vocabSize: config.vocab_size,
    hiddenSize: config.n_embd,
    intermediateSize: config.n_inner ?? undefined,
    layers: config.n_layer,
    heads: config.n_head,
    maxPositions: config.n_positions,
    layerNormEps: config.layer_norm_epsilon,
    activation: config.activation_function,
    initializerRange: config.initializer_range,
    ...extra,
  });
}
