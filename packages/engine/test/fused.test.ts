import * as tf from '@tensorflow/tfjs';
import fc from 'fast-check';
import {
  adamDirection,
  adamStep,
  causalSoftmax,
  gelu,
  layerNorm,
  logSoftmax,
  ready,
  sgdStep,
  silu,
  softmaxCrossEntropy,
} from '../src/index.ts';

const RUNS = { numRuns: 20, seed: 11 };

function values(shape: number[], seed: number): tf.Tensor {
  const size = tf.util.sizeFromShape(shape);
  return tf.tensor(
    Float32Array.from({ length: size }, (_, i) => 2 * Math.sin(12.9898 * (i + 1) + 78.233 * seed)),
    shape,
  );
}

type F = (...xs: tf.Tensor[]) => tf.Tensor;

async function evaluate(backend: string, f: F, shapes: number[][]): Promise<Float32Array[]> {
  if (backend === 'wasm') await ready();
  else await tf.setBackend(backend);
  return tf.tidy(() => {
    const xs = shapes.map((shape, i) => values(shape, i + 1));
    const y = f(...xs);
    const outputs = [y, ...tf.grads(f)(xs, values(y.shape, 9))];
    return outputs.map((output) => output.dataSync() as Float32Array);
  });
}

/** The fused kernel of wasm against the plain ops of cpu: values and gradients. */
async function expectSame(f: F, shapes: number[][]): Promise<void> {
  const expected = await evaluate('cpu', f, shapes);
  const got = await evaluate('wasm', f, shapes);
  got.forEach((numbers, output) => {
    numbers.forEach((number, i) => {
      const want = expected[output][i];
      if (Math.abs(number - want) <= 3e-5 * (1 + Math.abs(want))) return;
      throw new Error(`output ${output}, element ${i} of [${shapes.join('] [')}]: ${number}, cpu says ${want}`);
    });
  });
}

const rows = fc.integer({ min: 1, max: 9 });
const columns = fc.integer({ min: 2, max: 37 });

describe('fused functions agree with their plain form on cpu', () => {
  it('gelu, its tanh form, silu', async () => {
    await fc.assert(
      fc.asyncProperty(rows, columns, async (m, n) => {
        await expectSame((x) => gelu(x), [[m, n]]);
        await expectSame((x) => gelu(x, true), [[m, n]]);
        await expectSame((x) => silu(x), [[m, n]]);
      }),
      { ...RUNS, numRuns: 8 },
    );
  });

  it('layerNorm', async () => {
    await fc.assert(
      fc.asyncProperty(rows, columns, async (m, n) => {
        await expectSame((x, gamma, beta) => layerNorm(x, gamma, beta, 1e-3), [[2, m, n], [n], [n]]);
      }),
      RUNS,
    );
  });

  it('softmax, logSoftmax, causalSoftmax', async () => {
    await fc.assert(
      fc.asyncProperty(rows, columns, async (m, n) => {
        await expectSame((x) => tf.softmax(x), [[m, n]]);
        await expectSame((x) => logSoftmax(x), [[m, n]]);
        await expectSame((x) => causalSoftmax(x, 0.3), [[2, Math.min(m, n), n]]);
      }),
      RUNS,
    );
  });

  it('softmaxCrossEntropy, with ignored rows', async () => {
    await fc.assert(
      fc.asyncProperty(rows, columns, async (m, n) => {
        const labels = Array.from({ length: m }, (_, i) => ((i * 7) % (n + 1)) - 1);
        await expectSame((x) => softmaxCrossEntropy(x, tf.tensor1d(labels, 'int32')), [[m, n]]);
      }),
      RUNS,
    );
  });

  it('keeps large logits finite', async () => {
    await ready();
    tf.tidy(() => {
      const logits = tf.tensor2d([[1000, 0, -1000]]);
      const loss = softmaxCrossEntropy(logits, tf.tensor1d([1], 'int32')).dataSync();
      expect(loss[0]).toBe(1000);
      expect(Array.from(logSoftmax(logits).dataSync())).toEqual([0, -1000, -2000]);
    });
  });

  it('keeps the digits of differences between large logits', async () => {
    await ready();
    tf.tidy(() => {
      const logits = tf.tensor2d([[1e7, 1e7 + 1, 1e7 + 2]]);
      const labels = tf.tensor1d([0], 'int32');
      const sum = 1 + Math.E + Math.E ** 2;
      const close = (got: tf.Tensor, expected: number[]) => {
        for (const [i, value] of got.dataSync().entries()) expect(value).toBeCloseTo(expected[i], 6);
      };
      close(
        logSoftmax(logits),
        [0, 1, 2].map((x) => x - Math.log(sum)),
      );
      close(softmaxCrossEntropy(logits, labels), [Math.log(sum)]);
      close(
        tf.grad((x) => softmaxCrossEntropy(x, labels))(logits),
        [0, 1, 2].map((x) => Math.exp(x) / sum - (x === 0 ? 1 : 0)),
      );
    });
  });

  it('handles empty tensors', async () => {
    await ready();
    tf.tidy(() => {
      expect(gelu(tf.zeros([0, 3])).shape).toEqual([0, 3]);
      expect(layerNorm(tf.zeros([0, 3]), tf.ones([3]), tf.zeros([3])).shape).toEqual([0, 3]);
      expect(softmaxCrossEntropy(tf.zeros([0, 3]), tf.zeros([0], 'int32')).shape).toEqual([0]);
    });
  });

  it('refuses shapes and types that do not fit', async () => {
    await ready();
    tf.tidy(() => {
      const x = tf.ones([2, 3]);
      expect(() => layerNorm(x, tf.ones([2]), tf.ones([3]))).toThrow(/gamma of layerNorm has shape \[2\]; give \[3\]/);
      expect(() => softmaxCrossEntropy(x, tf.ones([2]))).toThrow(/labels .* are float32 of shape \[2\]; give int32/);
      expect(() => causalSoftmax(tf.ones([3, 2]))).toThrow(/queries ≤ keys/);
      expect(() => gelu(tf.ones([2], 'int32'))).toThrow(/x of gelu has dtype 'int32'/);
    });
  });
});

