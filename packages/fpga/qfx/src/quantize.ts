import { didYouMean, ensure, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import type { TypeLike } from './build.ts';
import type { MultiplierFreeConfig } from './digits.ts';
import type { Exactness } from './exactness.ts';
import type { Activation, Directives, Strategy } from './graph.ts';
import {
  fixedQuantization,
  QfxAdd,
  QfxAvgPool2d,
  QfxBatchNorm,
  QfxConcat,
  QfxConv1d,
  QfxConv2d,
  QfxDense,
  QfxDepthwiseConv2d,
  QfxGlobalAvgPool2d,
  QfxInput,
  type QfxMac,
  QfxMaxPool2d,
  QfxReLU,
  QfxSoftmax,
  type TensorQuantization,
} from './layers.ts';
import type { PositionInit } from './quantizer.ts';
import { QfxModel } from './training.ts';
import type { OverflowMode, QuantizationMode } from './types.ts';
import { type Step, steps } from './walk.ts';

/** hls4ml's spelling of a layer's types. */
export interface Precision {
  weight?: TypeLike;
  bias?: TypeLike;
  result?: TypeLike;
  accum?: TypeLike;
  table?: TypeLike;
}

/** Settings of one layer; a type fixes the binary point, bits leave it to training. */
export interface LayerQuantization {
  /** Word length of the weights. Default `bits`. */
  weightBits?: number;
  /** Word length of the bias. Default 16. */
  biasBits?: number;
  /** Word length of the result. Default `bits`; for the last layer see `outputBits`. */
  activationBits?: number;
  /** Word length of the scale of an unfolded batch norm. Default `bits`. */
  batchNormBits?: number;
  weightType?: TypeLike;
  biasType?: TypeLike;
  resultType?: TypeLike;
  /** One binary point per output channel of the weights. Default false. */
  perChannel?: boolean;
  multiplierFree?: MultiplierFreeConfig;
  accumulator?: 'full' | 'tight' | TypeLike;
  batchNorm?: 'folded' | 'unfolded';
  reuseFactor?: number;
  strategy?: Strategy;
  parallelizationFactor?: number;
  /** Aliases in hls4ml's spelling. */
  Precision?: Precision | TypeLike;
  ReuseFactor?: number;
  Strategy?: string;
  ParallelizationFactor?: number;
}

/**
 * Settings of {@link quantizeModel}. The members of {@link LayerQuantization} hold for every layer that `layers` does not set.
 */
export interface QuantizeConfig extends LayerQuantization {
  /** Weights, activations and batch norm at once. Default 8. */
  bits?: number;
  /** Word length of the last layer's result, which nothing multiplies. Default 16. */
  outputBits?: number;
  /** The input's type, or its bits and sign. Default: `activationBits`, unsigned when the calibration data are >= 0. */
  input?: { bits?: number; signed?: boolean; type?: TypeLike };
  /** Rounding and overflow of everything that is trained. Defaults AP_RND, AP_SAT. */
  modes?: { Q?: QuantizationMode; O?: OverflowMode };
  /** Default true. */
  learnPosition?: boolean;
  /** Default mse for weights and biases, max for activations. */
  positionInit?: PositionInit | { weights?: PositionInit; activations?: PositionInit };
  /** Default `one`. */
  positionGrad?: 'one' | 'lsq';
  /** Default 0.01. */
  positionLr?: number;
  /** Clip of the positions. Defaults -24, 24. */
  iMin?: number;
  iMax?: number;
  /** Fraction of training after which positions are fixed. Default 0.8. */
  freezeAfter?: number;
  /** Training steps in all, when `fit` is called in pieces. Default: those of each call. */
  steps?: number;
  /** Training steps with batch statistics in batch norms. Default 0: moving statistics from the start. */
  batchNormFreezeAfter?: number;
  /** What becomes of a final softmax. Default stable (two tables); argmax and skip train on logits. */
  softmax?: 'stable' | 'argmax' | 'skip';
  /** Default ap_ufixed<16,1,AP_RND,AP_SAT>. */
  softmaxType?: TypeLike;
  /** Power of two, default 1024. */
  expTableSize?: number;
  /** Power of two, default 4096. */
  invTableSize?: number;
  /** Default 16. */
  reciprocalBits?: number;
  /** Default auto. */
  exact?: Exactness;
  /** One batch of typical inputs: sets the positions of all activations at once. Default: the first batch seen. */
  calibration?: tf.Tensor;
  /** Settings of single layers, by name. */
  layers?: Record<string, LayerQuantization>;
}

const KNOWN = new Set<string>([
  ...['bits', 'outputBits', 'input', 'modes', 'learnPosition', 'positionInit', 'positionGrad', 'positionLr', 'iMin'],
  ...['iMax', 'freezeAfter', 'steps', 'batchNormFreezeAfter', 'softmax', 'softmaxType', 'expTableSize', 'layers'],
  ...['invTableSize', 'reciprocalBits', 'exact', 'calibration'],
]);
const KNOWN_LAYER = new Set<string>([
  ...[
    'weightBits',
    'biasBits',
    'activationBits',
    'batchNormBits',
    'weightType',
    'biasType',
    'resultType',
    'perChannel',
  ],
  ...['multiplierFree', 'accumulator', 'batchNorm', 'reuseFactor', 'strategy', 'parallelizationFactor', 'Precision'],
  ...['ReuseFactor', 'Strategy', 'ParallelizationFactor'],
]);

function checkConfig(config: QuantizeConfig): void {
  const known = [...KNOWN, ...KNOWN_LAYER];
  for (const key of Object.keys(config)) {
    ensure(known.includes(key), key, () => {
      const near = didYouMean(key, known);
      return `unknown option${near ? `; did you mean ${near}?` : ''}; known are ${known.join(', ')}`;
    });
  }
  for (const [layer, own] of Object.entries(config.layers ?? {})) {
    for (const key of Object.keys(own)) {
      ensure(
        KNOWN_LAYER.has(key),
        `layers.${layer}.${key}`,
        () => `unknown option; known are ${[...KNOWN_LAYER].join(', ')}`,
      );
    }
  }
  const bits = (field: string, value: number | undefined): void =>
    ensure(
      value === undefined || (Number.isInteger(value) && value >= 1 && value <= 32),
      field,
      () => `word length must be an integer in 1..32, got ${value}`,
    );
  bits('bits', config.bits);
  bits('outputBits', config.outputBits);
  for (const [field, own] of [['', config] as const, ...Object.entries(config.layers ?? {})]) {
    for (const key of ['weightBits', 'biasBits', 'activationBits', 'batchNormBits'] as const) {
      bits(field ? `layers.${field}.${key}` : key, own[key]);
    }
  }
}

/** One layer of the quantized model to be. */
interface Plan {
  kind:
    | 'input'
    | 'dense'
    | 'conv2d'
    | 'conv1d'
    | 'depthwise'
    | 'batchNorm'
    | 'relu'
    | 'add'
    | 'concat'
    | 'maxPool'
    | 'avgPool'
    | 'wiring'
    | 'softmax';
  name: string;
  from: Plan[];
  config: Record<string, unknown>;
  weights: Record<string, tf.Tensor>;
  activation: Activation;
  fold?: Plan;
  layer?: tf.layers.Layer;
  signed?: boolean;
}

const SUPPORTED =
  'InputLayer, Dense, Conv1D, Conv2D, DepthwiseConv2D, SeparableConv2D, BatchNormalization, ReLU, Activation (relu, ' +
  'linear, softmax), Softmax, Add, Concatenate, MaxPooling2D, AveragePooling2D, GlobalMaxPooling2D, ' +
  'GlobalAveragePooling2D, ZeroPadding2D, Flatten, Reshape, Dropout';

/**
 * Turns a trained (or fresh) float model, sequential or functional, into one whose every tensor is fixed-point with a
 * trainable binary point. The given model is left as it is; weights are copied.
 *
 * Batch norms are folded into the convolution or dense layer before them, a ReLU is fused into the layer before it when
 * nothing else reads that layer, dropout is left out.
 * @returns a tf.LayersModel to compile, fit and evaluate as usual, then {@link freeze}.
 * @throws MatforgeError naming the layer or option, before anything is built.
 */
export function quantizeModel(model: tf.LayersModel, config: QuantizeConfig = {}): QfxModel {
  checkConfig(config);
  const walked = steps(model);
  const names = walked.map(({ layer }) => layer.name);
  for (const name of Object.keys(config.layers ?? {})) {
    const near = didYouMean(name, names);
    ensure(names.includes(name), `layers.${name}`, () => `no such layer${near ? `; did you mean ${near}?` : ''}`);
  }
  const notes: string[] = [];
  const { plans, output } = plan(walked, config, notes);
  return build(plans, output, model, config, notes);
}

function settingsOf(config: QuantizeConfig, name: string): LayerQuantization {
  return { ...config, ...(config.layers?.[name] ?? {}) };
}

function plan(walked: Step[], config: QuantizeConfig, notes: string[]): { plans: Plan[]; output: Plan } {
  const planned = new Map<Step, Plan>();
  const readers = new Map<Step, number>();
  for (const step of walked) for (const from of step.inputs) readers.set(from, (readers.get(from) ?? 0) + 1);
  // A plan may absorb what follows it only when nothing else reads it.
  const shared = new Set<Plan>();
  const plans: Plan[] = [];
  const add = (p: Omit<Plan, 'activation'> & { activation?: Activation }): Plan => {
    const full: Plan = { ...p, activation: p.activation ?? 'linear' };
    plans.push(full);
    return full;
  };
  for (const step of walked) {
    const from = step.inputs.map((input) => planned.get(input) as Plan);
    const result = planStep(step, from, config, add, (p) => shared.has(p), notes);
    planned.set(step, result);
    if ((readers.get(step) ?? 0) > 1) shared.add(result);
  }
  return { plans, output: planned.get(walked[walked.length - 1]) as Plan };
}

type Add = (p: Omit<Plan, 'activation'> & { activation?: Activation }) => Plan;

function planStep(
  { layer, inputs }: Step,
  from: Plan[],
  config: QuantizeConfig,
  add: Add,
  isShared: (p: Plan) => boolean,
  notes: string[],
): Plan {
  const own = layer.getConfig() as Record<string, unknown>;
  const kind = layer.getClassName();
  const { name } = layer;
  const bare = { name, from, config: own, weights: {} };
  void inputs;
  switch (kind) {
    case 'InputLayer':
      return add({ ...bare, kind: 'input', config: { shape: (layer.outputShape as (number | null)[]).slice(1) } });
    case 'Dense':
    case 'Conv1D':
    case 'Conv2D':
    case 'DepthwiseConv2D': {
      checkConvolution(own, name);
      const weights = layer.getWeights();
      checkFinite(weights, name);
      const operation = ({ Dense: 'dense', Conv1D: 'conv1d', Conv2D: 'conv2d', DepthwiseConv2D: 'depthwise' } as const)[
        kind
      ];
      const mac = add({
        ...bare,
        kind: operation,
        weights: own.useBias ? { kernel: weights[0], bias: weights[1] } : { kernel: weights[0] },
      });
      return activate(mac, own.activation, name, config, add, isShared);
    }
    case 'SeparableConv2D': {
      checkConvolution(own, name);
      const [depthwise, pointwise, bias] = layer.getWeights();
      checkFinite(layer.getWeights(), name);
      const first = add({
        kind: 'depthwise',
        name: `${name}_depthwise`,
        from,
        config: { ...own, useBias: false },
        weights: { kernel: depthwise },
      });
      const second = add({
        kind: 'conv2d',
        name,
        from: [first],
        config: { filters: own.filters, kernelSize: [1, 1], strides: [1, 1], padding: 'valid', useBias: own.useBias },
        weights: own.useBias ? { kernel: pointwise, bias } : { kernel: pointwise },
      });
      return activate(second, own.activation, name, config, add, isShared);
    }
    case 'BatchNormalization': {
      const rank = (layer.outputShape as unknown[]).length;
      const axis = own.axis as number;
      ensure(axis === -1 || axis === rank - 1, name, () => `normalizes axis ${axis}; only the last axis is supported`);
      const values = layer.getWeights();
      checkFinite(values, name);
      let at = 0;
      const weights: Record<string, tf.Tensor> = {};
      if (own.scale !== false) weights.gamma = values[at++];
      if (own.center !== false) weights.beta = values[at++];
      weights.mean = values[at++];
      weights.variance = values[at];
      const norm: Plan = { ...bare, kind: 'batchNorm', weights, activation: 'linear' };
      const [before] = from;
      const mac = ['dense', 'conv1d', 'conv2d', 'depthwise'].includes(before.kind);
      const mode = settingsOf(config, before.name).batchNorm ?? 'folded';
      ensure(['folded', 'unfolded'].includes(mode), 'batchNorm', () => `must be folded or unfolded, got ${mode}`);
      if (mac && mode === 'folded' && before.activation === 'linear' && !before.fold && !isShared(before)) {
        before.fold = norm;
        return before;
      }
      return add(norm);
    }
    case 'ReLU':
      ensure(own.maxValue === undefined || own.maxValue === null, name, () => 'a clipped ReLU cannot be emitted');
      return activate(from[0], 'relu', name, config, add, isShared);
    case 'Activation':
      return activate(from[0], own.activation, name, config, add, isShared);
    case 'Softmax':
      return activate(from[0], 'softmax', name, config, add, isShared);
    case 'Add':
      return add({ ...bare, kind: 'add' });
    case 'Concatenate':
      return add({ ...bare, kind: 'concat' });
    case 'MaxPooling2D':
      checkChannelsLast(own, name);
      return add({ ...bare, kind: 'maxPool' });
    case 'GlobalMaxPooling2D':
      checkChannelsLast(own, name);
      return add({ ...bare, kind: 'maxPool', config: { global: true } });
    case 'AveragePooling2D':
      checkChannelsLast(own, name);
      return add({ ...bare, kind: 'avgPool' });
    case 'GlobalAveragePooling2D':
      checkChannelsLast(own, name);
      return add({ ...bare, kind: 'avgPool', config: { global: true } });
    case 'ZeroPadding2D':
      checkChannelsLast(own, name);
      return add({ ...bare, kind: 'wiring', layer });
    case 'Flatten':
    case 'Reshape':
      return add({ ...bare, kind: 'wiring', layer });
    case 'Dropout':
    case 'SpatialDropout1D':
    case 'GaussianNoise':
    case 'GaussianDropout':
      notes.push(`${name}: ${kind} was left out (its random scaling is not on any fixed-point grid)`);
      return from[0];
    default:
      return refuse(name, `layer ${name} of class ${kind} cannot be emitted; supported: ${SUPPORTED}`);
  }
}

/** Fuses a ReLU into the layer before it, or makes it a layer of its own. */
function activate(
  before: Plan,
  activation: unknown,
  name: string,
  config: QuantizeConfig,
  add: Add,
  isShared: (p: Plan) => boolean,
): Plan {
  if (activation === undefined || activation === null || activation === 'linear') return before;
  if (activation === 'relu') {
    const fusable = ['dense', 'conv1d', 'conv2d', 'depthwise', 'batchNorm', 'add'].includes(before.kind);
    if (fusable && !isShared(before)) {
      before.activation = 'relu';
      return before;
    }
    return add({ kind: 'relu', name, from: [before], config: {}, weights: {}, activation: 'relu' });
  }
  if (activation === 'softmax') {
    if ((config.softmax ?? 'stable') !== 'stable') return before;
    return add({ kind: 'softmax', name: `${name}_softmax`, from: [before], config: {}, weights: {} });
  }
  return refuse(name, `activation ${String(activation)} cannot be emitted; supported: linear, relu, softmax`);
}

function checkConvolution(own: Record<string, unknown>, name: string): void {
  checkChannelsLast(own, name);
  const dilation = [own.dilationRate ?? 1].flat() as number[];
  ensure(
    dilation.every((d) => d === 1),
    name,
    () => `dilation ${dilation} cannot be emitted; only 1`,
  );
  ensure(own.padding !== 'causal', name, () => 'causal padding cannot be emitted; use valid or same');
}

function checkChannelsLast(own: Record<string, unknown>, name: string): void {
  ensure(own.dataFormat !== 'channelsFirst', name, () => 'channels must come last (dataFormat channelsLast)');
}

function checkFinite(weights: tf.Tensor[], name: string): void {
  weights.forEach((weight, i) => {
    for (const value of weight.dataSync()) {
      if (!Number.isFinite(value)) refuse(`${name}.weights[${i}]`, `cannot represent ${value}`);
    }
  });
}

/** Brevitas' fixed-point quantizers: so many bits, narrow range for weights, a power-of-two scale from the maximum. */
function brevitas(type: TypeLike, otherwise: TensorQuantization): TensorQuantization | undefined {
  const match = typeof type === 'string' ? /^(U[Ii]nt|Int)(\d+)(Weight|Act)PerTensorFixedPoint$/.exec(type) : null;
  if (!match) return undefined;
  const narrow = match[3] === 'Weight' ? { O: 'AP_SAT_SYM' as const } : {};
  return { ...otherwise, W: Number(match[2]), signed: match[1] === 'Int', init: 'max', ...narrow };
}

/** Layer settings with hls4ml's aliases resolved. */
interface Resolved {
  weight: TensorQuantization;
  bias: TensorQuantization;
  result: (signed: boolean, isOutput: boolean) => TensorQuantization;
  scale: TensorQuantization;
  accumulator?: 'full' | 'tight' | TypeLike;
  directives?: Directives;
}

function resolve(config: QuantizeConfig, name: string): Resolved {
  const own = settingsOf(config, name);
  const precision: Precision =
    own.Precision === undefined
      ? {}
      : typeof own.Precision === 'string' || 'W' in own.Precision
        ? { weight: own.Precision as TypeLike, bias: own.Precision as TypeLike, result: own.Precision as TypeLike }
        : (own.Precision as Precision);
  const init = typeof config.positionInit === 'object' ? config.positionInit : undefined;
  const whole = init ? undefined : (config.positionInit as PositionInit | undefined);
  const common: Omit<TensorQuantization, 'W'> = {
    ...config.modes,
    ...(config.iMin === undefined ? {} : { iMin: config.iMin }),
    ...(config.iMax === undefined ? {} : { iMax: config.iMax }),
    ...(config.positionGrad === undefined ? {} : { positionGrad: config.positionGrad }),
    learn: config.learnPosition ?? true,
  };
  const bits = config.bits ?? 8;
  const weights = { ...common, init: init?.weights ?? whole ?? 'mse' };
  const activations = { ...common, init: init?.activations ?? whole ?? 'max' };
  const typed = (type: TypeLike | undefined, otherwise: TensorQuantization): TensorQuantization =>
    type === undefined ? otherwise : (brevitas(type, otherwise) ?? fixedQuantization(type));
  const extras = {
    ...(own.perChannel ? { perChannel: true } : {}),
    ...(own.multiplierFree ? { multiplierFree: own.multiplierFree } : {}),
  };
  const directives: Directives = {
    ...(own.reuseFactor === undefined && own.ReuseFactor === undefined
      ? {}
      : { reuseFactor: own.reuseFactor ?? own.ReuseFactor }),
    ...(own.strategy === undefined && own.Strategy === undefined
      ? {}
      : { strategy: (own.strategy ?? own.Strategy?.toLowerCase()) as Strategy }),
    ...(own.parallelizationFactor === undefined && own.ParallelizationFactor === undefined
      ? {}
      : { parallelizationFactor: own.parallelizationFactor ?? own.ParallelizationFactor }),
  };
  const accumulator = own.accumulator ?? precision.accum;
  return {
    weight: { ...typed(own.weightType ?? precision.weight, { W: own.weightBits ?? bits, ...weights }), ...extras },
    bias: typed(own.biasType ?? precision.bias, { W: own.biasBits ?? 16, ...weights }),
    result: (signed, isOutput) =>
      typed(own.resultType ?? precision.result, {
        W: isOutput ? (config.outputBits ?? Math.max(16, own.activationBits ?? bits)) : (own.activationBits ?? bits),
        signed,
        ...activations,
      }),
    scale: {
      ...typed(own.weightType ?? precision.weight, { W: own.batchNormBits ?? bits, ...weights }),
      ...(own.multiplierFree ? { multiplierFree: own.multiplierFree } : {}),
    },
    ...(accumulator === undefined ? {} : { accumulator }),
    ...(Object.keys(directives).length > 0 ? { directives } : {}),
  };
}

/** The layers whose results reach the output through wiring alone: nothing multiplies them. */
function outputs(output: Plan): Set<Plan> {
  const found = new Set<Plan>();
  for (let at: Plan | undefined = output; at; at = at.from[0]) {
    found.add(at);
    if (at.kind !== 'wiring' && at.kind !== 'softmax' && at.kind !== 'maxPool') break;
  }
  return found;
}

function build(plans: Plan[], output: Plan, model: tf.LayersModel, config: QuantizeConfig, notes: string[]): QfxModel {
  const last = outputs(output);
  const tensors = new Map<Plan, tf.SymbolicTensor>();
  const fill: (() => void)[] = [];
  let input: tf.SymbolicTensor | undefined;
  for (const p of plans) {
    const from = p.from.map((source) => tensors.get(source) as tf.SymbolicTensor);
    if (p.kind === 'input') {
      input = tf.input({ shape: p.config.shape as number[], name: `${p.name}_float` });
      p.signed = inputSigned(config);
      const layer = new QfxInput({
        name: p.name,
        result: inputQuantization(config, p.name, p.signed),
        exact: config.exact,
      });
      tensors.set(p, layer.apply(input) as tf.SymbolicTensor);
      continue;
    }
    const layer = makeLayer(p, config, last.has(p), fill);
    tensors.set(p, layer.apply(from.length === 1 ? from[0] : from) as tf.SymbolicTensor);
  }
  const quantized = new QfxModel({
    inputs: input as tf.SymbolicTensor,
    outputs: tensors.get(output) as tf.SymbolicTensor,
    name: `${model.name}_qfx`,
  });
  for (const set of fill) set();
  const { positionLr, freezeAfter, steps: total } = config;
  quantized.settings = {
    ...(positionLr === undefined ? {} : { positionLr }),
    ...(freezeAfter === undefined ? {} : { freezeAfter }),
    ...(total === undefined ? {} : { steps: total }),
    ...(config.softmax === 'argmax' ? { head: 'argmax' as const } : {}),
  };
  quantized.notes.push(...notes);
  if (config.calibration) tf.dispose(quantized.predict(config.calibration));
  return quantized;
}

function inputSigned(config: QuantizeConfig): boolean {
  if (config.input?.signed !== undefined) return config.input.signed;
  return config.calibration ? tf.tidy(() => tf.min(config.calibration as tf.Tensor).dataSync()[0] < 0) : true;
}

function inputQuantization(config: QuantizeConfig, name: string, signed: boolean): TensorQuantization {
  if (config.input?.type !== undefined) return fixedQuantization(config.input.type);
  const quantization = resolve(config, name).result(signed, false);
  return config.input?.bits === undefined ? quantization : { ...quantization, W: config.input.bits };
}

function makeLayer(p: Plan, config: QuantizeConfig, isOutput: boolean, fill: (() => void)[]): tf.layers.Layer {
  const own = resolve(config, p.name);
  const { exact } = config;
  const { name, activation } = p;
  const signedInputs = p.from.some(({ signed }) => signed ?? true);
  const common = { name, exact, ...(own.directives ? { directives: own.directives } : {}) };
  switch (p.kind) {
    case 'dense':
    case 'conv1d':
    case 'conv2d':
    case 'depthwise': {
      p.signed = activation !== 'relu';
      const fold = p.fold?.config;
      const args = {
        ...common,
        weight: own.weight,
        bias: own.bias,
        result: own.result(p.signed, isOutput),
        useBias: p.weights.bias !== undefined,
        activation,
        ...(own.accumulator === undefined ? {} : { accumulator: own.accumulator }),
        ...(fold
          ? {
              batchNorm: {
                epsilon: fold.epsilon as number,
                momentum: fold.momentum as number,
                freezeAfter: config.batchNormFreezeAfter ?? 0,
              },
            }
          : {}),
      };
      const { kernelSize, strides, padding } = p.config as {
        kernelSize: [number, number];
        strides: [number, number];
        padding: 'valid' | 'same';
      };
      const { units, filters, depthMultiplier } = p.config as Record<string, number>;
      const layer: QfxMac =
        p.kind === 'dense'
          ? new QfxDense({ ...args, units })
          : p.kind === 'conv1d'
            ? new QfxConv1d({ ...args, filters, kernelSize, strides, padding })
            : p.kind === 'conv2d'
              ? new QfxConv2d({ ...args, filters, kernelSize, strides, padding })
              : new QfxDepthwiseConv2d({ ...args, depthMultiplier, kernelSize, strides, padding });
      fill.push(() => {
        layer.kernel.write(p.weights.kernel);
        if (p.weights.bias) layer.bias?.write(p.weights.bias);
        if (p.fold && layer.fold) writeNorm(layer.fold, p.fold.weights);
      });
      return layer;
    }
    case 'batchNorm': {
      p.signed = activation !== 'relu';
      const layer = new QfxBatchNorm({
        ...common,
        scale: own.scale,
        offset: { ...own.scale, multiplierFree: undefined },
        result: own.result(p.signed, isOutput),
        activation,
        epsilon: p.config.epsilon as number,
        momentum: p.config.momentum as number,
        freezeAfter: config.batchNormFreezeAfter ?? 0,
      });
      fill.push(() => writeNorm(layer.fold, p.weights));
      return layer;
    }
    case 'relu':
      p.signed = false;
      return new QfxReLU({ ...common, result: own.result(false, isOutput) });
    case 'add':
      p.signed = activation !== 'relu' && signedInputs;
      return new QfxAdd({ ...common, result: own.result(p.signed, isOutput), activation });
    case 'concat':
      p.signed = signedInputs;
      return new QfxConcat({ ...common, result: own.result(signedInputs, isOutput), axis: p.config.axis as number });
    case 'maxPool':
      p.signed = signedInputs;
      return new QfxMaxPool2d({ ...common, ...(p.config as object) });
    case 'avgPool': {
      p.signed = signedInputs;
      const args = {
        ...common,
        result: own.result(signedInputs, isOutput),
        ...(config.reciprocalBits === undefined ? {} : { reciprocalBits: config.reciprocalBits }),
      };
      if (p.config.global) return new QfxGlobalAvgPool2d(args);
      const { poolSize, strides, padding } = p.config as {
        poolSize: [number, number];
        strides: [number, number];
        padding: 'valid' | 'same';
      };
      return new QfxAvgPool2d({ ...args, poolSize, strides, padding });
    }
    case 'softmax':
      p.signed = false;
      return new QfxSoftmax({
        name,
        ...(config.softmaxType === undefined ? {} : { type: config.softmaxType }),
        ...(config.expTableSize === undefined ? {} : { expTableSize: config.expTableSize }),
        ...(config.invTableSize === undefined ? {} : { invTableSize: config.invTableSize }),
      });
    default: {
      p.signed = signedInputs;
      const original = p.layer as tf.layers.Layer;
      const cls = original.constructor as unknown as tf.serialization.SerializableConstructor<tf.layers.Layer>;
      const { batchInputShape: _, ...rest } = original.getConfig() as Record<string, unknown>;
      return cls.fromConfig(cls, rest as tf.serialization.ConfigDict);
    }
  }
}

function writeNorm(fold: NonNullable<QfxMac['fold']>, weights: Record<string, tf.Tensor>): void {
  if (weights.gamma) fold.gamma.write(weights.gamma);
  if (weights.beta) fold.beta.write(weights.beta);
  fold.mean.write(weights.mean);
  fold.variance.write(weights.variance);
}
