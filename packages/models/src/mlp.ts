import { option, parseConfig } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { type HuggingFaceConfig, initialize, rememberConfig } from './architecture.ts';

/** Activations of tfjs's own layers that {@link mlp} and {@link cnn} offer. */
export const layerActivations = ['linear', 'relu', 'tanh', 'sigmoid', 'elu', 'selu', 'softplus', 'swish'] as const;

/** Options of {@link mlp}. */
export const mlpOptions = z.object({
  /** Features of a sample, or the shape of one, which is then flattened. */
  input: z.union([option.count(), z.array(option.count()).min(1)], 'must be a positive integer or a shape of such'),
  /** Widths of the hidden layers. */
  hidden: z.array(option.count()).default([]),
  /** Number of outputs. */
  outputs: option.count(),
  activation: z.enum(layerActivations).default('relu'),
  /** `linear` gives logits, as {@link classificationLoss} wants them. */
  outputActivation: z.enum([...layerActivations, 'softmax']).default('linear'),
  useBias: z.boolean().default(true),
  seed: option.seed().default(0),
});

/** Options of {@link mlp}, as given. */
export type MlpOptions = z.input<typeof mlpOptions>;

type Parsed = z.output<typeof mlpOptions>;

/**
 * Fully connected network. Dense layers `layers.0`, `layers.1`, …, `head`; kernels start from N(0, 2 / in) (He et al.
 * 2015). It consists of tfjs's own layers alone.
 *
 * Input [batch, …input], output [batch, outputs].
 *
 * @throws MatforgeError naming the option that is wrong.
 */
export function mlp(options: MlpOptions): tf.LayersModel {
  const parsed = parseConfig('mlp', mlpOptions, options);
  return buildMlp(parsed, { model_type: 'mlp', ...options } as HuggingFaceConfig);
}

/** Builds the model; `config` is what it remembers and writes as config.json. */
export function buildMlp(options: Parsed, config: HuggingFaceConfig, fill = true): tf.LayersModel {
  const { input, hidden, useBias } = options;
  const shape = typeof input === 'number' ? [input] : input;
  const image = tf.input({ shape, name: 'inputs' });
  const stack: tf.layers.Layer[] = [
    ...(shape.length > 1 ? [tf.layers.flatten({ name: 'flatten' })] : []),
    ...hidden.map((units, i) =>
      tf.layers.dense({
        name: `layers.${i}`,
        units,
        useBias,
        activation: options.activation,
        kernelInitializer: 'zeros',
      }),
    ),
    tf.layers.dense({
      name: 'head',
      units: options.outputs,
      useBias,
      activation: options.outputActivation,
      kernelInitializer: 'zeros',
    }),
  ];
  const outputs = stack.reduce((x, layer) => layer.apply(x) as tf.SymbolicTensor, image);
  const model = tf.model({ inputs: image, outputs, name: 'mlp' });
  if (fill) initialize(model, options.seed, heDeviation);
  return rememberConfig(model, config);
}

/** √(2 / fan-in) of a kernel. */
export function heDeviation(_: tf.layers.Layer, shape: number[]): number {
  return Math.sqrt(2 / shape.slice(0, -1).reduce((product, size) => product * size, 1));
}

/** The options that our own config.json of model_type mlp stands for. */
export function mlpFromConfig(config: HuggingFaceConfig, extra: { seed?: number }): Parsed {
  const { model_type: _, architectures: __, dtype: ___, torch_dtype: ____, ...options } = config;
  return parseConfig('config', mlpOptions, { ...options, ...(extra.seed !== undefined && extra) });
}
