import type { GoldenInputs, MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  type DctAdamWOptions,
  type DctState,
  dctAdamW,
  dctMatrix,
  fastDct,
  reconstruct,
  selectColumns,
  trion,
} from '../src/index.ts';

export const norm = (tensor: tf.Tensor): number => tf.tidy(() => tf.norm(tensor).dataSync()[0]);

/** Runs updates on a single matrix without an optimizer around them. */
export function run(
  options: DctAdamWOptions,
  start: tf.Tensor,
  gradients: tf.Tensor[],
): { W: tf.Tensor; state: DctState }[] {
  const method = dctAdamW(options);
  let W = start;
  let state = method.init({ W });
  return gradients.map((G) => {
    const result = method.update({ W: G }, state, { W });
    W = tf.add(W, result.updates.W);
    state = result.state;
    return { W, state: state.variables.W };
  });
}

/** Norm of what the best rank-r approximation leaves: the smallest eigenvalues of the Gram matrix, by Jacobi rotations. */
export function tail(G: tf.Tensor2D, rank: number): number {
  const wide = G.shape[0] <= G.shape[1];
  const gram = tf.tidy(() => tf.matMul(G, G, !wide, wide).arraySync()) as number[][];
  const n = gram.length;
  for (let sweep = 0; sweep < 30; sweep++) {
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        const angle = 0.5 * Math.atan2(2 * gram[p][q], gram[q][q] - gram[p][p]);
        const [c, s] = [Math.cos(angle), Math.sin(angle)];
        for (let k = 0; k < n; k++) {
          [gram[k][p], gram[k][q]] = [c * gram[k][p] - s * gram[k][q], s * gram[k][p] + c * gram[k][q]];
        }
        for (let k = 0; k < n; k++) {
          [gram[p][k], gram[q][k]] = [c * gram[p][k] - s * gram[q][k], s * gram[p][k] + c * gram[q][k]];
        }
      }
    }
  }
  const eigenvalues = gram.map((row, i) => row[i]).sort((a, b) => b - a);
  return Math.sqrt(eigenvalues.slice(rank).reduce((sum, x) => sum + Math.max(0, x), 0));
}

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'dct-projection',
  transformations: [
    {
      method: dctAdamW,
      options: { rank: 2, rotateSubspace: true, learningRate: 0.1 },
      refused: [
        [{ rank: 0 }, /dct-projection\.rank: must be a positive integer, got 0/],
        [{ basis: 'dct4' }, /dct-projection\.basis: must be one of .*got "dct4"/],
        [{ updateProjGap: 0 }, /dct-projection\.updateProjGap: .*got 0/],
      ],
    },
    {
      method: trion,
      options: { rank: 2, learningRate: 0.1 },
      refused: [[{ momentum: 1 }, /trion\.momentum: .*got 1/]],
    },
  ],
  golden: {
    basis: (_, { n, basis }) => ({ Q: dctMatrix(n, basis) }),
    fastDct: (inputs) => ({ S: fastDct(inputs.matrix('X')) }),
    project: (inputs, { rank, basis, norm: score }) =>
      tf.tidy(() => {
        const G = inputs.matrix('G');
        const { side, indices, lowRank, norms } = selectColumns(G, rank, { basis, norm: score });
        const reconstruction = reconstruct(lowRank, indices, { side, size: Math.min(...G.shape), basis });
        return {
          side: side === 'left' ? 0 : 1,
          norms,
          indices,
          lowRank,
          reconstruction,
          residual: norm(tf.sub(G, reconstruction)),
          svdResidual: tail(G, rank),
        };
      }),
    adamSteps: (inputs: GoldenInputs, config: DctAdamWOptions) =>
      tf.tidy(() => {
        const W = inputs.matrix('W');
        const steps = run({ ...config, include: () => true }, W, tf.unstack(inputs.tensor('gradients')));
        const { m, v, error } = steps[steps.length - 1].state;
        return {
          weights: tf.stack(steps.map((step) => step.W)),
          indices: steps.map(({ state }) => Array.from(state.indices as Int32Array)),
          m,
          v,
          error: error ?? tf.zerosLike(W),
        };
      }),
  },
};