/** Three steps on every backend; the states after them. */
async function train(backend: string, step: (w: tf.Variable, g: tf.Tensor, s: tf.Variable[], t: number) => void) {
  if (backend === 'wasm') await ready();
  else await tf.setBackend(backend);
  const w = tf.variable(values([3, 7], 1));
  const states = [0, 1].map(() => tf.variable(tf.zeros([3, 7]), false));
  for (let t = 1; t <= 3; t++) tf.tidy(() => step(w, values([3, 7], t + 1), states, t));
  const numbers = [w, ...states].map((tensor) => Array.from(tensor.dataSync()));
  tf.dispose([w, ...states]);
  return numbers;
}

describe('optimizer steps', () => {
  it('adamStep follows algorithm 1 of the paper, with decoupled decay', async () => {
    const [rate, beta1, beta2, epsilon, weightDecay] = [0.01, 0.8, 0.95, 1e-6, 0.1];
    const got = await train('wasm', (w, g, [m, v], step) =>
      adamStep(w, g, m, v, { learningRate: rate, beta1, beta2, epsilon, weightDecay, step }),
    );
    const w = Array.from(values([3, 7], 1).dataSync());
    const m = w.map(() => 0);
    const v = w.map(() => 0);
    for (let t = 1; t <= 3; t++) {
      values([3, 7], t + 1)
        .dataSync()
        .forEach((g, i) => {
          m[i] = beta1 * m[i] + (1 - beta1) * g;
          v[i] = beta2 * v[i] + (1 - beta2) * g * g;
          const move = m[i] / (1 - beta1 ** t) / (Math.sqrt(v[i] / (1 - beta2 ** t)) + epsilon);
          w[i] = w[i] * (1 - rate * weightDecay) - rate * move;
        });
    }
    [w, m, v].forEach((expected, k) => {
      expected.forEach((value, i) => {
        expect(got[k][i]).toBeCloseTo(value, 5);
      });
    });
  });

  describe('adamDirection', () => {
    const options = { beta1: 0.8, beta2: 0.95, epsilon: 1e-6 };

    it('follows algorithm 1 of the paper in one kernel, and changes nothing that it was given', async () => {
      await ready();
      const shape = [3, 7];
      let [m, v] = [tf.zeros(shape), tf.zeros(shape)];
      const [m1, v1] = [new Array(21).fill(0), new Array(21).fill(0)];
      for (let step = 1; step <= 3; step++) {
        const gradient = values(shape, step);
        const numbers = Array.from(gradient.dataSync());
        const before = [gradient, m, v].map((tensor) => Array.from(tensor.dataSync()));
        let next!: ReturnType<typeof adamDirection>;
        const { kernels } = await tf.profile(() => {
          next = adamDirection(gradient, m, v, { ...options, step });
          return next.direction;
        });
        expect(kernels.length).toBe(1);
        expect([gradient, m, v].map((tensor) => Array.from(tensor.dataSync()))).toEqual(before);
        const direction = next.direction.dataSync();
        numbers.forEach((g, i) => {
          m1[i] = 0.8 * m1[i] + 0.2 * g;
          v1[i] = 0.95 * v1[i] + 0.05 * g * g;
          expect(direction[i]).toBeCloseTo(
            m1[i] / (1 - 0.8 ** step) / (Math.sqrt(v1[i] / (1 - 0.95 ** step)) + 1e-6),
            5,
          );
        });
        tf.dispose([gradient, m, v, next.direction]);
        [m, v] = [next.m, next.v];
      }
      tf.dispose([m, v]);
    });

    it('gives no number where the gradient is none or infinite, as the formula does', async () => {
      await ready();
      const given = [Number.NaN, Number.POSITIVE_INFINITY, 0, 1, -2];
      const [gradient, zero] = [tf.tensor1d(given), tf.zeros([5])];
      const { direction, m, v } = adamDirection(gradient, zero, zero, { ...options, step: 1 });
      const got = Array.from(direction.dataSync());
      expect(got.slice(0, 2)).toEqual([Number.NaN, Number.NaN]);
      [0, 1, -1].forEach((value, i) => {
        expect(got[i + 2]).toBeCloseTo(value, 5);
      });
      tf.dispose([gradient, zero, direction, m, v]);
    });

    it('can be differentiated', async () => {
      await ready();
      const [zero, x] = [tf.zeros([2]), tf.tensor1d([0.5, -2])];
      // With epsilon 1 the first direction is g/(|g| + 1), whose slope is 1/(|g| + 1)².
      const slope = tf.grad((g) => adamDirection(g, zero, zero, { epsilon: 1, step: 1 }).direction)(x);
      const got = slope.dataSync();
      expect(got[0]).toBeCloseTo(1 / 1.5 ** 2, 5);
      expect(got[1]).toBeCloseTo(1 / 3 ** 2, 5);
      tf.dispose([zero, x, slope]);
    });

    it('refuses shapes that differ and steps before the first', () => {
      const [one, two] = [tf.ones([2]), tf.ones([3])];
      expect(() => adamDirection(one, two, one, { step: 1 })).toThrow(/shape \[3\]/);
      expect(() => adamDirection(one, one, one, { step: 0 })).toThrow(/step of adamDirection is 0; count from 1/);
      tf.dispose([one, two]);
    });
  });

  it.each([
    ['plain', {}],
    ['momentum', { momentum: 0.9 }],
    ['nesterov', { momentum: 0.9, nesterov: true, weightDecay: 0.1 }],
  ])('sgdStep, %s: wasm equals cpu', async (_, options) => {
    const step = (w: tf.Variable, g: tf.Tensor, [u]: tf.Variable[]): void =>
      sgdStep(w, g, { learningRate: 0.1, ...options }, u);
    const expected = await train('cpu', step);
    const got = await train('wasm', step);
    got.flat().forEach((value, i) => {
      expect(value).toBeCloseTo(expected.flat()[i], 5);
    });
  });

  it('leaves alone what shares memory with a variable', async () => {
    await ready();
    const w = tf.variable(tf.ones([4]));
    const before = w.clone();
    const [m, v] = [tf.variable(tf.zeros([4])), tf.variable(tf.zeros([4]))];
    const gradient = tf.ones([4]);
    adamStep(w, gradient, m, v, { learningRate: 0.5, step: 1 });
    expect(Array.from(before.dataSync())).toEqual([1, 1, 1, 1]);
    expect(w.dataSync()[0]).toBeCloseTo(0.5, 6);
    const tensors = tf.memory().numTensors;
    adamStep(w, gradient, m, v, { learningRate: 0.5, step: 2 });
    expect(w.dataSync()[0]).toBeCloseTo(0, 5);
    expect(tf.memory().numTensors).toBe(tensors);
    tf.dispose([w, before, m, v, gradient]);
  });

  it.each(['adam', 'sgd'] as const)('tf.train.%s gives on wasm what it gives on cpu', async (name) => {
    const run = async (backend: string): Promise<number[]> => {
      if (backend === 'wasm') await ready();
      else await tf.setBackend(backend);
      const w = tf.variable(values([3, 5], 1));
      const optimizer = tf.train[name](0.05);
      for (let i = 0; i < 5; i++) optimizer.minimize(() => tf.sum(tf.square(tf.sub(w, 0.3))) as tf.Scalar);
      const numbers = Array.from(w.dataSync());
      const saved = await optimizer.getWeights();
      numbers.push(...saved.flatMap(({ tensor }) => Array.from(tensor.dataSync())));
      optimizer.dispose();
      w.dispose();
      return numbers;
    };
    const expected = await run('cpu');
    const got = await run('wasm');
    expect(got.length).toBe(expected.length);
    got.forEach((value, i) => {
      expect(value).toBeCloseTo(expected[i], 5);
    });
  });

  it('refuses shapes that differ, steps before the first, momentum without velocity', async () => {
    await ready();
    const w = tf.variable(tf.ones([2]));
    const gradient = tf.ones([3]);
    const rate = { learningRate: 1 };
    expect(() => adamStep(w, gradient, w, w, { ...rate, step: 1 })).toThrow(
      /shape \[3\] for a variable of shape \[2\]/,
    );
    expect(() => adamStep(w, w, w, w, { ...rate, step: 0 })).toThrow(/step of adamStep is 0; count from 1/);
    expect(() => sgdStep(w, w, { ...rate, momentum: 0.9 })).toThrow(/momentum 0.9 and no velocity/);
    tf.dispose([w, gradient]);
  });
});
