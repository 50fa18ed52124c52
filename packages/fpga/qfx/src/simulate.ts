import { ensure, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { castBig, fitsDouble, fromRaw, overflowBig, rawCaster, toRaw } from './cast.ts';
import {
  type AddNode,
  type AvgPool2dNode,
  type ConcatNode,
  isMac,
  type MacNode,
  type MaxPool2dNode,
  type QfxGraph,
  type QfxNode,
  type SoftmaxNode,
  sizeOf,
  type ZeroPad2dNode,
} from './graph.ts';
import { type RawData, rawBigints, rawNumbers } from './raw.ts';
import { type FixedType, fractionBits, hi, hiBig, lo, loBig } from './types.ts';

// Looked up once: in an isolated context (jest, vm) every look-up of a global is slow.
const { imul, floor, min, max } = Math;

/** Raw integers and real values of one node, the batch axis first. */
export interface Traced {
  readonly shape: readonly number[];
  readonly type: FixedType;
  readonly raw: RawData;
}

/** Options of {@link simulate}. */
export interface SimulateOptions {
  /** Keep every node's result. Default false. */
  trace?: boolean;
  /** `x` holds raw integers, already cast. Default false. */
  rawInput?: boolean;
  /** Also keep the exact sums before activation and cast, in units of 2^-accFraction. Default false. */
  accumulators?: boolean;
}

/** What {@link simulate} returns. */
export interface Simulation {
  /** Raw integers of the output, [batch, ...shape], row-major. */
  readonly raw: RawData;
  /** raw * 2^-F. */
  readonly values: Float64Array;
  /** [batch, ...shape of the output]. */
  readonly shape: readonly number[];
  readonly type: FixedType;
  /** By node name, when asked for. */
  readonly trace: Record<string, Traced>;
  /** By node name, when asked for: sums of the nodes that multiply or add. */
  readonly accumulators: Record<string, RawData>;
}

/** What a simulation reads: a tensor [batch, ...], or numbers row-major. */
export type SimulationInput = tf.Tensor | ArrayLike<number> | ArrayLike<bigint>;

/**
 * Runs the frozen program on integers. Layers whose sums fit 31 bits run in int32, up to 53 bits in float64 (exact on
 * integers), wider ones in bigint.
 * @throws MatforgeError when the input does not fill the input shape, or holds NaN or infinity.
 */
export function simulate(graph: QfxGraph, x: SimulationInput, options: SimulateOptions = {}): Simulation {
  const input = graph.nodes[graph.input - 1];
  const data = x instanceof tf.Tensor ? x.dataSync() : x;
  const size = sizeOf(input.shape);
  ensure(
    data.length % size === 0,
    'x',
    () => `${data.length} numbers do not fill samples of [${input.shape}]; give [batch, ${input.shape}]`,
  );
  const batch = data.length / size;
  const results = new Map<number, RawData>();
  const accumulators: Record<string, RawData> = {};
  const last = lastReaders(graph);
  const trace: Record<string, Traced> = {};
  for (const node of graph.nodes) {
    const inputs = node.inputs.map((id) => results.get(id) as RawData);
    const raw =
      node.op === 'input'
        ? readInput(data, node.type, options.rawInput ?? false)
        : runNode(graph, node, inputs, batch, options.accumulators ? accumulators : undefined);
    results.set(node.id, raw);
    if (options.trace) trace[node.name] = { shape: [batch, ...node.shape], type: node.type, raw };
    for (const id of node.inputs) if (last.get(id) === node.id && id !== graph.output) results.delete(id);
  }
  const output = graph.nodes[graph.output - 1];
  const raw = results.get(output.id) as RawData;
  return {
    raw,
    values: fromRaw(raw, output.type),
    shape: [batch, ...output.shape],
    type: output.type,
    trace,
    accumulators,
  };
}

function lastReaders(graph: QfxGraph): Map<number, number> {
  const last = new Map<number, number>();
  for (const node of graph.nodes) for (const id of node.inputs) last.set(id, node.id);
  return last;
}

/** A container for raw integers of a type. */
function newRaw(type: FixedType, length: number): RawData {
  if (type.W <= (type.signed ? 32 : 31)) return new Int32Array(length);
  return fitsDouble(type) ? new Float64Array(length) : new Array<bigint>(length).fill(0n);
}

function isBig(raw: RawData): raw is bigint[] {
  return Array.isArray(raw);
}

function readInput(data: ArrayLike<number> | ArrayLike<bigint>, type: FixedType, isRaw: boolean): RawData {
  const raw = newRaw(type, data.length);
  if (!isRaw) {
    const cast = toRaw(data as ArrayLike<number>, type);
    if (isBig(raw)) return cast;
    raw.set(cast as Float64Array);
    return raw;
  }
  const [low, high] = [loBig(type), hiBig(type)];
  const [least, most] = [lo(type), hi(type)];
  for (let i = 0; i < raw.length; i++) {
    const value = data[i];
    if (typeof value === 'number') {
      ensure(Number.isInteger(value), 'x', () => `raw inputs are integers, got ${value}`);
    }
    if (isBig(raw)) {
      const big = BigInt(value);
      if (big < low || big > high) refuse('x', `raw input ${value} does not fit ${type.W} bits`);
      raw[i] = big;
    } else {
      const number = Number(value);
      if (number < least || number > most) refuse('x', `raw input ${value} does not fit ${type.W} bits`);
      raw[i] = number;
    }
  }
  return raw;
}

function runNode(
  graph: QfxGraph,
  node: QfxNode,
  inputs: RawData[],
  batch: number,
  accumulators: Record<string, RawData> | undefined,
): RawData {
  const [x] = inputs;
  const before = (i = 0): QfxNode => graph.nodes[node.inputs[i] - 1];
  if (isMac(node)) return macNode(node, before().type, x, batch, accumulators);
  switch (node.op) {
    case 'input':
      return refuse(node.name, 'the input is not computed');
    case 'activation':
      return castAll(x, fractionBits(before().type), node.activation === 'relu', node.type);
    case 'add':
      return addNode(node, inputs, accumulators);
    case 'maxPool2d':
      return maxPool(node, x, batch);
    case 'avgPool2d':
      return avgPool(node, before().type, x, batch, accumulators);
    case 'softmax':
      return softmaxNode(node, x, batch);
    case 'argmax':
      return argmax(x, node.length);
    case 'reshape':
    case 'flatten':
      return x;
    case 'zeroPad2d':
      return zeroPad(node, before().shape, x, batch);
    case 'concat':
      return concat(node, inputs, batch);
  }
}

/** ReLU and the cast at the end of a node, from exact integers in units of 2^-fraction. */
function castAll(acc: RawData | Float64Array, fraction: number, relu: boolean, type: FixedType): RawData {
  const out = newRaw(type, acc.length);
  if (isBig(acc) || isBig(out)) {
    for (let i = 0; i < acc.length; i++) {
      let v = BigInt(acc[i]);
      if (relu && v < 0n) v = 0n;
      const r = castBig(v, fraction, type);
      out[i] = (isBig(out) ? r : Number(r)) as never;
    }
    return out;
  }
  const plain = type.Q === 'AP_RND' && type.O === 'AP_SAT';
  const sh = fraction - fractionBits(type);
  if (plain && sh > 0) {
    const scale = 2 ** -sh;
    const [low, high] = [relu ? max(lo(type), 0) : lo(type), hi(type)];
    for (let i = 0; i < acc.length; i++) {
      // |acc| < 2^52, so adding the half is exact or too small to matter.
      const q = floor(acc[i] * scale + 0.5);
      out[i] = min(max(q, low), high);
    }
    return out;
  }
  const cast = rawCaster(fraction, type);
  for (let i = 0; i < acc.length; i++) out[i] = cast(relu && acc[i] < 0 ? 0 : acc[i]);
  return out;
}

type Width = 'int32' | 'float64' | 'bigint';

interface Operands {
  width: Width;
  /** One of the two, by width: [out, in], with the alignment 2^productShift. */
  weights: Int32Array | Float64Array;
  weightsBig: bigint[];
  /** Aligned bias, one per channel; zeros when there is none. */
  bias: Float64Array;
  biasBig: bigint[];
}

/** Weights ready for the sums: made once for each graph and node. */
const prepared = new WeakMap<MacNode, Operands>();

function operandsOf(node: MacNode, xType: FixedType): Operands {
  const known = prepared.get(node);
  if (known) return known;
  const channels = channelsOf(node);
  const shift = 2 ** node.productShift;
  const narrow = node.weights.data.length === 0 || typeof node.weights.data[0] === 'number';
  const maxX = max(-lo(xType), hi(xType));
  // A bound of every partial sum, from the weights themselves.
  let bound = Infinity;
  if (narrow) {
    const sums = new Float64Array(channels);
    const data = node.weights.data as readonly number[];
    for (let i = 0; i < data.length; i++) sums[i % channels] += Math.abs(data[i]);
    bound = sums.reduce((a, b) => max(a, b)) * maxX * shift;
    if (node.bias) {
      bound +=
        max(...(node.bias.data as readonly (number | string)[]).map((b) => Math.abs(Number(b)))) * 2 ** node.biasShift;
    }
  }
  const width: Width = bound < 2 ** 31 ? 'int32' : bound < 2 ** 51 ? 'float64' : 'bigint';
  const big = width === 'bigint';
  const weightsBig = big
    ? transposed(
        rawBigints(node.weights).map((w) => w << BigInt(node.productShift)),
        channels,
      )
    : [];
  const biasBig = big
    ? node.bias
      ? rawBigints(node.bias).map((b) => b << BigInt(node.biasShift))
      : new Array<bigint>(channels).fill(0n)
    : [];
  const numbers = big
    ? new Float64Array(0)
    : transposed(
        rawNumbers(node.weights).map((w) => w * shift),
        channels,
      );
  const bias =
    big || !node.bias ? new Float64Array(channels) : rawNumbers(node.bias).map((b) => b * 2 ** node.biasShift);
  const operands: Operands = {
    width,
    weights: width === 'int32' ? Int32Array.from(numbers) : numbers,
    weightsBig,
    bias,
    biasBig,
  };
  prepared.set(node, operands);
  return operands;
}

/** Every sum starts at its channel's bias. */
function startSums(sums: RawData, bias: Float64Array | bigint[]): void {
  const channels = bias.length;
  for (let i = 0, c = 0; i < sums.length; i++) {
    sums[i] = bias[c] as never;
    if (++c === channels) c = 0;
  }
}

/** [in, out] to [out, in], so that a sum runs along memory; a depthwise kernel becomes [channel, tap]. */
function transposed<T extends Float64Array | bigint[]>(w: T, channels: number): T {
  const terms = w.length / channels;
  const out = w.slice() as T;
  for (let i = 0; i < terms; i++) for (let o = 0; o < channels; o++) out[o * terms + i] = w[i * channels + o];
  return out;
}

function channelsOf(node: MacNode): number {
  if (node.op === 'dense') return node.weights.shape[1];
  return node.op === 'batchNorm' ? node.channels : node.window.outC;
}

function macNode(
  node: MacNode,
  xType: FixedType,
  x: RawData,
  batch: number,
  accumulators: Record<string, RawData> | undefined,
): RawData {
  const operands = operandsOf(node, xType);
  const size = batch * sizeOf(node.shape);
  const patch = 'window' in node ? node.window.kernelH * node.window.kernelW * node.window.inC : 0;
  let acc: RawData;
  if (operands.width === 'bigint') {
    const sums = new Array<bigint>(size);
    startSums(sums, operands.biasBig);
    const wide = isBig(x) ? x : Array.from(x, (v) => BigInt(v));
    sumProducts(node, wide, operands.weightsBig, sums, batch, new Array<bigint>(patch).fill(0n), dotBigint);
    acc = sums;
  } else if (operands.width === 'int32') {
    const sums = new Int32Array(size);
    startSums(sums, operands.bias);
    const narrow = x instanceof Int32Array ? x : Int32Array.from(x as ArrayLike<number>, Number);
    sumProducts(node, narrow, operands.weights as Int32Array, sums, batch, new Int32Array(patch), dotInt32);
    acc = sums;
  } else {
    const sums = new Float64Array(size);
    startSums(sums, operands.bias);
    const narrow = Float64Array.from(x as ArrayLike<number>, Number);
    sumProducts(node, narrow, operands.weights as Float64Array, sums, batch, new Float64Array(patch), dotFloat64);
    acc = sums;
  }
  if (accumulators) accumulators[node.name] = acc.slice() as RawData;
  if (node.accumulatorRule === 'explicit') {
    acc = Array.from(acc as ArrayLike<number | bigint>, (v) => overflowBig(BigInt(v), node.accumulator));
  }
  return castAll(acc, node.accFraction, node.activation === 'relu', node.type);
}

/**
 * acc[r*nOut + o] += sum over i of x[r][i] * w[o][i], w transposed so that both run along i. Four outputs at a time: the
 * sums stay in registers.
 */
function dotInt32(
  x: Int32Array,
  at: number,
  w: Int32Array,
  from: number,
  nIn: number,
  nOut: number,
  acc: Int32Array,
  to: number,
): void {
  let o = 0;
  for (; o + 3 < nOut; o += 4) {
    let a = acc[to + o];
    let b = acc[to + o + 1];
    let c = acc[to + o + 2];
    let d = acc[to + o + 3];
    let k = from + o * nIn;
    for (let i = at; i < at + nIn; i++, k++) {
      const v = x[i];
      a = (a + imul(v, w[k])) | 0;
      b = (b + imul(v, w[k + nIn])) | 0;
      c = (c + imul(v, w[k + 2 * nIn])) | 0;
      d = (d + imul(v, w[k + 3 * nIn])) | 0;
    }
    acc[to + o] = a;
    acc[to + o + 1] = b;
    acc[to + o + 2] = c;
    acc[to + o + 3] = d;
  }
  for (; o < nOut; o++) {
    let a = acc[to + o];
    for (let i = 0, k = from + o * nIn; i < nIn; i++, k++) a = (a + imul(x[at + i], w[k])) | 0;
    acc[to + o] = a;
  }
}

/** {@link dotInt32} in float64, exact below 2^53. */
function dotFloat64(
  x: Float64Array,
  at: number,
  w: Float64Array,
  from: number,
  nIn: number,
  nOut: number,
  acc: Float64Array,
  to: number,
): void {
  let o = 0;
  for (; o + 3 < nOut; o += 4) {
    let a = acc[to + o];
    let b = acc[to + o + 1];
    let c = acc[to + o + 2];
    let d = acc[to + o + 3];
    let k = from + o * nIn;
    for (let i = at; i < at + nIn; i++, k++) {
      const v = x[i];
      a += v * w[k];
      b += v * w[k + nIn];
      c += v * w[k + 2 * nIn];
      d += v * w[k + 3 * nIn];
    }
    acc[to + o] = a;
    acc[to + o + 1] = b;
    acc[to + o + 2] = c;
    acc[to + o + 3] = d;
  }
  for (; o < nOut; o++) {
    let a = acc[to + o];
    for (let i = 0, k = from + o * nIn; i < nIn; i++, k++) a += x[at + i] * w[k];
    acc[to + o] = a;
  }
}

function dotBigint(
  x: bigint[],
  at: number,
  w: bigint[],
  from: number,
  nIn: number,
  nOut: number,
  acc: bigint[],
  to: number,
): void {
  for (let o = 0; o < nOut; o++) {
    for (let i = 0, k = from + o * nIn; i < nIn; i++, k++) acc[to + o] += x[at + i] * w[k];
  }
}

/** Sums of one run of inputs for `nOut` outputs that start at `to`. */
type Dot<T> = (x: T, at: number, w: T, from: number, nIn: number, nOut: number, acc: T, to: number) => void;

/** Drives `dot` over the positions of a node; convolutions copy each window into `patch` first (zeros where padded). */
function sumProducts<T extends Int32Array | Float64Array | bigint[]>(
  node: MacNode,
  x: T,
  w: T,
  acc: T,
  batch: number,
  patch: T,
  dot: Dot<T>,
): void {
  if (node.op === 'dense') {
    const [nIn, nOut] = node.weights.shape;
    for (let r = 0; r < batch * node.rows; r++) dot(x, r * nIn, w, 0, nIn, nOut, acc, r * nOut);
    return;
  }
  if (node.op === 'batchNorm') {
    const { channels } = node;
    // All three hold the same kind of number, bigint included.
    for (let i = 0; i < acc.length; i++) acc[i] = (acc[i] as number) + (x[i] as number) * (w[i % channels] as number);
    return;
  }
  const { inH, inW, inC, outH, outW, outC, kernelH, kernelW, strideH, strideW, padTop, padLeft } = node.window;
  const depthwise = node.op === 'depthwiseConv2d';
  const multiplier = depthwise ? node.depthMultiplier : outC;
  const taps = kernelH * kernelW;
  const zero = (isBig(x) ? 0n : 0) as T[number];
  for (let b = 0; b < batch; b++) {
    for (let oy = 0; oy < outH; oy++) {
      for (let ox = 0; ox < outW; ox++) {
        // Channels last in a patch of a convolution; first in one of a depthwise convolution.
        let p = 0;
        for (let ky = 0; ky < kernelH; ky++) {
          const y = oy * strideH - padTop + ky;
          for (let kx = 0; kx < kernelW; kx++) {
            const xx = ox * strideW - padLeft + kx;
            const inside = y >= 0 && y < inH && xx >= 0 && xx < inW;
            const from = ((b * inH + y) * inW + xx) * inC;
            if (depthwise) {
              for (let c = 0; c < inC; c++) patch[c * taps + p] = inside ? x[from + c] : zero;
              p++;
            } else for (let c = 0; c < inC; c++) patch[p++] = inside ? x[from + c] : zero;
          }
        }
        const to = ((b * outH + oy) * outW + ox) * outC;
        if (!depthwise) dot(patch, 0, w, 0, taps * inC, outC, acc, to);
        else {
          for (let c = 0; c < inC; c++) {
            dot(patch, c * taps, w, c * multiplier * taps, taps, multiplier, acc, to + c * multiplier);
          }
        }
      }
    }
  }
}

function addNode(node: AddNode, inputs: RawData[], accumulators: Record<string, RawData> | undefined): RawData {
  const { length } = inputs[0];
  let acc: RawData;
  if (node.accumulator.W > 52 || inputs.some(isBig)) {
    const sums = new Array<bigint>(length).fill(0n);
    inputs.forEach((x, k) => {
      for (let i = 0; i < length; i++) sums[i] += BigInt(x[i]) << BigInt(node.inputShifts[k]);
    });
    acc = sums;
  } else {
    const sums = new Float64Array(length);
    inputs.forEach((x, k) => {
      const scale = 2 ** node.inputShifts[k];
      for (let i = 0; i < length; i++) sums[i] += (x[i] as number) * scale;
    });
    acc = sums;
  }
  if (accumulators) accumulators[node.name] = acc;
  return castAll(acc, node.accFraction, node.activation === 'relu', node.type);
}

/** Visits every window of a pooling node, once per channel: the valid cells and how many they are. */
function eachPool(
  { window }: MaxPool2dNode | AvgPool2dNode,
  batch: number,
  visit: (to: number, cells: number[], count: number) => void,
): void {
  const { inH, inW, inC, outH, outW, kernelH, kernelW, strideH, strideW, padTop, padLeft } = window;
  const cells = new Array<number>(kernelH * kernelW).fill(0);
  for (let b = 0; b < batch; b++) {
    for (let oy = 0; oy < outH; oy++) {
      for (let ox = 0; ox < outW; ox++) {
        for (let c = 0; c < inC; c++) {
          let count = 0;
          for (let ky = 0; ky < kernelH; ky++) {
            const y = oy * strideH - padTop + ky;
            if (y < 0 || y >= inH) continue;
            for (let kx = 0; kx < kernelW; kx++) {
              const x = ox * strideW - padLeft + kx;
              if (x >= 0 && x < inW) cells[count++] = ((b * inH + y) * inW + x) * inC + c;
            }
          }
          visit(((b * outH + oy) * outW + ox) * inC + c, cells, count);
        }
      }
    }
  }
}

function maxPool(node: MaxPool2dNode, x: RawData, batch: number): RawData {
  const out = newRaw(node.type, batch * sizeOf(node.shape));
  eachPool(node, batch, (to, cells, count) => {
    let best = x[cells[0]];
    for (let i = 1; i < count; i++) if (x[cells[i]] > best) best = x[cells[i]];
    out[to] = best as never;
  });
  return out;
}

function avgPool(
  node: AvgPool2dNode,
  xType: FixedType,
  x: RawData,
  batch: number,
  accumulators: Record<string, RawData> | undefined,
): RawData {
  const size = batch * sizeOf(node.shape);
  const out = newRaw(node.type, size);
  const sums: number[] | bigint[] = new Array(size);
  const wide = isBig(x) || node.accumulator.W + node.reciprocalBits + 2 > 52;
  const byCount = new Map(
    node.reciprocals.map(({ count, raw, fraction }) => [
      count,
      {
        raw,
        big: BigInt(raw),
        fraction,
        cast: fitsDouble(node.type) ? rawCaster(fractionBits(xType) + fraction, node.type) : undefined,
      },
    ]),
  );
  eachPool(node, batch, (to, cells, count) => {
    const { raw, big, fraction, cast } = byCount.get(count) ?? refuse(node.name, `no reciprocal of ${count}`);
    if (!wide && cast) {
      let S = 0;
      for (let i = 0; i < count; i++) S += x[cells[i]] as number;
      sums[to] = S;
      out[to] = cast(S * raw);
      return;
    }
    let S = 0n;
    for (let i = 0; i < count; i++) S += BigInt(x[cells[i]]);
    sums[to] = Number(S);
    const r = castBig(S * big, fractionBits(xType) + fraction, node.type);
    out[to] = (isBig(out) ? r : Number(r)) as never;
  });
  if (accumulators) accumulators[node.name] = Float64Array.from(sums, Number);
  return out;
}

function softmaxNode(node: SoftmaxNode, x: RawData, batch: number): RawData {
  const { length, rows, expShift, invShift } = node;
  const exp = rawNumbers(node.expTable);
  const inv = rawNumbers(node.invTable);
  const out = newRaw(node.type, x.length);
  const e = new Float64Array(length);
  for (let row = 0; row < batch * rows; row++) {
    const at = row * length;
    let top = BigInt(x[at]);
    for (let i = 1; i < length; i++) if (BigInt(x[at + i]) > top) top = BigInt(x[at + i]);
    let Z = 0;
    for (let i = 0; i < length; i++) {
      e[i] = exp[Number((top - BigInt(x[at + i])) >> BigInt(expShift))];
      Z += e[i];
    }
    const v = inv[floor((Z - 65536) / 2 ** invShift)];
    for (let i = 0; i < length; i++) {
      const r = castBig(BigInt(e[i]) * BigInt(v), 32, node.type);
      out[at + i] = (isBig(out) ? r : Number(r)) as never;
    }
  }
  return out;
}

function argmax(x: RawData, length: number): RawData {
  const out = new Int32Array(x.length / length);
  for (let row = 0; row < out.length; row++) {
    let best = 0;
    for (let i = 1; i < length; i++) if (x[row * length + i] > x[row * length + best]) best = i;
    out[row] = best;
  }
  return out;
}

function zeroPad(node: ZeroPad2dNode, from: readonly number[], x: RawData, batch: number): RawData {
  const [H, W, C] = from;
  const [outH, outW] = node.shape;
  const out = newRaw(node.type, batch * outH * outW * C);
  for (let b = 0; b < batch; b++) {
    for (let y = 0; y < H; y++) {
      const source = (b * H + y) * W * C;
      const target = ((b * outH + y + node.padTop) * outW + node.padLeft) * C;
      for (let i = 0; i < W * C; i++) out[target + i] = x[source + i] as never;
    }
  }
  return out;
}

function concat(node: ConcatNode, inputs: RawData[], batch: number): RawData {
  const out = newRaw(node.type, batch * sizeOf(node.shape));
  let to = 0;
  for (let block = 0; block < batch * node.outer; block++) {
    node.chunks.forEach((chunk, k) => {
      for (let i = 0; i < chunk; i++) out[to++] = inputs[k][block * chunk + i] as never;
    });
  }
  return out;
}
