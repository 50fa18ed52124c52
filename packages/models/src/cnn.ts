import { ensure, option, parseConfig } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { type HuggingFaceConfig, initialize, rememberConfig } from './architecture.ts';
import { heDeviation, layerActivations } from './mlp.ts';

/** Options of {@link cnn}. */
export const cnnOptions = z.object({
  /** Height, width and channels of an image. */
  input: z.tuple([option.count(), option.count(), option.count()], 'must be [height, width, channels]'),
  /** Filters of each convolution. */
  filters: z.array(option.count()).min(1).default([16, 32]),
  /** Height and width of the filters. */
  kernelSize: option.count().default(3),
  /** Each convolution is followed by a max pooling over windows of this size; 1 for none. */
  pool: option.count().default(2),
  /** Widths of the dense layers before the head. */
  hidden: z.array(option.count()).default([64]),
  /** Number of classes. */
  outputs: option.count(),
  activation: z.enum(layerActivations).default('relu'),
  /** `linear` gives logits, as {@link classificationLoss} wants them. */
  outputActivation: z.enum([...layerActivations, 'softmax']).default('linear'),
  seed: option.seed().default(0),
});

/** Options of {@link cnn}, as given. */
export type CnnOptions = z.input<typeof cnnOptions>;

type Parsed = z.output<typeof cnnOptions>;

/**
 * Convolutional classifier: convolutions (`conv.0`, `conv.1`, …; same padding) each with max pooling, then dense layers
 * `layers.0`, …, `head`. Kernels start from N(0, 2 / fan-in). It consists of tfjs's own layers alone.
 *
 * Input [batch, height, width, channels], output [batch, outputs].
 *
 * @throws MatforgeError naming the option that is wrong.
 */
export function cnn(options: CnnOptions): tf.LayersModel {
  const parsed = parseConfig('cnn', cnnOptions, options);
  return buildCnn(parsed, { model_type: 'cnn', ...options } as unknown as HuggingFaceConfig);
}

/** Builds the model; `config` is what it remembers and writes as config.json. */
export function buildCnn(options: Parsed, config: HuggingFaceConfig, fill = true): tf.LayersModel {
  const { activation, filters, pool, kernelSize } = options;
  const smallest = Math.min(options.input[0], options.input[1]);
  ensure(
    smallest >= pool ** filters.length,
    'cnn.pool',
    () => `${filters.length} poolings by ${pool} need images of ${pool ** filters.length} pixels, got ${smallest}`,
  );
  const image = tf.input({ shape: options.input, name: 'inputs' });
  const stack: tf.layers.Layer[] = [
    ...filters.flatMap((count, i) => [
      tf.layers.conv2d({
        name: `conv.${i}`,
        filters: count,
        kernelSize,
        padding: 'same',
        activation,
        kernelInitializer: 'zeros',
      }),
      ...(pool > 1 ? [tf.layers.maxPooling2d({ name: `pool.${i}`, poolSize: pool, strides: pool })] : []),
    ]),
    tf.layers.flatten({ name: 'flatten' }),
    ...options.hidden.map((units, i) =>
      tf.layers.dense({ name: `layers.${i}`, units, activation, kernelInitializer: 'zeros' }),
    ),
    tf.layers.dense({
      name: 'head',
      units: options.outputs,
      activation: options.outputActivation,
      kernelInitializer: 'zeros',
    }),
  ];
  const outputs = stack.reduce((x, layer) => layer.apply(x) as tf.SymbolicTensor, image);
  const model = tf.model({ inputs: image, outputs, name: 'cnn' });
  if (fill) initialize(model, options.seed, heDeviation);
  return rememberConfig(model, config);
}

/** The options that our own config.json of model_type cnn stands for. */
export function cnnFromConfig(config: HuggingFaceConfig, extra: { seed?: number }): Parsed {
  const { model_type: _, architectures: __, dtype: ___, torch_dtype: ____, ...options } = config;
  return parseConfig('config', cnnOptions, { ...options, ...(extra.seed !== undefined && extra) });
}
