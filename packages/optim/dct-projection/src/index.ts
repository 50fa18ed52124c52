import { defineOptimizerClass, defineTransformation, mapNamed, option, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import {
  adam,
  adamw,
  asMatrix,
  type Bases,
  basisOf,
  decayed,
  isProjected,
  type Moments,
  matrixShape,
  named,
  nonNegative,
  shared,
  withBasis,
} from './common.ts';
import { project, reconstruct, rotate, selectColumns, sideOf } from './selection.ts';

export { project, reconstruct, rotate, type Selection, type SelectionOptions, selectColumns } from './selection.ts';
export { type DctBasis, dctMatrix, fastDct, type Side } from './transform.ts';
export { orthogonalise, type TrionOptions, trion } from './trion.ts';

const config = z.object({
  ...shared,
  learningRate: nonNegative().default(1e-3),
  /** Updates between two choices of columns. */
  updateProjGap: option.count().default(1),
  /** Carry the moments from one choice of columns to the next. We advise it; the paper's default is off. */
  rotateSubspace: z.boolean().default(false),
  /** Add what the projection left out to the next gradient; costs in·out numbers a matrix. */
  errorFeedback: z.boolean().default(false),
});

/** Options of {@link dctAdamW}. */
export type DctAdamWOptions = z.input<typeof config>;
type Config = z.output<typeof config>;

/** State of one projected matrix. */
export interface DctState extends Moments {
  /** The columns of Q in use, rising; absent before the first update. */
  indices?: Int32Array;
  /** E: what the projections have left out so far. */
  error?: tf.Tensor;
}

/** State of all variables: moments by name, and the cosine matrix of each size. */
export interface DctAdamWState {
  bases: Bases;
  variables: Record<string, DctState>;
}

/**
 * DCT-AdamW: AdamW on the coefficients of the gradient in r columns of a fixed cosine matrix, chosen anew every
 * `updateProjGap` updates by one product and a sort (arXiv 2505.17967). All bases share one matrix, so moments can be
 * carried over exactly.
 */
export const dctAdamW = defineTransformation({
  info: {
    id: 'dct-projection',
    title: 'DCT-AdamW',
    family: 'optim',
    kind: 'gradient-transformation',
    paper: {
      title: 'SVD-Free Low-Rank Adaptive Gradient Optimization for Large Language Models',
      arxiv: '2505.17967',
      year: 2025,
    },
  },
  config,
  init(params, config): DctAdamWState {
    checkSimilarity(config);
    return { bases: {}, variables: mapNamed(params, (param, name) => initial(param, name, config)) };
  },
  update(updates, state, params, config) {
    checkSimilarity(config);
    let { bases } = state;
    const results = mapNamed(updates, (gradient, name) => {
      if (!isProjected(params[name], name, config)) return adamw(gradient, params[name], state.variables[name], config);
      bases = withBasis(bases, gradient.shape, config.basis);
      return projectedUpdate(
        gradient,
        params[name],
        state.variables[name],
        basisOf(bases, gradient.shape),
        config,
        name,
      );
    });
    return {
      updates: mapNamed(results, ({ update }) => update),
      state: { bases, variables: mapNamed(results, ({ state }) => state) },
    };
  },
});

function initial(param: tf.Tensor, name: string, { rank, ...config }: Config): DctState {
  const projected = isProjected(param, name, { rank, ...config });
  const [inDim, outDim] = projected ? matrixShape(param.shape) : [0, 0];
  const shape = projected ? (inDim <= outDim ? [rank, outDim] : [inDim, rank]) : param.shape;
  return {
    step: 0,
    m: tf.zeros(shape),
    v: tf.zeros(shape),
    ...(projected && config.errorFeedback && { error: tf.zeros([inDim, outDim]) }),
  };
}

/** One update of one matrix. */
function projectedUpdate(
  gradient: tf.Tensor,
  W: tf.Tensor,
  state: DctState,
  Q: tf.Tensor2D,
  config: Config,
  name: string,
): { update: tf.Tensor; state: DctState } {
  const G = asMatrix(gradient);
  const A = config.errorFeedback ? tf.add(G, feedback(state, G, name)) : G;
  const side = sideOf(G.shape);
  const t = state.step + 1;
  let { m, v, indices: before } = state;
  let indices: Int32Array;
  let a: tf.Tensor2D;
  if (before === undefined || t % config.updateProjGap === 0) {
    ({ indices, lowRank: a } = named(name, () => selectColumns(A as tf.Tensor2D, config.rank, { ...config, Q })));
    if (config.rotateSubspace && before) {
      m = rotate(m as tf.Tensor2D, before, indices, side);
      v = rotate(v as tf.Tensor2D, before, indices, side);
    }
  } else {
    indices = before;
    a = project(A as tf.Tensor2D, indices, Q);
  }
  const error = config.errorFeedback ? { error: tf.sub(A, reconstruct(a, indices, { side, Q })) } : {};
  const { direction, moments } = adam(a, { step: state.step, m, v }, config);
  const back = tf.reshape(reconstruct(direction as tf.Tensor2D, indices, { side, Q }), W.shape);
  return { update: decayed(tf.neg(back), W, config), state: { ...moments, indices, ...error } };
}

function feedback({ error }: DctState, G: tf.Tensor2D, name: string): tf.Tensor {
  if (error && tf.util.arraysEqual(error.shape, G.shape)) return error;
  refuse(
    `dct-projection (${name})`,
    `the stored error has shape [${error?.shape ?? 'none'}], the kernel [${G.shape}]; restore the state of the same model and options`,
  );
}

function checkSimilarity({ similarity, basis }: Config): void {
  if (similarity === 'fast' && basis !== 'dct2') refuse('dct-projection.similarity', 'fast path needs basis dct2');
}

/** DCT-AdamW as an optimizer class: `new DctAdamWOptimizer({ rank: 8 })` is `dctAdamW({ rank: 8 }).optimizer()`. */
export const DctAdamWOptimizer = defineOptimizerClass('DctAdamW', dctAdamW);
export type DctAdamWOptimizer = InstanceType<typeof DctAdamWOptimizer>;
