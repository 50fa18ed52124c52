import { disposeTree, flattenTree, random, ready, thinSvd, train } from '@matforge/core';
import { testGolden, testReadme } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  DctAdamWOptimizer,
  type DctAdamWOptions,
  type DctAdamWState,
  dctAdamW,
  dctMatrix,
  fastDct,
  orthogonalise,
  project,
  reconstruct,
  rotate,
  selectColumns,
  trion,
} from '../src/index.ts';
import { norm, run, suites, tail } from './suite.ts';

beforeAll(async () => {
  await ready('cpu');
});

const values = (tensor: tf.Tensor): number[] => Array.from(tensor.dataSync());

testGolden(suites.id, __dirname, suites.golden);

testReadme(__dirname, require);

describe('the transform', () => {
  test.each([1, 2, 5, 8, 15, 64])(
    'of size %i: Q is orthogonal, dct2 its transpose, the fast path equals the product',
    (n) => {
      tf.tidy(() => {
        const Q = dctMatrix(n);
        expect(norm(tf.sub(tf.matMul(Q, Q, true), tf.eye(n)))).toBeLessThan(1e-5);
        expect(values(dctMatrix(n, 'dct2'))).toEqual(values(tf.transpose(Q)));
        const X = random(n).normal([4, n]) as tf.Tensor2D;
        expect(norm(tf.sub(fastDct(X), tf.matMul(X, Q, false, true)))).toBeLessThan(1e-5 * norm(X));
      });
    },
  );

  test.each([
    [7, 12],
    [12, 7],
  ])('the fast path selects as the product does, %i x %i', (inDim, outDim) => {
    tf.tidy(() => {
      const A = random(1).normal([inDim, outDim]) as tf.Tensor2D;
      const [slow, fast] = (['matmul', 'fast'] as const).map((similarity) =>
        selectColumns(A, 3, { basis: 'dct2', similarity }),
      );
      expect(fast.indices).toEqual(slow.indices);
      expect(norm(tf.sub(fast.lowRank, slow.lowRank))).toBeLessThan(1e-5);
    });
  });
});

describe('selection', () => {
  test.each([
    [5, 9],
    [9, 5],
    [5, 5],
  ])('with norm 2 no other columns leave less, and the SVD leaves no more: %i x %i', (inDim, outDim) => {
    tf.tidy(() => {
      const A = random(inDim).normal([inDim, outDim]) as tf.Tensor2D;
      const { side, indices, lowRank, norms } = selectColumns(A, 2, { norm: 2 });
      expect(side).toBe(inDim <= outDim ? 'left' : 'right');
      const Q = dctMatrix(5);
      const residual = (chosen: Int32Array): number =>
        norm(tf.sub(A, reconstruct(project(A, chosen, Q), chosen, { side, Q })));
      const least = residual(indices);
      for (let i = 0; i < 5; i++)
        for (let j = i + 1; j < 5; j++) expect(residual(Int32Array.of(i, j))).toBeGreaterThan(least - 1e-5);
      const scores = values(norms);
      const kept = scores[indices[0]] ** 2 + scores[indices[1]] ** 2;
      expect(least ** 2).toBeCloseTo(norm(A) ** 2 - kept, 3);
      expect(least).toBeGreaterThanOrEqual(tail(A, 2) - 1e-5);
      expect(norm(tf.sub(lowRank, project(A, indices, Q)))).toBeLessThan(1e-5);
    });
  });

  test('at full rank nothing is lost; equal scores choose the first columns, rising', () => {
    tf.tidy(() => {
      const A = random(2).normal([4, 6]) as tf.Tensor2D;
      const { side, indices, lowRank } = selectColumns(A, 4);
      expect(norm(tf.sub(reconstruct(lowRank, indices, { side, size: 4 }), A))).toBeLessThan(1e-5);
      expect(Array.from(selectColumns(tf.zeros([5, 6]), 3).indices)).toEqual([0, 1, 2]);
    });
  });

  test('rotation moves kept columns, starts fresh ones at exactly zero, and is the identity for the same columns', () => {
    tf.tidy(() => {
      const state = tf.tensor2d([
        [1, 2],
        [3, 4],
        [5, 6],
      ]);
      const [before, now] = [Int32Array.of(1, 4, 6), Int32Array.of(0, 4, 6)];
      expect(rotate(state, before, now, 'left').arraySync()).toEqual([
        [0, 0],
        [3, 4],
        [5, 6],
      ]);
      const right = tf.transpose(state) as tf.Tensor2D;
      expect(rotate(right, Int32Array.of(2, 3, 7), Int32Array.of(3, 7, 8), 'right').arraySync()).toEqual([
        [3, 5, 0],
        [4, 6, 0],
      ]);
      expect(rotate(state, before, before, 'left').arraySync()).toEqual(state.arraySync());
    });
  });
});

