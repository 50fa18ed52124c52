import { functional, lowRankProduct, lowRankScale } from '@matforge/core';
import { type GoldenInputs, lossAndGradients, type MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { columnNorms, dora, magnitudeDirection } from '../src/index.ts';

interface Config {
  r: number;
  alpha: number;
  useRslora?: boolean;
  detachNorm?: boolean;
}

function onKernel(inputs: GoldenInputs, { r, alpha, useRslora, detachNorm }: Config) {
  const configured = dora({ rank: r, alpha, useRslora, detachNorm });
  return functional(configured, { kernel: inputs.matrix('W'), bias: inputs.vector('bias') });
}

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'dora',
  linear: [
    {
      configured: dora({ rank: 2, alpha: 4, detachNorm: false }),
      parameters: (inDim, outDim) => 2 * (inDim + outDim) + outDim,
      refused: [
        [{ rank: -1 }, /dora\.rank: must be a positive integer, got -1/],
        [{ detachNorm: 'yes' }, /dora\.detachNorm: .*got "yes"/],
      ],
    },
  ],
  golden: {
    forward: (inputs, config: Config) =>
      tf.tidy(() => {
        const method = onKernel(inputs, config);
        const tensors = { A: inputs.tensor('A'), B: inputs.tensor('B'), magnitude: inputs.tensor('magnitude') };
        const start = method.init();
        const merged = method.dense(tensors).kernel;
        const V = tf.add(
          inputs.tensor('W'),
          lowRankProduct(tensors.A, tensors.B, lowRankScale({ ...config, rank: config.r })),
        );
        return {
          initialMagnitude: start.magnitude,
          directionNorm: columnNorms(V),
          y: method.forward(inputs.tensor('x'), tensors),
          merged,
          delta: tf.sub(merged, inputs.tensor('W')),
          trainableParams: tf.scalar(Object.values(start).reduce((sum, { size }) => sum + size, 0)),
        };
      }),
    gradients: (inputs, config: Config) =>
      tf.tidy(() => {
        const method = onKernel(inputs, config);
        const { loss, gradients } = lossAndGradients(
          ({ x, ...tensors }) => method.forward(x, tensors),
          {
            x: inputs.tensor('x'),
            A: inputs.tensor('A'),
            B: inputs.tensor('B'),
            magnitude: inputs.tensor('magnitude'),
          },
          inputs.tensor('upstream'),
        );
        return { loss, gradA: gradients.A, gradB: gradients.B, gradMagnitude: gradients.magnitude, gradX: gradients.x };
      }),
    decomposition: (inputs) => ({ ...magnitudeDirection(inputs.matrix('W0'), inputs.matrix('W1')) }),
  },
};
