import { ensure, refuse } from '@matforge/core';
import { castRaw } from './cast.ts';
import { digitCount, digitsOf, type MultiplierFreeConfig } from './digits.ts';
import {
  type AccumulatorRule,
  type Activation,
  type Directives,
  type MacFields,
  type MultiplierFreeTerms,
  type QfxGraph,
  type QfxNode,
  type Reciprocal,
  sizeOf,
  type Window2d,
} from './graph.ts';
import { checkRange, type RawLike, type RawTensor, rawBigints, rawTensor } from './raw.ts';
import {
  accType,
  addType,
  ceilLog2,
  checkType,
  exactType,
  type FixedType,
  fixedType,
  formatType,
  fractionBits,
  hiBig,
  loBig,
  parseType,
  sameFormat,
  typeOfRanges,
} from './types.ts';

/** A type object or its text. */
export type TypeLike = FixedType | string;

/** Raw integers with their shape, as a builder reads them. */
export interface RawInput {
  readonly shape: readonly number[];
  readonly data: RawLike;
}

/** Windows inside the image only, or `same`: ceil(n / stride) outputs, the odd padding cell after the image. */
export type Padding = 'valid' | 'same';

interface SpecBase {
  /** Default: op and index. Made unique by a suffix. */
  name?: string;
  /** Names of the nodes read; default: the node before. */
  inputs?: string[];
  directives?: Directives;
}

interface MacSpec extends SpecBase {
  weights: RawInput;
  weightType: TypeLike;
  bias?: RawInput;
  biasType?: TypeLike;
  /** Default linear. */
  activation?: Activation;
  type: TypeLike;
  /** Default `full`; a type must have F >= F_a and AP_WRAP. */
  accumulator?: 'full' | 'tight' | TypeLike;
  multiplierFree?: MultiplierFreeConfig;
  /** Binary points per output channel, as {@link MacFields} has them. */
  channelShift?: readonly number[];
  channelBits?: number;
}

interface WindowSpec {
  /** Default 1 for convolutions, the window's size for pooling. */
  strides?: number | readonly [number, number];
  /** Default valid. */
  padding?: Padding;
}

/** One node of {@link buildGraph}; everything that follows from the rest (shapes, padding, accumulators, tables) is derived. */
export type NodeSpec =
  | (SpecBase & { op: 'input'; shape: readonly number[]; type: TypeLike })
  | (MacSpec & { op: 'dense' })
  | (MacSpec & WindowSpec & { op: 'conv2d' | 'conv1d' | 'depthwiseConv2d' })
  | (MacSpec & { op: 'batchNorm' })
  | (SpecBase & { op: 'activation'; activation?: Activation; type: TypeLike })
  | (SpecBase & { op: 'add'; activation?: Activation; type: TypeLike })
  | (SpecBase & WindowSpec & { op: 'maxPool2d'; size: number | readonly [number, number] })
  | (SpecBase & { op: 'globalMaxPool2d' })
  | (SpecBase &
      WindowSpec & {
        op: 'avgPool2d';
        size: number | readonly [number, number];
        type: TypeLike;
        reciprocalBits?: number;
      })
  | (SpecBase & { op: 'globalAvgPool2d'; type: TypeLike; reciprocalBits?: number })
  | (SpecBase & { op: 'softmax'; type?: TypeLike; expTableSize?: number; invTableSize?: number })
  | (SpecBase & { op: 'argmax' })
  | (SpecBase & { op: 'flatten' })
  | (SpecBase & { op: 'reshape'; shape: readonly number[] })
  | (SpecBase & { op: 'zeroPad2d'; padding: readonly [readonly [number, number], readonly [number, number]] })
  | (SpecBase & { op: 'concat'; axis?: number });

/** What {@link buildGraph} reads: nodes in topological order, the input first. */
export interface GraphSpec {
  /** Default `myproject`. */
  name?: string;
  nodes: readonly NodeSpec[];
  /** Name of the result; default: the last node. */
  output?: string;
  /** Copied into the graph. Default none. */
  warnings?: readonly string[];
}

/** ufixed<17,1> holds every entry of the softmax tables, 1 included. */
const TABLE_TYPE = fixedType(17, 1, { signed: false });