describe('DCT-AdamW', () => {
  const gradients = (count: number, shape = [6, 9]) =>
    Array.from({ length: count }, (_, i) => random(i + 1).normal(shape));

  test('error feedback loses nothing: what is applied and what is kept add up', () => {
    tf.tidy(() => {
      const G = gradients(4);
      const steps = run({ rank: 2, errorFeedback: true }, tf.zeros([6, 9]), G);
      const Q = dctMatrix(6);
      steps.forEach(({ state }, t) => {
        const A = t === 0 ? G[0] : tf.add(G[t], steps[t - 1].state.error as tf.Tensor);
        const indices = state.indices as Int32Array;
        const back = reconstruct(project(A as tf.Tensor2D, indices, Q), indices, { side: 'left', Q });
        expect(norm(tf.sub(tf.add(back, state.error as tf.Tensor), A))).toBeLessThan(1e-5);
      });
    });
  });

  test('columns are chosen at t = 1 and at multiples of the gap', () => {
    tf.tidy(() => {
      const chosen = run({ rank: 2, updateProjGap: 3 }, tf.zeros([6, 9]), gradients(7)).map(({ state }) =>
        String(state.indices),
      );
      const fresh = gradients(7).map((G) => String(selectColumns(G as tf.Tensor2D, 2).indices));
      expect(chosen).toEqual([fresh[0], fresh[0], fresh[2], fresh[2], fresh[2], fresh[5], fresh[5]]);
    });
  });

  test('at full rank the update is AdamW in the rotated coordinates', () => {
    tf.tidy(() => {
      const G = gradients(3, [4, 7]);
      const W0 = random(9).normal([4, 7]);
      const options = { rank: 4, learningRate: 0.1, weightDecay: 0.2, include: () => true };
      const W = run(options, W0, G)[2].W;
      const Q = dctMatrix(4);
      const turned = (M: tf.Tensor) => tf.matMul(Q, M as tf.Tensor2D, true);
      const plain = run({ ...options, include: () => false }, turned(W0), G.map(turned))[2].W;
      expect(norm(tf.sub(turned(W), plain))).toBeLessThan(1e-4);
    });
  });

  test('states keep their shape, one basis serves all layers of a size, vectors and huge matrices get AdamW', () => {
    tf.tidy(() => {
      const shapes = { wide: [5, 9], tall: [9, 5], conv: [3, 3, 2, 5], bias: [9], small: [3, 20], huge: [60, 8] };
      const params = Object.fromEntries(Object.entries(shapes).map(([name, shape]) => [name, random(1).normal(shape)]));
      const method = dctAdamW({ rank: 3, maxShape: 60 });
      const { state } = method.update(params, method.init(params), params);
      const shapesOf = Object.fromEntries(
        Object.entries(state.variables).map(([name, { m, v }]) => [name, [m.shape, v.shape]]),
      );
      expect(shapesOf).toEqual({
        wide: [
          [3, 9],
          [3, 9],
        ],
        tall: [
          [9, 3],
          [9, 3],
        ],
        conv: [
          [18, 3],
          [18, 3],
        ],
        bias: [[9], [9]],
        small: [
          [3, 20],
          [3, 20],
        ],
        huge: [
          [60, 8],
          [60, 8],
        ],
      });
      expect(Object.keys(state.bases)).toEqual(['5']);
    });
  });
});

