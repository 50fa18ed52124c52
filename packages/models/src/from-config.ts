import { refuse } from '@matforge/core';
import type * as tf from '@tensorflow/tfjs';
import type { HuggingFaceConfig } from './architecture.ts';
import { bertFromConfig, buildBert } from './bert.ts';
import { buildCnn, cnnFromConfig } from './cnn.ts';
import { buildGpt2, gpt2FromConfig } from './gpt2.ts';
import { buildLlama, llamaFromConfig } from './llama.ts';
import { buildMlp, mlpFromConfig } from './mlp.ts';
import { buildVit, vitFromConfig } from './vit.ts';

/** Options of {@link fromConfig}. */
export interface FromConfigOptions {
  /** Seed of the initial weights. Default 0. */
  seed?: number;
  /** BERT: which head; default as `architectures` says. */
  head?: 'none' | 'masked-lm' | 'classification';
  /** GPT-2, LLaMA: adds the input `attention_mask`. Default false. */
  attentionMask?: boolean;
}

type Builder = (config: HuggingFaceConfig, options: FromConfigOptions, fill: boolean) => tf.LayersModel;

const llamaLike: Builder = (config, { seed, attentionMask }, fill) =>
  buildLlama(llamaFromConfig(config, { seed, attentionMask }), config, fill);

const builders: Record<string, Builder> = {
  llama: llamaLike,
  mistral: llamaLike,
  qwen2: llamaLike,
  gpt2: (config, { seed, attentionMask }, fill) =>
    buildGpt2(gpt2FromConfig(config, { seed, attentionMask }), config, fill),
  bert: (config, { seed, head }, fill) => buildBert(bertFromConfig(config, { seed, head }), config, fill),
  vit: (config, { seed }, fill) => buildVit(vitFromConfig(config, { seed }), config, fill),
  mlp: (config, { seed }, fill) => buildMlp(mlpFromConfig(config, { seed }), config, fill),
  cnn: (config, { seed }, fill) => buildCnn(cnnFromConfig(config, { seed }), config, fill),
};

/**
 * Builds the model of a Hugging Face `config.json` object with random weights: model_type llama, mistral, qwen2, gpt2,
 * bert, vit, or this package's own mlp and cnn.
 *
 * @throws MatforgeError naming the model type or the field that is not supported.
 */
export function fromConfig(config: HuggingFaceConfig, options: FromConfigOptions = {}): tf.LayersModel {
  return buildFromConfig(config, options, true);
}

/** As {@link fromConfig}; without `fill` the weights stay at zero, to be overwritten. */
export function buildFromConfig(config: HuggingFaceConfig, options: FromConfigOptions, fill: boolean): tf.LayersModel {
  const builder = Object.hasOwn(builders, String(config?.model_type)) ? builders[config.model_type] : undefined;
  if (!builder)
    refuse(
      'config.model_type',
      `${JSON.stringify(config?.model_type)} is not supported; supported are ${Object.keys(builders).join(', ')}`,
    );
  return builder(config, options, fill);
}
