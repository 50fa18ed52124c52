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
import { MatforgeAttention, MatforgeGatedProduct, MatforgeRMSNorm, MatforgeTiedHead } from './layers.ts';

const ropeScaling = z.discriminatedUnion('type', [
  z.object({ type: z.literal('linear'), factor: option.positive() }),
  z.object({
    type: z.literal('llama3'),
    factor: option.positive(),
    lowFreqFactor: option.positive(),
    highFreqFactor: option.positive(),
    originalMaxPositions: option.count(),
  }),
]);

/** Options of {@link llama}. */
export const llamaOptions = z.object({
  /** Number of tokens. */
  vocabSize: option.count(),
  /** Width of the residual stream. */
  hiddenSize: option.count(),
  /** Width of the feed-forward part. Default 8/3 · hiddenSize, rounded up to a multiple of 8. */
  intermediateSize: option.count().optional(),
  /** Number of blocks. */
  layers: option.count(),
  /** Query heads. */
  heads: option.count(),
  /** Key/value heads; must divide `heads`. Default `heads`. */
  kvHeads: option.count().optional(),
  /** Size of a head, even. Default hiddenSize / heads. */
  headDim: option.count().optional(),
  /** Context length the model is meant for; kept in config.json, rotary positions go on beyond it. */
  maxPositions: option.count().default(2048),
  ropeTheta: option.positive().default(10000),
  ropeScaling: ropeScaling.nullable().default(null),
  rmsNormEps: option.positive().default(1e-5),
  /** The output head is the token embedding. */
  tieWordEmbeddings: z.boolean().default(false),
  /** Biases of the attention projections: none, all four, or q, k and v only (Qwen2). */
  attentionBias: z.union([z.boolean(), z.literal('qkv')]).default(false),
  mlpBias: z.boolean().default(false),
  /** A token sees at most this many tokens (Mistral). */
  slidingWindow: option.count().nullable().default(null),
  activation: z.enum(activationNames).default('silu'),
  /** Adds the input `attention_mask` [batch, positions], 1 for tokens and 0 for padding on the right. */
  attentionMask: z.boolean().default(false),
  /** Standard deviation of the initial weights. */
  initializerRange: option.positive().default(0.02),
  seed: option.seed().default(0),
});

/** Options of {@link llama}, as given. */
export type LlamaOptions = z.input<typeof llamaOptions>;

/**
 * LLaMA (Touvron et al. 2023): RMSNorm before each part, rotary positions, grouped-query attention, SwiGLU. Mistral and
 * Qwen2 are the same with a sliding window and with biases.
 *
 * Input `input_ids` [batch, positions] int32, output logits [batch, positions, vocabSize]. Layers are named like the
 * checkpoint's modules: `model.embed_tokens`, `model.layers.0.self_attn.q_proj`, …, `model.norm`, `lm_head`.
 *
 * @throws MatforgeError naming the option that is wrong.
 */
export function llama(options: LlamaOptions): tf.LayersModel {
  const parsed = parseConfig('llama', llamaOptions, options);
  return buildLlama(parsed, llamaConfig(parsed));
}

type Parsed = z.output<typeof llamaOptions>;

/** Builds the model; `config` is what it remembers and writes as config.json. */
export function buildLlama(options: Parsed, config: HuggingFaceConfig, fill = true): tf.LayersModel {
  const { hiddenSize, heads, kvHeads, headDim, intermediateSize } = sizes(options);
  const architecture = JSON.stringify(config);
  const norm = (name: string, x: Node, extra = {}) =>
    apply(new MatforgeRMSNorm({ name, epsilon: options.rmsNormEps, ...extra }), x);
  const qkvBias = options.attentionBias !== false;
  const tokens = tokenInput('input_ids');
  const mask = options.attentionMask ? [tokenInput('attention_mask')] : [];
  const embedded = apply(embedding('model.embed_tokens', options.vocabSize, hiddenSize), tokens);

  let x = embedded;
  for (let i = 0; i < options.layers; i++) {
    const block = `model.layers.${i}`;
    const h = norm(`${block}.input_layernorm`, x);
    const attention = new MatforgeAttention({
      name: `${block}.self_attn`,
      heads,
      kvHeads,
      headDim,
      causal: true,
      rotary: { theta: options.ropeTheta, scaling: options.ropeScaling },
      slidingWindow: options.slidingWindow,
      masked: options.attentionMask,
    });
    const attended = apply(
      attention,
      apply(dense(`${block}.self_attn.q_proj`, heads * headDim, qkvBias), h),
      apply(dense(`${block}.self_attn.k_proj`, kvHeads * headDim, qkvBias), h),
      apply(dense(`${block}.self_attn.v_proj`, kvHeads * headDim, qkvBias), h),
      ...mask,
    );
    const o = apply(dense(`${block}.self_attn.o_proj`, hiddenSize, options.attentionBias === true), attended);
    x = add(`${block}.self_attn.residual`, x, o);

    const m = norm(`${block}.post_attention_layernorm`, x);
    const gated = apply(
      new MatforgeGatedProduct({ name: `${block}.mlp.act_fn`, activation: options.activation }),
      apply(dense(`${block}.mlp.gate_proj`, intermediateSize, options.mlpBias), m),
      apply(dense(`${block}.mlp.up_proj`, intermediateSize, options.mlpBias), m),
    );
    x = add(`${block}.mlp.residual`, x, apply(dense(`${block}.mlp.down_proj`, hiddenSize, options.mlpBias), gated));
  }
  x = norm('model.norm', x, { architecture });
  const logits = options.tieWordEmbeddings
    ? apply(new MatforgeTiedHead({ name: 'lm_head', vocabSize: options.vocabSize }), x, embedded)
    : apply(dense('lm_head', options.vocabSize, false), x);

  const model = tf.model({ inputs: [tokens, ...mask], outputs: logits, name: 'llama' });
  if (fill) initialize(model, options.seed, options.initializerRange);
  return rememberConfig(model, config);
}

