import { ensure, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import type { NodeSpec, Padding, TypeLike } from './build.ts';
import { asType, reciprocal, slide, softmaxTables, validCounts } from './build.ts';
import { caster, overflower, rawCaster } from './cast.ts';
import type { MultiplierFreeConfig } from './digits.ts';
import {
  checkBackend,
  checkFloat64,
  checkHolds,
  type Exactness,
  largestColumn,
  magnitudeBits,
  productBound,
  splitProduct,
} from './exactness.ts';
import type { Activation, Directives, Window2d } from './graph.ts';
import { heap } from './heap.ts';
import { packed, unpacked } from './packed.ts';
import {
  columnSums,
  FixedQuantizer,
  type Forward,
  MultiplierFreeQuantizer,
  type PositionInit,
  type Reals,
  valuesOf,
} from './quantizer.ts';
import { levelsOf } from './rounding.ts';
import { addType, type FixedType, fixedType, fractionBits, type OverflowMode, type QuantizationMode } from './types.ts';

/** How one tensor of a layer is quantized; plain JSON, so that layers can be saved. */
export interface TensorQuantization {
  W: number;
  signed?: boolean;
  Q?: QuantizationMode;
  O?: OverflowMode;
  iMin?: number;
  iMax?: number;
  init?: PositionInit;
  learn?: boolean;
  positionGrad?: 'one' | 'lsq';
  /** One binary point per output channel (weights only). */
  perChannel?: boolean;
  multiplierFree?: MultiplierFreeConfig;
}

interface LayerArgs {
  name?: string;
  inputShape?: number[];
  batchInputShape?: (number | null)[];
  trainable?: boolean;
}

/** Arguments of every Qfx layer. */
export interface QfxLayerArgs extends LayerArgs {
  /** The cast at the end of the layer. */
  result: TensorQuantization;
  /** Default auto. */
  exact?: Exactness;
  /** Hints for the emitter, copied into the frozen nodes. */
  directives?: Directives;
}

/** What a layer adds to the frozen graph; the last node is its result. */
export type FrozenNodes = (NodeSpec & { name: string })[];

type Shape = (number | null)[];
type Inputs = tf.Tensor | tf.Tensor[];

/** Base of all layers: a quantizer for the result, and the types of what flows in. */
export abstract class QfxLayer<A extends QfxLayerArgs = QfxLayerArgs> extends tf.layers.Layer {
  readonly args: A;
  /** Quantizer of the result. */
  readonly quantizer: FixedQuantizer;
  readonly exact: Exactness;
  protected readonly points: { name: string; quantizer: FixedQuantizer }[] = [];

  constructor(args: A) {
    super(layerArgs(args));
    this.args = args;
    this.exact = args.exact ?? 'auto';
    this.quantizer = quantizerOf(args.result, this.exact, `${this.name}.result`);
  }

  /** The type of the result, now. */
  outputType(): FixedType {
    return this.quantizer.type();
  }

  /** True when the result's type can be negative; known before any data. */
  get signed(): boolean {
    return this.quantizer.format.signed;
  }

  /** The trainable positions of this layer, with the quantizers that read them. */
  get positions(): readonly { name: string; quantizer: FixedQuantizer }[] {
    return this.points;
  }

  /** The nodes of this layer, reading `inputs` (names of nodes). */
  abstract freeze(inputs: string[]): FrozenNodes;

  /** What a user of the frozen graph should know. */
  warnings(): string[] {
    return [];
  }

  /** Adds the weight behind a quantizer's position. */
  protected addPosition(name: string, quantizer: FixedQuantizer, channels = 1): void {
    // NaN: to be set by the first data seen.
    const value = typeof quantizer.start === 'number' ? quantizer.start : Number.NaN;
    const start = tf.initializers.constant({ value });
    const weight = this.addWeight(`position_${name}`, [channels], 'float32', start, undefined, quantizer.learn);
    quantizer.bind(weight.read() as tf.Variable);
    this.points.push({ name: `${this.name}/${name}`, quantizer });
  }

  override build(inputShape: Shape | Shape[]): void {
    this.addPosition('result', this.quantizer);
    super.build(inputShape);
  }

  override getConfig(): tf.serialization.ConfigDict {
    const { name: _, inputShape: __, batchInputShape: ___, ...own } = this.args as QfxLayerArgs;
    return { ...super.getConfig(), qfx: packed(own) };
  }

  static override fromConfig<T extends tf.serialization.Serializable>(
    cls: tf.serialization.SerializableConstructor<T>,
    config: tf.serialization.ConfigDict,
  ): T {
    const { qfx, ...rest } = config;
    return new cls({ ...(unpacked(qfx) as object), ...rest });
  }
}

function layerArgs({ name, inputShape, batchInputShape, trainable }: LayerArgs): LayerArgs {
  const args: LayerArgs = { name, trainable };
  if (batchInputShape) args.batchInputShape = batchInputShape;
  else if (inputShape) args.inputShape = inputShape;
  return args;
}

function quantizerOf(config: TensorQuantization, exact: Exactness, field: string): FixedQuantizer {
  const { multiplierFree, perChannel: _, ...rest } = config;
  const quantizer = multiplierFree
    ? new MultiplierFreeQuantizer({ ...rest, ...multiplierFree })
    : new FixedQuantizer(rest);
  checkHolds(quantizer.format, exact, field);
  return quantizer;
}

/** Fixes W, I and modes: the position is not learned. */
export function fixedQuantization(type: TypeLike): TensorQuantization {
  const { W, I, signed, Q, O } = asType(type, 'type');
  return { W, signed, Q, O, init: I, iMin: I, iMax: I, learn: false };
}

/** Layers that only move values: their type is that of their input. */
const WIRING = new Set(['Flatten', 'Reshape', 'ZeroPadding2D', 'MaxPooling2D', 'GlobalMaxPooling2D', 'Dropout']);

/** The layers that feed a layer. */
export function producers(layer: tf.layers.Layer): tf.layers.Layer[] {
  const node = (layer as unknown as { inboundNodes: { inboundLayers: tf.layers.Layer[] }[] }).inboundNodes[0];
  return node?.inboundLayers ?? [];
}

/** The quantized layer that made the values which `layer` puts out. */
function source(layer: tf.layers.Layer, reader: string): QfxLayer {
  if (layer instanceof QfxLayer) {
    return layer instanceof QfxMaxPool2d ? source(producers(layer)[0], reader) : layer;
  }
  const before = producers(layer);
  if (WIRING.has(layer.getClassName()) && before.length === 1) return source(before[0], reader);
  return refuse(
    reader,
    `reads ${layer.name} of class ${layer.getClassName()}, which has no type; start the model with a QfxInput and use ` +
      `Qfx layers and ${[...WIRING].join(', ')} after it`,
  );
}

/** The quantized layers whose results a layer reads. */
export function sources(layer: tf.layers.Layer): QfxLayer[] {
  return producers(layer).map((producer) => source(producer, layer.name));
}

function single(inputs: Inputs): tf.Tensor {
  return Array.isArray(inputs) ? inputs[0] : inputs;
}

/** Runs plain computations on tensors and disposes what they leave. */
function scoped<T>(compute: () => T): T {
  let result!: T;
  tf.tidy(() => {
    result = compute();
  });
  return result;
}

/** `training` of a call. */
function isTraining(kwargs: Record<string, unknown> | undefined): boolean {
  return kwargs?.training === true;
}

/** The input quantizer: cast(x, inputType). Its signedness and word length are fixed, its position is learned. */
export class QfxInput extends QfxLayer {
  static readonly className = 'QfxInput';

  override call(inputs: Inputs): tf.Tensor {
    checkBackend(this.name);
    return this.quantizer.apply(single(inputs));
  }

  freeze(): FrozenNodes {
    const shape = (this.inputSpecShape() ?? []).slice(1) as number[];
    return [{ op: 'input', name: this.name, shape, type: this.outputType() }];
  }

  private inputSpecShape(): Shape {
    return (this.input as tf.SymbolicTensor).shape;
  }
}

/** ReLU or nothing, and a cast of its own. */
export class QfxReLU extends QfxLayer<QfxLayerArgs & { activation?: Activation }> {
  static readonly className = 'QfxReLU';

  override call(inputs: Inputs): tf.Tensor {
    const x = single(inputs);
    const relu = (this.args.activation ?? 'relu') === 'relu';
    return this.quantizer.roundSum(x, undefined, relu);
  }

  freeze(inputs: string[]): FrozenNodes {
    const { activation = 'relu', directives } = this.args;
    return [{ op: 'activation', name: this.name, inputs, activation, type: this.outputType(), directives }];
  }
}

/** How a batch norm is folded into the kernel and bias before it. */
export interface BatchNormFolding {
  /** Default 1e-3. */
  epsilon?: number;
  /** Of the moving statistics. Default 0.99. */
  momentum?: number;
  /** Training steps that fold with batch statistics; after them, and in inference, the moving ones. Default 0. */
  freezeAfter?: number;
}

/** Arguments of the layers that multiply by a kernel; see {@link QfxMac}. */
export interface QfxMacArgs extends QfxLayerArgs {
  weight: TensorQuantization;
  /** Absent: no bias (unless a batch norm is folded in, which makes one). */
  bias?: TensorQuantization;
  useBias?: boolean;
  /** Default linear. */
  activation?: Activation;
  /** Default `full`; a type must have AP_WRAP and lose no fraction bit of the sum. */
  accumulator?: 'full' | 'tight' | TypeLike;
  /** Present: the layer has the variables of a batch norm and folds it. */
  batchNorm?: BatchNormFolding;
}

interface Fold {
  gamma: tf.LayerVariable;
  beta: tf.LayerVariable;
  mean: tf.LayerVariable;
  variance: tf.LayerVariable;
}

/** 1/sqrt(variance + eps) in float64, rounded once: the same number on every backend. */
function inverseDeviation(variance: tf.Tensor, epsilon: number): tf.Tensor {
  return tf.tensor(
    Float32Array.from(variance.dataSync(), (v) => 1 / Math.sqrt(v + epsilon)),
    variance.shape,
  );
}

/** Moves a running statistic towards that of the batch. */
function movingUpdate(moving: tf.LayerVariable, batch: tf.Tensor, momentum: number): void {
  moving.write(tf.add(tf.mul(moving.read(), momentum), tf.mul(batch, 1 - momentum)));
}

/**
 * A sum of products: dense, convolution, depthwise convolution. acc = sum x*w + b exactly, optional ReLU, one cast.
 * With `batchNorm` the scale and offset are folded into float kernel and bias first, then those are cast.
 */
export abstract class QfxMac<A extends QfxMacArgs = QfxMacArgs> extends QfxLayer<A> {
  readonly weightQuantizer: FixedQuantizer;
  /** Undefined for a layer without a bias. */
  readonly biasQuantizer: FixedQuantizer | undefined;
  /** The float kernel, before folding and quantization. */
  kernel!: tf.LayerVariable;
  /** The float bias; undefined with `useBias: false`. */
  bias: tf.LayerVariable | undefined;
  /** The variables of the folded batch norm, where there is one. */
  fold: Fold | undefined;
  private steps = 0;
  private inexact = false;

  constructor(args: A) {
    super(args);
    this.weightQuantizer = quantizerOf(args.weight, this.exact, `${this.name}.weight`);
    const biased = (args.useBias ?? true) || args.batchNorm !== undefined;
    const bias = args.bias ?? { W: 16 };
    this.biasQuantizer = biased ? quantizerOf(bias, this.exact, `${this.name}.bias`) : undefined;
  }

  /** Shape of the kernel as TensorFlow.js has it. */
  protected abstract kernelShape(inputShape: Shape): number[];
  /** The linear map in float32. */
  protected abstract product(x: tf.Tensor, w: tf.Tensor): tf.Tensor;
  /** Products in one output. */
  protected abstract terms(): number;
  /** Outputs that have a bias of their own. */
  protected abstract channels(): number;
  /** The kernel under which the channels are the last axis (or last two) of the folded one. */
  protected abstract scaleKernel(kernel: tf.Tensor, scale: tf.Tensor): tf.Tensor;

  override build(inputShape: Shape | Shape[]): void {
    const shape = this.kernelShape(inputShape as Shape);
    this.kernel = this.addWeight('kernel', shape, 'float32', tf.initializers.glorotUniform({}));
    const channels = this.channels();
    const vector = (name: string, value: number, trainable = true): tf.LayerVariable =>
      this.addWeight(name, [channels], 'float32', tf.initializers.constant({ value }), undefined, trainable);
    if (this.args.useBias ?? true) this.bias = vector('bias', 0);
    if (this.args.batchNorm) {
      this.fold = {
        gamma: vector('gamma', 1),
        beta: vector('beta', 0),
        mean: vector('moving_mean', 0, false),
        variance: vector('moving_variance', 1, false),
      };
    }
    this.addPosition('weight', this.weightQuantizer, this.args.weight.perChannel ? channels : 1);
    if (this.biasQuantizer) this.addPosition('bias', this.biasQuantizer);
    super.build(inputShape);
  }

  /** The float kernel and bias that are cast, batch norm folded in. */
  folded(x?: tf.Tensor, training = false): { kernel: tf.Tensor; bias: tf.Tensor | undefined } {
    const kernel = this.kernel.read();
    const own = this.bias?.read();
    if (!this.fold) return { kernel, bias: own };
    const { epsilon = 1e-3, momentum = 0.99, freezeAfter = 0 } = this.args.batchNorm as BatchNormFolding;
    const { gamma, beta } = this.fold;
    let mean: tf.Tensor = this.fold.mean.read();
    let inverse: tf.Tensor;
    if (training && x && this.steps < freezeAfter) {
      const z = this.product(x, kernel);
      const axes = z.shape.map((_, i) => i).slice(0, -1);
      const moments = tf.moments(z, axes);
      mean = own ? tf.add(moments.mean, own) : moments.mean;
      movingUpdate(this.fold.mean, mean, momentum);
      movingUpdate(this.fold.variance, moments.variance, momentum);
      inverse = tf.rsqrt(tf.add(moments.variance, epsilon));
    } else {
      inverse = inverseDeviation(this.fold.variance.read(), epsilon);
    }
    const a = tf.mul(gamma.read(), inverse);
    const centred = own ? tf.sub(own, mean) : tf.neg(mean);
    return { kernel: this.scaleKernel(kernel, a), bias: tf.add(tf.mul(centred, a), beta.read()) };
  }

  override call(inputs: Inputs, kwargs: Record<string, unknown>): tf.Tensor {
    return tf.tidy(() => {
      checkBackend(this.name);
      const x = single(inputs);
      const training = isTraining(kwargs);
      const { kernel, bias } = this.folded(x, training);
      if (training) this.steps++;
      const w = this.weightQuantizer.apply(kernel);
      const b = bias && this.biasQuantizer?.apply(bias);
      return this.accumulate(x, w, b);
    });
  }

  private accumulate(x: tf.Tensor, w: tf.Tensor, b: tf.Tensor | undefined): tf.Tensor {
    const xType = sources(this)[0].outputType();
    const wFormat = this.weightQuantizer.format;
    const fractions = this.weightQuantizer.positions().map((I) => wFormat.W - I);
    const terms = this.terms();
    const channels = this.channels();
    const bound = productBound(xType, wFormat, terms, () => this.largestColumn(w, fractions, channels));
    const acc = this.product(x, w);
    let exact: Float64Array | undefined;
    if (!bound.exact) {
      if (this.exact === 'fast') this.inexact = true;
      else {
        const product = (xs: tf.Tensor, ws: tf.Tensor): tf.Tensor => this.product(xs, ws);
        exact = splitProduct(x, xType, w, wFormat, fractions, terms, product, this.name);
      }
    }
    this.checkSum(bound.largest, xType, fractions);
    const wrap = this.wrapping(xType);
    const relu = this.args.activation === 'relu';
    if (!exact && !wrap) return this.quantizer.roundSum(acc, b, relu);
    // The float32 product carries the gradient; its exact value comes from the parts.
    const forward = ([sums, biases]: Float32Array[]): Forward => {
      const v: Reals = exact ?? sums;
      const pull = (dv: Float32Array): Reals[] => (b ? [dv, columnSums(dv, channels)] : [dv]);
      if (!wrap) return { v, offset: biases, pull };
      return { v: Float64Array.from(v, (value, i) => wrap(value + (biases ? biases[i % channels] : 0))), pull };
    };
    return this.quantizer.round(b ? [acc, b] : [acc], acc.shape, forward, relu);
  }

  /** Largest sum of |raw weight| of one output. */
  private largestColumn(w: tf.Tensor, fractions: number[], channels: number): number {
    const kernels = fractions.length === 1 ? heap() : null;
    return kernels ? kernels.column(w, channels) * 2 ** fractions[0] : largestColumn(valuesOf(w), fractions, channels);
  }

  private checkSum(products: number, xType: FixedType, fractions: number[]): void {
    const Fp = fractionBits(xType) + Math.max(...fractions);
    let largest = products;
    if (this.biasQuantizer) {
      const bias = this.biasQuantizer.type();
      const Fa = Math.max(Fp, fractionBits(bias));
      largest = products * 2 ** (Fa - Fp) + 2 ** (magnitudeBits(bias) + Fa - fractionBits(bias));
    }
    checkFloat64(largest, this.exact, this.name);
  }

  /** The wrap of an explicit accumulator, on real values. */
  private wrapping(xType: FixedType): ((v: number) => number) | undefined {
    const { accumulator = 'full' } = this.args;
    if (accumulator === 'full' || accumulator === 'tight') return undefined;
    const type = asType(accumulator, `${this.name}.accumulator`);
    const F = fractionBits(type);
    const wF = Math.max(...this.weightQuantizer.positions().map((I) => this.weightQuantizer.format.W - I));
    const needed = Math.max(
      fractionBits(xType) + wF,
      this.biasQuantizer ? fractionBits(this.biasQuantizer.type()) : -999,
    );
    ensure(
      F >= needed && type.O === 'AP_WRAP',
      `${this.name}.accumulator`,
      () => `needs at least ${needed} fraction bits and AP_WRAP, got F = ${F} and ${type.O}`,
    );
    const overflow = overflower(type);
    return (v) => overflow(v * 2 ** F) * 2 ** -F;
  }

  override warnings(): string[] {
    return this.inexact
      ? [`${this.name}: trained with exact: 'fast'; float32 sums of this layer may differ from the integer program`]
      : [];
  }

  /** Raw weights and bias on one grid, and their types. */
  protected frozenMac(): FrozenMac {
    return scoped(() => {
      const { kernel, bias } = this.folded();
      const w = this.weightQuantizer.apply(kernel);
      const b = bias && this.biasQuantizer?.apply(bias);
      const { activation = 'linear', accumulator, directives } = this.args;
      const multiplierFree = this.args.weight.multiplierFree;
      return {
        ...frozenWeights(w, this.weightQuantizer),
        ...(b && this.biasQuantizer
          ? { bias: rawOf(b, this.biasQuantizer.type()), biasType: this.biasQuantizer.type() }
          : {}),
        activation,
        type: this.outputType(),
        ...(accumulator === undefined ? {} : { accumulator }),
        ...(directives ? { directives } : {}),
        ...(multiplierFree ? { multiplierFree } : {}),
      };
    });
  }
}

type FrozenMac = Omit<Extract<NodeSpec, { op: 'dense' }>, 'op' | 'name' | 'inputs'>;

/** The raw integers of values that lie on a type's grid. */
function rawOf(values: tf.Tensor, type: FixedType): { shape: number[]; data: Float64Array } {
  const cast = caster({ ...type, Q: 'AP_RND', O: 'AP_SAT' });
  return { shape: values.shape, data: Float64Array.from(values.dataSync(), cast) };
}

/** Weights with a position per channel are put on the grid of the finest, in a type that holds the widest. */
function frozenWeights(w: tf.Tensor, quantizer: FixedQuantizer): Pick<FrozenMac, 'weights' | 'weightType'> {
  const positions = quantizer.positions();
  const { format } = quantizer;
  if (positions.length === 1) {
    const weightType = quantizer.type();
    return { weights: rawOf(w, weightType), weightType };
  }
  const I = Math.max(...positions);
  const F = Math.max(...positions.map((position) => format.W - position));
  ensure(
    I + F <= 53,
    'weight',
    () => `positions per channel from ${Math.min(...positions)} to ${I} need ${I + F} bits; narrow iMin and iMax`,
  );
  const weightType: FixedType = { ...format, W: I + F, I };
  return {
    weights: rawOf(w, weightType),
    weightType,
    channelShift: positions.map((position) => F - (format.W - position)),
    channelBits: format.W,
  } as Pick<FrozenMac, 'weights' | 'weightType'>;
}

/** Fully connected: kernel [in, units]; acts on the last axis. */
export class QfxDense extends QfxMac<QfxMacArgs & { units: number }> {
  static readonly className = 'QfxDense';
  private inDim = 0;

  protected kernelShape(inputShape: Shape): number[] {
    this.inDim = inputShape[inputShape.length - 1] as number;
    return [this.inDim, this.args.units];
  }

  protected terms(): number {
    return this.inDim;
  }

  protected channels(): number {
    return this.args.units;
  }

  protected scaleKernel(kernel: tf.Tensor, scale: tf.Tensor): tf.Tensor {
    return tf.mul(kernel, scale);
  }

  protected product(x: tf.Tensor, w: tf.Tensor): tf.Tensor {
    if (x.rank === 2) return tf.matMul(x as tf.Tensor2D, w as tf.Tensor2D);
    const y = tf.matMul(tf.reshape(x, [-1, this.inDim]) as tf.Tensor2D, w as tf.Tensor2D);
    return tf.reshape(y, [...x.shape.slice(0, -1), this.args.units]);
  }

  override computeOutputShape(inputShape: Shape): Shape {
    return [...inputShape.slice(0, -1), this.args.units];
  }

  freeze(inputs: string[]): FrozenNodes {
    return [{ op: 'dense', name: this.name, inputs, ...this.frozenMac() }];
  }
}

/** Arguments of the convolutions; a pair is [height, width], a 1-D one reads its first entry. */
export interface QfxConvArgs extends QfxMacArgs {
  kernelSize: number | [number, number];
  /** Default 1. */
  strides?: number | [number, number];
  /** Default valid. */
  padding?: Padding;
}

function both(value: number | readonly number[] | undefined, whenAbsent = 1): [number, number] {
  if (value === undefined) return [whenAbsent, whenAbsent];
  return typeof value === 'number' ? [value, value] : [value[0], value[1] ?? value[0]];
}

abstract class QfxConvBase<A extends QfxConvArgs> extends QfxMac<A> {
  protected inC = 0;
  protected kernelSize: [number, number];
  protected strides: [number, number];

  constructor(args: A) {
    super(args);
    this.kernelSize = both(args.kernelSize);
    this.strides = both(args.strides);
  }

  protected get padding(): Padding {
    return this.args.padding ?? 'valid';
  }

  override computeOutputShape(inputShape: Shape): Shape {
    const [batch, H, W] = inputShape as number[];
    const [outH] = slide(H, this.kernelSize[0], this.strides[0], this.padding, this.name);
    const [outW] = slide(W, this.kernelSize[1], this.strides[1], this.padding, this.name);
    return [batch, outH, outW, this.channels()];
  }

  freeze(inputs: string[]): FrozenNodes {
    const { strides, padding } = this;
    return [{ op: this.operation(), name: this.name, inputs, strides, padding, ...this.frozenMac() }];
  }

  protected abstract operation(): 'conv2d' | 'depthwiseConv2d';
}

/** 2-D convolution, kernel [kh, kw, in, filters]; no dilation, no groups. */
export class QfxConv2d extends QfxConvBase<QfxConvArgs & { filters: number }> {
  static readonly className: string = 'QfxConv2d';

  protected kernelShape(inputShape: Shape): number[] {
    this.inC = inputShape[inputShape.length - 1] as number;
    return [...this.kernelSize, this.inC, this.args.filters];
  }

  protected terms(): number {
    return this.kernelSize[0] * this.kernelSize[1] * this.inC;
  }

  protected channels(): number {
    return this.args.filters;
  }

  protected scaleKernel(kernel: tf.Tensor, scale: tf.Tensor): tf.Tensor {
    return tf.mul(kernel, scale);
  }

  protected product(x: tf.Tensor, w: tf.Tensor): tf.Tensor {
    return tf.conv2d(x as tf.Tensor4D, w as tf.Tensor4D, this.strides, this.padding);
  }

  protected operation(): 'conv2d' | 'depthwiseConv2d' {
    return 'conv2d';
  }
}

/** 1-D convolution, kernel [width, in, filters]: a 2-D one of height 1. */
export class QfxConv1d extends QfxConv2d {
  static override readonly className: string = 'QfxConv1d';

  constructor(args: QfxConvArgs & { filters: number }) {
    super(args);
    this.kernelSize = [1, both(args.kernelSize)[0]];
    this.strides = [1, both(args.strides)[0]];
  }

  protected override kernelShape(inputShape: Shape): number[] {
    return super.kernelShape(inputShape).slice(1);
  }

  protected override product(x: tf.Tensor, w: tf.Tensor): tf.Tensor {
    return tf.squeeze(super.product(tf.expandDims(x, 1), tf.expandDims(w, 0)), [1]);
  }

  override computeOutputShape(inputShape: Shape): Shape {
    const [batch, length] = inputShape as number[];
    const [out] = slide(length, this.kernelSize[1], this.strides[1], this.padding, this.name);
    return [batch, out, this.args.filters];
  }

  override freeze(inputs: string[]): FrozenNodes {
    const { padding } = this;
    return [{ op: 'conv1d', name: this.name, inputs, strides: this.strides[1], padding, ...this.frozenMac() }];
  }
}

/** Depthwise convolution, kernel [kh, kw, C, multiplier]; output channel c*multiplier + m. */
export class QfxDepthwiseConv2d extends QfxConvBase<QfxConvArgs & { depthMultiplier?: number }> {
  static readonly className = 'QfxDepthwiseConv2d';

  private get multiplier(): number {
    return this.args.depthMultiplier ?? 1;
  }

  protected kernelShape(inputShape: Shape): number[] {
    this.inC = inputShape[inputShape.length - 1] as number;
    return [...this.kernelSize, this.inC, this.multiplier];
  }

  protected terms(): number {
    return this.kernelSize[0] * this.kernelSize[1];
  }

  protected channels(): number {
    return this.inC * this.multiplier;
  }

  protected scaleKernel(kernel: tf.Tensor, scale: tf.Tensor): tf.Tensor {
    return tf.mul(kernel, tf.reshape(scale, [this.inC, this.multiplier]));
  }

  protected product(x: tf.Tensor, w: tf.Tensor): tf.Tensor {
    return tf.depthwiseConv2d(x as tf.Tensor4D, w as tf.Tensor4D, this.strides, this.padding);
  }

  protected operation(): 'conv2d' | 'depthwiseConv2d' {
    return 'depthwiseConv2d';
  }
}

/** Arguments of {@link QfxBatchNorm}: `scale` and `offset` quantize its A and C, one binary point each. */
export interface QfxBatchNormArgs extends QfxLayerArgs {
  scale: TensorQuantization;
  offset: TensorQuantization;
  /** Default linear. */
  activation?: Activation;
  accumulator?: 'full' | 'tight';
  /** Default 1e-3. */
  epsilon?: number;
  /** Of the moving statistics. Default 0.99. */
  momentum?: number;
  /** Training steps with batch statistics. Default 0: the moving ones, as in inference. */
  freezeAfter?: number;
}

/** Batch norm as fixed-point hardware: y = cast(x*A + C) with A = cast(gamma/sqrt(variance+eps)), C = cast(beta - mean*a). */
export class QfxBatchNorm extends QfxLayer<QfxBatchNormArgs> {
  static readonly className = 'QfxBatchNorm';
  readonly scaleQuantizer: FixedQuantizer;
  readonly offsetQuantizer: FixedQuantizer;
  fold!: Fold;
  private steps = 0;

  constructor(args: QfxBatchNormArgs) {
    super(args);
    this.scaleQuantizer = quantizerOf(args.scale, this.exact, `${this.name}.scale`);
    this.offsetQuantizer = quantizerOf(args.offset, this.exact, `${this.name}.offset`);
  }

  override build(inputShape: Shape | Shape[]): void {
    const shape = inputShape as Shape;
    const channels = shape[shape.length - 1] as number;
    const vector = (name: string, value: number, trainable = true): tf.LayerVariable =>
      this.addWeight(name, [channels], 'float32', tf.initializers.constant({ value }), undefined, trainable);
    this.fold = {
      gamma: vector('gamma', 1),
      beta: vector('beta', 0),
      mean: vector('moving_mean', 0, false),
      variance: vector('moving_variance', 1, false),
    };
    this.addPosition('scale', this.scaleQuantizer);
    this.addPosition('offset', this.offsetQuantizer);
    super.build(inputShape);
  }

  private scaleAndOffset(x?: tf.Tensor, training = false): { A: tf.Tensor; C: tf.Tensor } {
    const { epsilon = 1e-3, momentum = 0.99, freezeAfter = 0 } = this.args;
    let mean: tf.Tensor = this.fold.mean.read();
    let inverse: tf.Tensor;
    if (training && x && this.steps < freezeAfter) {
      const moments = tf.moments(x, x.shape.map((_, i) => i).slice(0, -1));
      mean = moments.mean;
      movingUpdate(this.fold.mean, moments.mean, momentum);
      movingUpdate(this.fold.variance, moments.variance, momentum);
      inverse = tf.rsqrt(tf.add(moments.variance, epsilon));
    } else inverse = inverseDeviation(this.fold.variance.read(), epsilon);
    const a = tf.mul(this.fold.gamma.read(), inverse);
    const c = tf.sub(this.fold.beta.read(), tf.mul(mean, a));
    return { A: this.scaleQuantizer.apply(a), C: this.offsetQuantizer.apply(c) };
  }

  override call(inputs: Inputs, kwargs: Record<string, unknown>): tf.Tensor {
    return tf.tidy(() => {
      const x = single(inputs);
      const training = isTraining(kwargs);
      const { A, C } = this.scaleAndOffset(x, training);
      if (training) this.steps++;
      const channels = A.size;
      const xType = sources(this)[0].outputType();
      const scale = this.scaleQuantizer.type();
      const offset = this.offsetQuantizer.type();
      const Fp = fractionBits(xType) + fractionBits(scale);
      const Fa = Math.max(Fp, fractionBits(offset));
      checkFloat64(
        2 ** (magnitudeBits(xType) + magnitudeBits(scale) + Fa - Fp) +
          2 ** (magnitudeBits(offset) + Fa - fractionBits(offset)),
        this.exact,
        this.name,
      );
      const forward = ([xs, as, cs]: Float32Array[]): Forward => {
        const v = new Float64Array(xs.length);
        for (let i = 0, c = 0; i < v.length; i++) {
          v[i] = xs[i] * as[c] + cs[c];
          if (++c === channels) c = 0;
        }
        return {
          v,
          pull: (dv) => {
            const dx = new Float32Array(dv.length);
            const dA = new Float64Array(channels);
            const dC = new Float64Array(channels);
            for (let i = 0, c = 0; i < dv.length; i++) {
              dx[i] = dv[i] * as[c];
              dA[c] += dv[i] * xs[i];
              dC[c] += dv[i];
              if (++c === channels) c = 0;
            }
            return [dx, dA, dC];
          },
        };
      };
      return this.quantizer.round([x, A, C], x.shape, forward, this.args.activation === 'relu');
    });
  }

  freeze(inputs: string[]): FrozenNodes {
    return scoped((): FrozenNodes => {
      const { A, C } = this.scaleAndOffset();
      const { activation = 'linear', accumulator, directives } = this.args;
      const multiplierFree = this.args.scale.multiplierFree;
      const weightType = this.scaleQuantizer.type();
      const biasType = this.offsetQuantizer.type();
      return [
        {
          op: 'batchNorm',
          name: this.name,
          inputs,
          weights: rawOf(A, weightType),
          weightType,
          bias: rawOf(C, biasType),
          biasType,
          activation,
          type: this.outputType(),
          ...(accumulator === undefined ? {} : { accumulator }),
          ...(directives ? { directives } : {}),
          ...(multiplierFree ? { multiplierFree } : {}),
        },
      ];
    });
  }
}

/** Exact sum of two or more tensors of one shape, optional ReLU, one cast. */
export class QfxAdd extends QfxLayer<QfxLayerArgs & { activation?: Activation }> {
  static readonly className = 'QfxAdd';

  override call(inputs: Inputs): tf.Tensor {
    const xs = inputs as tf.Tensor[];
    const sum = sources(this)
      .map((layer) => layer.outputType())
      .reduce((a, b) => addType(a, b));
    checkFloat64(2 ** magnitudeBits(sum), this.exact, this.name);
    const forward = (data: Float32Array[]): Forward => {
      const v = Float64Array.from(data[0]);
      for (const other of data.slice(1)) for (let i = 0; i < v.length; i++) v[i] += other[i];
      return { v, pull: (dv) => data.map(() => dv) };
    };
    return this.quantizer.round(xs, xs[0].shape, forward, this.args.activation === 'relu');
  }

  override computeOutputShape(inputShape: Shape | Shape[]): Shape {
    return (inputShape as Shape[])[0];
  }

  freeze(inputs: string[]): FrozenNodes {
    const { activation = 'linear', directives } = this.args;
    return [{ op: 'add', name: this.name, inputs, activation, type: this.outputType(), directives }];
  }
}

/** Inputs brought to one type by a cast each, then side by side. */
export class QfxConcat extends QfxLayer<QfxLayerArgs & { axis?: number }> {
  static readonly className = 'QfxConcat';

  override call(inputs: Inputs): tf.Tensor {
    const xs = inputs as tf.Tensor[];
    if (!this.quantizer.ready) {
      // One position for all: it must be set by all of them.
      const all = tf.concat(xs.map((x) => tf.reshape(x, [-1])));
      this.quantizer.init(all);
      all.dispose();
    }
    return tf.concat(
      xs.map((x) => this.quantizer.apply(x)),
      this.axis(xs[0].rank),
    );
  }

  private axis(rank: number): number {
    const axis = this.args.axis ?? -1;
    return axis < 0 ? axis + rank : axis;
  }

  override computeOutputShape(inputShape: Shape | Shape[]): Shape {
    const shapes = inputShape as Shape[];
    const axis = this.axis(shapes[0].length);
    const total = shapes.reduce((sum, shape) => sum + (shape[axis] as number), 0);
    return shapes[0].map((d, i) => (i === axis ? total : d));
  }

  freeze(inputs: string[]): FrozenNodes {
    const type = this.outputType();
    const casts = inputs.map(
      (from, i) => ({ op: 'activation', name: `${this.name}_cast${i + 1}`, inputs: [from], type }) satisfies NodeSpec,
    );
    const rank = (this.output as tf.SymbolicTensor).shape.length;
    return [
      ...casts,
      { op: 'concat', name: this.name, inputs: casts.map(({ name }) => name), axis: this.axis(rank) - 1 },
    ];
  }
}

/** The window of a pooling layer; a pair is [height, width]. */
export interface PoolArgs {
  /** Default 2. */
  poolSize?: number | [number, number];
  /** Default the pool size. */
  strides?: number | [number, number];
  /** Default valid. */
  padding?: Padding;
  /** One window over the whole image. */
  global?: boolean;
}

/** Pooling windows of a batch shape. */
function windowOf(args: PoolArgs, shape: Shape, name: string): Window2d {
  const [, inH, inW, inC] = shape as number[];
  const size = args.global ? ([inH, inW] as [number, number]) : both(args.poolSize, 2);
  const strides = args.global ? ([1, 1] as [number, number]) : args.strides ? both(args.strides) : size;
  const padding = args.global ? 'valid' : (args.padding ?? 'valid');
  const [outH, padTop, padBottom] = slide(inH, size[0], strides[0], padding, name);
  const [outW, padLeft, padRight] = slide(inW, size[1], strides[1], padding, name);
  const [kernelH, kernelW] = size;
  const [strideH, strideW] = strides;
  const geometry = { inH, inW, inC, outH, outW, outC: inC, kernelH, kernelW, strideH, strideW };
  return { ...geometry, padTop, padBottom, padLeft, padRight };
}

function pooledShape(args: PoolArgs, shape: Shape, name: string): Shape {
  const { outH, outW } = windowOf(args, shape, name);
  return args.global ? [shape[0], shape[3]] : [shape[0], outH, outW, shape[3]];
}

/** Exact maximum; the type does not change. */
export class QfxMaxPool2d extends QfxLayer<QfxLayerArgs & PoolArgs> {
  static readonly className = 'QfxMaxPool2d';

  constructor(args: LayerArgs & PoolArgs & { directives?: Directives }) {
    // No cast, so no quantizer of its own: the format given is never used.
    super({ result: { W: 8 }, ...args } as QfxLayerArgs);
  }

  override build(): void {
    this.built = true;
  }

  override call(inputs: Inputs): tf.Tensor {
    const x = single(inputs) as tf.Tensor4D;
    if (this.args.global) return tf.max(x, [1, 2]);
    const size = both(this.args.poolSize, 2);
    const strides = this.args.strides ? both(this.args.strides) : size;
    return tf.maxPool(x, size, strides, this.args.padding ?? 'valid');
  }

  override outputType(): FixedType {
    return sources(this)[0].outputType();
  }

  override get signed(): boolean {
    return sources(this)[0].signed;
  }

  override computeOutputShape(inputShape: Shape): Shape {
    return pooledShape(this.args, inputShape, this.name);
  }

  freeze(inputs: string[]): FrozenNodes {
    const { global, poolSize = 2, strides, padding, directives } = this.args;
    return global
      ? [{ op: 'globalMaxPool2d', name: this.name, inputs, directives }]
      : [{ op: 'maxPool2d', name: this.name, inputs, size: poolSize, strides, padding, directives }];
  }
}

/** Average over the valid cells: S times a rounded reciprocal, one cast. */
export class QfxAvgPool2d extends QfxLayer<QfxLayerArgs & PoolArgs & { reciprocalBits?: number }> {
  static readonly className: string = 'QfxAvgPool2d';

  private get reciprocalBits(): number {
    return this.args.reciprocalBits ?? 16;
  }

  override call(inputs: Inputs): tf.Tensor {
    const x = single(inputs);
    const window = windowOf(this.args, x.shape, this.name);
    const counts = validCounts(window);
    const factors = new Map(
      counts.map((count) => {
        const { raw, fraction } = reciprocal(count, this.reciprocalBits);
        return [count, raw * 2 ** -fraction];
      }),
    );
    const xType = sources(this)[0].outputType();
    const largest = 2 ** (magnitudeBits(xType) + this.reciprocalBits + 2) * counts[counts.length - 1];
    checkFloat64(largest, this.exact, this.name);
    const batch = x.shape[0];
    const shape = pooledShape(this.args, x.shape, this.name) as number[];
    const forward = ([xs]: Float32Array[]): Forward => {
      const v = new Float64Array(tf.util.sizeFromShape(shape));
      const visit = (
        cell: (from: number, to: number) => void,
        done: (to: number, factor: number) => void,
        before?: (to: number, factor: number) => void,
      ): void => eachWindow(batch, window, factors, cell, done, before);
      visit(
        (from, to) => {
          v[to] += xs[from];
        },
        (to, factor) => {
          v[to] *= factor;
        },
      );
      return {
        v,
        pull: (dv) => {
          const dx = new Float32Array(xs.length);
          let share = 0;
          visit(
            (from) => {
              dx[from] += share;
            },
            () => {},
            (to, factor) => {
              share = dv[to] * factor;
            },
          );
          return [dx];
        },
      };
    };
    return this.quantizer.round([x], shape, forward);
  }

  override computeOutputShape(inputShape: Shape): Shape {
    return pooledShape(this.args, inputShape, this.name);
  }

  freeze(inputs: string[]): FrozenNodes {
    const { global, poolSize = 2, strides, padding, directives } = this.args;
    const common = {
      name: this.name,
      inputs,
      type: this.outputType(),
      reciprocalBits: this.reciprocalBits,
      directives,
    };
    return global
      ? [{ op: 'globalAvgPool2d', ...common }]
      : [{ op: 'avgPool2d', ...common, size: poolSize, strides, padding }];
  }
}

/** Average over the whole image. */
export class QfxGlobalAvgPool2d extends QfxAvgPool2d {
  static override readonly className: string = 'QfxGlobalAvgPool2d';

  constructor(args: QfxLayerArgs & { reciprocalBits?: number }) {
    super({ ...args, global: true } as QfxLayerArgs);
  }
}

/** Visits the cells of every window, per output element: `before`, each valid cell, `done`. */
function eachWindow(
  batch: number,
  window: Window2d,
  factors: Map<number, number>,
  cell: (from: number, to: number) => void,
  done: (to: number, factor: number) => void,
  before?: (to: number, factor: number) => void,
): void {
  const { inH, inW, inC, outH, outW, kernelH, kernelW, strideH, strideW, padTop, padLeft } = window;
  for (let b = 0; b < batch; b++) {
    for (let oy = 0; oy < outH; oy++) {
      const top = Math.max(oy * strideH - padTop, 0);
      const bottom = Math.min(oy * strideH - padTop + kernelH, inH);
      for (let ox = 0; ox < outW; ox++) {
        const left = Math.max(ox * strideW - padLeft, 0);
        const right = Math.min(ox * strideW - padLeft + kernelW, inW);
        const factor = factors.get((bottom - top) * (right - left)) as number;
        for (let c = 0; c < inC; c++) {
          const to = ((b * outH + oy) * outW + ox) * inC + c;
          before?.(to, factor);
          for (let y = top; y < bottom; y++) {
            for (let x = left; x < right; x++) cell(((b * inH + y) * inW + x) * inC + c, to);
          }
          done(to, factor);
        }
      }
    }
  }
}

/** Arguments of {@link QfxSoftmax}: the result's type and the sizes of its two tables. */
export interface QfxSoftmaxArgs extends LayerArgs {
  /** Default ap_ufixed<16,1,AP_RND,AP_SAT>. */
  type?: TypeLike;
  /** Power of two, default 1024. */
  expTableSize?: number;
  /** Power of two, default 4096. */
  invTableSize?: number;
  exact?: Exactness;
  directives?: Directives;
}

/** Softmax by two tables; its gradient is that of the float softmax of the same logits. */
export class QfxSoftmax extends QfxLayer<QfxLayerArgs & QfxSoftmaxArgs> {
  static readonly className = 'QfxSoftmax';

  constructor(args: QfxSoftmaxArgs = {}) {
    super({ ...args, result: fixedQuantization(args.type ?? fixedType(16, 1, { signed: false })) } as QfxLayerArgs);
  }

  override call(inputs: Inputs): tf.Tensor {
    const logits = single(inputs);
    const xType = sources(this)[0].outputType();
    const length = logits.shape[logits.rank - 1];
    const { expTableSize = 1024, invTableSize = 4096 } = this.args;
    const tables = softmaxTables(xType, length, expTableSize, invTableSize);
    const type = this.outputType();
    const toRaw = rawCaster(32, type);
    const step = 2 ** -fractionBits(type);
    const scale = 2 ** fractionBits(xType);
    return tf.customGrad((input) => {
      const x = input as tf.Tensor;
      const values = x.dataSync();
      const y = new Float32Array(values.length);
      for (let row = 0; row < values.length; row += length) {
        softmaxRow(
          (i) => values[row + i] * scale,
          length,
          tables,
          (i, product) => {
            y[row + i] = toRaw(product) * step;
          },
        );
      }
      return {
        value: tf.tensor(y, x.shape),
        gradFunc: (dy: tf.Tensor) => {
          const p = tf.softmax(x);
          return [tf.mul(p, tf.sub(dy, tf.sum(tf.mul(dy, p), -1, true)))];
        },
      };
    })(logits);
  }

  freeze(inputs: string[]): FrozenNodes {
    const { expTableSize, invTableSize, directives } = this.args;
    return [
      { op: 'softmax', name: this.name, inputs, type: this.outputType(), expTableSize, invTableSize, directives },
    ];
  }
}

/** One row of the table softmax: raw logits in, e_i * V (32 fraction bits) out. */
export function softmaxRow(
  logit: (i: number) => number,
  length: number,
  tables: { exp: ArrayLike<number>; expShift: number; inv: ArrayLike<number>; invShift: number },
  emit: (i: number, product: number) => void,
): void {
  let top = -Infinity;
  for (let i = 0; i < length; i++) top = Math.max(top, logit(i));
  const expStep = 2 ** tables.expShift;
  const e = (i: number): number => tables.exp[Math.floor((top - logit(i)) / expStep)];
  let Z = 0;
  for (let i = 0; i < length; i++) Z += e(i);
  const v = tables.inv[Math.floor((Z - 65536) / 2 ** tables.invShift)];
  for (let i = 0; i < length; i++) emit(i, e(i) * v);
}

/** Largest magnitude that a multiplier-free format can write. */
export function largestLevel(format: { W: number; signed: boolean }, config: MultiplierFreeConfig): number {
  const levels = levelsOf({ ...format, Q: 'AP_RND', O: 'AP_SAT' }, config);
  return levels[levels.length - 1];
}

for (const layer of [
  QfxInput,
  QfxReLU,
  QfxDense,
  QfxConv2d,
  QfxConv1d,
  QfxDepthwiseConv2d,
  QfxBatchNorm,
  QfxAdd,
  QfxConcat,
  QfxMaxPool2d,
  QfxAvgPool2d,
  QfxGlobalAvgPool2d,
  QfxSoftmax,
]) {
  tf.serialization.registerClass(
    layer as unknown as tf.serialization.SerializableConstructor<tf.serialization.Serializable>,
  );
}