describe('as optimizers', () => {
  function model(): tf.LayersModel {
    const init = (seed: number) => tf.initializers.glorotUniform({ seed });
    return tf.sequential({
      layers: [
        tf.layers.dense({ units: 16, activation: 'relu', inputShape: [12], kernelInitializer: init(1) }),
        tf.layers.dense({ units: 3, activation: 'softmax', kernelInitializer: init(2) }),
      ],
    });
  }
  const data = () => {
    const xs = random(5).normal([48, 12]);
    return { xs, ys: tf.tidy(() => tf.oneHot(tf.argMax(tf.slice(xs, [0, 0], [48, 3]), 1), 3).toFloat()) };
  };

  test.each<[string, () => tf.Optimizer]>([
    ['DCT-AdamW', () => new DctAdamWOptimizer({ rank: 2, learningRate: 0.02, rotateSubspace: true })],
    [
      'with error feedback, dct2, fast',
      () =>
        dctAdamW({
          rank: 2,
          learningRate: 0.02,
          errorFeedback: true,
          basis: 'dct2',
          similarity: 'fast',
          updateProjGap: 3,
        }).optimizer(),
    ],
    ['Trion', () => trion({ rank: 2, learningRate: 0.05, scaleByShape: true }).optimizer()],
  ])('%s trains under compile and fit and leaks nothing', async (_, make) => {
    const before = tf.memory().numTensors;
    const net = model();
    const { xs, ys } = data();
    const optimizer = make();
    net.compile({ optimizer, loss: 'categoricalCrossentropy' });
    const { history } = await net.fit(xs, ys, { epochs: 15, batchSize: 16, verbose: 0, shuffle: false });
    expect(history.loss[14]).toBeLessThan(0.6 * (history.loss[0] as number));
    const during = tf.memory().numTensors;
    await net.fit(xs, ys, { epochs: 3, batchSize: 16, verbose: 0, shuffle: false });
    expect(tf.memory().numTensors).toBe(during);
    net.dispose();
    optimizer.dispose();
    tf.dispose([xs, ys]);
    expect(tf.memory().numTensors).toBe(before);
  });

  test('a model saved with its optimizer loads with it', async () => {
    const net = model();
    const samples = data();
    const optimizer = new DctAdamWOptimizer({ rank: 2, rotateSubspace: true, errorFeedback: true });
    net.compile({ optimizer, loss: 'categoricalCrossentropy' });
    await net.fit(samples.xs, samples.ys, { epochs: 1, batchSize: 16, verbose: 0 });
    let artifacts: tf.io.ModelArtifacts = {};
    const handler = tf.io.withSaveHandler(async (given) => {
      artifacts = given;
      return { modelArtifactsInfo: { dateSaved: new Date(), modelTopologyType: 'JSON' } };
    });
    await net.save(handler, { includeOptimizer: true });
    const loaded = await tf.loadLayersModel(tf.io.fromMemory(artifacts));
    const restored = loaded.optimizer as DctAdamWOptimizer;
    expect(restored.getConfig()).toEqual(optimizer.getConfig());
    expect(restored.iterations).toBe(3);
    const [before, after] = [optimizer.state(), restored.state()];
    expect([...flattenTree(after.state).keys()]).toEqual([...flattenTree(before.state).keys()]);
    expect(after.names).toEqual(before.names);
    disposeTree(before);
    disposeTree(after);
    net.dispose();
    loaded.dispose();
    optimizer.dispose();
    restored.dispose();
    tf.dispose([samples.xs, samples.ys]);
  });

  test('cpu and wasm agree, and the same run gives the same result', async () => {
    const results: number[][] = [];
    for (const backend of ['cpu', 'wasm', 'wasm']) {
      await ready(backend);
      const net = model();
      const samples = data();
      const optimizer = dctAdamW({ rank: 2, rotateSubspace: true });
      await train(net, samples, { optimizer, loss: 'categoricalCrossentropy', batchSize: 16, epochs: 2 });
      results.push(net.getWeights().flatMap(values));
      net.dispose();
      tf.dispose([samples.xs, samples.ys]);
    }
    await ready('cpu');
    expect(results[2]).toEqual(results[1]);
    results[0].forEach((value, i) => {
      expect(results[1][i]).toBeCloseTo(value, 3);
    });
  });

  test('the state survives getWeights, indices included', async () => {
    const w = tf.variable(tf.tidy(() => random(1).normal([6, 9])));
    const loss = () => tf.sum(tf.square(w)) as tf.Scalar;
    const [first, second] = [1, 2].map(() =>
      dctAdamW({ rank: 2, rotateSubspace: true, errorFeedback: true }).optimizer(),
    );
    first.minimize(loss, false, [w]);
    const weights = await first.getWeights();
    await second.setWeights(weights);
    const start = w.clone();
    first.minimize(loss, false, [w]);
    const end = values(w);
    w.assign(start);
    second.minimize(loss, false, [w]);
    expect(values(w)).toEqual(end);
    const state = second.state();
    expect((state.state as DctAdamWState).variables[w.name].indices).toBeInstanceOf(Int32Array);
    disposeTree(state);
    tf.dispose([w, start, ...weights.map(({ tensor }) => tensor)]);
    first.dispose();
    second.dispose();
  });

  test('orthogonalise brings the singular values near 1', () => {
    tf.tidy(() => {
      for (const shape of [
        [3, 8],
        [8, 3],
      ]) {
        const a = random(1).normal(shape) as tf.Tensor2D;
        const singular = values(thinSvd(orthogonalise(a)).s);
        expect(Math.min(...singular)).toBeGreaterThan(0.65);
        expect(Math.max(...singular)).toBeLessThan(1.25);
        expect(Math.max(...values(thinSvd(a).s))).toBeGreaterThan(2);
      }
    });
  });

  test("Trion's momentum keeps what was left out and fades what was applied", () => {
    tf.tidy(() => {
      const G = random(3).normal([5, 9]) as tf.Tensor2D;
      const method = trion({ rank: 2, momentum: 0.9 });
      const { state } = method.update({ W: G }, method.init({ W: G }), { W: G });
      const { side, indices, lowRank } = selectColumns(G, 2);
      const applied = reconstruct(lowRank, indices, { side, size: 5 });
      expect(norm(tf.sub(state.momenta.W, tf.sub(G, tf.mul(applied, 0.1))))).toBeLessThan(1e-5);
    });
  });
});

