import * as tf from '@tensorflow/tfjs';
import { z } from 'zod';
import {
  adamw,
  attach,
  balancedFactors,
  defineStructuredLayer,
  defineStructuredMethod,
  factor,
  groupLearningRates,
  learningRateMultipliers,
  linear,
  matrix,
  mergeAndUnload,
  muPDeviation,
  option,
  random,
  ready,
  seeded,
  structuredFamily,
  structuredOptions,
  structureReport,
  toMatrix,
  toOptimizer,
  toTensor,
  trainable,
} from '../src/index.ts';

const info = (id: string) => ({
  id,
  title: id,
  family: 'structured',
  kind: 'structured',
  paper: { title: id, year: 2026 },
});

/** W = A·B, rank r. */
const lowRank = defineStructuredMethod({
  info: info('low-rank-test'),
  config: z.object({ ...structuredOptions, rank: option.rank().default(2) }),
  tensors: ({ inDim, outDim, config: { rank } }) => ({
    A: factor([inDim, rank], { in: inDim, out: rank }),
    B: factor([rank, outDim], { in: rank, out: outDim }),
  }),
  apply: (x, { A, B }) => linear(linear(x, A), B),
  project(W, { config: { rank } }) {
    const { left, right } = balancedFactors(toMatrix(W), rank);
    return { A: toTensor(left), B: toTensor(right) };
  },
  ladder: function* ({ inDim, outDim }) {
    for (let rank = 1; rank <= Math.min(inDim, outDim); rank++) yield { rank };
  },
});
const LowRankDense = defineStructuredLayer(lowRank, 'LowRankTestDense');

/** W = D + gate·P: a scaled diagonal beside a drawn matrix that is not stored. Square. */
const withBuffer = defineStructuredMethod({
  info: info('buffer-test'),
  config: z.object({ ...structuredOptions }),
  tensors: ({ inDim }) => ({
    diagonal: factor([inDim], { in: 1, out: 1, branch: 'diagonal' }),
    gate: trainable([], (_, stream) => tf.scalar(stream.next())),
    pattern: seeded([inDim, inDim], (shape, stream) => stream.normal(shape)),
  }),
  apply: (x, { diagonal, gate, pattern }) => tf.add(tf.mul(x, diagonal), tf.mul(linear(x, pattern), gate)),
  project: () => ({}),
  penalty: ({ diagonal }) => tf.sum(tf.square(diagonal)) as tf.Scalar,
  ladder: () => [{}],
});
const BufferDense = defineStructuredLayer(withBuffer, 'BufferTestDense');

let before: number;
beforeAll(async () => {
  await ready();
});
beforeEach(() => {
  before = tf.memory().numTensors;
});
afterEach(() => {
  expect(tf.memory().numTensors).toBe(before);
});

test('the projection of two balanced factors is the truncated SVD', () => {
  const diagonal = matrix(4, 3, [
    [3, 0, 0],
    [0, 2, 0],
    [0, 0, 1],
    [0, 0, 0],
  ]);
  const { left, right, discarded } = balancedFactors(diagonal, 2);
  expect(discarded).toBeCloseTo(1, 12);
  expect(Math.hypot(...left.data)).toBeCloseTo(Math.sqrt(5), 12);
  expect(Math.hypot(...right.data)).toBeCloseTo(Math.sqrt(5), 12);
  expect(balancedFactors(diagonal, 5).left.data.length).toBe(20);
  expect(balancedFactors(diagonal, 5).discarded).toBe(0);
});

test('widths give the start and the learning rate, per branch', () => {
  expect(muPDeviation({ in: 16, out: 64 })).toBe(0.25);
  expect(muPDeviation({ in: 16, out: 4 })).toBe(0.125);
  const specs = {
    A: factor([8, 2], { in: 8, out: 2 }),
    B: factor([2, 4], { in: 2, out: 4 }),
    values: factor([3], { in: 4, out: 4, branch: 'sparse' }),
    gate: trainable([]),
  };
  expect(learningRateMultipliers(specs, 32)).toEqual({ A: 2, B: 8, values: 8, gate: 1 });
});