/**
 * Builds a frozen graph from hand-written nodes: shapes, explicit padding, accumulator types, alignment shifts,
 * digit terms, reciprocals and softmax tables are derived and everything is checked.
 * @throws MatforgeError when shapes, types or raw values do not fit, naming the node.
 */
export function buildGraph(spec: GraphSpec): QfxGraph {
  const nodes: QfxNode[] = [];
  const byName = new Map<string, QfxNode>();
  const read = new Set<number>();
  ensure(
    spec.nodes.length > 0 && spec.nodes[0].op === 'input',
    'nodes',
    () => 'the first node must be the input: the model has no input quantizer',
  );
  for (const [index, node] of spec.nodes.entries()) {
    const name = uniqueName(node.name ?? `${node.op}_${index + 1}`, byName);
    ensure(index === 0 || node.op !== 'input', name, () => 'only the first node can be an input');
    const names = node.op === 'input' ? [] : (node.inputs ?? [nodes[index - 1].name]);
    const inputs = names.map(
      (from) =>
        byName.get(from) ?? refuse(name, `reads "${from}", which is not built yet; known are ${[...byName.keys()]}`),
    );
    for (const { id } of inputs) read.add(id);
    const many = node.op === 'add' || node.op === 'concat';
    ensure(
      node.op === 'input' || (many ? inputs.length >= 2 : inputs.length === 1),
      name,
      () => `${node.op} reads ${many ? 'two or more nodes' : 'one node'}, got ${inputs.length}`,
    );
    const frame: Frame = {
      id: index + 1,
      name,
      inputs: inputs.map(({ id }) => id),
      ...(node.directives ? { directives: checkDirectives(node.directives, name) } : {}),
    };
    const built = buildNode(node, frame, inputs);
    nodes.push(built);
    byName.set(name, built);
  }
  const last = nodes[nodes.length - 1];
  const output =
    spec.output === undefined ? last : (byName.get(spec.output) ?? refuse('output', `no node named "${spec.output}"`));
  for (const { id, name } of nodes) {
    ensure(id === output.id || read.has(id), name, () => 'no node reads this result, and it is not the output');
  }
  return {
    format: 'matforge-qfx',
    version: 1,
    name: spec.name ?? 'myproject',
    input: 1,
    output: output.id,
    nodes,
    warnings: [...(spec.warnings ?? [])],
  };
}

interface Frame {
  id: number;
  name: string;
  inputs: number[];
  directives?: Directives;
}

function uniqueName(wanted: string, taken: Map<string, unknown>): string {
  let name = wanted;
  for (let n = 2; taken.has(name); n++) name = `${wanted}_${n}`;
  return name;
}

function checkDirectives(directives: Directives, name: string): Directives {
  for (const key of ['reuseFactor', 'parallelizationFactor'] as const) {
    const value = directives[key];
    ensure(
      value === undefined || (Number.isInteger(value) && value >= 1),
      `${name}.${key}`,
      () => `must be an integer of at least 1 (1 = fully parallel), got ${value}`,
    );
  }
  ensure(
    directives.strategy === undefined || ['latency', 'resource'].includes(directives.strategy),
    `${name}.strategy`,
    () => `must be latency or resource, got ${directives.strategy}`,
  );
  return directives;
}

/**
 * A type object from either form; `field` names it in messages.
 * @throws MatforgeError when the text cannot be read or the type is impossible.
 */
export function asType(type: TypeLike, field: string): FixedType {
  const parsed = typeof type === 'string' ? parseType(type) : type;
  checkType(parsed, field);
  return { W: parsed.W, I: parsed.I, signed: parsed.signed, Q: parsed.Q, O: parsed.O };
}

