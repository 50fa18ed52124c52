import { disposeTree, flattenTree, random, ready, train } from '@matforge/core';
import { testGolden, testReadme } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  type Basis,
  dequantize,
  GaLoreAdamOptimizer,
  type GaLoreOptions,
  type GaLoreState,
  galore,
  galoreBack,
  galoreMemory,
  galoreProject,
  galoreUpdate,
  initial,
  project,
  type Quantized,
  quantize,
} from '../src/index.ts';
import { norm, suites } from './suite.ts';

beforeAll(async () => {
  await ready('cpu');
});

const values = (tensor: tf.Tensor): number[] => Array.from(tensor.dataSync());

testGolden(suites.id, __dirname, suites.golden);

testReadme(__dirname, require);

/** Runs updates on a single matrix [in, out] without an optimizer around them. */
function run(options: GaLoreOptions, gradients: tf.Tensor2D[]): { W: tf.Tensor2D; states: GaLoreState[] } {
  const method = galore(options);
  const states: GaLoreState[] = [];
  let W = tf.zeros(gradients[0].shape) as tf.Tensor2D;
  let state = method.init({ W });
  for (const G of gradients) {
    const result = method.update({ W: G }, state, { W });
    W = tf.add(W, result.updates.W) as tf.Tensor2D;
    state = result.state;
    states.push(state.W);
  }
  return { W, states };
}

const gradientsOf = (shape: [number, number], count: number): tf.Tensor2D[] =>
  Array.from({ length: count }, (_, i) => random(i + 1).normal(shape) as tf.Tensor2D);

