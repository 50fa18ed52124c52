import {
  adapterTensors,
  attach,
  detach,
  type FunctionalMethod,
  functional,
  lowRankProduct,
  random,
  ready,
  setAdapterTensors,
} from '@matforge/core';
import { calibrationFor, denseModel, lossAndGradients, testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { equivalentGradient, firstUpdateSize, loraSb, loraSbInit, loraXs, loraXsInit } from '../src/index.ts';
import { delta, gradients, norm, suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

const largest = (x: tf.Tensor): number => tf.tidy(() => tf.max(tf.abs(x)).dataSync()[0]);

beforeAll(async () => {
  await ready();
});

describe('the start', () => {
  test('is the best approximation of −η·sign(G): orthonormal factors, the error is the dropped singular values', () => {
    tf.tidy(() => {
      const { A, R, B, update, singularValues } = loraSbInit(gradients(), { rank: 3, eta: 0.1, scale: 2 });
      expect(largest(tf.sub(tf.matMul(A, A, true), tf.eye(3)))).toBeLessThan(1e-5);
      expect(largest(tf.sub(tf.matMul(B, B, false, true), tf.eye(3)))).toBeLessThan(1e-5);
      const dropped = Math.hypot(...singularValues.dataSync().slice(3));
      expect(norm(tf.sub(update, delta({ A, R, B }, 2)))).toBeCloseTo(dropped, 5);
      expect(largest(update)).toBeCloseTo(0.1, 6);
      const [first, second, third] = [0, 4, 8].map((i) => R.dataSync()[i]);
      expect(first).toBeGreaterThan(second);
      expect(second).toBeGreaterThan(third);
      expect(third).toBeGreaterThan(0);
      expect(norm(R)).toBeCloseTo(Math.hypot(first, second, third), 6);
    });
  });

  test('does not depend on s or on the size of the gradients; their sign flips it', () => {
    tf.tidy(() => {
      const G = gradients();
      const start = (gradient: tf.Tensor2D, scale: number) =>
        delta(loraSbInit(gradient, { rank: 2, eta: 0.1, scale }), scale);
      const base = start(G, 1);
      expect(largest(tf.sub(base, start(G, 5)))).toBeLessThan(1e-6);
      expect(largest(tf.sub(base, start(tf.mul(G, 1e-4), 1)))).toBe(0);
      expect(largest(tf.add(base, start(tf.mul(G, -3), 1)))).toBeLessThan(1e-6);
    });
  });

  test('with full rank is one exact sign step; entries without a gradient stay', () => {
    tf.tidy(() => {
      const G = tf.mul(gradients([4, 3]), tf.tensor2d([1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1], [4, 3])) as tf.Tensor2D;
      const step = delta(loraSbInit(G, { rank: 3, eta: 0.25 }), 1);
      expect(largest(tf.sub(step, tf.mul(tf.sign(G), -0.25)))).toBeLessThan(1e-6);
    });
  });

  test('has orthonormal factors also where the sign matrix has a lower rank', () => {
    tf.tidy(() => {
      const { A, B, R } = loraSbInit(tf.ones([5, 4]), { rank: 3, eta: 1 });
      expect(largest(tf.sub(tf.matMul(A, A, true), tf.eye(3)))).toBeLessThan(1e-5);
      expect(largest(tf.sub(tf.matMul(B, B, false, true), tf.eye(3)))).toBeLessThan(1e-5);
      expect(largest(tf.add(delta({ A, R, B }, 1), 1))).toBeLessThan(1e-5);
    });
  });

  test('the randomized SVD comes near to the exact one', () => {
    tf.tidy(() => {
      const G = gradients([160, 130]);
      const [exact, fast] = [null, 10].map((iterations) => {
        const start = loraSbInit(G, { rank: 8, eta: 1, iterations });
        return norm(tf.sub(start.update, delta(start, 1)));
      });
      expect(fast).toBeGreaterThanOrEqual(exact * (1 - 1e-6));
      expect(fast).toBeLessThan(1.001 * exact);
    });
  });

  test('attaching leaves the kernel as it was and steps against the gradient of the data', async () => {
    const model = denseModel([6, 8, 5]);
    const kernels = model.layers.map((layer) => Array.from(layer.getWeights()[0].dataSync()));
    const loss = (): number => {
      const { data, loss: measure } = calibrationFor(model);
      let sum = 0;
      for (const { xs, ys } of data as Iterable<{ xs: tf.Tensor; ys: tf.Tensor }>)
        sum += tf.tidy(() => measure?.(ys, model.apply(xs) as tf.Tensor).dataSync()[0] ?? Number.NaN);
      return sum;
    };
    const before = loss();
    await attach(model, loraSb({ rank: 5, eta: 5e-3 }), { calibration: calibrationFor(model) });
    expect(loss()).toBeLessThan(before - 1e-3);
    detach(model);
    expect(model.layers.map((layer) => Array.from(layer.getWeights()[0].dataSync()))).toEqual(kernels);
    model.dispose();
  });

  test('of LoRA-XS: A·B is the principal part of the kernel', () => {
    tf.tidy(() => {
      const W = gradients();
      const { A, R, B } = loraXsInit(W, { rank: 6 });
      expect(largest(tf.sub(lowRankProduct(A, B), W))).toBeLessThan(1e-5);
      expect(largest(R)).toBeLessThan(1e-4);
      expect(largest(R)).toBeGreaterThan(1e-6);
    });
  });
});

test('the size of the first update is the learning rate at the first step of the warm-up', () => {
  expect(firstUpdateSize({ eta: 0.3, learningRate: 1, warmupRatio: 0.5, totalSteps: 10 })).toBe(0.3);
  expect(firstUpdateSize({ learningRate: 1e-4, warmupRatio: 0.02, totalSteps: 1000 })).toBeCloseTo(5e-6, 12);
  expect(firstUpdateSize({ learningRate: 1e-4, warmupRatio: 0, totalSteps: 1000 })).toBe(1e-4);
  expect(firstUpdateSize({ learningRate: 1e-4, warmupRatio: 0.02 })).toBe(1e-4);
});

describe('the gradient of the core', () => {
  /** A kernel, factors that are not orthonormal, and a gradient of the kernel. */
  const example = () => {
    const stream = random(8);
    return {
      W: stream.normal([6, 5]) as tf.Tensor2D,
      A: stream.normal([6, 2], 0, 2) as tf.Tensor2D,
      R: stream.normal([2, 2]) as tf.Tensor2D,
      B: stream.normal([2, 5], 0, 0.5) as tf.Tensor2D,
      x: stream.normal([7, 6]) as tf.Tensor2D,
      upstream: stream.normal([7, 5]) as tf.Tensor2D,
    };
  };

  test('is the optimal one under `precondition`, and the outputs are the same', () => {
    tf.tidy(() => {
      const { W, A, R, B, x, upstream } = example();
      const run = (precondition: boolean) => {
        const method: FunctionalMethod = functional(loraSb({ rank: 2, scale: 3, precondition }), { kernel: W });
        return lossAndGradients((at) => method.forward(at.x, { A, R: at.R, B }), { R, x }, upstream);
      };
      const [plain, optimal] = [run(false), run(true)];
      const expected = equivalentGradient(A, B, tf.matMul(x, upstream, true), { scale: 3 });
      expect(largest(tf.sub(plain.gradients.R, expected.gradR))).toBeLessThan(1e-4 * largest(expected.gradR));
      expect(largest(tf.sub(optimal.gradients.R, expected.optimalGradR))).toBeLessThan(
        1e-4 * largest(expected.optimalGradR),
      );
      expect(largest(tf.sub(plain.y, optimal.y))).toBe(0);
      expect(largest(tf.sub(plain.gradients.x, optimal.gradients.x))).toBe(0);
    });
  });

  test('preconditioned, follows the factors when they are replaced', async () => {
    const model = denseModel([6, 5]);
    await attach(model, loraXs({ rank: 2, precondition: true }));
    const { A, R, B, x, upstream, W } = example();
    const core = adapterTensors(model, 'default').layer0.R as tf.Variable;
    const gradient = () => {
      const loss = () => tf.sum(tf.mul(model.apply(x) as tf.Tensor, upstream)) as tf.Scalar;
      const { value, grads } = tf.variableGrads(loss, [core]);
      value.dispose();
      return grads[core.name];
    };
    const first = gradient();
    setAdapterTensors(model, 'default', { layer0: { A, B } });
    const second = gradient();
    tf.tidy(() => {
      const expected = equivalentGradient(A, B, tf.matMul(x, upstream, true)).optimalGradR;
      expect(largest(tf.sub(second, expected))).toBeLessThan(1e-4 * largest(expected));
      expect(largest(tf.sub(first, expected))).toBeGreaterThan(0.01);
    });
    tf.dispose([A, R, B, x, upstream, W, first, second]);
    detach(model);
    model.dispose();
  });

  test('of LoRA-SB is optimal already', () => {
    tf.tidy(() => {
      const G = gradients();
      const { A, B } = loraSbInit(G, { rank: 3, eta: 1 });
      const { gradR, optimalGradR, equivalent } = equivalentGradient(A, B, G);
      expect(largest(tf.sub(gradR, optimalGradR))).toBeLessThan(1e-5);
      expect(norm(tf.sub(equivalent, G))).toBeLessThan(norm(G));
    });
  });

  test('optimal is never further from the full gradient than plain', () => {
    tf.tidy(() => {
      const { A, B, W } = example();
      const { equivalent, optimalEquivalent } = equivalentGradient(A, B, W, { scale: 0.3 });
      expect(norm(tf.sub(optimalEquivalent, W))).toBeLessThan(norm(tf.sub(equivalent, W)));
    });
  });
});

describe('bad input', () => {
  test.each([
    ['zeros', () => tf.zeros([4, 3]), { rank: 2, eta: 1 }, /layer: the gradient estimate is empty \(all zero\)/],
    ['NaN', () => tf.fill([4, 3], Number.NaN), { rank: 2, eta: 1 }, /layer: the gradient estimate is non-finite/],
    [
      'a rank too large',
      () => tf.ones([4, 3]),
      { rank: 4, eta: 1 },
      /layer\.rank: .* from 1 to min\(in, out\) = 3, got 4/,
    ],
    ['no step', () => tf.ones([4, 3]), { rank: 2, eta: 0 }, /eta: must be a finite number > 0, got 0/],
    ['no scale', () => tf.ones([4, 3]), { rank: 2, eta: 1, scale: 0 }, /scale: must be a finite number > 0, got 0/],
  ])('%s: refused', (_, make, options, message) => {
    tf.tidy(() => {
      expect(() => loraSbInit(make() as tf.Tensor2D, { ...options, name: 'layer' })).toThrow(message);
    });
  });

  test('gradients of another shape than the kernel, or none, are refused', () => {
    tf.tidy(() => {
      const kernel = tf.ones([4, 3]) as tf.Tensor2D;
      const start = (options: object) => functional(loraSb({ rank: 2 }), { kernel }, options).init();
      expect(() => start({ gradients: tf.ones([3, 4]) })).toThrow(
        /gradient estimate has shape \[3,4\], the kernel \[4,3\]/,
      );
      expect(() => start({})).toThrow(/gradient estimate is missing/);
    });
  });

  test('a layer that the loss does not reach is named, and the model stays as it was', async () => {
    const model = denseModel([6, 8, 5]);
    const before = tf.memory().numTensors;
    const calibration = { ...calibrationFor(model), loss: (_: tf.Tensor, y: tf.Tensor) => tf.mul(tf.sum(y), 0) };
    await expect(attach(model, loraSb({ rank: 2 }), { calibration })).rejects.toThrow(
      /layer0: the gradient estimate is empty/,
    );
    expect(tf.memory().numTensors).toBe(before);
    model.dispose();
  });
});
