import { lowRankProduct, thinSvd } from '@matforge/core';
import { lora } from '@matforge/lora';
import { calibrationFor, type MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  CovarianceCollector,
  contextError,
  corda,
  cordaInit,
  cordaTruncate,
  type Normalisation,
} from '../src/index.ts';

export function plainTruncation(W: tf.Tensor2D, rank: number): tf.Tensor2D {
  return tf.tidy(() => {
    const { u, s, v } = thinSvd(W);
    const left = tf.mul(tf.slice(u, [0, 0], [-1, rank]), tf.slice(s, 0, rank)) as tf.Tensor2D;
    return tf.matMul(left, tf.slice(v, [0, 0], [-1, rank]), false, true) as tf.Tensor2D;
  });
}

export function collect(batches: tf.Tensor[], normalize: Normalisation): tf.Tensor2D {
  const collector = new CovarianceCollector({ normalize });
  for (const batch of batches) collector.add(batch);
  const covariance = collector.covariance();
  collector.dispose();
  return covariance;
}

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'corda',
  linear: [
    {
      configured: corda({ rank: 2 }),
      parameters: (inDim, outDim) => 2 * (inDim + outDim),
      readers: [lora],
      attachOptions: (model) => ({ calibration: calibrationFor(model) }),
      refused: [
        [{ rank: 7 }, /layer0\.rank: rank 7 exceeds min\(in, out\) = 6 of the \[6, 8\] kernel/],
        [{ rank: 0 }, /corda\.rank: must be a positive integer, got 0/],
        [{ mode: 'mixed' }, /corda\.mode: must be one of "ipm", "kpm", got "mixed"/],
        [{ damp: 0 }, /corda\.damp: must be a finite number > 0, got 0/],
        [{ normalize: 'rows' }, /corda\.normalize: must be one of "absmax", "official", "none"/],
      ],
    },
  ],
  golden: {
    covariance: (inputs, { normalize }) => {
      const batches = tf.unstack(inputs.tensor('x'));
      const covariance = collect(batches, normalize);
      tf.dispose(batches);
      return { covariance };
    },
    init: (inputs, { r, mode, damp }) =>
      tf.tidy(() => {
        const { A, B, residual, S, dampUsed } = cordaInit(inputs.matrix('W'), inputs.matrix('covariance'), {
          rank: r,
          mode,
          damp,
        });
        return {
          singularValues: S,
          adapterProduct: lowRankProduct(A, B),
          residual,
          gramB: tf.matMul(B, B, false, true),
          dampUsed,
        };
      }),
    truncate: (inputs, { drop, damp }) => {
      const [W, C] = [inputs.matrix('W'), inputs.matrix('covariance')];
      const truncated = cordaTruncate(W, C, { drop, damp });
      const plain = plainTruncation(W, Math.min(...W.shape) - drop);
      const result = {
        truncated,
        contextError: contextError(W, truncated, C, { damp }),
        contextErrorPlainSvd: contextError(W, plain, C, { damp }),
      };
      plain.dispose();
      return result;
    },
  },
};
