import * as tf from '@tensorflow/tfjs';
import fc from 'fast-check';
import { ready } from '../src/index.ts';

const RUNS = { numRuns: 40, seed: 7 };
type F = (...xs: tf.Tensor[]) => tf.Tensor;

function values(shape: number[], seed: number): tf.Tensor {
  const size = tf.util.sizeFromShape(shape);
  return tf.tensor(
    Float32Array.from({ length: size }, (_, i) => 2 * Math.sin(12.9898 * (i + 1) + 78.233 * seed)),
    shape,
  );
}

/** x, mean, variance, offset, scale. */
function operands(x: number[], parameter: number[]): tf.Tensor[] {
  return [x, parameter, parameter, parameter, parameter].map((shape, i) =>
    i === 2 ? tf.tidy(() => tf.add(tf.abs(values(shape, 3)), 0.3)) : values(shape, i + 1),
  );
}

const plain: F = (x, mean, variance, offset, scale) =>
  tf.add(tf.mul(tf.div(tf.sub(x, mean), tf.sqrt(tf.add(variance, 0.01))), scale), offset);
const ours: F = (x, mean, variance, offset, scale) =>
  tf.batchNorm(x, mean as tf.Tensor1D, variance as tf.Tensor1D, offset as tf.Tensor1D, scale as tf.Tensor1D, 0.01);

function expectClose(got: tf.Tensor[], want: tf.Tensor[], what: string, tolerance = 1e-5): void {
  got.forEach((tensor, output) => {
    expect(tensor.shape).toEqual(want[output].shape);
    const [a, b] = [tensor.dataSync(), want[output].dataSync() as Float32Array];
    const scale = b.reduce((largest, value) => Math.max(largest, Math.abs(value)), 1);
    b.forEach((value, i) => {
      if (Object.is(a[i], value) || Math.abs(a[i] - value) <= tolerance * scale) return;
      throw new Error(`${what}, output ${output}, element ${i}: ${a[i]} instead of ${value}`);
    });
  });
}

const length = (max: number, min = 1): fc.Arbitrary<number> => fc.integer({ min, max });

