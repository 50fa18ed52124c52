import { refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { activeCache } from './cache.ts';
import {
  type ActivationName,
  activations,
  causalMask,
  layerNorm,
  MASKED,
  type RopeScaling,
  rmsNorm,
  rotaryFrequencies,
  rotate,
} from './functions.ts';

/** Options that every layer of this package takes. */
export interface MatforgeLayerOptions {
  /** Name of the layer: the checkpoint's module name. */
  name?: string;
  /** JSON of the model's Hugging Face configuration; one layer of a model carries it through save and load. */
  architecture?: string;
  [key: string]: unknown;
}

type Inputs = tf.Tensor | tf.Tensor[];
type Shapes = tf.Shape | tf.Shape[];

/** A layer whose configuration is exactly the options it was made with. */
abstract class MatforgeLayer<Options extends MatforgeLayerOptions> extends tf.layers.Layer {
  readonly options: Options;

  constructor(options: Options) {
    super(options as ConstructorParameters<typeof tf.layers.Layer>[0]);
    this.options = options;
  }

  abstract compute(inputs: tf.Tensor[]): tf.Tensor;

  override call(inputs: Inputs): tf.Tensor {
    return tf.tidy(() => this.compute(Array.isArray(inputs) ? inputs : [inputs]));
  }

  override getConfig(): tf.serialization.ConfigDict {
    // tfjs rewrites keys and texts between camel and snake case on the way to a file and back, all but a `name`.
    return { ...super.getConfig(), options: { name: JSON.stringify(this.options) } };
  }

  static override fromConfig<T extends tf.serialization.Serializable>(
    layer: tf.serialization.SerializableConstructor<T>,
    { options, ...config }: tf.serialization.ConfigDict,
  ): T {
    return new layer({ ...config, ...JSON.parse((options as { name: string }).name) });
  }

  protected vector(name: string, shape: number[], initializer: 'ones' | 'zeros'): tf.LayerVariable {
    return this.addWeight(name, shape, 'float32', tf.initializers[initializer]());
  }
}

/** Root mean square normalisation of the last axis, with a learned weight. */
export class MatforgeRMSNorm extends MatforgeLayer<MatforgeLayerOptions & { epsilon: number }> {
  static className = 'MatforgeRMSNorm';
  #weight!: tf.LayerVariable;

  override build(inputShape: Shapes): void {
    this.#weight = this.vector('weight', [last(inputShape)], 'ones');
    this.built = true;
  }

  override compute([x]: tf.Tensor[]): tf.Tensor {
    return rmsNorm(x, this.#weight.read(), this.options.epsilon);
  }
}

/** Normalisation of the last axis, with a learned weight and bias. */
export class MatforgeLayerNorm extends MatforgeLayer<MatforgeLayerOptions & { epsilon: number }> {
  static className = 'MatforgeLayerNorm';
  #weight!: tf.LayerVariable;
  #bias!: tf.LayerVariable;

  override build(inputShape: Shapes): void {
    this.#weight = this.vector('weight', [last(inputShape)], 'ones');
    this.#bias = this.vector('bias', [last(inputShape)], 'zeros');
    this.built = true;
  }

  override compute([x]: tf.Tensor[]): tf.Tensor {
    return layerNorm(x, this.#weight.read(), this.#bias.read(), this.options.epsilon);
  }
}

/** An element-wise activation, by its name in Hugging Face configurations. */
export class MatforgeActivation extends MatforgeLayer<MatforgeLayerOptions & { activation: ActivationName }> {
  static className = 'MatforgeActivation';

  override compute([x]: tf.Tensor[]): tf.Tensor {
    return activations[this.options.activation](x);
  }
}

/** activation(gate) · up: the product of SwiGLU (Shazeer 2020, eq. 5). Inputs [gate, up]. */
export class MatforgeGatedProduct extends MatforgeLayer<MatforgeLayerOptions & { activation: ActivationName }> {
  static className = 'MatforgeGatedProduct';

  override compute([gate, up]: tf.Tensor[]): tf.Tensor {
    return tf.mul(activations[this.options.activation](gate), up);
  }

  override computeOutputShape(shapes: Shapes): tf.Shape {
    return (shapes as tf.Shape[])[0];
  }
}

/** Position of each token, int32 like the tokens: 0, 1, … or, while generating, onwards from the cached ones. */
export class MatforgePositions extends MatforgeLayer<MatforgeLayerOptions & { maxPositions: number }> {
  static className = 'MatforgePositions';

  override compute([tokens]: tf.Tensor[]): tf.Tensor {
    const [batch, positions] = tokens.shape;
    const offset = activeCache()?.length ?? 0;
    const { maxPositions } = this.options;
    if (offset + positions > maxPositions) {
      refuse(this.name, `${offset + positions} positions given, the model has ${maxPositions}; use a shorter text`);
    }
    const row = Int32Array.from({ length: positions }, (_, t) => t + offset);
    return tf.tile(tf.tensor2d(row, [1, positions], 'int32'), [batch, 1]);
  }
}

/** Options of {@link MatforgeAttention}. */
export interface AttentionOptions extends MatforgeLayerOptions {
  heads: number;
  /** Heads of keys and values; each serves heads / kvHeads query heads (Ainslie et al. 2023). */
  kvHeads: number;
  headDim: number;
  /** A token sees itself and what comes before it. */
  causal: boolean;
  /** Rotary position embedding of queries and keys. */
  rotary?: { theta: number; scaling?: RopeScaling | null } | null;
  /** With `causal`: a token sees at most this many tokens, itself included. */
  slidingWindow?: number | null;
  /** One input holds queries, keys and values side by side. */
  fused?: boolean;
  /** The last input is a padding mask [batch, positions]: 1 for a token, 0 for padding. */
  masked?: boolean;
}

/**
 * softmax(Q·Kᵀ/√d + mask)·V per head (Vaswani et al. 2017, eq. 1): attention without its projections, which are dense
 * layers of their own. Inputs [queries, keys, values] (or one fused tensor), each [batch, positions, heads · size], then
 * the padding mask if there is one. While generating it reads and extends the key/value cache.
 */
export class MatforgeAttention extends MatforgeLayer<AttentionOptions> {
  static className = 'MatforgeAttention';
  readonly #frequencies: Float64Array | undefined;

  constructor(options: AttentionOptions) {
    super(options);
    const { rotary, headDim } = options;
    this.#frequencies = rotary ? rotaryFrequencies(headDim, rotary.theta, rotary.scaling) : undefined;
  }

  override compute(inputs: tf.Tensor[]): tf.Tensor {
    const { heads, kvHeads, headDim, fused, masked, causal, slidingWindow } = this.options;
    const cache = activeCache();
    const [q, k, v] = fused ? tf.split(inputs[0], [heads * headDim, kvHeads * headDim, kvHeads * headDim], 2) : inputs;
    const offset = cache?.length ?? 0;
    const place = (x: tf.Tensor4D) => (this.#frequencies ? rotate(x, this.#frequencies, offset) : x);
    const queries = place(splitHeads(tf.mul(q, 1 / Math.sqrt(headDim)), heads, headDim));
    const fresh = { keys: place(splitHeads(k, kvHeads, headDim)), values: splitHeads(v, kvHeads, headDim) };
    const { keys, values } = cache && causal ? cache.extend(this, fresh.keys, fresh.values) : fresh;

    const [batch, , positions] = queries.shape;
    const seen = keys.shape[2];
    // The query heads that share a key head are stacked along the positions, so that no key is copied.
    const rows = (heads / kvHeads) * positions;
    let scores = tf.matMul(tf.reshape(queries, [batch, kvHeads, rows, headDim]), keys, false, true);
    scores = tf.reshape(scores, [batch, heads, positions, seen]);
    if (causal && (positions > 1 || slidingWindow)) scores = tf.add(scores, causalMask(positions, seen, slidingWindow));
    if (masked) scores = tf.add(scores, paddingMask(inputs[inputs.length - 1]));
    const weights = tf.reshape(tf.softmax(scores), [batch, kvHeads, rows, seen]);
    const mixed = tf.reshape(tf.matMul(weights, values), [batch, heads, positions, headDim]);
    return tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [batch, positions, heads * headDim]);
  }

  override computeOutputShape(shapes: Shapes): tf.Shape {
    const [batch, positions] = (Array.isArray(shapes[0]) ? shapes[0] : shapes) as tf.Shape;
    return [batch, positions, this.options.heads * this.options.headDim];
  }
}

function splitHeads(x: tf.Tensor, heads: number, size: number): tf.Tensor4D {
  const [batch, positions] = x.shape;
  return tf.transpose(tf.reshape(x, [batch, positions, heads, size]), [0, 2, 1, 3]) as tf.Tensor4D;
}

function paddingMask(mask: tf.Tensor): tf.Tensor {
  const [batch, positions] = mask.shape;
  const closed = tf.sub(1, tf.cast(mask, 'float32'));
  return tf.reshape(tf.mul(closed, MASKED), [batch, 1, 1, positions]);
}

/**
 * Output scores with the token embedding as the kernel: h·Eᵀ (+ b). Inputs [hidden states, embedded tokens]; the second
 * says which embedding layer is meant and is not computed with.
 */
export class MatforgeTiedHead extends MatforgeLayer<MatforgeLayerOptions & { vocabSize: number; useBias?: boolean }> {
  static className = 'MatforgeTiedHead';
  #embedding: tf.layers.Layer | undefined;
  #bias: tf.LayerVariable | undefined;

  override build(): void {
    if (this.options.useBias) this.#bias = this.vector('bias', [this.options.vocabSize], 'zeros');
    this.built = true;
  }

  override apply(
    inputs: Inputs | tf.SymbolicTensor | tf.SymbolicTensor[],
    kwargs?: Parameters<tf.layers.Layer['apply']>[1],
  ): ReturnType<tf.layers.Layer['apply']> {
    const source = (inputs as tf.SymbolicTensor[])[1];
    if (source instanceof tf.SymbolicTensor) this.#embedding = source.sourceLayer;
    return super.apply(inputs, kwargs);
  }

  override compute([hidden]: tf.Tensor[]): tf.Tensor {
    const name = `${this.#embedding?.name}/embeddings`;
    const table = this.#embedding?.weights.find((weight) => weight.originalName === name)?.read();
    if (!table) refuse(this.name, 'the second input must come straight from an embedding layer');
    const flat = tf.reshape(hidden, [-1, table.shape[1] as number]);
    const scores = tf.matMul(flat, table as tf.Tensor2D, false, true);
    return tf.reshape(this.#bias ? tf.add(scores, this.#bias.read()) : scores, [
      ...hidden.shape.slice(0, -1),
      this.options.vocabSize,
    ]);
  }

  override computeOutputShape(shapes: Shapes): tf.Shape {
    return [...(shapes as tf.Shape[])[0].slice(0, -1), this.options.vocabSize];
  }
}

/**
 * Rows of image patches to a token sequence: [batch, rows, columns, width] becomes [batch, 1 + rows · columns, width],
 * a learned class token first, learned positions added (Dosovitskiy et al. 2021, eq. 1).
 */
export class MatforgePatchSequence extends MatforgeLayer<MatforgeLayerOptions> {
  static className = 'MatforgePatchSequence';
  #token!: tf.LayerVariable;
  #positions!: tf.LayerVariable;

  override build(inputShape: Shapes): void {
    const [, rows, columns, width] = inputShape as number[];
    this.#token = this.vector('cls_token', [1, 1, width], 'zeros');
    this.#positions = this.vector('position_embeddings', [1, 1 + rows * columns, width], 'zeros');
    this.built = true;
  }

  override compute([patches]: tf.Tensor[]): tf.Tensor {
    const [batch, rows, columns, width] = patches.shape;
    const tokens = tf.tile(this.#token.read(), [batch, 1, 1]);
    const sequence = tf.concat([tokens, tf.reshape(patches, [batch, rows * columns, width])], 1);
    return tf.add(sequence, this.#positions.read());
  }

  override computeOutputShape(shape: Shapes): tf.Shape {
    const [batch, rows, columns, width] = shape as number[];
    return [batch, 1 + rows * columns, width];
  }
}

/** The first token of each sequence: [batch, positions, width] becomes [batch, width]. */
export class MatforgeFirstToken extends MatforgeLayer<MatforgeLayerOptions> {
  static className = 'MatforgeFirstToken';

  override compute([x]: tf.Tensor[]): tf.Tensor {
    const [batch, , width] = x.shape;
    return tf.reshape(tf.slice(x, [0, 0, 0], [batch, 1, width]), [batch, width]);
  }

  override computeOutputShape(shape: Shapes): tf.Shape {
    const [batch, , width] = shape as tf.Shape;
    return [batch, width];
  }
}

function last(shape: Shapes): number {
  return shape[shape.length - 1] as number;
}

for (const layer of [
  MatforgeRMSNorm,
  MatforgeLayerNorm,
  MatforgeActivation,
  MatforgeGatedProduct,
  MatforgePositions,
  MatforgeAttention,
  MatforgeTiedHead,
  MatforgePatchSequence,
  MatforgeFirstToken,
]) {
  tf.serialization.registerClass(layer as unknown as Parameters<typeof tf.serialization.registerClass>[0]);
}
