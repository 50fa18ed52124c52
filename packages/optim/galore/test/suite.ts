import type { GoldenInputs, MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  type Basis,
  type GaLoreOptions,
  galore,
  galoreBack,
  galoreMemory,
  galoreProject,
  galoreUpdate,
  project,
  sideOf,
} from '../src/index.ts';

const SIDES = ['left', 'right', 'full'];

export const norm = (tensor: tf.Tensor): number => tf.tidy(() => tf.norm(tensor).dataSync()[0]);

/** Trajectory of one matrix under given gradients; the bases of refreshes may be given. */
function steps(inputs: GoldenInputs, options: GaLoreOptions, bases?: tf.Tensor3D) {
  const method = galore({ ...options, include: () => true });
  const { config } = method;
  const gradients = inputs.tensor('gradients') as tf.Tensor3D;
  const weights: tf.Tensor[] = [];
  let W: tf.Tensor = inputs.matrix('W');
  const side = sideOf(W.shape, config.projType);
  let state = method.init({ W }).W;
  tf.unstack(gradients).forEach((G, t) => {
    const vectors = bases && (tf.unstack(bases)[Math.floor(t / config.updateProjGap)] as tf.Tensor2D);
    const basis: Basis | undefined = vectors && (side === 'right' ? { side, Q: vectors } : { side, P: vectors });
    const result = galoreUpdate(G, state, W, config, { basis });
    W = tf.add(W, result.update);
    state = result.state;
    weights.push(W);
  });
  return { weights: tf.stack(weights), m: state.m as tf.Tensor, v: state.v as tf.Tensor };
}

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'galore',
  transformations: [
    {
      method: galore,
      options: { rank: 2, updateProjGap: 3, learningRate: 0.1, scale: 1 },
      refused: [
        [{ rank: 0 }, /galore\.rank: must be a positive integer, got 0/],
        [{ updateProjGap: 0 }, /galore\.updateProjGap: .*got 0/],
        [{ projType: 'middle' }, /galore\.projType: must be one of .*got "middle"/],
        [{ rnk: 2 }, /galore\.rnk: unknown option/],
      ],
    },
    {
      title: 'moments in bytes',
      method: galore,
      options: { rank: 2, updateProjGap: 3, learningRate: 0.1, scale: 1, states: 'int8' },
      refused: [[{ states: 'int4' }, /galore\.states: must be one of .*got "int4"/]],
    },
  ],
  golden: {
    project: (inputs, { rank, projType }) =>
      tf.tidy(() => {
        const [G, H] = [inputs.matrix('G'), inputs.matrix('H')];
        const { R, singularValues, ...basis } = galoreProject(G, rank, projType);
        const onH = project(H, basis);
        const vectors = (basis.P ?? basis.Q) as tf.Tensor2D;
        return {
          side: SIDES.indexOf(basis.side),
          projector: tf.matMul(vectors, vectors, false, true),
          singularValues,
          reprojected: galoreBack(onH, basis),
          lowRankShape: onH.shape,
          lowRankNorm: norm(onH),
          keptEnergy: norm(R) ** 2 / norm(G) ** 2,
        };
      }),
    adamSteps: (inputs, config) =>
      tf.tidy(() => {
        const { weights, v } = steps(inputs, { ...config, updateProjGap: 1e6 });
        return { weights, stateShape: v.shape, secondMomentNorm: tf.norm(v) };
      }),
    adamGivenBases: (inputs, config) => tf.tidy(() => steps(inputs, config, inputs.tensor('bases') as tf.Tensor3D)),
    memory: (_, { rows }: { rows: number[][] }) => {
      const all = rows.map(([inDim, outDim, rank]) => galoreMemory([[inDim, outDim]], rank));
      return {
        galoreStates: all.map(({ galoreStates }) => galoreStates),
        adamStates: all.map(({ adamStates }) => adamStates),
        loraStates: all.map(({ loraStates }) => loraStates),
      };
    },
  },
};