function buildNode(spec: NodeSpec, frame: Frame, inputs: QfxNode[]): QfxNode {
  const { name } = frame;
  const from = inputs[0];
  switch (spec.op) {
    case 'input':
      ensure(
        spec.shape.length > 0 && spec.shape.every((d) => Number.isInteger(d) && d > 0),
        `${name}.shape`,
        () => `must list positive sizes without the batch axis, got [${spec.shape}]`,
      );
      return { op: 'input', ...frame, shape: [...spec.shape], type: asType(spec.type, `${name}.type`) };
    case 'dense': {
      const [nIn, nOut] = spec.weights.shape;
      ensure(
        spec.weights.shape.length === 2 && from.shape[from.shape.length - 1] === nIn,
        `${name}.weights`,
        () => `must be [in, out] with in = ${from.shape[from.shape.length - 1]}, got [${spec.weights.shape}]`,
      );
      const shape = [...from.shape.slice(0, -1), nOut];
      return { op: 'dense', ...frame, shape, ...mac(spec, name, from.type, nIn, nOut), rows: sizeOf(shape) / nOut };
    }
    case 'conv1d':
    case 'conv2d':
    case 'depthwiseConv2d':
      return convolution(spec, frame, from);
    case 'batchNorm': {
      const channels = from.shape[from.shape.length - 1];
      ensure(
        spec.weights.shape.length === 1 && spec.weights.shape[0] === channels,
        `${name}.weights`,
        () => `the scale must be [${channels}], got [${spec.weights.shape}]`,
      );
      return { op: 'batchNorm', ...frame, shape: from.shape, ...mac(spec, name, from.type, 1, channels), channels };
    }
    case 'activation':
      return {
        op: 'activation',
        ...frame,
        shape: from.shape,
        type: asType(spec.type, `${name}.type`),
        activation: spec.activation ?? 'linear',
      };
    case 'add': {
      for (const other of inputs) requireShape(other.shape, from.shape, name);
      const accumulator = inputs.map(({ type }) => type).reduce((sum, type) => addType(sum, type));
      const accFraction = fractionBits(accumulator);
      return {
        op: 'add',
        ...frame,
        shape: from.shape,
        type: asType(spec.type, `${name}.type`),
        accumulator,
        accFraction,
        inputShifts: inputs.map(({ type }) => accFraction - fractionBits(type)),
        activation: spec.activation ?? 'linear',
      };
    }
    case 'maxPool2d':
    case 'globalMaxPool2d': {
      const window = poolWindow(spec, from.shape, name);
      const global = spec.op === 'globalMaxPool2d';
      return { op: 'maxPool2d', ...frame, shape: poolShape(window, global), type: from.type, window, global };
    }
    case 'avgPool2d':
    case 'globalAvgPool2d': {
      const window = poolWindow(spec, from.shape, name);
      const global = spec.op === 'globalAvgPool2d';
      const reciprocalBits = spec.reciprocalBits ?? 16;
      ensure(
        Number.isInteger(reciprocalBits) && reciprocalBits >= 1 && reciprocalBits <= 32,
        `${name}.reciprocalBits`,
        () => `must be an integer in 1..32, got ${reciprocalBits}`,
      );
      const reciprocals = validCounts(window).map((count) => reciprocal(count, reciprocalBits));
      const grow = ceilLog2(reciprocals[reciprocals.length - 1].count);
      return {
        op: 'avgPool2d',
        ...frame,
        shape: poolShape(window, global),
        type: asType(spec.type, `${name}.type`),
        window,
        global,
        accumulator: exactType(from.type.W + grow, from.type.I + grow, from.type.signed),
        reciprocalBits,
        reciprocals,
      };
    }
    case 'softmax':
      return softmax(spec, frame, from);
    case 'argmax': {
      const length = from.shape[from.shape.length - 1];
      const lead = from.shape.slice(0, -1);
      const bits = Math.max(1, ceilLog2(length));
      return {
        op: 'argmax',
        ...frame,
        shape: lead.length > 0 ? lead : [1],
        type: fixedType(bits, bits, { signed: false, Q: 'AP_TRN', O: 'AP_WRAP' }),
        rows: sizeOf(lead),
        length,
      };
    }
    case 'flatten':
      return { op: 'flatten', ...frame, shape: [sizeOf(from.shape)], type: from.type };
    case 'reshape':
      ensure(
        sizeOf(spec.shape) === sizeOf(from.shape),
        `${name}.shape`,
        () => `[${spec.shape}] does not hold the ${sizeOf(from.shape)} elements of [${from.shape}]`,
      );
      return { op: 'reshape', ...frame, shape: [...spec.shape], type: from.type };
    case 'zeroPad2d': {
      const [H, W, C] = image(from.shape, name);
      const [[padTop, padBottom], [padLeft, padRight]] = spec.padding;
      ensure(
        [padTop, padBottom, padLeft, padRight].every((p) => Number.isInteger(p) && p >= 0),
        `${name}.padding`,
        () => 'must be [[top, bottom], [left, right]] of non-negative integers',
      );
      const shape = [H + padTop + padBottom, W + padLeft + padRight, C];
      return { op: 'zeroPad2d', ...frame, shape, type: from.type, padTop, padBottom, padLeft, padRight };
    }
    case 'concat': {
      const rank = from.shape.length;
      const axis = ((spec.axis ?? -1) + rank) % rank;
      for (const other of inputs) {
        ensure(
          sameFormat(other.type, from.type),
          name,
          () =>
            `concatenate needs inputs of one type, got ${formatType(from.type)} (${from.name}) and ` +
            `${formatType(other.type)} (${other.name}); put an activation node (a cast) before it`,
        );
        requireShape(
          other.shape.map((d, i) => (i === axis ? 0 : d)),
          from.shape.map((d, i) => (i === axis ? 0 : d)),
          name,
        );
      }
      const inner = sizeOf(from.shape.slice(axis + 1));
      const total = inputs.reduce((sum, { shape }) => sum + shape[axis], 0);
      return {
        op: 'concat',
        ...frame,
        shape: from.shape.map((d, i) => (i === axis ? total : d)),
        type: from.type,
        axis,
        outer: sizeOf(from.shape.slice(0, axis)),
        chunks: inputs.map(({ shape }) => shape[axis] * inner),
      };
    }
  }
}

