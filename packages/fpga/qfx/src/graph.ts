import type { Digits } from './digits.ts';
import type { RawTensor } from './raw.ts';
import type { FixedType } from './types.ts';

/**
 * The frozen integer program. Plain JSON: `JSON.stringify(graph)` loses nothing, raw integers wider than 53 bits are
 * decimal strings (see {@link RawTensor}). Nodes are in topological order; `id` is the layer index N of the emitted
 * names (1 is the input). All shapes leave the batch axis out; activations are row-major, channels last.
 *
 * Every node computes exactly on raw integers and casts once, at its end, to `type`.
 */
export interface QfxGraph {
  readonly format: 'matforge-qfx';
  readonly version: 1;
  readonly name: string;
  /** Id of the input node, always 1. */
  readonly input: number;
  /** Id of the node whose result the program returns. */
  readonly output: number;
  readonly nodes: readonly QfxNode[];
  /** What the user should know, e.g. that training ran with `exact: 'fast'`. */
  readonly warnings: readonly string[];
}

/** Function applied to the exact value before the cast. */
export type Activation = 'linear' | 'relu';
/** `latency`: pipelined, weight arrays partitioned; `resource`: weight arrays reshaped into memories of wide words. */
export type Strategy = 'latency' | 'resource';

/** Hints for the emitter; they never change a result bit. */
export interface Directives {
  /** Multiplications that one multiplier does. Default 1: fully parallel. */
  readonly reuseFactor?: number;
  /** Default `latency`. */
  readonly strategy?: Strategy;
  /** Output positions of a convolution computed at once. Default 1. */
  readonly parallelizationFactor?: number;
}

/** Fields of every node. */
export interface NodeBase {
  /** Position in `nodes` plus 1. */
  readonly id: number;
  /** Unique; the user's layer name where there is one. */
  readonly name: string;
  /** Ids of the nodes that are read. */
  readonly inputs: readonly number[];
  /** Shape of the result without the batch axis. */
  readonly shape: readonly number[];
  /** Type of the result; its modes are those of the cast at the end of the node. */
  readonly type: FixedType;
  readonly directives?: Directives;
}

/** A window sliding over [inH, inW, inC]; padding is explicit, so nothing has to be derived from `same`. */
export interface Window2d {
  readonly inH: number;
  readonly inW: number;
  readonly inC: number;
  readonly outH: number;
  readonly outW: number;
  readonly outC: number;
  readonly kernelH: number;
  readonly kernelW: number;
  readonly strideH: number;
  readonly strideW: number;
  readonly padTop: number;
  readonly padBottom: number;
  readonly padLeft: number;
  readonly padRight: number;
}

/**
 * The digits of every weight, flat: weight i has the terms i*k .. i*k+k-1, sign 0 for an absent one. The product is
 * the sum of sign * (x << shift), before the alignment by `productShift`.
 */
export interface MultiplierFreeTerms {
  readonly k: number;
  readonly digits: Digits;
  readonly signs: readonly number[];
  readonly shifts: readonly number[];
}

/**
 * How an accumulator was chosen: `full` from the operand types alone ({@link accType}), `tight` from the actual weights,
 * `explicit` given by the user and wrapping.
 */
export type AccumulatorRule = 'full' | 'tight' | 'explicit';

/**
 * A sum of products: acc = 2^productShift * sum x*w + 2^biasShift * b in units of 2^-accFraction, then the activation,
 * then the cast to `type`. `accumulator` has exactly `accFraction` fraction bits. Rule `explicit` wraps the exact sum
 * to `accumulator` before the activation; with the other rules no value can leave it.
 */
export interface MacFields {
  readonly weights: RawTensor;
  readonly weightType: FixedType;
  /**
   * Present when binary points were learned per output channel: the weights of channel c are multiples of
   * 2^channelShift[c], and weight / 2^channelShift[c] needs only `channelBits` bits. `weights` and `weightType` are
   * already on the common grid, so this may be ignored.
   */
  readonly channelShift?: readonly number[];
  readonly channelBits?: number;
  readonly bias?: RawTensor;
  readonly biasType?: FixedType;
  readonly accumulator: FixedType;
  readonly accumulatorRule: AccumulatorRule;
  readonly accFraction: number;
  readonly productShift: number;
  readonly biasShift: number;
  readonly activation: Activation;
  readonly multiplierFree?: MultiplierFreeTerms;
}

/** The input of the program: real values cast to `type`, or raw integers of it. */
export interface InputNode extends NodeBase {
  readonly op: 'input';
}

/** Weights [in, out]; the input is read flat, or row by row when it has leading axes (`rows` rows of `in`). */
export interface DenseNode extends NodeBase, MacFields {
  readonly op: 'dense';
  readonly rows: number;
}

/** Weights [kernelH, kernelW, inC, outC]. A 1-D convolution is one of height 1 (its shape stays [length, channels]). */
export interface Conv2dNode extends NodeBase, MacFields {
  readonly op: 'conv2d';
  readonly window: Window2d;
}

/** Weights [kernelH, kernelW, inC, depthMultiplier]; output channel c*depthMultiplier + m. Bias has inC*depthMultiplier. */
export interface DepthwiseConv2dNode extends NodeBase, MacFields {
  readonly op: 'depthwiseConv2d';
  readonly window: Window2d;
  readonly depthMultiplier: number;
}

