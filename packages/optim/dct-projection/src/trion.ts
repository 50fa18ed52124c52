import { defineTransformation, mapNamed } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import {
  adamw,
  asMatrix,
  type Bases,
  basisOf,
  decayed,
  fraction,
  isProjected,
  type Moments,
  matrixShape,
  named,
  nonNegative,
  shared,
  withBasis,
} from './common.ts';
import { reconstruct, selectColumns } from './selection.ts';

const config = z.object({
  ...shared,
  learningRate: nonNegative().default(0.02),
  /** μ: what the momentum keeps of the part that was applied. */
  momentum: fraction().default(0.95),
  /** Scale the update by sqrt(max(1, out/in)). */
  scaleByShape: z.boolean().default(false),
  /** AdamW's rate, for what is not projected, per unit of learningRate. */
  adamRatio: nonNegative().default(0.05),
});

/** Options of {@link trion}. */
export type TrionOptions = z.input<typeof config>;

/** State of Trion: the momentum of projected matrices, Adam's moments of the rest. */
export interface TrionState {
  bases: Bases;
  momenta: Record<string, tf.Tensor>;
  moments: Record<string, Moments>;
}

/**
 * Trion, the companion of DCT-AdamW: the momentum's coefficients in the chosen columns are orthogonalised and applied;
 * what was applied fades from the momentum, what was left out stays in it.
 */
export const trion = defineTransformation({
  info: {
    id: 'trion',
    title: 'Trion',
    family: 'optim',
    kind: 'gradient-transformation',
    paper: {
      title: 'SVD-Free Low-Rank Adaptive Gradient Optimization for Large Language Models',
      arxiv: '2505.17967',
      year: 2025,
    },
  },
  config,
  init(params, config): TrionState {
    const entries = Object.entries(params);
    const momenta = entries.filter(([name, param]) => isProjected(param, name, config));
    const moments = entries.filter(([name, param]) => !isProjected(param, name, config));
    return {
      bases: {},
      momenta: mapNamed(Object.fromEntries(momenta), (param) => tf.zeros(matrixShape(param.shape))),
      moments: mapNamed(Object.fromEntries(moments), ({ shape }) => ({
        step: 0,
        m: tf.zeros(shape),
        v: tf.zeros(shape),
      })),
    };
  },
  update(updates, state, params, config) {
    const next: TrionState = { bases: state.bases, momenta: {}, moments: {} };
    const adamOptions = { ...config, learningRate: config.learningRate * config.adamRatio };
    const result = mapNamed(updates, (gradient, name) => {
      const W = params[name];
      if (!isProjected(W, name, config)) {
        const { update, state: moments } = adamw(gradient, W, state.moments[name], adamOptions);
        next.moments[name] = moments;
        return update;
      }
      next.bases = withBasis(next.bases, gradient.shape, config.basis);
      const Q = basisOf(next.bases, gradient.shape);
      const M = tf.add(state.momenta[name], asMatrix(gradient)) as tf.Tensor2D;
      const { side, indices, lowRank: a } = named(name, () => selectColumns(M, config.rank, { ...config, Q }));
      next.momenta[name] = tf.sub(M, tf.mul(reconstruct(a, indices, { side, Q }), 1 - config.momentum));
      const [inDim, outDim] = M.shape;
      const scaling = config.scaleByShape ? Math.sqrt(Math.max(1, outDim / inDim)) : 1;
      const back = reconstruct(orthogonalise(a), indices, { side, Q });
      return decayed(tf.reshape(tf.mul(back, -config.learningRate * scaling), W.shape), W, config);
    });
    return { updates: result, state: next };
  },
});

/**
 * A matrix near the orthogonal factor U·Vᵀ of a = U·Σ·Vᵀ: five steps of the quintic Newton-Schulz iteration
 * X := 3.4445·X + (-4.775·H + 2.0315·H²)·X, H = X·Xᵀ. Singular values end between about 0.7 and 1.2.
 */
export function orthogonalise(a: tf.Tensor2D): tf.Tensor2D {
  return tf.tidy(() => {
    const tall = a.shape[0] > a.shape[1];
    let X = tall ? (tf.transpose(a) as tf.Tensor2D) : a;
    X = tf.div(X, tf.add(tf.norm(X), 1e-7));
    for (let i = 0; i < 5; i++) {
      const H = tf.matMul(X, X, false, true);
      const polynomial = tf.add(tf.mul(H, -4.775), tf.mul(tf.matMul(H, H), 2.0315)) as tf.Tensor2D;
      X = tf.add(tf.mul(X, 3.4445), tf.matMul(polynomial, X));
    }
    return tall ? (tf.transpose(X) as tf.Tensor2D) : X;
  });
}