function requireShape(got: readonly number[], wanted: readonly number[], name: string): void {
  ensure(
    got.length === wanted.length && got.every((d, i) => d === wanted[i]),
    name,
    () => `inputs differ in shape: [${wanted}] and [${got}]`,
  );
}

function image(shape: readonly number[], name: string): [number, number, number] {
  ensure(shape.length === 3, name, () => `reads an image [height, width, channels], got [${shape}]`);
  return [shape[0], shape[1], shape[2]];
}

function pair(value: number | readonly [number, number], field: string): [number, number] {
  const [a, b] = typeof value === 'number' ? [value, value] : value;
  ensure(
    Number.isInteger(a) && Number.isInteger(b) && a >= 1 && b >= 1,
    field,
    () => `must be one or two positive integers, got ${JSON.stringify(value)}`,
  );
  return [a, b];
}

/** Output size and padding of one axis, as TensorFlow pads: total = max((ceil(n/s)-1)*s + k - n, 0), half of it first. */
export function slide(n: number, k: number, s: number, padding: Padding, field: string): [number, number, number] {
  if (padding === 'valid') {
    ensure(n >= k, field, () => `a window of ${k} does not fit ${n} without padding`);
    return [Math.floor((n - k) / s) + 1, 0, 0];
  }
  ensure(padding === 'same', field, () => `padding must be valid or same, got ${padding}`);
  const out = Math.ceil(n / s);
  const total = Math.max((out - 1) * s + k - n, 0);
  const first = Math.floor(total / 2);
  return [out, first, total - first];
}

function slidingWindow(
  [inH, inW, inC]: [number, number, number],
  [kernelH, kernelW]: [number, number],
  [strideH, strideW]: [number, number],
  padding: Padding,
  outC: number,
  name: string,
): Window2d {
  const [outH, padTop, padBottom] = slide(inH, kernelH, strideH, padding, name);
  const [outW, padLeft, padRight] = slide(inW, kernelW, strideW, padding, name);
  const geometry = { inH, inW, inC, outH, outW, outC, kernelH, kernelW, strideH, strideW };
  return { ...geometry, padTop, padBottom, padLeft, padRight };
}

