import { attach, detach, functional } from '@matforge/core';
import { lossAndGradients, type MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { vera, veraBounds, veraDelta, veraProjection } from '../src/index.ts';

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'vera',
  linear: [
    {
      configured: vera({ rank: 4 }),
      parameters: (_, outDim) => 4 + outDim,
      refused: [
        [{ rank: 0 }, /vera\.rank: must be a positive integer, got 0/],
        [{ dInitial: 0 }, /vera\.dInitial: must not be 0/],
        [{ projectionPrngKey: -1 }, /vera\.projectionPrngKey: must be an integer >= 0, got -1/],
      ],
    },
  ],
  golden: {
    layer: (inputs, config) =>
      tf.tidy(() => {
        const W = inputs.matrix('W');
        const tensors = Object.fromEntries(
          ['A', 'B', 'lambdaD', 'lambdaB'].map((name) => [name, inputs.tensor(name)]),
        ) as Record<'A' | 'B' | 'lambdaD' | 'lambdaB', tf.Tensor>;
        const method = functional(vera({ rank: config.r, dInitial: config.dInitial }), {
          kernel: W,
          bias: inputs.vector('bias'),
        });
        const { A, B, ...own } = tensors;
        const { y, loss, gradients } = lossAndGradients(
          ({ x, lambdaD, lambdaB }) => method.forward(x, { A, B, lambdaD, lambdaB }),
          { x: inputs.tensor('x'), ...own },
          inputs.tensor('upstream'),
        );
        return {
          y,
          delta: veraDelta(tensors, { inDim: W.shape[0], outDim: W.shape[1] }),
          loss,
          gradLambdaD: gradients.lambdaD,
          gradLambdaB: gradients.lambdaB,
          gradX: gradients.x,
          trainableParams: tf.scalar(own.lambdaD.size + own.lambdaB.size),
        };
      }),
    async sharedInit(_, { r, dInitial, layers }) {
      const inputs = layers.map((layer: { in: number }) => tf.input({ shape: [layer.in] }));
      const outputs = layers.map((layer: { out: number }, i: number) =>
        tf.layers.dense({ name: `layer${i}`, units: layer.out }).apply(inputs[i]),
      );
      const model = tf.model({ inputs, outputs });
      await attach(model, vera({ rank: r, dInitial }));
      const weights = model.trainableWeights.filter((weight) => weight.trainable);
      const trainableParams = weights.reduce((sum, weight) => sum + weight.read().size, 0);
      const lambdaD = tf.clone(weights.find((weight) => weight.originalName.endsWith('lambdaD'))?.read() as tf.Tensor);
      detach(model);
      model.dispose();
      const [maxIn, maxOut] = ['in', 'out'].map((side) =>
        Math.max(...layers.map((layer: Record<string, number>) => layer[side])),
      );
      const { A, B } = veraProjection(maxIn, maxOut, r, 0);
      const bounds = veraBounds(maxIn, r);
      const result = {
        shapeA: A.shape,
        shapeB: B.shape,
        boundA: bounds.A,
        boundB: bounds.B,
        lambdaD,
        trainableParams,
        storedShared: A.size + B.size,
      };
      tf.dispose([A, B]);
      return result;
    },
    peftProjection: (_, { inMax, outMax, r, projectionPrngKey }) => veraProjection(inMax, outMax, r, projectionPrngKey),
  },
};
