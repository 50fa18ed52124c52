import { ensure, option, parseConfig, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { add, apply, dense, type HuggingFaceConfig, initialize, type Node, rememberConfig } from './architecture.ts';
import { classesOf, labels } from './bert.ts';
import { activationNames } from './functions.ts';
import {
  MatforgeActivation,
  MatforgeAttention,
  MatforgeFirstToken,
  MatforgeLayerNorm,
  MatforgePatchSequence,
} from './layers.ts';

/** Options of {@link vit}. */
export const vitOptions = z.object({
  /** Height and width of the images. */
  imageSize: option.count(),
  /** Height and width of a patch; must divide `imageSize`. */
  patchSize: option.count(),
  /** Colour channels. */
  channels: option.count().default(3),
  hiddenSize: option.count(),
  /** Width of the feed-forward part. Default 4 · hiddenSize. */
  intermediateSize: option.count().optional(),
  /** Number of blocks. */
  layers: option.count(),
  /** Heads; must divide `hiddenSize`. */
  heads: option.count(),
  classes: option.count(),
  /** Biases of the query, key and value projections. */
  qkvBias: z.boolean().default(true),
  layerNormEps: option.positive().default(1e-12),
  activation: z.enum(activationNames).default('gelu'),
  /** Standard deviation of the initial weights. */
  initializerRange: option.positive().default(0.02),
  seed: option.seed().default(0),
});

/** Options of {@link vit}, as given. */
export type VitOptions = z.input<typeof vitOptions>;

type Parsed = z.output<typeof vitOptions>;

/**
 * Vision transformer for classification (Dosovitskiy et al. 2021): patches as tokens, a class token, learned positions,
 * LayerNorm before each part.
 *
 * Input `pixel_values` [batch, imageSize, imageSize, channels], output logits [batch, classes]. Layers are named like the
 * checkpoint's modules: `vit.embeddings.patch_embeddings.projection` (a convolution),
 * `vit.encoder.layer.0.attention.attention.query`, …, `vit.layernorm`, `classifier`.
 *
 * @throws MatforgeError naming the option that is wrong.
 */
export function vit(options: VitOptions): tf.LayersModel {
  const parsed = parseConfig('vit', vitOptions, options);
  return buildVit(parsed, vitConfig(parsed));
}

/** Builds the model; `config` is what it remembers and writes as config.json. */
export function buildVit(options: Parsed, config: HuggingFaceConfig, fill = true): tf.LayersModel {
  const { imageSize, patchSize, hiddenSize, heads } = options;
  ensure(imageSize % patchSize === 0, 'vit.patchSize', () => `must divide imageSize ${imageSize}, got ${patchSize}`);
  ensure(hiddenSize % heads === 0, 'vit.heads', () => `must divide hiddenSize ${hiddenSize}, got ${heads}`);
  const norm = (name: string, x: Node, extra = {}) =>
    apply(new MatforgeLayerNorm({ name, epsilon: options.layerNormEps, ...extra }), x);
  const image = tf.input({ shape: [imageSize, imageSize, options.channels], name: 'pixel_values' });
  const projection = tf.layers.conv2d({
    name: 'vit.embeddings.patch_embeddings.projection',
    filters: hiddenSize,
    kernelSize: patchSize,
    strides: patchSize,
    kernelInitializer: 'zeros',
  });

  let x = apply(new MatforgePatchSequence({ name: 'vit.embeddings' }), apply(projection, image));
  for (let i = 0; i < options.layers; i++) {
    const block = `vit.encoder.layer.${i}`;
    const project = (name: string, from: Node, width: number, bias = true) =>
      apply(dense(`${block}.${name}`, width, bias), from);
    const attention = new MatforgeAttention({
      name: `${block}.attention.attention`,
      heads,
      kvHeads: heads,
      headDim: hiddenSize / heads,
      causal: false,
    });
    const h = norm(`${block}.layernorm_before`, x);
    const [q, k, v] = ['query', 'key', 'value'].map((part) =>
      project(`attention.attention.${part}`, h, hiddenSize, options.qkvBias),
    );
    const attended = project('attention.output.dense', apply(attention, q, k, v), hiddenSize);
    x = add(`${block}.attention.residual`, attended, x);
    const wide = project(
      'intermediate.dense',
      norm(`${block}.layernorm_after`, x),
      options.intermediateSize ?? 4 * hiddenSize,
    );
    const active = apply(
      new MatforgeActivation({ name: `${block}.intermediate.activation`, activation: options.activation }),
      wide,
    );
    x = add(`${block}.output.residual`, project('output.dense', active, hiddenSize), x);
  }
  x = norm('vit.layernorm', x, { architecture: JSON.stringify(config) });
  const first = apply(new MatforgeFirstToken({ name: 'vit.first_token' }), x);
  const logits = apply(dense('classifier', options.classes, true), first);

  const model = tf.model({ inputs: image, outputs: logits, name: 'vit' });
  if (fill) initialize(model, options.seed, options.initializerRange);
  return rememberConfig(model, config);
}

/** The config.json of these options. */
export function vitConfig(options: Parsed): HuggingFaceConfig {
  return {
    architectures: ['ViTForImageClassification'],
    model_type: 'vit',
    image_size: options.imageSize,
    patch_size: options.patchSize,
    num_channels: options.channels,
    hidden_size: options.hiddenSize,
    intermediate_size: options.intermediateSize ?? 4 * options.hiddenSize,
    num_hidden_layers: options.layers,
    num_attention_heads: options.heads,
    hidden_act: options.activation,
    layer_norm_eps: options.layerNormEps,
    qkv_bias: options.qkvBias,
    initializer_range: options.initializerRange,
    ...labels(options.classes),
  };
}

/** The options that a config.json of model_type vit stands for. */
export function vitFromConfig(config: HuggingFaceConfig, extra: { seed?: number }): Parsed {
  const name = config.architectures?.[0] ?? 'ViTForImageClassification';
  if (name !== 'ViTForImageClassification') {
    refuse('config.architectures', `${name} is not supported; ViTForImageClassification is`);
  }
  return parseConfig('config', vitOptions, {
    imageSize: config.image_size,
    patchSize: config.patch_size,
    channels: config.num_channels,
    hiddenSize: config.hidden_size,
    intermediateSize: config.intermediate_size,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    classes: classesOf(config),
    qkvBias: config.qkv_bias,
    layerNormEps: config.layer_norm_eps,
    activation: config.hidden_act,
    initializerRange: config.initializer_range,
    ...extra,
  });
}