function convolution(
  spec: Extract<NodeSpec, { op: 'conv2d' | 'conv1d' | 'depthwiseConv2d' }>,
  frame: Frame,
  from: QfxNode,
): QfxNode {
  const { name } = frame;
  const flat = spec.op === 'conv1d';
  if (flat) {
    ensure(from.shape.length === 2, name, () => `conv1d reads [length, channels], got [${from.shape}]`);
  }
  const input = flat ? ([1, from.shape[0], from.shape[1]] as [number, number, number]) : image(from.shape, name);
  const rank = flat ? 3 : 4;
  const kernelShape = flat ? [1, ...spec.weights.shape] : spec.weights.shape;
  ensure(
    spec.weights.shape.length === rank && kernelShape[2] === input[2],
    `${name}.weights`,
    () => `must be [${flat ? '' : 'height, '}width, ${input[2]}, out], got [${spec.weights.shape}]`,
  );
  const depthwise = spec.op === 'depthwiseConv2d';
  const strides = spec.strides ?? 1;
  const stride =
    flat && typeof strides === 'number' ? ([1, strides] as [number, number]) : pair(strides, `${name}.strides`);
  const [kernelH, kernelW, inC, last] = kernelShape;
  const outC = depthwise ? inC * last : last;
  const window = slidingWindow(input, [kernelH, kernelW], stride, spec.padding ?? 'valid', outC, name);
  const shape = flat ? [window.outW, outC] : [window.outH, window.outW, outC];
  const weights = { shape: kernelShape, data: spec.weights.data };
  const terms = kernelH * kernelW * (depthwise ? 1 : inC);
  const fields = mac({ ...spec, weights }, name, from.type, terms, outC);
  return depthwise
    ? { op: 'depthwiseConv2d', ...frame, shape, ...fields, window, depthMultiplier: last }
    : { op: 'conv2d', ...frame, shape, ...fields, window };
}

/** Types, alignment and checks shared by all sums of products. `channels` outputs of `terms` products each. */
function mac(
  spec: MacSpec,
  name: string,
  xType: FixedType,
  terms: number,
  channels: number,
): MacFields & { type: FixedType } {
  const type = asType(spec.type, `${name}.type`);
  const weightType = asType(spec.weightType, `${name}.weightType`);
  const weights = rawTensor(spec.weights.data, spec.weights.shape, `${name}.weights`);
  checkRange(weights, weightType, `${name}.weights`);
  let bias: RawTensor | undefined;
  let biasType: FixedType | undefined;
  if (spec.bias) {
    ensure(spec.biasType !== undefined, `${name}.biasType`, () => 'a bias needs its type');
    biasType = asType(spec.biasType, `${name}.biasType`);
    bias = rawTensor(spec.bias.data, spec.bias.shape, `${name}.bias`);
    ensure(bias.data.length === channels, `${name}.bias`, () => `must be [${channels}], got [${spec.bias?.shape}]`);
    checkRange(bias, biasType, `${name}.bias`);
  }
  const { accumulator, accumulatorRule } = accumulatorOf(
    spec,
    name,
    xType,
    weights,
    weightType,
    bias,
    biasType,
    terms,
    channels,
  );
  const accFraction = fractionBits(accumulator);
  return {
    type,
    weights,
    weightType,
    ...(spec.channelShift ? { channelShift: [...spec.channelShift], channelBits: spec.channelBits } : {}),
    ...(bias ? { bias, biasType } : {}),
    accumulator,
    accumulatorRule,
    accFraction,
    productShift: accFraction - fractionBits(xType) - fractionBits(weightType),
    biasShift: biasType ? accFraction - fractionBits(biasType) : 0,
    activation: spec.activation ?? 'linear',
    ...(spec.multiplierFree ? { multiplierFree: termsOf(weights, spec.multiplierFree, name) } : {}),
  };
}

function accumulatorOf(
  spec: MacSpec,
  name: string,
  xType: FixedType,
  weights: RawTensor,
  weightType: FixedType,
  bias: RawTensor | undefined,
  biasType: FixedType | undefined,
  terms: number,
  channels: number,
): { accumulator: FixedType; accumulatorRule: AccumulatorRule } {
  const full = accType(xType, weightType, terms, biasType);
  const rule = spec.accumulator ?? 'full';
  if (rule === 'full') return { accumulator: full, accumulatorRule: 'full' };
  const Fa = fractionBits(full);
  if (rule === 'tight') {
    return {
      accumulator: tightAccType(xType, weights, weightType, bias, biasType, channels),
      accumulatorRule: 'tight',
    };
  }
  const accumulator = asType(rule, `${name}.accumulator`);
  ensure(
    fractionBits(accumulator) >= Fa,
    `${name}.accumulator`,
    () => `${formatType(accumulator)} would round sums; it needs at least ${Fa} fraction bits`,
  );
  ensure(
    accumulator.O === 'AP_WRAP',
    `${name}.accumulator`,
    () => `${formatType(accumulator)} would saturate partial sums, which depends on their order; use AP_WRAP`,
  );
  return { accumulator, accumulatorRule: 'explicit' };
}

