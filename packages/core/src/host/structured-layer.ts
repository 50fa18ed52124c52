import * as tf from '@tensorflow/tfjs';
import type { z } from 'zod';
import { type ConfigSchema, parseConfig } from '../contracts/config.ts';
import type { Base, ForwardContext, Site } from '../contracts/linear-method.ts';
import { ensure, refuse } from '../errors.ts';
import { zeros } from '../tensors/initializers.ts';
import { random } from '../tensors/random.ts';
import {
  type AnyStructuredMethod,
  learningRateMultipliers,
  type StructuredInit,
  type StructuredMethod,
  startTensors,
} from '../tensors/structured.ts';
import { declared } from './attach.ts';
import { assign, type HostLayer, type LayerVariable } from './sites.ts';

type LayerArgs = NonNullable<ConstructorParameters<typeof tf.layers.Layer>[0]>;

/** Options that every structured layer takes besides those of its method. */
export interface StructuredLayerOptions extends LayerArgs {
  /** Width of the output. */
  units: number;
  /** Default true. */
  useBias?: boolean;
  /** Name of a tfjs activation. Default `'linear'`. */
  activation?: string;
  /** How the factors start: the method's `init`, less the one that needs a kernel. Default `'official'`. */
  kernelInitializer?: Exclude<StructuredInit, 'project'>;
  /** Seed of the start values, mixed with the layer's name. Default 0. */
  seed?: number;
}

/** Arguments of a structured layer: its own options and the method's, less `init`. */
export type StructuredLayerArgs<S extends ConfigSchema> = StructuredLayerOptions & Omit<z.input<S>, 'init'>;

/** A class made by {@link defineStructuredLayer}. */
export interface StructuredLayerClass<S extends ConfigSchema> {
  new (args: StructuredLayerArgs<S>): StructuredLayer;
  readonly className: string;
  /**
   * A built layer with the kernel nearest to that of a built dense layer, its bias, activation and name.
   *
   * @throws MatforgeError when the layer is not dense, not built, or does not fit the options.
   */
  fromDenseLayer(layer: tf.layers.Layer, options?: Omit<z.input<S>, 'init'>): StructuredLayer;
}

const OWN = ['units', 'useBias', 'activation', 'kernelInitializer', 'seed'] as const;
const KERAS = [
  'name',
  'trainable',
  'dtype',
  'inputShape',
  'batchInputShape',
  'batchSize',
  'weights',
  'updatable',
  'inputDType',
  // tfjs hands the names of other classes to every class that it restores.
  'customObjects',
];
const STARTS = ['official', 'muP', 'dense'];

/** A dense layer whose kernel has a structured form from the start. Made by {@link defineStructuredLayer}. */
export abstract class StructuredLayer extends tf.layers.Layer {
  /** The form of the kernel. */
  readonly method: AnyStructuredMethod;
  /** Validated options of the method. */
  // biome-ignore lint/suspicious/noExplicitAny: configurations differ per method.
  readonly config: any;
  readonly units: number;
  readonly useBias: boolean;
  private readonly options: Record<string, unknown>;
  private readonly settings: tf.serialization.ConfigDict;
  private readonly activation: { apply(x: tf.Tensor): tf.Tensor };
  private readonly seed: number;
  /** Kernel to project in place of a random start. */
  private start?: tf.Tensor2D;
  private site?: Site;
  private bias: LayerVariable | null = null;
  private variables: Record<string, LayerVariable> = {};
  /** Tensors that are drawn from the seed and not stored. */
  private drawn: Record<string, tf.Tensor> = {};

  protected constructor(method: AnyStructuredMethod, args: StructuredLayerOptions) {
    const id = method.info.id;
    const given = args as unknown as Record<string, unknown>;
    super(Object.fromEntries(Object.entries(given).filter(([key]) => KERAS.includes(key))) as LayerArgs);
    const { units, useBias = true, activation = 'linear', kernelInitializer = 'official', seed = 0 } = args;
    ensure(Number.isInteger(units) && units >= 1, `${id}.units`, () => `must be a positive integer, got ${units}`);
    ensure(
      STARTS.includes(kernelInitializer),
      `${id}.kernelInitializer`,
      () =>
        `must be one of ${STARTS.map((name) => JSON.stringify(name)).join(', ')}, got ${JSON.stringify(kernelInitializer)}`,
    );
    ensure(Number.isInteger(seed), `${id}.seed`, () => `must be an integer, got ${seed}`);
    ensure(given.init === undefined, `${id}.init`, () => 'is for attaching to a layer; here it is kernelInitializer');
    const options = Object.fromEntries(
      Object.entries(given).filter(
        ([key, value]) => value != null && !KERAS.includes(key) && !(OWN as readonly string[]).includes(key),
      ),
    );
    this.method = method;
    this.config = parseConfig(id, method.config, { ...options, init: kernelInitializer });
    this.options = options;
    this.units = units;
    this.useBias = useBias;
    this.seed = seed;
    this.activation = (tf.layers.activation({ activation: activation as 'relu' }) as unknown as HostLayer).activation!;
    this.settings = { units, useBias, activation, kernelInitializer, seed };
  }