/** Unfolded batch norm x*A + C per channel (the last axis): `weights` is A [channels], `bias` is C [channels]. */
export interface BatchNormNode extends NodeBase, MacFields {
  readonly op: 'batchNorm';
  readonly channels: number;
}

/** A cast of its own, with or without ReLU before it. */
export interface ActivationNode extends NodeBase {
  readonly op: 'activation';
  readonly activation: Activation;
}

/** Exact sum of two or more inputs: acc = sum of 2^inputShifts[i] * x_i in units of 2^-accFraction. */
export interface AddNode extends NodeBase {
  readonly op: 'add';
  readonly accumulator: FixedType;
  readonly accFraction: number;
  readonly inputShifts: readonly number[];
  readonly activation: Activation;
}

/** Exact maximum over the valid cells of each window; the type does not change. Global pooling: one window. */
export interface MaxPool2dNode extends NodeBase {
  readonly op: 'maxPool2d';
  readonly window: Window2d;
  readonly global: boolean;
}

/** 1/count as `raw` * 2^-`fraction`, rounded to nearest. */
export interface Reciprocal {
  readonly count: number;
  readonly raw: number;
  readonly fraction: number;
}

/**
 * S = exact sum of the valid cells (padding not counted), y = cast(S * R * 2^-(Fx + Fr)) with the reciprocal of their
 * number. `accumulator` holds every S.
 */
export interface AvgPool2dNode extends NodeBase {
  readonly op: 'avgPool2d';
  readonly window: Window2d;
  readonly global: boolean;
  readonly accumulator: FixedType;
  readonly reciprocalBits: number;
  /** One for each number of valid cells that occurs, ascending. */
  readonly reciprocals: readonly Reciprocal[];
}

/**
 * Softmax over `length` logits in each of `rows` rows: d_i = max - x_i, e_i = exp[d_i >> expShift], Z = sum of e_i,
 * y_i = cast(e_i * inv[(Z - 65536) >> invShift] * 2^-32). Tables are raw integers of `tableType` (16 fraction bits).
 */
export interface SoftmaxNode extends NodeBase {
  readonly op: 'softmax';
  readonly rows: number;
  readonly length: number;
  readonly expTable: RawTensor;
  readonly expShift: number;
  readonly invTable: RawTensor;
  readonly invShift: number;
  readonly tableType: FixedType;
}

/** Index of the largest of `length` logits in each row, the lowest on ties. */
export interface ArgmaxNode extends NodeBase {
  readonly op: 'argmax';
  readonly rows: number;
  readonly length: number;
}

/** The same integers in the same order under another shape. */
export interface ReshapeNode extends NodeBase {
  readonly op: 'reshape' | 'flatten';
}

/** Zeros around an image [height, width, channels]; the type does not change. */
export interface ZeroPad2dNode extends NodeBase {
  readonly op: 'zeroPad2d';
  readonly padTop: number;
  readonly padBottom: number;
  readonly padLeft: number;
  readonly padRight: number;
}

/** Inputs of one format side by side: for each of `outer` blocks, `chunks[i]` consecutive integers of input i. */
export interface ConcatNode extends NodeBase {
  readonly op: 'concat';
  readonly axis: number;
  readonly outer: number;
  readonly chunks: readonly number[];
}

/** The nodes that multiply by weights; see {@link MacFields}. */
export type MacNode = DenseNode | Conv2dNode | DepthwiseConv2dNode | BatchNormNode;

/** One step of a {@link QfxGraph}, told apart by `op`. */
export type QfxNode =
  | InputNode
  | MacNode
  | ActivationNode
  | AddNode
  | MaxPool2dNode
  | AvgPool2dNode
  | SoftmaxNode
  | ArgmaxNode
  | ReshapeNode
  | ZeroPad2dNode
  | ConcatNode;

/** The name of a node's operation. */
export type QfxOp = QfxNode['op'];

/** True for the nodes that multiply by weights. */
export function isMac(node: QfxNode): node is MacNode {
  return 'weights' in node;
}

/** Number of elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** The node with this id. */
export function nodeOf(graph: QfxGraph, id: number): QfxNode {
  return graph.nodes[id - 1];
}

/** Inputs per output (n_in) and outputs per position (n_out) of a matrix layer, in hls4ml's sense, and its positions. */
export function matrixSize(node: MacNode): { nIn: number; nOut: number; positions: number } {
  switch (node.op) {
    case 'dense':
      return { nIn: node.weights.shape[0], nOut: node.weights.shape[1], positions: node.rows };
    case 'conv2d': {
      const { kernelH, kernelW, inC, outC, outH, outW } = node.window;
      return { nIn: kernelH * kernelW * inC, nOut: outC, positions: outH * outW };
    }
    case 'depthwiseConv2d': {
      const { kernelH, kernelW, outC, outH, outW } = node.window;
      return { nIn: kernelH * kernelW, nOut: outC, positions: outH * outW };
    }
    case 'batchNorm':
      return { nIn: 1, nOut: node.channels, positions: sizeOf(node.shape) / node.channels };
  }
}
