import { functional } from '@matforge/core';
import { lossAndGradients, type MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { AdaptiveFreezer, aflora, afloraDelta, cubicFraction } from '../src/index.ts';

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'aflora',
  linear: [
    {
      configured: aflora({ rank: 2, totalSteps: 1000 }),
      parameters: (inDim, outDim) => 2 * (inDim + outDim) + 2 + outDim,
      refused: [
        [
          { warmupSteps: 600, finalSteps: 400 },
          /aflora\.warmupSteps: no room for the freezing phase: 600 warm-up and 400 final steps of 1000/,
        ],
        [{ window: 0 }, /aflora\.window: must be a positive integer, got 0/],
        [{ beta1: 1 }, /aflora\.beta1: must be in \[0, 1\), got 1/],
      ],
    },
  ],
  golden: {
    layer: (inputs, { r, alpha }) =>
      tf.tidy(() => {
        const names = ['A', 'B', 'lambdaD', 'lambdaB'] as const;
        const tensors = Object.fromEntries(names.map((name) => [name, inputs.tensor(name)])) as Record<
          (typeof names)[number],
          tf.Tensor
        >;
        const method = functional(aflora({ rank: r, alpha }), {
          kernel: inputs.matrix('W'),
          bias: inputs.vector('bias'),
        });
        const { y, loss, gradients } = lossAndGradients(
          ({ x, ...own }) => method.forward(x, own),
          { x: inputs.tensor('x'), ...tensors },
          inputs.tensor('upstream'),
        );
        const after = tensors.lambdaD.size + tensors.lambdaB.size;
        return {
          y,
          delta: afloraDelta(tensors, { alpha, rank: r }),
          loss,
          gradA: gradients.A,
          gradB: gradients.B,
          gradLambdaD: gradients.lambdaD,
          gradLambdaB: gradients.lambdaB,
          gradX: gradients.x,
          trainableBefore: tf.scalar(after + tensors.A.size + tensors.B.size),
          trainableAfter: tf.scalar(after),
        };
      }),
    schedule: (_, { totalSteps, warmupSteps, finalSteps, steps }) => ({
      frozenFraction: steps.map((step: number) => cubicFraction(step, totalSteps, warmupSteps, finalSteps)),
    }),
    freeze(inputs, { matrices, step, ...config }) {
      const gradients = new Map<string, { shape: number[]; data: Float64Array }>(
        matrices.map((name: string) => [name, inputs.values(`grads_${name}`)]),
      );
      const sizes = Object.fromEntries([...gradients].map(([name, { shape }]) => [name, shape[1] * shape[2]]));
      const freezer = new AdaptiveFreezer(sizes, { rule: 'count', ...config });
      for (let t = 1; t <= step; t++) {
        freezer.update(
          t,
          Object.fromEntries(
            [...gradients].map(([name, { data }]) => [name, data.subarray((t - 1) * sizes[name], t * sizes[name])]),
          ),
        );
      }
      const scores = freezer.scores();
      const flags = (rule: 'count' | 'elements') => {
        const chosen = freezer.candidates(step, rule);
        return matrices.map((name: string) => chosen.includes(name));
      };
      const perMatrix = Object.entries(scores).flatMap(([name, { sensitivity, uncertainty }]) => [
        [`sensitivity_${name}`, { data: sensitivity }],
        [`uncertainty_${name}`, { data: uncertainty }],
      ]);
      return {
        ...Object.fromEntries(perMatrix),
        meanScores: matrices.map((name: string) => scores[name].mean),
        frozenFraction: freezer.fraction(step),
        threshold: freezer.threshold(step),
        frozenByCount: flags('count'),
        frozenByElements: flags('elements'),
      };
    },
  },
};