describe('starts', () => {
  const family = structuredFamily(lowRank);

  test('muP has the declared deviation, a zero start ends at zero, both are drawn from the seed', () => {
    const size = { inDim: 256, outDim: 64, rank: 32 };
    const kernels = [family.init(size, 'muP', 1), family.init(size, 'muP', 1), family.init(size, 'muP', 2)];
    const [one, same, other] = kernels.map(({ factors }) => Array.from(factors.A.dataSync()));
    expect(same).toEqual(one);
    expect(other).not.toEqual(one);
    const rms = Math.sqrt(one.reduce((sum, value) => sum + value * value, 0) / one.length);
    expect(rms).toBeCloseTo((1 / 16) * Math.sqrt(32 / 256), 3);
    const zero = family.init({ ...size, zeroInit: true }, 'muP', 1);
    expect(Math.max(...zero.factors.B.dataSync())).toBe(0);
    expect(Math.max(...zero.factors.A.dataSync())).toBeGreaterThan(0);
    const dense = family.init(size, 'dense', 1);
    tf.tidy(() => {
      expect(tf.norm(dense.factors.A).dataSync()[0]).toBeCloseTo(tf.norm(dense.factors.B).dataSync()[0], 3);
    });
    for (const kernel of [...kernels, zero, dense]) kernel.dispose();
  });

  test('a zero start that would drop the kernel is refused', async () => {
    const model = tf.sequential({ layers: [tf.layers.dense({ units: 3, inputShape: [4] })] });
    await expect(attach(model, lowRank({ zeroInit: true }))).rejects.toThrow(/zeroInit: would drop the kernel/);
    model.dispose();
  });

  test('a budget gives the largest kernel within it', () => {
    expect(family.fitBudget(10, 10, 0.7).rank).toBe(3);
    expect(family.paramCount({ inDim: 10, outDim: 10, rank: 3 })).toBe(60);
    expect(() => family.fitBudget(10, 10, 0.1)).toThrow(/is 10 numbers; the smallest kernel has 20/);
    expect(() => family.fitBudget(10, 10, 0)).toThrow(/fraction: must be > 0, got 0/);
  });
});

describe('attached', () => {
  test('takes the place of the kernel, keeps the bias, trains the whole model, and leaves it dense', async () => {
    const model = tf.sequential({
      layers: [
        tf.layers.dense({ name: 'first', units: 6, inputShape: [5], activation: 'tanh' }),
        tf.layers.dense({ name: 'second', units: 4 }),
      ],
    });
    await attach(model, lowRank({ rank: 2 }), { targets: ['first'] });
    const names = model.trainableWeights.map(({ originalName }) => originalName);
    expect(names.map((name) => name.split('/').slice(-2).join('/')).sort()).toEqual(
      ['default/A', 'default/B', 'first/bias', 'second/bias', 'second/kernel'].sort(),
    );
    const [report] = structureReport(model);
    expect(report).toMatchObject({ layer: 'first', paramsBefore: 30, paramsAfter: 22 });
    expect(report.relError).toBeGreaterThan(0);
    expect(report.relError).toBeLessThan(1);
    const x = random(1).normal([3, 5]);
    tf.tidy(() => {
      const y = (model.apply(x) as tf.Tensor).dataSync();
      mergeAndUnload(model);
      const dense = (model.apply(x) as tf.Tensor).dataSync();
      for (let i = 0; i < y.length; i++) expect(dense[i]).toBeCloseTo(y[i], 5);
    });
    expect(model.trainableWeights.length).toBe(4);
    x.dispose();
    model.dispose();
  });
});

