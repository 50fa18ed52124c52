import { defineOptimizerClass, defineTransformation, mapNamed, option, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import {
  alignSigns,
  type Basis,
  checkRank,
  galoreBack,
  galoreProject,
  project,
  projectedShape,
  sideOf,
} from './projection.ts';
import { dequantize, type Quantized, quantize } from './quantize.ts';

export {
  type Basis,
  galoreBack,
  galoreMemory,
  galoreProject,
  type ProjectionType,
  project,
  type Side,
  type SvdOptions,
  sideOf,
} from './projection.ts';
export { dequantize, type Quantized, quantize } from './quantize.ts';

const fraction = () => z.number('must be in [0, 1)').min(0, 'must be in [0, 1)').lt(1, 'must be in [0, 1)');
const nonNegative = () => z.number('must be a finite number >= 0').min(0, 'must be a finite number >= 0');

const config = z.object({
  /** r: dimensions kept of the shorter side. */
  rank: option.rank().default(128),
  /** T: updates between two SVDs. */
  updateProjGap: option.count().default(200),
  /** α: multiplies the update that is projected back. */
  scale: option.positive().default(0.25),
  projType: z.enum(['std', 'reverse_std', 'left', 'right', 'full']).default('std'),
  learningRate: nonNegative().default(1e-3),
  beta1: fraction().default(0.9),
  beta2: fraction().default(0.999),
  epsilon: nonNegative().default(1e-6),
  /** Decoupled, for every variable. */
  weightDecay: nonNegative().default(0),
  /** What runs in the subspace: Adam, Adafactor with a factored second moment, or plain SGD. */
  base: z.enum(['adam', 'adafactor', 'sgd']).default('adam'),
  /** How Adam's moments are kept: 4 bytes an entry, or 1. */
  states: z.enum(['float32', 'int8']).default('float32'),
  /** Flip new basis vectors to agree in sign with the old ones. */
  signAlign: z.boolean().default(false),
  svd: z.enum(['exact', 'randomized']).default('exact'),
  /** Power iterations of the randomized SVD. */
  iterations: z.int('must be an integer >= 0').min(0, 'must be an integer >= 0').default(4),
  /** Seed of the randomized SVD. */
  seed: option.seed().default(0),
  /**
   * The matrices to project. Default: all of rank 2 or 4 (a convolution counts as [kh·kw·in, out]) with min(in, out)
   * above the rank, except embeddings. What is not projected is trained by the base optimizer as it is.
   */
  include: z
    .custom<(name: string, shape: number[]) => boolean>((value) => typeof value === 'function', 'must be a function')
    .optional(),
});

/** GaLore's options. */
export type GaLoreOptions = z.input<typeof config>;
type Config = z.output<typeof config>;

/** A moment: a tensor, or its 8-bit form. */
export type Moment = tf.Tensor | Quantized;

/** What GaLore keeps for one variable. */
export interface GaLoreState {
  /** t: updates made. */
  step: number;
  /** Absent for variables that are not projected, and before the first gradient that is not zero. */
  basis?: Basis;
  /** First moment of R. */
  m?: Moment;
  /** Second moment of R; in 8 bits its root is kept. */
  v?: Moment;
  /** Adafactor: means of R² over rows and over columns. */
  rows?: tf.Tensor;
  columns?: tf.Tensor;
}

/**
 * GaLore: the optimizer runs in the leading singular subspace of the gradient, which is found anew every `updateProjGap`
 * updates (Zhao et al., arXiv 2403.03507, algorithm 2). All weights are trained; only the optimizer's state is small.
 */
export const galore = defineTransformation({
  info: {
    id: 'galore',
    title: 'GaLore',
    family: 'optim',
    kind: 'gradient-transformation',
    paper: {
      title: 'GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection',
      arxiv: '2403.03507',
      year: 2024,
    },
  },
  config,
  init: (params, config): Record<string, GaLoreState> =>
    mapNamed(params, (param, name) => {
      if (isProjected(param, name, config)) checkRank(matrixShape(param.shape), config.rank, name);
      return initial(isProjected(param, name, config) ? lowRankShape(param, config) : param.shape, config);
    }),
  update(updates, states, params, config) {
    const results = mapNamed(updates, (gradient, name) =>
      isProjected(params[name], name, config)
        ? galoreUpdate(gradient, states[name], params[name], config, { name })
        : baseUpdate(gradient, states[name], params[name], config),
    );
    return {
      updates: mapNamed(results, ({ update }) => update),
      state: mapNamed(results, ({ state }) => state),
    };
  },
});

/**
 * One update of one matrix (or convolution kernel).
 *
 * @param G gradient, of W's shape.
 * @param given a basis to use at this refresh in place of the SVD's.
 * @returns the update to be added to W, and the new state.
 * @throws MatforgeError when a gradient that defines a basis is not finite.
 */
export function galoreUpdate(
  G: tf.Tensor,
  state: GaLoreState,
  W: tf.Tensor,
  config: Config,
  { name = 'the matrix', basis: given }: { name?: string; basis?: Basis } = {},
): { update: tf.Tensor; state: GaLoreState } {
  const G2 = tf.reshape(G, matrixShape(G.shape)) as tf.Tensor2D;
  const refresh = state.step % config.updateProjGap === 0;
  const basis = refresh ? (given ?? newBasis(G2, state.basis, config, name)) : state.basis;
  if (!basis) return { update: tf.zerosLike(W), state };
  const { direction, state: next } = baseDirection(project(G2, basis), state, config);
  const back = tf.reshape(tf.mul(galoreBack(direction as tf.Tensor2D, basis), config.scale), W.shape);
  return { update: withDecay(tf.neg(back), W, config), state: { ...next, basis } };
}

/** The initial state of a variable that is not projected, or of R. */
export function initial(shape: number[], config: Config): GaLoreState {
  if (config.base === 'sgd') return { step: 0 };
  if (config.base === 'adafactor' && shape.length >= 2) {
    const [columns] = shape.slice(-1);
    return { step: 0, rows: tf.zeros(shape.slice(0, -1)), columns: tf.zeros([...shape.slice(0, -2), columns]) };
  }
  const zero = (signed: boolean): Moment => {
    const zeros = tf.zeros(shape);
    return config.states === 'int8' ? pack(zeros, signed) : zeros;
  };
  return config.base === 'adam' ? { step: 0, m: zero(true), v: zero(false) } : { step: 0, v: zero(false) };
}

function baseUpdate(
  G: tf.Tensor,
  state: GaLoreState,
  W: tf.Tensor,
  config: Config,
): { update: tf.Tensor; state: GaLoreState } {
  const { direction, state: next } = baseDirection(G, state, config);
  return { update: withDecay(tf.neg(direction), W, config), state: next };
}

/** The base optimizer on R (or on a whole gradient): what is subtracted before projecting back and scaling. */
function baseDirection(R: tf.Tensor, state: GaLoreState, config: Config): { direction: tf.Tensor; state: GaLoreState } {
  if (config.base === 'sgd') {
    return { direction: tf.mul(R, config.learningRate), state: { ...state, step: state.step + 1 } };
  }
  return config.base === 'adam' ? adam(R, state, config) : adafactor(R, state, config);
}

/** Adam as the official code has it: epsilon is added before the bias correction. */
function adam(R: tf.Tensor, state: GaLoreState, config: Config): { direction: tf.Tensor; state: GaLoreState } {
  const { beta1, beta2, epsilon, learningRate } = config;
  const step = state.step + 1;
  const m = tf.add(tf.mul(unpack(state.m as Moment, R.shape, true), beta1), tf.mul(R, 1 - beta1));
  const v = tf.add(tf.mul(unpack(state.v as Moment, R.shape, false), beta2), tf.mul(tf.square(R), 1 - beta2));
  const rate = (learningRate * Math.sqrt(1 - beta2 ** step)) / (1 - beta1 ** step);
  const direction = tf.mul(tf.div(m, tf.add(tf.sqrt(v), epsilon)), rate);
  const moments = config.states === 'int8' ? { m: pack(m, true), v: pack(v, false) } : { m, v };
  return { direction, state: { ...state, ...moments, step } };
}

/** Adafactor without first moment (arXiv 1804.04235, algorithm 4): row and column means of R², update clipped to RMS 1. */
function adafactor(R: tf.Tensor, state: GaLoreState, config: Config): { direction: tf.Tensor; state: GaLoreState } {
  const step = state.step + 1;
  const decay = 1 - step ** -0.8;
  const square = tf.add(tf.square(R), 1e-30);
  const average = (old: tf.Tensor, now: tf.Tensor): tf.Tensor => tf.add(tf.mul(old, decay), tf.mul(now, 1 - decay));
  const next: GaLoreState = { ...state, step };
  let root: tf.Tensor;
  if (state.rows && state.columns) {
    next.rows = average(state.rows, tf.mean(square, -1));
    next.columns = average(state.columns, tf.mean(square, -2));
    const relative = tf.div(next.rows, tf.mean(next.rows, -1, true));
    root = tf.sqrt(tf.mul(tf.expandDims(relative, -1), tf.expandDims(next.columns, -2)));
  } else {
    const v = average(unpack(state.v as Moment, R.shape, false), square);
    next.v = config.states === 'int8' ? pack(v, false) : v;
    root = tf.sqrt(v);
  }
  const direction = tf.div(R, root);
  const rms = tf.sqrt(tf.mean(tf.square(direction)));
  return { direction: tf.mul(tf.div(direction, tf.maximum(rms, 1)), config.learningRate), state: next };
}

/** W + update, decayed: the decay acts on the weight as it is after the update. */
function withDecay(update: tf.Tensor, W: tf.Tensor, { learningRate, weightDecay }: Config): tf.Tensor {
  return weightDecay === 0 ? update : tf.sub(update, tf.mul(tf.add(W, update), learningRate * weightDecay));
}

/** The basis of a gradient; a zero gradient has none and leaves the old one. */
function newBasis(G: tf.Tensor2D, old: Basis | undefined, config: Config, name: string): Basis | undefined {
  const largest = tf.max(tf.abs(G)).dataSync()[0];
  if (!Number.isFinite(largest)) refuse(`galore (${name})`, `gradient of ${name} is not finite: SVD skipped`);
  if (largest === 0) return old;
  const { R: _, singularValues: __, ...basis } = galoreProject(G, config.rank, config.projType, config);
  return config.signAlign && old ? alignSigns(basis, old) : basis;
}

function isProjected(param: tf.Tensor, name: string, config: Config): boolean {
  if (config.include) return config.include(name, param.shape);
  if ((param.rank !== 2 && param.rank !== 4) || /(^|\/)embeddings?(_\d+)?$/.test(name)) return false;
  return Math.min(...matrixShape(param.shape)) > config.rank;
}

/** A kernel as a matrix: all axes but the last, which counts the outputs, are joined. */
function matrixShape(shape: number[]): [number, number] {
  if (shape.length < 2) refuse('galore.include', `a variable of shape [${shape}] is no matrix; list kernels only`);
  const out = shape[shape.length - 1];
  return [shape.slice(0, -1).reduce((a, b) => a * b, 1), out];
}

function lowRankShape(param: tf.Tensor, config: Config): [number, number] {
  const shape = matrixShape(param.shape);
  return projectedShape(shape, config.rank, sideOf(shape, config.projType));
}

// v spans twice the decades of m, so its root is what 8 bits can hold.
function pack(moment: tf.Tensor, signed: boolean): Quantized {
  return quantize((signed ? moment : tf.sqrt(moment)).dataSync(), signed);
}

function unpack(moment: Moment, shape: number[], signed: boolean): tf.Tensor {
  if (moment instanceof tf.Tensor) return moment;
  const values = tf.tensor(dequantize(moment, signed), shape, 'float32');
  return signed ? values : tf.square(values);
}

/** GaLore as an optimizer class: `new GaLoreAdamOptimizer({ rank: 8 })` is `galore({ rank: 8 }).optimizer()`. */
export const GaLoreAdamOptimizer = defineOptimizerClass('GaLoreAdam', galore);
export type GaLoreAdamOptimizer = InstanceType<typeof GaLoreAdamOptimizer>;
