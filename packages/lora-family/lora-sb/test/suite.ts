import { functional, lowRankProduct, random } from '@matforge/core';
import { calibrationFor, type MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { equivalentGradient, loraSb, loraSbInit, loraXs } from '../src/index.ts';

export const norm = (x: tf.Tensor): number => tf.tidy(() => tf.norm(x).dataSync()[0]);

export const delta = ({ A, R, B }: Record<'A' | 'R' | 'B', tf.Tensor>, scale: number): tf.Tensor2D =>
  tf.tidy(() => lowRankProduct(tf.matMul(A as tf.Tensor2D, R as tf.Tensor2D), B, scale));

export const gradients = (shape: [number, number] = [9, 6]): tf.Tensor2D => random(3).normal(shape) as tf.Tensor2D;

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'lora-sb',
  linear: [
    {
      configured: loraSb({ rank: 3, eta: 0.05 }),
      parameters: () => 9,
      identityAtStart: false,
      attachOptions: (model) => ({ calibration: calibrationFor(model) }),
      refused: [
        [{ rank: 7 }, /layer0\.rank: rank 7 exceeds min\(in, out\) = 6 of the \[6, 8\] kernel/],
        [{ rank: 0 }, /lora-sb\.rank: must be a positive integer, got 0/],
        [{ eta: 0 }, /lora-sb\.eta: must be a finite number > 0, got 0/],
        [{ scale: -1 }, /lora-sb\.scale: must be a finite number > 0, got -1/],
        [{ warmupRatio: 2 }, /lora-sb\.warmupRatio: must be in \[0, 1\], got 2/],
      ],
    },
    {
      configured: loraXs({ rank: 3, scale: 2 }),
      parameters: () => 9,
      startTolerance: 1e-3,
      refused: [[{ rank: 7 }, /layer0\.rank: rank 7 exceeds min\(in, out\) = 6/]],
    },
  ],
  golden: {
    init: (inputs, { r, eta, scale }) =>
      tf.tidy(() => {
        const G = tf.sum(inputs.tensor('gradients'), 0) as tf.Tensor2D;
        const { A, R, B, update, singularValues } = loraSbInit(G, { rank: r, eta, scale });
        const method = functional(
          loraSb({ rank: r, eta, scale }),
          { kernel: inputs.matrix('W'), bias: inputs.optional('bias') as tf.Tensor1D | undefined },
          { gradients: G },
        );
        const tensors = method.init();
        return {
          update,
          delta: delta({ A, R, B }, scale),
          singularValues,
          effective: method.dense(tensors).kernel,
          y: method.forward(inputs.tensor('x'), tensors),
          residualNorm: norm(tf.sub(update, delta({ A, R, B }, scale))),
          trainable: R.size,
        };
      }),
    equivalentGradient: (inputs, { scale }) => {
      const gradW = inputs.matrix('gradW');
      const result = equivalentGradient(inputs.matrix('A'), inputs.matrix('B'), gradW, { scale });
      return {
        ...result,
        rawError: tf.tidy(() => norm(tf.sub(result.equivalent, gradW))),
        optimalError: tf.tidy(() => norm(tf.sub(result.optimalEquivalent, gradW))),
      };
    },
    train: (inputs, { scale, lr, steps }) =>
      tf.tidy(() => {
        const [A, B, x, target] = ['A', 'B', 'x', 'target'].map((name) => inputs.tensor(name));
        const method = functional(loraSb({ rank: A.shape[1] as number, scale }), {
          kernel: inputs.matrix('W'),
          bias: inputs.vector('bias'),
        });
        const loss = (R: tf.Tensor) => tf.losses.meanSquaredError(target, method.forward(x, { A, R, B })) as tf.Scalar;
        const gradient = tf.grad(loss);
        const gradR0 = gradient(inputs.tensor('R'));
        let R: tf.Tensor = inputs.tensor('R');
        for (let step = 0; step < steps; step++) R = tf.sub(R, tf.mul(gradient(R), lr));
        const tensors = { A, R, B };
        return { gradR0, R, y: method.forward(x, tensors), merged: method.dense(tensors).kernel, loss: loss(R) };
      }),
  },
};