describe('invariants', () => {
  test.each([
    [[6, 9], 'std', 'left'],
    [[9, 6], 'std', 'right'],
    [[6, 6], 'std', 'left'],
    [[6, 9], 'reverse_std', 'right'],
    [[9, 6], 'full', 'full'],
  ] as const)('%j %s compresses %s with an orthonormal basis that keeps rank-r matrices', (shape, projType, side) => {
    tf.tidy(() => {
      const G = random(3).normal([...shape]) as tf.Tensor2D;
      const { R, singularValues, ...basis } = galoreProject(G, 3, projType);
      expect(basis.side).toBe(side);
      for (const vectors of [basis.P, basis.Q]) {
        if (vectors) expect(norm(tf.sub(tf.matMul(vectors, vectors, true), tf.eye(3)))).toBeLessThan(1e-5);
      }
      const kept = values(singularValues).reduce((sum, s) => sum + s * s, 0);
      expect(norm(R) ** 2).toBeCloseTo(kept, 3);
      const low = tf.matMul(random(4).normal([shape[0], 3]), random(5).normal([3, shape[1]])) as tf.Tensor2D;
      const own = galoreProject(low, 3, projType);
      expect(norm(tf.sub(galoreBack(own.R, own), low)) / norm(low)).toBeLessThan(1e-5);
    });
  });

  test('a randomized basis spans what the exact one spans', () => {
    tf.tidy(() => {
      const [left, right] = [random(1).normal([150, 5]), random(2).normal([5, 120])];
      const G = tf.add(tf.matMul(left as tf.Tensor2D, right as tf.Tensor2D), random(3).normal([150, 120], 0, 0.01));
      const projector = (svd: 'exact' | 'randomized'): tf.Tensor => {
        const { Q } = galoreProject(G as tf.Tensor2D, 5, 'std', { svd, seed: 4 });
        return tf.matMul(Q as tf.Tensor2D, Q as tf.Tensor2D, false, true);
      };
      expect(norm(tf.sub(projector('exact'), projector('randomized')))).toBeLessThan(1e-3);
    });
  });

  test('at full rank, scale 1 and base sgd the update is plain SGD', () => {
    tf.tidy(() => {
      for (const shape of [
        [4, 7],
        [7, 4],
      ] as [number, number][]) {
        const gradients = gradientsOf(shape, 5);
        const include = () => true;
        const { W } = run({ rank: 4, scale: 1, base: 'sgd', learningRate: 0.1, updateProjGap: 2, include }, gradients);
        expect(norm(tf.sub(W, tf.mul(tf.addN(gradients), -0.1)))).toBeLessThan(1e-5);
      }
    });
  });

  test('between refreshes the weights move within the basis, whose moments carry over a refresh', () => {
    tf.tidy(() => {
      const gradients = gradientsOf([8, 12], 6);
      const { W, states } = run({ rank: 3, updateProjGap: 4, learningRate: 0.1 }, gradients);
      const moved = run({ rank: 3, updateProjGap: 4, learningRate: 0.1 }, gradients.slice(0, 4)).W;
      const P = states[3].basis?.P as tf.Tensor2D;
      const outside = (delta: tf.Tensor2D): number =>
        norm(tf.sub(delta, tf.matMul(P, tf.matMul(P, delta, true)))) / norm(delta);
      expect(outside(moved)).toBeLessThan(1e-5);
      expect(outside(tf.sub(W, moved))).toBeGreaterThan(0.1);
      expect(states.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6]);
      const R = project(gradients[4], states[4].basis as Basis);
      const carried = tf.add(tf.mul(states[3].m as tf.Tensor, 0.9), tf.mul(R, 0.1));
      expect(norm(tf.sub(states[4].m as tf.Tensor, carried))).toBeLessThan(1e-5);
    });
  });

  test('the signs of a basis do not matter within one subspace', () => {
    tf.tidy(() => {
      const { config } = galore({ rank: 2, learningRate: 0.1 });
      const gradients = gradientsOf([5, 8], 4);
      const { P } = galoreProject(gradients[0], 2);
      const flipped = tf.mul(P as tf.Tensor2D, [[1, -1]]) as tf.Tensor2D;
      const [one, other] = [P as tf.Tensor2D, flipped].map((basis) => {
        let W = tf.zeros([5, 8]);
        let state = initial([2, 8], config);
        for (const G of gradients) {
          const result = galoreUpdate(G, state, W, config, { basis: { side: 'left', P: basis } });
          W = tf.add(W, result.update);
          state = result.state;
        }
        return W;
      });
      expect(norm(tf.sub(one, other))).toBeLessThan(1e-6);
    });
  });

  test('signAlign gives the vectors of a new basis the side of the old ones', () => {
    tf.tidy(() => {
      const gradients = gradientsOf([6, 9], 2);
      const near = [gradients[0], tf.add(tf.neg(gradients[0]), tf.mul(gradients[1], 1e-3)) as tf.Tensor2D];
      const { states } = run({ rank: 3, updateProjGap: 1, signAlign: true }, near);
      const agreement = tf.sum(tf.mul(states[0].basis?.P as tf.Tensor, states[1].basis?.P as tf.Tensor), 0);
      expect(Math.min(...values(agreement))).toBeGreaterThan(0.9);
    });
  });

  test('weight decay acts after the update and is not scaled', () => {
    tf.tidy(() => {
      const W = random(9).normal([4, 6]);
      const G = random(8).normal([4, 6]);
      const update = (weightDecay: number): tf.Tensor => {
        const { config } = galore({ rank: 2, learningRate: 0.1, weightDecay });
        return galoreUpdate(G, initial([2, 6], config), W, config).update;
      };
      const plain = tf.add(W, update(0));
      expect(norm(tf.sub(tf.add(W, update(0.5)), tf.mul(plain, 1 - 0.1 * 0.5)))).toBeLessThan(1e-6);
    });
  });

  test('state element counts are those of galoreMemory, and a convolution is a matrix over its patches', () => {
    tf.tidy(() => {
      const method = galore({ rank: 3 });
      const shapes = {
        wide: [5, 9],
        tall: [9, 5],
        conv: [3, 3, 2, 8],
        bias: [9],
        small: [3, 20],
        'e/embeddings': [50, 8],
      };
      const params = Object.fromEntries(Object.entries(shapes).map(([name, shape]) => [name, random(1).normal(shape)]));
      const { state } = method.update(params, method.init(params), params);
      const count = (name: string): number => {
        const { basis, m, v } = state[name];
        return [basis?.P, basis?.Q, m, v].reduce((sum, t) => sum + ((t as tf.Tensor | undefined)?.size ?? 0), 0);
      };
      expect(count('wide')).toBe(galoreMemory([[5, 9]], 3).galoreStates);
      expect(count('tall')).toBe(galoreMemory([[9, 5]], 3).galoreStates);
      expect(count('conv')).toBe(galoreMemory([[18, 8]], 3).galoreStates);
      expect([count('bias'), count('small'), count('e/embeddings')]).toEqual([18, 120, 800]);
    });
  });

  test('a rank-deficient, zero or absent gradient', () => {
    tf.tidy(() => {
      const zero = tf.zeros([5, 8]) as tf.Tensor2D;
      const G = random(2).normal([5, 8]) as tf.Tensor2D;
      const first = run({ rank: 2 }, [zero, zero, G]);
      expect(first.states.map(({ step }) => step)).toEqual([0, 0, 1]);
      const later = run({ rank: 2, updateProjGap: 1 }, [G, zero]);
      expect(later.states[1].basis).toBe(later.states[0].basis);
    });
  });
});