describe('groupLearningRates', () => {
  test('gives every weight the rate of its width', async () => {
    const model = tf.sequential({
      layers: [
        new LowRankDense({ name: 'structured', units: 8, rank: 2, inputShape: [16] }),
        tf.layers.dense({ name: 'attached', units: 8 }),
        tf.layers.dense({ name: 'dense', units: 4 }),
      ],
    });
    await attach(model, lowRank({ rank: 4 }), { targets: ['attached'] });
    const optimizer = toOptimizer(groupLearningRates(model, 1e-3, { baseInDim: 32 }));
    const weights = model.trainableWeights;
    const start = weights.map((weight) => weight.read().dataSync().slice());
    // Adam's first step is the rate times the sign of the gradient.
    tf.tidy(() => {
      optimizer.applyGradients(
        Object.fromEntries(
          weights.map((weight) => [(weight.read() as tf.Variable).name, tf.ones(weight.shape as number[])]),
        ),
      );
    });
    const moved = Object.fromEntries(
      weights.map((weight, i) => [
        weight.originalName.split('/').slice(-2).join('/'),
        (start[i][0] - weight.read().dataSync()[0]) / 1e-3,
      ]),
    );
    const expected = {
      'structured/A': 32 / (16 * 2),
      'structured/B': 32 / (2 * 2),
      'structured/bias': 1,
      'default/A': 32 / (8 * 2),
      'default/B': 32 / (4 * 2),
      'attached/bias': 1,
      'dense/kernel': 32 / 8,
      'dense/bias': 1,
    };
    expect(Object.keys(moved).sort()).toEqual(Object.keys(expected).sort());
    for (const [name, factorOf] of Object.entries(expected))
      expect([name, moved[name]]).toEqual([name, expect.closeTo(factorOf, 2)]);
    optimizer.dispose();
    mergeAndUnload(model);
    model.dispose();
  });

  test('multiplies decoupled weight decay along', () => {
    const model = tf.sequential({
      layers: [new LowRankDense({ name: 'decayed', units: 2, rank: 1, inputShape: [4] })],
    });
    const transformation = (learningRate: number) => adamw({ learningRate, weightDecay: 0.1 });
    const optimizer = toOptimizer(groupLearningRates(model, 1e-2, { baseInDim: 32, transformation }));
    const [A] = model.trainableWeights.map((weight) => weight.read() as tf.Variable);
    const start = A.dataSync()[0];
    tf.tidy(() => optimizer.applyGradients({ [A.name]: tf.zerosLike(A) }));
    expect(A.dataSync()[0] / start).toBeCloseTo(1 - 1e-2 * 0.1 * 4, 5);
    optimizer.dispose();
    model.dispose();
  });
});

describe('layers', () => {
  test('tensors drawn from the seed are not stored, and come back with the model', async () => {
    const model = tf.sequential({ layers: [new BufferDense({ units: 5, inputShape: [5], seed: 3 })] });
    expect(model.getWeights().map(({ shape }) => shape)).toEqual([[5], [], [5]]);
    let stored: tf.io.ModelArtifacts | undefined;
    await model.save(
      tf.io.withSaveHandler(async (artifacts) => {
        stored = artifacts;
        return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } };
      }),
    );
    const restored = await tf.loadLayersModel(tf.io.fromMemory(stored as tf.io.ModelArtifacts));
    const x = random(1).normal([2, 5]);
    tf.tidy(() => {
      const [y, again] = [model, restored].map((each) => Array.from((each.apply(x) as tf.Tensor).dataSync()));
      expect(again).toEqual(y);
    });
    x.dispose();
    model.dispose();
    restored.dispose();
  });

  test('a penalty joins the loss', async () => {
    const model = tf.sequential({ layers: [new BufferDense({ units: 3, inputShape: [3], useBias: false })] });
    const weights = [tf.tensor1d([1, 2, 3]), tf.scalar(0)];
    model.setWeights(weights);
    model.compile({ optimizer: 'sgd', loss: 'meanSquaredError' });
    const x = tf.zeros([2, 3]);
    const loss = model.evaluate(x, x) as tf.Scalar;
    expect(loss.dataSync()[0]).toBeCloseTo(0, 6);
    const { history } = await model.fit(x, x, { epochs: 1, verbose: 0 });
    expect(history.loss[0]).toBeCloseTo(14, 4);
    model.optimizer.dispose();
    model.dispose();
    tf.dispose([x, loss, ...weights]);
  });

  test('a layer that is not dense, or not built, is not converted', () => {
    const flat = tf.layers.flatten({ name: 'flat' });
    expect(() => LowRankDense.fromDenseLayer(flat)).toThrow(/flat: is a Flatten layer, not Dense/);
    expect(() => LowRankDense.fromDenseLayer(tf.layers.dense({ name: 'fresh', units: 2 }))).toThrow(
      /fresh: the layer is not built/,
    );
  });

  test('a method that needs a schedule makes no layer', () => {
    expect(() =>
      defineStructuredLayer({ ...lowRank, schedule: () => ({ onStep: () => undefined }) } as never, 'Scheduled'),
    ).toThrow(/low-rank-test has a training schedule/);
  });
});