/**
 * Accumulator of rule `tight`: the least type that holds b + sum of min and max of w*lo, w*hi over every output
 * channel: the last axis of `weights`, or the given number of channels (in*multiplier for a depthwise kernel). No input
 * can leave it in any order of summation, because x = 0 is representable.
 */
export function tightAccType(
  x: FixedType,
  weights: RawTensor,
  weightType: FixedType,
  bias?: RawTensor,
  biasType?: FixedType,
  channels = weights.shape[weights.shape.length - 1],
): FixedType {
  const Fp = fractionBits(x) + fractionBits(weightType);
  const Fa = bias && biasType ? Math.max(Fp, fractionBits(biasType)) : Fp;
  const low = new Array<bigint>(channels).fill(0n);
  const high = new Array<bigint>(channels).fill(0n);
  if (bias && biasType) {
    const shift = BigInt(Fa - fractionBits(biasType));
    rawBigints(bias).forEach((b, c) => {
      low[c] = b << shift;
      high[c] = b << shift;
    });
  }
  const shift = BigInt(Fa - Fp);
  const [xLow, xHigh] = [loBig(x) << shift, hiBig(x) << shift];
  weights.data.forEach((raw, i) => {
    const w = BigInt(raw);
    const c = i % channels;
    low[c] += w < 0n ? w * xHigh : w * xLow;
    high[c] += w < 0n ? w * xLow : w * xHigh;
  });
  return typeOfRanges(low, high, Fa);
}

function termsOf(weights: RawTensor, config: MultiplierFreeConfig, name: string): MultiplierFreeTerms {
  const { k, digits = 'unsigned' } = config;
  ensure(Number.isInteger(k) && k >= 1 && k <= 4, `${name}.multiplierFree.k`, () => `must be 1..4, got ${k}`);
  const signs = new Array<number>(weights.data.length * k).fill(0);
  const shifts = new Array<number>(weights.data.length * k).fill(0);
  weights.data.forEach((raw, i) => {
    const terms = digitsOf(BigInt(raw), digits);
    ensure(
      terms.length <= k,
      `${name}.weights`,
      () => `raw weight ${raw} has ${terms.length} ${digits} digits, more than k = ${k}`,
    );
    terms.forEach(({ sign, shift }, j) => {
      signs[i * k + j] = sign;
      shifts[i * k + j] = shift;
    });
  });
  return { k, digits, signs, shifts };
}

function poolWindow(spec: NodeSpec & { op: string }, shape: readonly number[], name: string): Window2d {
  const input = image(shape, name);
  if (spec.op === 'globalMaxPool2d' || spec.op === 'globalAvgPool2d') {
    return slidingWindow(input, [input[0], input[1]], [1, 1], 'valid', input[2], name);
  }
  const { size, strides, padding } = spec as Extract<NodeSpec, { op: 'maxPool2d' | 'avgPool2d' }>;
  const kernel = pair(size, `${name}.size`);
  const stride = strides === undefined ? kernel : pair(strides, `${name}.strides`);
  return slidingWindow(input, kernel, stride, padding ?? 'valid', input[2], name);
}

function poolShape({ outH, outW, outC }: Window2d, global: boolean): number[] {
  return global ? [outC] : [outH, outW, outC];
}