function sizes(options: Parsed) {
  const { hiddenSize, heads } = options;
  const kvHeads = options.kvHeads ?? heads;
  const headDim = options.headDim ?? hiddenSize / heads;
  const intermediateSize = options.intermediateSize ?? Math.ceil(hiddenSize / 3) * 8;
  ensure(
    Number.isInteger(headDim) && headDim % 2 === 0,
    'llama.headDim',
    () => `rotary positions need an even head size; hiddenSize ${hiddenSize} and heads ${heads} give ${headDim}`,
  );
  ensure(heads % kvHeads === 0, 'llama.kvHeads', () => `must divide heads ${heads}, got ${kvHeads}`);
  return { hiddenSize, heads, kvHeads, headDim, intermediateSize };
}

/** The config.json of these options. */
export function llamaConfig(options: Parsed): HuggingFaceConfig {
  const { kvHeads, headDim, intermediateSize } = sizes(options);
  const kind = options.attentionBias === 'qkv' ? 'qwen2' : options.slidingWindow ? 'mistral' : 'llama';
  const scaling = options.ropeScaling;
  return {
    architectures: [{ llama: 'LlamaForCausalLM', mistral: 'MistralForCausalLM', qwen2: 'Qwen2ForCausalLM' }[kind]],
    model_type: kind,
    vocab_size: options.vocabSize,
    hidden_size: options.hiddenSize,
    intermediate_size: intermediateSize,
    num_hidden_layers: options.layers,
    num_attention_heads: options.heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    hidden_act: options.activation,
    max_position_embeddings: options.maxPositions,
    rms_norm_eps: options.rmsNormEps,
    rope_theta: options.ropeTheta,
    rope_scaling: scaling && {
      rope_type: scaling.type,
      factor: scaling.factor,
      ...(scaling.type === 'llama3' && {
        low_freq_factor: scaling.lowFreqFactor,
        high_freq_factor: scaling.highFreqFactor,
        original_max_position_embeddings: scaling.originalMaxPositions,
      }),
    },
    attention_bias: options.attentionBias === true,
    mlp_bias: options.mlpBias,
    tie_word_embeddings: options.tieWordEmbeddings,
    initializer_range: options.initializerRange,
    ...(options.slidingWindow && { sliding_window: options.slidingWindow, use_sliding_window: true }),
    ...(options.slidingWindow && kind === 'qwen2' && { max_window_layers: 0 }),
  };
}

/** The options that a config.json of model_type llama, mistral or qwen2 stands for. */
export function llamaFromConfig(config: HuggingFaceConfig, extra: { seed?: number; attentionMask?: boolean }): Parsed {
  const rope = { ...(config.rope_scaling as object | null), ...(config.rope_parameters as object | null) } as Record<
    string,
    unknown
  >;
  const kind = rope.rope_type ?? rope.type ?? 'default';
  const scaling: Record<string, unknown> = {
    default: null,
    linear: { type: 'linear', factor: rope.factor },
    llama3: {
      type: 'llama3',
      factor: rope.factor,
      lowFreqFactor: rope.low_freq_factor,
      highFreqFactor: rope.high_freq_factor,
      originalMaxPositions: rope.original_max_position_embeddings,
    },
  };
  if (!(String(kind) in scaling)) refuse('config.rope_scaling', `type ${kind} is not supported; linear and llama3 are`);
  const windowed =
    config.model_type === 'qwen2'
      ? config.use_sliding_window === true && Number(config.max_window_layers ?? 0) === 0
      : config.model_type === 'mistral';
  if (config.model_type === 'qwen2' && config.use_sliding_window === true && !windowed) {
    refuse(
      'config.max_window_layers',
      `a sliding window on some layers only is not supported, got ${config.max_window_layers}`,
    );
  }
  return parseConfig('config', llamaOptions, {
    vocabSize: config.vocab_size,
    hiddenSize: config.hidden_size,
    intermediateSize: config.intermediate_size,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    kvHeads: config.num_key_value_heads ?? undefined,
    headDim: config.head_dim ?? undefined,
    maxPositions: config.max_position_embeddings,
    ropeTheta: rope.rope_theta ?? config.rope_theta,
    ropeScaling: scaling[String(kind)],
    rmsNormEps: config.rms_norm_eps ?? 1e-6,
    tieWordEmbeddings: config.tie_word_embeddings,
    attentionBias: config.model_type === 'qwen2' ? 'qkv' : config.attention_bias,
    mlpBias: config.mlp_bias,
    slidingWindow: windowed ? (config.sliding_window ?? null) : null,
    activation: config.hidden_act,
    initializerRange: config.initializer_range,
    ...extra,
  });
}
