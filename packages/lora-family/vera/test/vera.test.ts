import { attach, detach, functional } from '@matforge/core';
import { denseModel, lossAndGradients, testGolden, testLinearMethod } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { vera, veraBounds, veraDelta, veraProjection } from '../src/index.ts';

testLinearMethod({
  configured: vera({ rank: 4 }),
  parameters: (_, outDim) => 4 + outDim,
  refused: [
    [{ rank: 0 }, /vera\.rank: must be a positive integer, got 0/],
    [{ dInitial: 0 }, /vera\.dInitial: must not be 0/],
    [{ projectionPrngKey: -1 }, /vera\.projectionPrngKey: must be an integer >= 0, got -1/],
  ],
});

testGolden('vera', __dirname, {
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
});

describe('several adapters on one model', () => {
  test('must use the same key', async () => {
    const model = denseModel([6, 8, 5]);
    await attach(model, vera({ rank: 2 }), { name: 'a' });
    await expect(attach(model, vera({ rank: 2, projectionPrngKey: 1 }), { name: 'b' })).rejects.toThrow(
      /projectionPrngKey: must be the same for all adapters/,
    );
    await expect(attach(model, vera({ rank: 2, saveProjection: false }), { name: 'b' })).rejects.toThrow(
      /saveProjection: must be the same/,
    );
    detach(model);
    model.dispose();
  });

  test('the first must be the largest', async () => {
    const model = denseModel([6, 4, 9]);
    await attach(model, vera({ rank: 2 }), { name: 'small', targets: ['layer0'] });
    await attach(model, vera({ rank: 2 }), { name: 'another', targets: ['layer0'] });
    await expect(attach(model, vera({ rank: 2 }), { name: 'large' })).rejects.toThrow(
      /has a size of 4 but 9 or greater is required/,
    );
    detach(model);
    model.dispose();
  });
});

test('on the first step only lambdaB has a gradient', () => {
  tf.tidy(() => {
    const method = functional(vera({ rank: 3 }), { kernel: tf.ones([4, 2]) });
    const { A, B, ...own } = method.init() as Record<'A' | 'B' | 'lambdaD' | 'lambdaB', tf.Tensor>;
    const { gradients } = lossAndGradients(
      (at) => method.forward(tf.ones([2, 4]), { A, B, ...at }),
      own,
      tf.ones([2, 2]),
    );
    expect(Array.from(gradients.lambdaD.dataSync())).toEqual([0, 0, 0]);
    expect(tf.max(tf.abs(gradients.lambdaB)).dataSync()[0]).toBeGreaterThan(1e-3);
  });
});