/** The numbers of valid (not padded) cells that windows have, ascending. */
export function validCounts(window: Window2d): number[] {
  const axis = (out: number, stride: number, kernel: number, pad: number, n: number): Set<number> => {
    const counts = new Set<number>();
    for (let o = 0; o < out; o++) {
      const start = o * stride - pad;
      counts.add(Math.min(start + kernel, n) - Math.max(start, 0));
    }
    return counts;
  };
  const { outH, outW, strideH, strideW, kernelH, kernelW, padTop, padLeft, inH, inW } = window;
  const rows = axis(outH, strideH, kernelH, padTop, inH);
  const columns = axis(outW, strideW, kernelW, padLeft, inW);
  const products = new Set<number>();
  for (const r of rows) for (const c of columns) products.add(r * c);
  return [...products].sort((a, b) => a - b);
}

/** R = floor(2^Fr / n + 1/2), Fr = ceil(log2 n) + reciprocalBits. */
export function reciprocal(count: number, reciprocalBits: number): Reciprocal {
  const fraction = ceilLog2(count) + reciprocalBits;
  const n = BigInt(count);
  // floor(2^Fr / n + 1/2) = floor((2^(Fr+1) + n) / 2n), in integers.
  return { count, raw: Number(((1n << BigInt(fraction + 1)) + n) / (2n * n)), fraction };
}

function softmax(spec: Extract<NodeSpec, { op: 'softmax' }>, frame: Frame, from: QfxNode): QfxNode {
  const { name } = frame;
  const T1 = powerOfTwo(spec.expTableSize ?? 1024, `${name}.expTableSize`);
  const T2 = powerOfTwo(spec.invTableSize ?? 4096, `${name}.invTableSize`);
  const length = from.shape[from.shape.length - 1];
  const tables = softmaxTables(from.type, length, T1, T2);
  return {
    op: 'softmax',
    ...frame,
    shape: from.shape,
    type: asType(spec.type ?? fixedType(16, 1, { signed: false }), `${name}.type`),
    rows: sizeOf(from.shape) / length,
    length,
    expTable: rawTensor(tables.exp, [tables.exp.length]),
    expShift: tables.expShift,
    invTable: rawTensor(tables.inv, [tables.inv.length]),
    invShift: tables.invShift,
    tableType: TABLE_TYPE,
  };
}

function powerOfTwo(value: number, field: string): number {
  ensure(
    Number.isInteger(value) && value >= 2 && value <= 2 ** 20 && 2 ** ceilLog2(value) === value,
    field,
    () => `must be a power of two in 2..2^20, got ${value}`,
  );
  return value;
}

/** The two tables of the softmax, computed once in float64; integers with 16 fraction bits. */
export function softmaxTables(
  x: FixedType,
  length: number,
  T1: number,
  T2: number,
): { exp: number[]; expShift: number; inv: number[]; invShift: number } {
  const expShift = Math.max(0, x.W - ceilLog2(T1));
  const exp = Array.from({ length: Math.min(T1, 2 ** x.W) }, (_, k) =>
    Number(castRaw(Math.exp(-(k * 2 ** expShift) * 2 ** -fractionBits(x)), TABLE_TYPE)),
  );
  const span = (length - 1) * 65536 + 1;
  const invShift = Math.max(0, ceilLog2(span) - ceilLog2(T2));
  const inv = Array.from({ length: Math.floor((span - 1) / 2 ** invShift) + 1 }, (_, k) =>
    Number(castRaw(65536 / (65536 + k * 2 ** invShift), TABLE_TYPE)),
  );
  return { exp, expShift, inv, invShift };
}

/** The graph as JSON text. */
export function graphToJson(graph: QfxGraph): string {
  return JSON.stringify(graph);
}

/**
 * Reads what {@link graphToJson} wrote.
 * @throws MatforgeError when the text is not a graph of this version.
 */
export function graphFromJson(text: string): QfxGraph {
  const graph = JSON.parse(text) as QfxGraph;
  ensure(
    graph?.format === 'matforge-qfx' && graph.version === 1 && Array.isArray(graph.nodes),
    'graph',
    () => 'not a matforge-qfx graph of version 1',
  );
  return graph;
}

/** True when every weight of a list has at most k digits, for checks before {@link buildGraph}. */
export function fitsDigits(weights: RawTensor, { k, digits = 'unsigned' }: MultiplierFreeConfig): boolean {
  return rawBigints(weights).every((w) => digitCount(Number(w < 0n ? -w : w), digits) <= k);
}