  override build(inputShape: tf.Shape | tf.Shape[]): void {
    // tfjs builds the layers of a stored model more than once.
    if (this.site) return;
    const inDim = single(inputShape).at(-1);
    ensure(inDim != null, this.name, () => 'the last axis of the input has no size; give inputShape');
    const { method, config, units: outDim, seed } = this;
    const site: Site = { name: this.name, kind: 'dense', inDim: inDim as number, outDim };
    const atStart = this.start ? { ...config, init: 'project', zeroInit: false } : config;
    method.validate?.(site, atStart);
    const specs = this.specsAt(site);
    // A stored model skips the start values of its weights; only then are they not needed.
    let made: Record<string, tf.Tensor> | undefined;
    const start = () => (made ??= tf.tidy(() => startTensors(method, atStart, site, this.start, seed)));
    for (const [key, { shape, role }] of Object.entries(specs)) {
      if (role === 'seeded') this.drawn[key] = tf.keep(tf.clone(start()[key]));
      else this.variables[key] = this.weight(key, shape, () => start()[key], role === 'trainable');
    }
    if (made) tf.dispose(made);
    if (this.useBias) {
      const bias = (config.init === 'official' && method.structure.officialBias) || zeros;
      const stream = random(seed).fork(this.name).fork('bias');
      this.bias = this.weight('bias', [outDim], () => bias([outDim], stream), true);
    }
    this.site = site;
    const { penalty } = method;
    if (penalty) {
      const losses = (this as unknown as HostLayer)._losses;
      losses.push(() => tf.tidy(() => penalty(this.tensors(), this.context(true))));
    }
    this.built = true;
  }

  private weight(name: string, shape: number[], value: () => tf.Tensor, trainable: boolean): LayerVariable {
    const layer = this as unknown as { addWeight(...args: unknown[]): LayerVariable };
    return layer.addWeight(name, shape, 'float32', { apply: value }, undefined, trainable);
  }

  /** The tensors of the kernel by the method's names. They belong to the layer. */
  tensors(): Record<string, tf.Tensor> {
    const values = Object.entries(this.variables).map(([key, weight]) => [key, weight.read()]);
    return { ...Object.fromEntries(values), ...this.drawn };
  }

  override call(inputs: tf.Tensor | tf.Tensor[], kwargs: Record<string, unknown>): tf.Tensor {
    return tf.tidy(() => {
      this.invokeCallHook(inputs, kwargs as Parameters<typeof this.invokeCallHook>[1]);
      const x = Array.isArray(inputs) ? inputs[0] : inputs;
      const { inDim } = this.shape();
      const width = x.shape[x.rank - 1];
      ensure(width === inDim, this.name, () => `input has width ${width}, the kernel takes ${inDim}`);
      const y = this.method.forward(x, this.tensors(), this.context(Boolean(kwargs?.training)));
      return this.activation.apply(y);
    });
  }

  override computeOutputShape(inputShape: tf.Shape | tf.Shape[]): tf.Shape {
    return [...single(inputShape).slice(0, -1), this.units];
  }

  /** W `[in, out]` as a new tensor. */
  denseKernel(): tf.Tensor2D {
    return tf.tidy(() => tf.clone(this.method.kernel!(this.tensors(), this.context(false)) as tf.Tensor2D));
  }

  /** A built dense layer with this layer's kernel, bias, activation and name. */
  toDenseLayer(): tf.layers.Layer {
    const { units, useBias, activation } = this.settings as { units: number; useBias: boolean; activation: 'relu' };
    const dense = tf.layers.dense({ name: this.name, units, useBias, activation, ...inputOf(this) });
    dense.build([null, this.shape().inDim]);
    const kernel = this.denseKernel();
    dense.setWeights(this.bias ? [kernel, this.bias.read()] : [kernel]);
    kernel.dispose();
    return dense;
  }

  /** See {@link learningRateMultipliers}; default base width: the layer's own input. */
  lrMultipliers(baseInDim: number = this.shape().inDim): Record<string, number> {
    return learningRateMultipliers(this.specsAt(this.shape()), baseInDim);
  }