describe('bad input', () => {
  test.each([
    [{ rank: 0 }, /dct-projection\.rank: must be a positive integer, got 0/],
    [{ basis: 'dct1' }, /dct-projection\.basis: must be one of "dct3", "dct2", got "dct1"/],
    [{ norm: 3 }, /dct-projection\.norm: .*got 3/],
    [{ updateProjGap: 0 }, /dct-projection\.updateProjGap: must be a positive integer, got 0/],
    [{ rotate: true }, /dct-projection\.rotate: unknown option/],
  ] as [object, RegExp][])('%j', (options, message) => {
    expect(() => dctAdamW(options as DctAdamWOptions)).toThrow(message);
  });

  test('ranks, bases, gradients and stored errors that do not fit', () => {
    tf.tidy(() => {
      const W = tf.zeros([4, 9]) as tf.Tensor2D;
      const fast = dctAdamW({ rank: 2, similarity: 'fast' });
      expect(() => fast.init({ W })).toThrow('fast path needs basis dct2');
      expect(() => selectColumns(W, 2, { similarity: 'fast' })).toThrow('fast path needs basis dct2');
      expect(() => selectColumns(W, 5)).toThrow('rank: 5 given; accepted is an integer from 1 to min(in, out) = 4');
      expect(() => selectColumns(W, 2, { norm: 3 as never })).toThrow('norm: 3 given');
      expect(() => dctMatrix(4, 'dct1' as never)).toThrow('basis: "dct1" given; accepted are dct3 and dct2');
      expect(() => dctAdamW({ rank: 5, include: () => true }).init({ W })).toThrow(
        /dct-projection\.rank \(W\): 5 given/,
      );
      const method = dctAdamW({ rank: 2, errorFeedback: true });
      const bad = tf.fill([4, 9], Number.NaN);
      expect(() => method.update({ W: bad }, method.init({ W }), { W })).toThrow('gradient of W is not finite');
      const other = tf.ones([5, 9]);
      expect(() => method.update({ W: other }, method.init({ W }), { W: other })).toThrow(
        /the stored error has shape \[4,9\], the kernel \[5,9\]/,
      );
    });
  });
});