describe('batchNorm', () => {
  beforeAll(async () => {
    await ready();
  });

  it('any shape, parameters per channel: the formula, gradients too', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(length(9), { minLength: 1, maxLength: 3 }), length(40), async (outer, channels) => {
        const before = tf.memory().numTensors;
        tf.tidy(() => {
          const xs = operands([...outer, channels], [channels]);
          const dy = values([...outer, channels], 9);
          expectClose([ours(...xs)], [plain(...xs)], 'value');
          expectClose(tf.grads(ours)(xs, dy), tf.grads(plain)(xs, dy), `gradients of [${outer},${channels}]`);
        });
        expect(tf.memory().numTensors).toBe(before);
      }),
      RUNS,
    );
  });

  it('many rows: sums keep their digits', () => {
    tf.tidy(() => {
      for (const channels of [1, 3, 16, 70]) {
        const xs = operands([5000, channels], [channels]);
        xs[0] = tf.add(xs[0], 3);
        const dy = tf.add(values([5000, channels], 9), 1);
        const [, dMean, dVariance, dOffset, dScale] = tf
          .grads(ours)(xs, dy)
          .map((t) => t.dataSync());
        const [x, mean, variance, , scale, g] = [...xs, dy].map((t) => t.dataSync());
        for (let c = 0; c < channels; c++) {
          const root = 1 / Math.sqrt(variance[c] + 0.01);
          let [sum, dot] = [0, 0];
          for (let i = c; i < x.length; i += channels) {
            sum += g[i];
            dot += g[i] * (x[i] - mean[c]);
          }
          const near = (got: number, want: number): void =>
            expect(Math.abs(got - want)).toBeLessThan(1e-6 * (5000 + Math.abs(want)));
          near(dOffset[c], sum);
          near(dMean[c], -sum * scale[c] * root);
          near(dScale[c], dot * root);
          near(dVariance[c], -0.5 * dot * scale[c] * root ** 3);
        }
      }
    });
  });

  it.each([
    [
      [2, 3, 4, 5],
      [1, 1, 1, 5],
    ],
    [
      [2, 3, 4, 5],
      [1, 3, 1, 1],
    ],
    [
      [2, 3, 4, 130],
      [1, 3, 1, 1],
    ],
    [
      [2, 3, 4, 5],
      [2, 1, 1, 1],
    ],
    [
      [2, 3, 4, 5],
      [2, 3, 4, 5],
    ],
    [
      [2, 3, 4, 5],
      [1, 3, 1, 5],
    ],
    [
      [2, 3, 4, 5],
      [1, 1, 1, 1],
    ],
    [
      [7, 5],
      [1, 5],
    ],
  ])('x of shape [%p], parameters of shape [%p]: the formula, gradients too', (shape, parameter) => {
    tf.tidy(() => {
      const xs = operands(shape, parameter);
      const dy = values(shape, 9);
      expectClose([ours(...xs)], [plain(...xs)], 'value');
      // What tfjs differentiates is a tensor of four axes, so parameters have as many, or one.
      if (parameter.length !== 2) expectClose(tf.grads(ours)(xs, dy), tf.grads(plain)(xs, dy), 'gradients');
    });
  });

  it('without scale, offset or epsilon; the cpu backend', async () => {
    const run = (): tf.Tensor[] => {
      const [x, mean, variance, offset, scale] = operands([3, 4, 5], [5]) as [tf.Tensor3D, ...tf.Tensor1D[]];
      return [
        tf.batchNorm(x, mean, variance),
        tf.batchNorm(x, mean, variance, offset),
        tf.batchNorm(x, mean, variance, undefined, scale),
        tf.batchNorm(x, mean, variance, offset, scale, 0.5),
        tf.batchNorm(tf.zeros([0, 4, 5]), mean, variance),
      ];
    };
    await tf.setBackend('cpu');
    const want = tf.tidy(() => run().map((t) => Array.from(t.dataSync())));
    await ready();
    tf.tidy(() => {
      run().forEach((tensor, i) => {
        tensor.dataSync().forEach((value, j) => {
          expect(value).toBeCloseTo(want[i][j], 5);
        });
        expect(tensor.size).toBe(want[i].length);
      });
    });
  });

  const PARTS: [what: string, part: (xs: tf.Tensor[]) => tf.Tensor[], f: F][] = [
    ['scale', ([x, mean, variance, offset]) => [x, mean, variance, offset], ours],
    [
      'offset',
      ([x, mean, variance, , scale]) => [x, mean, variance, scale],
      (x, mean, variance, scale) => ours(x, mean, variance, undefined as never, scale),
    ],
    ['both', ([x, mean, variance]) => [x, mean, variance], ours],
  ];

  it.each(PARTS)('without %s: gradients, and gradients of those', async (_, part, f) => {
    for (const backend of ['cpu', 'wasm']) {
      if (backend === 'wasm') await ready();
      else await tf.setBackend(backend);
      const before = tf.memory().numTensors;
      tf.tidy(() => {
        for (const [shape, parameter] of [
          [[2, 3, 4], [4]],
          [
            [2, 3, 2, 2],
            // The kernel of the cpu backend knows the last axes only.
            backend === 'cpu' ? [1, 1, 2, 2] : [1, 3, 1, 1],
          ],
        ]) {
          const xs = part(operands(shape, parameter));
          const [zero, one] = [tf.zeros(parameter), tf.ones(parameter)];
          const whole: F = (x, mean, variance, last) =>
            f === ours ? plain(x, mean, variance, last ?? zero, one) : plain(x, mean, variance, zero, last);
          const weights = xs.map((x, i) => values(x.shape, 20 + i));
          const energy =
            (g: F): F =>
            (...all) =>
              tf
                .grads(g)(all.slice(0, xs.length), all[xs.length])
                .reduce<tf.Tensor>(
                  (sum, gradient, i) => tf.add(sum, tf.sum(tf.mul(gradient, weights[i]))),
                  tf.sum(all[xs.length - 1]),
                );
          const all = [...xs, values(shape, 9)];
          expectClose([f(...xs)], [whole(...xs)], 'value');
          expectClose(tf.grads(f)(xs, all[xs.length]), tf.grads(whole)(xs, all[xs.length]), `${backend} [${shape}]`);
          expectClose(tf.grads(energy(f))(all), tf.grads(energy(whole))(all), `second, ${backend} [${shape}]`, 3e-5);
        }
      });
      expect(tf.memory().numTensors).toBe(before);
    }
  });

  it('no number stays in its place and its channel', () => {
    tf.tidy(() => {
      const xs = operands([6, 3], [3]);
      const numbers = xs[0].dataSync().slice();
      numbers[7] = Number.NaN;
      xs[0] = tf.tensor(numbers, [6, 3]);
      const y = ours(...xs).dataSync();
      expect(Array.from(y).flatMap((value, i) => (Number.isNaN(value) ? [i] : []))).toEqual([7]);
      const gradients = tf
        .grads(ours)(xs, tf.onesLike(xs[0]))
        .map((t) => Array.from(t.dataSync()).map(Number.isNaN));
      expect(gradients.slice(1)).toEqual([
        [false, false, false],
        [false, true, false],
        [false, false, false],
        [false, true, false],
      ]);
    });
  });

  it('gradients of gradients: those of the formula', () => {
    tf.tidy(() => {
      for (const [shape, parameter] of [
        [[4, 3], [3]],
        [
          [2, 3, 2, 2],
          [1, 3, 1, 1],
        ],
      ]) {
        const xs = operands(shape, parameter);
        const dy = values(shape, 9);
        const weights = xs.map((x, i) => values(x.shape, 20 + i));
        // A function of every first gradient, so that each second one is reached; none depends on the offset.
        const energy =
          (f: F): F =>
          (...args) =>
            tf
              .grads(f)(args.slice(0, 5), args[5])
              .reduce<tf.Tensor>(
                (sum, gradient, i) => tf.add(sum, tf.sum(tf.mul(gradient, weights[i]))),
                tf.sum(args[3]),
              );
        const all = [...xs, dy];
        expectClose(tf.grads(energy(ours))(all), tf.grads(energy(plain))(all), `[${shape}]`, 3e-5);
      }
    });
  });

  it.each([{}, { scale: false }, { center: false }, { scale: false, center: false }])(
    'trains: a layer %p on the wasm backend moves like one on the cpu backend',
    async (options) => {
      const train = async (): Promise<number[][]> => {
        const model = tf.sequential({
          layers: [
            tf.layers.conv2d({
              inputShape: [6, 6, 2],
              filters: 5,
              kernelSize: 3,
              kernelInitializer: tf.initializers.glorotNormal({ seed: 1 }),
            }),
            tf.layers.batchNormalization(options),
            tf.layers.flatten(),
            tf.layers.dense({ units: 1, kernelInitializer: tf.initializers.glorotNormal({ seed: 2 }) }),
          ],
        });
        model.compile({ optimizer: tf.train.sgd(0.01), loss: 'meanSquaredError' });
        const [x, y] = [values([8, 6, 6, 2], 1), values([8, 1], 2)];
        const { history } = await model.fit(x, y, { epochs: 3, shuffle: false, verbose: 0 });
        const losses = history.loss as number[];
        expect(losses.at(-1)).toBeLessThan(losses[0]);
        const weights = model.getWeights().map((w) => Array.from(w.dataSync()));
        tf.dispose([x, y]);
        model.dispose();
        return [losses, ...weights];
      };
      await tf.setBackend('cpu');
      const want = await train();
      await ready();
      const got = await train();
      got.forEach((numbers, i) => {
        numbers.forEach((number, j) => {
          expect(number).toBeCloseTo(want[i][j], 4);
        });
      });
    },
  );
});