describe('8-bit states', () => {
  test('one byte an entry, relative error within the code, nothing but zero becomes zero', () => {
    const entries = Float32Array.from({ length: 1000 }, (_, i) => (i % 2 ? -1 : 1) * 10 ** (-6 + (6 * i) / 999));
    for (const signed of [true, false]) {
      const given = signed ? entries : entries.map(Math.abs);
      const packed = quantize(given, signed);
      expect(packed.codes).toBeInstanceOf(Uint8Array);
      expect(packed.codes.byteLength).toBe(1000);
      expect(packed.scales.length).toBe(4);
      const back = dequantize(packed, signed);
      given.forEach((value, i) => {
        const top = packed.scales[Math.floor(i / 256)];
        expect(Math.sign(back[i])).toBe(Math.sign(value));
        // Within the first decade the code has 64 (signed) or 128 steps of 0.9/steps.
        if (Math.abs(value) > 0.1 * top)
          expect(Math.abs(back[i] - value)).toBeLessThanOrEqual((0.46 / (signed ? 64 : 128)) * top);
      });
      expect(dequantize(quantize(new Float32Array(300), signed), signed).every((value) => value === 0)).toBe(true);
    }
  });

  test('follow the float32 run closely and survive getWeights', async () => {
    const w = tf.variable(tf.tidy(() => random(1).normal([12, 20])));
    const target = random(2).normal([12, 20]);
    const final: number[][] = [];
    for (const states of ['float32', 'int8'] as const) {
      w.assign(target);
      const noise = random(3);
      const optimizer = galore({ rank: 4, updateProjGap: 10, learningRate: 0.05, states }).optimizer();
      for (let i = 0; i < 40; i++) {
        tf.tidy(() => {
          const goal = tf.add(target, noise.normal([12, 20], 1, 0.1));
          optimizer.minimize(() => tf.sum(tf.square(tf.sub(w, goal))) as tf.Scalar, false, [w]);
        });
      }
      final.push(Array.from(w.dataSync()));
      if (states === 'int8') {
        const { v, m } = (optimizer.state().state as Record<string, GaLoreState>)[w.name];
        expect((m as Quantized).codes.byteLength + (v as Quantized).codes.byteLength).toBe(2 * 4 * 20);
        const other = galore({ rank: 4, states }).optimizer();
        const weights = await optimizer.getWeights();
        await other.setWeights(weights);
        const [a, b] = [optimizer.state(), other.state()];
        const restored = (b.state as Record<string, GaLoreState>)[w.name];
        expect(restored.m).toEqual(m);
        expect(restored.v).toEqual(v);
        disposeTree(a);
        disposeTree(b);
        tf.dispose(weights.map(({ tensor }) => tensor));
        other.dispose();
      }
      optimizer.dispose();
    }
    const distance = Math.hypot(...final[0].map((value, i) => value - final[1][i]));
    const moved = Math.hypot(...final[0].map((value, i) => value - target.dataSync()[i]));
    expect(distance / moved).toBeLessThan(0.05);
    tf.dispose([w, target]);
  });
});