  /** The learning-rate multiplier of every weight by the name of its variable. */
  variableMultipliers(baseInDim?: number): Record<string, number> {
    const multipliers = this.lrMultipliers(baseInDim);
    return Object.fromEntries(
      Object.entries(this.variables).map(([key, weight]) => [weight.read().name, multipliers[key] ?? 1]),
    );
  }

  override dispose(): ReturnType<tf.layers.Layer['dispose']> {
    // tfjs refuses to dispose a layer that no model uses; this one may be built and used alone.
    if ((this as unknown as { _refCount: number | null })._refCount === null) {
      for (const weight of this.weights) weight.dispose();
      tf.dispose(this.drawn);
      return { refCountAfterDispose: 0, numDisposedVariables: this.weights.length };
    }
    const result = super.dispose();
    if (result.refCountAfterDispose === 0) tf.dispose(this.drawn);
    return result;
  }

  override getConfig(): tf.serialization.ConfigDict {
    return { ...super.getConfig(), ...(this.options as tf.serialization.ConfigDict), ...this.settings };
  }

  /** Builds from the kernel and bias of a dense layer. */
  protected adopt(kernel: tf.Tensor2D, bias: tf.Tensor | null): void {
    this.start = kernel;
    this.build([null, kernel.shape[0]]);
    this.start = undefined;
    if (this.bias && bias) assign(this.bias, tf.clone(bias));
  }

  private shape(): Site {
    return this.site ?? refuse(this.name, 'the layer is not built yet; call build() or apply it once');
  }

  private specsAt(site: Site) {
    const { inDim, outDim } = site;
    const group = { sites: [site], maxIn: inDim, maxOut: outDim };
    return declared(this.method.tensors({ inDim, outDim, config: this.config, site, group }));
  }

  private context(training: boolean): ForwardContext<unknown> {
    const { site, config } = this;
    return { config, base: biasOnly(this.name, this.bias), site: site as Site, training, dropout: (x) => x };
  }
}

/** The map that a structured layer builds on: it has a bias, and no kernel of its own. */
function biasOnly(name: string, weight: LayerVariable | null): Base {
  const none = () => refuse(name, 'has no dense kernel of its own');
  const bias = (weight?.read() ?? null) as tf.Tensor1D | null;
  return {
    get kernel() {
      return none();
    },
    bias,
    apply: none,
    linear: none,
    lookup: none,
  };
}

function single(shape: tf.Shape | tf.Shape[]): tf.Shape {
  return (Array.isArray(shape[0]) ? shape[0] : shape) as tf.Shape;
}

function inputOf(layer: tf.layers.Layer): { batchInputShape?: tf.Shape } {
  const { batchInputShape } = layer;
  return batchInputShape ? { batchInputShape } : {};
}

/**
 * Makes the layer class of a structured method and registers it, so that models with such layers save and load like any
 * other. Its weights carry the method's names.
 *
 * @param className unique among tfjs layers; by it a stored model finds the class.
 * @throws MatforgeError for a method with a training schedule, which only attached layers can follow.
 */
export function defineStructuredLayer<S extends ConfigSchema, K extends string>(
  method: StructuredMethod<S, K>,
  className: string,
): StructuredLayerClass<S> {
  ensure(!method.schedule, className, () => `${method.info.id} has a training schedule; attach it to a dense layer`);
  class Made extends StructuredLayer {
    static className = className;

    constructor(args: StructuredLayerArgs<S>) {
      super(method as unknown as AnyStructuredMethod, args);
    }

    static fromDenseLayer(layer: tf.layers.Layer, options?: Omit<z.input<S>, 'init'>): StructuredLayer {
      const dense = layer as unknown as HostLayer;
      const { kernel, bias } = dense;
      ensure(dense.getClassName() === 'Dense', layer.name, () => `is a ${dense.getClassName()} layer, not Dense`);
      if (!kernel) refuse(layer.name, 'the layer is not built yet; call build() or apply it once');
      const { units, useBias, activation } = layer.getConfig() as unknown as StructuredLayerOptions;
      const made = new Made({
        ...(options as object),
        name: layer.name,
        units,
        useBias,
        activation,
        ...inputOf(layer),
      } as StructuredLayerArgs<S>);
      made.adopt(kernel.read() as unknown as tf.Tensor2D, bias?.read() ?? null);
      return made;
    }
  }
  tf.serialization.registerClass(Made as unknown as Parameters<typeof tf.serialization.registerClass>[0]);
  return Made;
}
