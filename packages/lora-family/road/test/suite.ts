import { attach, detach, functional, predictMixed, setActive } from '@matforge/core';
import { type GoldenInputs, lossAndGradients, type MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { applyRoad, road, roadColumns } from '../src/index.ts';

interface Config {
  variant: 'road_1' | 'road_2' | 'road_4';
  groupSize: number;
}

const onKernel = (inputs: GoldenInputs, { variant, groupSize }: Config) =>
  functional(road({ variant, groupSize }), { kernel: inputs.matrix('W'), bias: inputs.vector('bias') });

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'road',
  linear: [
    {
      configured: road({ variant: 'road_2', groupSize: 2 }),
      dims: [6, 8, 4],
      parameters: (_, outDim) => 2 * outDim,
      refused: [
        [{ groupSize: 3 }, /road\.groupSize: must be divisible by 2, got 3/],
        [{ groupSize: 6 }, /layer0\.groupSize: out = 8 must be divisible by the group size 6/],
        [{ variant: 'road_3' }, /road\.variant: must be one of "road_1", "road_2", "road_4", got "road_3"/],
        [{ activePairs: [4] }, /layer0\.activePairs: pair 4 does not exist; out = 8 has 4 pairs/],
      ],
    },
  ],
  golden: {
    forward: (inputs, config: Config) =>
      tf.tidy(() => {
        const tensors = { theta: inputs.tensor('theta'), alpha: inputs.tensor('alpha') };
        const method = onKernel(inputs, config);
        const { kernel, bias } = method.dense(tensors);
        const { c1, c2 } = roadColumns(config.variant, config.groupSize, tensors.theta, tensors.alpha);
        return {
          y: method.forward(inputs.tensor('x'), tensors),
          R: applyRoad(tf.eye(kernel.shape[1]), c1, c2, config.groupSize),
          mergedW: kernel,
          mergedBias: bias as tf.Tensor1D,
          trainableParams: tf.scalar(Object.values(method.init()).reduce((sum, { size }) => sum + size, 0)),
        };
      }),
    gradients: (inputs, config: Config) =>
      tf.tidy(() => {
        const method = onKernel(inputs, config);
        const { loss, gradients } = lossAndGradients(
          ({ x, ...tensors }) => method.forward(x, tensors),
          { x: inputs.tensor('x'), theta: inputs.tensor('theta'), alpha: inputs.tensor('alpha') },
          inputs.tensor('upstream'),
        );
        return { loss, gradTheta: gradients.theta, gradAlpha: gradients.alpha, gradX: gradients.x };
      }),
    async mixedBatch(inputs, { adapterNames, composeOrder, ...config }) {
      const W = inputs.matrix('W');
      const model = tf.sequential({
        layers: [
          tf.layers.dense({
            name: 'layer0',
            units: W.shape[1],
            inputShape: [W.shape[0]],
            weights: [W, inputs.tensor('bias')],
          }),
        ],
      });
      for (const name of composeOrder as string[]) {
        await attach(model, road(config), { targets: ['layer0'], name });
        for (const weight of model.layers[0].trainableWeights) {
          const [adapter, tensor] = weight.originalName.split('/');
          if (adapter === name) weight.write(inputs.tensor(`${tensor}_${name}`));
        }
      }
      const x = inputs.tensor('x');
      const y = predictMixed(model, x, adapterNames) as tf.Tensor;
      setActive(model, composeOrder);
      const composedY = model.predictOnBatch(x) as tf.Tensor;
      detach(model);
      model.dispose();
      return { y, composedY };
    },
  },
};