describe('as an optimizer', () => {
  function model(): tf.LayersModel {
    const init = (seed: number) => tf.initializers.glorotUniform({ seed });
    return tf.sequential({
      layers: [
        tf.layers.conv2d({
          filters: 6,
          kernelSize: 3,
          activation: 'relu',
          inputShape: [6, 6, 2],
          kernelInitializer: init(1),
        }),
        tf.layers.flatten(),
        tf.layers.dense({ units: 12, activation: 'relu', kernelInitializer: init(2) }),
        tf.layers.dense({ units: 3, activation: 'softmax', kernelInitializer: init(3) }),
      ],
    });
  }
  const data = () => {
    const xs = random(5).normal([48, 6, 6, 2]);
    const ys = tf.tidy(() => tf.oneHot(tf.argMax(tf.slice(tf.reshape(xs, [48, 72]), [0, 0], [48, 3]), 1), 3).toFloat());
    return { xs, ys };
  };

  test.each([
    {},
    { states: 'int8' },
    { base: 'adafactor' },
    { base: 'sgd', scale: 1, learningRate: 0.5 },
    { projType: 'full' },
  ] as GaLoreOptions[])('trains a model under compile and fit with %j and leaks nothing', async (options) => {
    const before = tf.memory().numTensors;
    const net = model();
    const { xs, ys } = data();
    const optimizer = new GaLoreAdamOptimizer({ rank: 2, updateProjGap: 5, learningRate: 0.03, scale: 1, ...options });
    net.compile({ optimizer, loss: 'categoricalCrossentropy' });
    const { history } = await net.fit(xs, ys, { epochs: 12, batchSize: 16, verbose: 0, shuffle: false });
    expect(history.loss[11]).toBeLessThan(0.7 * (history.loss[0] as number));
    const during = tf.memory().numTensors;
    await net.fit(xs, ys, { epochs: 3, batchSize: 16, verbose: 0, shuffle: false });
    expect(tf.memory().numTensors).toBe(during);
    expect(optimizer.getConfig()).toMatchObject({ rank: 2, updateProjGap: 5 });
    net.dispose();
    optimizer.dispose();
    tf.dispose([xs, ys]);
    expect(tf.memory().numTensors).toBe(before);
  });

  test('a model saved with its optimizer loads with it', async () => {
    const net = model();
    const samples = data();
    const optimizer = new GaLoreAdamOptimizer({ rank: 2, projType: 'reverse_std', states: 'int8' });
    net.compile({ optimizer, loss: 'categoricalCrossentropy' });
    await net.fit(samples.xs, samples.ys, { epochs: 1, batchSize: 16, verbose: 0 });
    let artifacts: tf.io.ModelArtifacts = {};
    const handler = tf.io.withSaveHandler(async (given) => {
      artifacts = given;
      return { modelArtifactsInfo: { dateSaved: new Date(), modelTopologyType: 'JSON' } };
    });
    await net.save(handler, { includeOptimizer: true });
    const loaded = await tf.loadLayersModel(tf.io.fromMemory(artifacts));
    const restored = loaded.optimizer as GaLoreAdamOptimizer;
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

  test('cpu and wasm agree, and the same seed gives the same result', async () => {
    const results: number[][] = [];
    for (const backend of ['cpu', 'wasm', 'wasm']) {
      await ready(backend);
      const net = model();
      const samples = data();
      const optimizer = galore({ rank: 2, updateProjGap: 4, learningRate: 0.01, svd: 'randomized' });
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

  test('variables that are not projected get plain Adam', () => {
    const [a, b] = ['one', 'two'].map((name) => {
      const start = random(1).normal([7]);
      const variable = tf.variable(start, true, `galore_bias_${name}`);
      start.dispose();
      return variable;
    });
    const ours = galore({ rank: 2, learningRate: 0.1, epsilon: 0 }).optimizer();
    const theirs = tf.train.adam(0.1, 0.9, 0.999, 1e-12);
    const loss = (v: tf.Variable) => () => tf.sum(tf.square(v)) as tf.Scalar;
    for (let i = 0; i < 10; i++) {
      ours.minimize(loss(a), false, [a]);
      theirs.minimize(loss(b), false, [b]);
    }
    values(a).forEach((value, i) => {
      expect(value).toBeCloseTo(values(b)[i], 4);
    });
    ours.dispose();
    theirs.dispose();
    tf.dispose([a, b]);
  });
});

describe('bad input', () => {
  test.each([
    [{ rank: 0 }, /galore\.rank: must be a positive integer, got 0/],
    [{ rank: 1.5 }, /galore\.rank: must be a positive integer, got 1\.5/],
    [
      { projType: 'both' },
      /galore\.projType: must be one of "std", "reverse_std", "left", "right", "full", got "both"/,
    ],
    [{ updateProjGap: 0 }, /galore\.updateProjGap: must be a positive integer, got 0/],
    [{ learningRate: Number.NaN }, /galore\.learningRate: .*got NaN/],
    [{ updateProjectionGap: 10 }, /galore\.updateProjectionGap: unknown option/],
    [{ include: 'all' }, /galore\.include: must be a function/],
  ] as [object, RegExp][])('%j', (options, message) => {
    expect(() => galore(options as GaLoreOptions)).toThrow(message);
  });

  test('a rank above the shorter side of a listed matrix, a listed vector, a gradient that is not finite', () => {
    tf.tidy(() => {
      const W = tf.zeros([4, 9]);
      const listed = (rank: number) => galore({ rank, include: () => true });
      expect(() => listed(5).init({ W })).toThrow(/galore\.rank \(W\): rank 5 exceeds min\(in, out\) = 4 of \[4, 9\]/);
      expect(() => listed(2).init({ b: tf.zeros([4]) })).toThrow(/galore\.include: .* shape \[4\] is no matrix/);
      const bad = tf.fill([4, 9], Number.NaN);
      const method = galore({ rank: 2 });
      expect(() => method.update({ W: bad }, method.init({ W }), { W })).toThrow(
        'gradient of W is not finite: SVD skipped',
      );
      expect(() => galoreProject(W as tf.Tensor2D, 5)).toThrow('rank 5 exceeds min(in, out)');
      expect(() => galoreProject(W as tf.Tensor2D, 2, 'up' as never)).toThrow(/projType: "up" given; accepted are std/);
    });
  });

  test('a refused gradient changes neither weights nor state', () => {
    const w = tf.variable(tf.tidy(() => random(1).normal([4, 9])));
    const optimizer = galore({ rank: 2, updateProjGap: 1 }).optimizer();
    optimizer.minimize(() => tf.sum(tf.square(w)) as tf.Scalar, false, [w]);
    const weights = values(w);
    const bad = tf.fill([4, 9], Number.NaN);
    expect(() => optimizer.applyGradients({ [w.name]: bad })).toThrow('is not finite');
    expect(values(w)).toEqual(weights);
    const state = optimizer.state();
    expect((state.state as Record<string, GaLoreState>)[w.name].step).toBe(1);
    disposeTree(state);
    tf.dispose([w, bad]);
    optimizer.dispose();
  });
});
