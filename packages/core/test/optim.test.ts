import * as tf from '@tensorflow/tfjs';
import { z } from 'zod';
import {
  adam,
  adamw,
  addDecayedWeights,
  applyUpdates,
  chain,
  clip,
  clipByGlobalNorm,
  defineTransformation,
  disposeTree,
  flattenTree,
  type GradientTransformation,
  graft,
  lion,
  masked,
  partition,
  perGroup,
  scale,
  scaleByAdam,
  scaleByLearningRate,
  schedules,
  sgd,
  toOptimizer,
  unflattenTree,
} from '../src/optim/index.ts';

const { constant, cosine, linear, warmup, warmupCosine } = schedules;
let before: number;
beforeAll(() => tf.setBackend('cpu'));
beforeEach(() => {
  before = tf.memory().numTensors;
});
afterEach(() => {
  expect(tf.memory().numTensors).toBe(before);
});

/** A variable that owns its initial value. */
function variableOf(value: tf.Tensor, name?: string): tf.Variable {
  const variable = tf.variable(value, true, name);
  value.dispose();
  return variable;
}

/** Runs `gradients` (one scalar a step) through a transformation and returns the parameter after each step. */
function trajectory(transformation: GradientTransformation, start: number, gradients: number[]): number[] {
  return tf.tidy(() => {
    let params: Record<string, tf.Tensor> = { w: tf.scalar(start) };
    let state = transformation.init(params);
    return gradients.map((g) => {
      const result = transformation.update({ w: tf.scalar(g) }, state, params);
      state = result.state;
      params = applyUpdates(params, result.updates);
      return params.w.dataSync()[0];
    });
  });
}

const gradients = [0.5, -1.25, 0.75, 2, -0.1];

function expectClose(got: ArrayLike<number>, expected: ArrayLike<number>, tolerance = 1e-6): void {
  expect(got.length).toBe(expected.length);
  for (let i = 0; i < got.length; i++) {
    expect(Math.abs(got[i] - expected[i])).toBeLessThanOrEqual(tolerance * (1 + Math.abs(expected[i])));
  }
}

describe('transformations', () => {
  test('sgd, momentum and Nesterov follow their recursions', () => {
    let w = 3;
    expectClose(
      trajectory(sgd({ learningRate: 0.1 }), 3, gradients),
      gradients.map((g) => (w -= 0.1 * g)),
    );
    for (const nesterov of [false, true]) {
      let velocity = 0;
      w = 3;
      expectClose(
        trajectory(sgd({ learningRate: 0.1, momentum: 0.9, nesterov }), 3, gradients),
        gradients.map((g) => {
          velocity = 0.9 * velocity + g;
          w -= 0.1 * (nesterov ? 0.9 * velocity + g : velocity);
          return w;
        }),
      );
    }
  });

  test('adam and adamw follow algorithm 1 and the decoupled decay', () => {
    for (const weightDecay of [0, 0.1]) {
      let [w, m, v] = [3, 0, 0];
      const expected = gradients.map((g, i) => {
        m = 0.8 * m + 0.2 * g;
        v = 0.95 * v + 0.05 * g * g;
        const step = m / (1 - 0.8 ** (i + 1)) / (Math.sqrt(v / (1 - 0.95 ** (i + 1))) + 1e-3);
        w -= 0.05 * (step + weightDecay * w);
        return w;
      });
      const options = { learningRate: 0.05, beta1: 0.8, beta2: 0.95, epsilon: 1e-3 };
      const transformation = weightDecay === 0 ? adam(options) : adamw({ ...options, weightDecay });
      expectClose(trajectory(transformation, 3, gradients), expected);
    }
  });

  test('lion steps by the sign of the interpolated momentum', () => {
    let [w, m] = [3, 0];
    const expected = gradients.map((g) => {
      w -= 0.01 * (Math.sign(0.9 * m + 0.1 * g) + 0.2 * w);
      m = 0.99 * m + 0.01 * g;
      return w;
    });
    expectClose(trajectory(lion({ learningRate: 0.01, weightDecay: 0.2 }), 3, gradients), expected);
  });

  test('clip limits entries, clipByGlobalNorm the joint norm and only when it is exceeded', () => {
    tf.tidy(() => {
      const updates = { a: tf.tensor1d([3, -0.5]), b: tf.tensor1d([4]) };
      const params = { a: tf.zeros([2]), b: tf.zeros([1]) };
      const apply = (t: GradientTransformation): number[] => {
        const result = t.update(updates, t.init(params), params).updates;
        return [...result.a.dataSync(), ...result.b.dataSync()];
      };
      expect(apply(clip(1))).toEqual([1, -0.5, 1]);
      expect(apply(clipByGlobalNorm(100))).toEqual([3, -0.5, 4]);
      const norm = Math.hypot(3, 0.5, 4);
      expectClose(apply(clipByGlobalNorm(2)), [6 / norm, -1 / norm, 8 / norm]);
    });
  });

  test('masks, groups and partitions reach the variables they name', () => {
    tf.tidy(() => {
      const updates = { 'x/lora_A': tf.scalar(1), 'x/lora_B': tf.scalar(1), bias: tf.scalar(1) };
      const params = { 'x/lora_A': tf.scalar(10), 'x/lora_B': tf.scalar(20), bias: tf.scalar(30) };
      const apply = (t: GradientTransformation): number[] => {
        const result = t.update(updates, t.init(params), params).updates;
        return ['x/lora_A', 'x/lora_B', 'bias'].map((name) => result[name].dataSync()[0]);
      };
      const group = (name: string): string => name.split('_')[1] ?? 'rest';
      expect(apply(perGroup({ B: 16 }, group))).toEqual([1, 16, 1]);
      expect(apply(partition({ A: scale(2), B: scale(3), rest: scale(0) }, group))).toEqual([2, 3, 0]);
      expect(apply(masked(scale(5), (name) => name !== 'bias'))).toEqual([5, 5, 1]);
      expect(apply(addDecayedWeights(0.5, (name) => name !== 'bias'))).toEqual([6, 11, 1]);
      expect(() => apply(partition({ A: scale(2) }, group))).toThrow(/labels: variable "x\/lora_B" is of group "B"/);
    });
  });

  test('schedules have the values of their formulas', () => {
    expect(constant(0.3)(17)).toBe(0.3);
    expect([0, 1, 4, 9].map(linear({ from: 1, to: 0, steps: 4 }))).toEqual([1, 0.75, 0, 0]);
    expect([0, 1, 3, 9].map(warmup({ peak: 2, steps: 4 }))).toEqual([0.5, 1, 2, 2]);
    expectClose([0, 25, 50, 100, 200].map(cosine({ peak: 1, steps: 100, end: 0.1 })), [
      1,
      0.1 + 0.45 * (1 + Math.SQRT1_2),
      0.55,
      0.1,
      0.1,
    ]);
    expectClose([0, 9, 10, 60, 110].map(warmupCosine({ peak: 1, warmup: 10, steps: 110 })), [0.1, 1, 1, 0.5, 0]);
    expect(() => linear({ from: 1, to: 0, steps: 0 })).toThrow('linear.steps: 0 given');
    expect(() => warmupCosine({ peak: 1, warmup: 10, steps: 10 })).toThrow('warmupCosine.steps');
    let w = 0;
    expectClose(
      trajectory(sgd({ learningRate: linear({ from: 1, to: 0, steps: 4 }) }), 0, [1, 1, 1, 1, 1]),
      [1, 0.75, 0.5, 0.25, 0].map((rate) => (w -= rate)),
    );
  });

  test('options out of range are refused by name', () => {
    expect(() => adam({ beta1: 1 })).toThrow('beta1: 1 given; accepted is a number in [0, 1)');
    expect(() => sgd({ learningRate: Number.NaN })).toThrow('learningRate: NaN given');
    expect(() => clipByGlobalNorm(0)).toThrow('clipByGlobalNorm: 0 given');
    expect(() => adamw({ weightDecay: -1 })).toThrow('weightDecay: -1 given');
  });

  test('options that are none are refused: the default would pass for them', () => {
    expect(() => adam(0.01 as never)).toThrow('adam: 0.01 given; its options are an object of learningRate, beta1');
    for (const make of [adam, adamw, lion, sgd]) {
      expect(() => make({ learningrate: 0.1 } as never)).toThrow(
        `${make.name}.learningrate: unknown option; did you mean "learningRate"?`,
      );
      expect(() => make({ lr: 0.1 } as never)).toThrow(
        `${make.name}.lr: unknown option; known options: learningRate, `,
      );
    }
  });
});

describe('state trees', () => {
  test('flatten and unflatten are inverse, whatever the keys hold', () => {
    const tree = {
      'a/b%2f[0]': [1, { x: new Int8Array([1, -2]) }, [], {}],
      'é{}': null,
      t: 'text',
      flag: true,
      deep: [[Number.NaN]],
    };
    expect(unflattenTree(flattenTree(tree))).toEqual(tree);
    expect(unflattenTree(flattenTree([]))).toEqual([]);
    expect(unflattenTree(flattenTree({}))).toEqual({});
    expect(() => flattenTree({ f: () => 1 })).toThrow('f: a state holds a function');
  });

  test('graft adds named entries at every depth and nothing else', () => {
    const old = [{ mu: { a: 1, b: 2 }, count: 7, extra: 1 }];
    expect(graft([{ mu: { a: 3 }, count: 8 }], old, new Set(['b']))).toEqual([{ mu: { a: 3, b: 2 }, count: 8 }]);
  });
});

describe('toOptimizer', () => {
  const target = [1, -2, 3];
  const loss = (w: tf.Variable) => () => tf.sum(tf.square(tf.sub(w, tf.tensor1d(target)))) as tf.Scalar;

  test('agrees with the optimizers of tfjs', () => {
    const pairs: [tf.Optimizer, tf.Optimizer][] = [
      [toOptimizer(adam({ learningRate: 0.1, epsilon: 1e-7 })), tf.train.adam(0.1, 0.9, 0.999, 1e-7)],
      [toOptimizer(sgd({ learningRate: 0.05 })), tf.train.sgd(0.05)],
      [toOptimizer(sgd({ learningRate: 0.02, momentum: 0.9 })), tf.train.momentum(0.02, 0.9)],
    ];
    for (const pair of pairs) {
      const [ours, theirs] = pair.map((optimizer) => {
        const w = variableOf(tf.zeros([3]));
        for (let i = 0; i < 20; i++) optimizer.minimize(loss(w), false, [w]);
        const values = w.dataSync();
        tf.dispose(w);
        return values;
      });
      expectClose(ours, theirs, 2e-5);
      pair[0].dispose();
      pair[1].dispose();
      // tfjs's momentum keeps its rate and its decay as tensors that dispose() forgets.
      tf.dispose(Object.values(pair[1]).filter((value) => value instanceof tf.Tensor && !value.isDisposed));
    }
  });

  test('keeps states by name through null gradients, new variables and other orders', () => {
    const names = ['optim_a', 'optim_b', 'optim_c'];
    const run = (plan: (string | null)[][]): number[] => {
      const variables = names.map((name, i) => variableOf(tf.scalar(i), name));
      const optimizer = toOptimizer(adam({ learningRate: 0.1 }));
      plan.forEach((present, step) => {
        const list = present.flatMap((name) =>
          name === null ? [] : [{ name, tensor: tf.scalar(names.indexOf(name) + 1 + step) }],
        );
        const missing = names.filter((name) => !present.includes(name));
        optimizer.applyGradients([...missing.map((name) => ({ name, tensor: null as unknown as tf.Tensor })), ...list]);
        tf.dispose(list.map(({ tensor }) => tensor));
      });
      const values = variables.map((variable) => variable.dataSync()[0]);
      tf.dispose(variables);
      optimizer.dispose();
      return values;
    };
    const [a, b, c] = names;
    const steady = run([
      [a, b, c],
      [a, b, c],
      [a, b, c],
    ]);
    expect(
      run([
        [c, a, b],
        [b, c, a],
        [a, c, b],
      ]),
    ).toEqual(steady);
    // b pauses at step 1, c joins at step 1: each must equal a run in which it alone took those steps.
    const changing = run([
      [a, b],
      [a, c],
      [c, b, a],
    ]);
    expect(changing[0]).toBe(steady[0]);
    expect(changing[1]).toBe(run([[b], [], [b]])[1]);
    expect(changing[2]).toBe(run([[], [c], [c]])[2]);
  });

  test('state() and restore() continue bit for bit, as do getWeights() and setWeights()', async () => {
    const make = () => toOptimizer(chain(clipByGlobalNorm(5), adamw({ learningRate: 0.1 })));
    const w = variableOf(tf.zeros([3]));
    const first = make();
    for (let i = 0; i < 3; i++) first.minimize(loss(w), false, [w]);
    const start = w.clone();
    const state = first.state();
    const weights = await first.getWeights();
    const results: number[][] = [];
    for (const load of ['none', 'state', 'weights']) {
      w.assign(start);
      const optimizer = load === 'none' ? first : make();
      if (load === 'state') optimizer.restore(state);
      if (load === 'weights') {
        optimizer.minimize(loss(w), false, [w]);
        w.assign(start);
        await optimizer.setWeights(weights);
      }
      for (let i = 0; i < 4; i++) optimizer.minimize(loss(w), false, [w]);
      expect(optimizer.iterations).toBe(7);
      results.push([...w.dataSync()]);
      optimizer.dispose();
    }
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
    disposeTree(state);
    tf.dispose([w, start]);
    tf.dispose(weights.map(({ tensor }) => tensor));
  });

  test('states of typed arrays and numbers survive getWeights exactly', async () => {
    const state = {
      q: new Int8Array([1, -128, 127]),
      u: new Uint8Array([255]),
      d: new Float64Array([Math.PI, -0, 1e-300]),
      f: new Float32Array([0.1]),
      n: 1 / 3,
      big: 2 ** 52 + 1,
      inf: Number.POSITIVE_INFINITY,
      s: 'left',
    };
    const held: GradientTransformation = { init: () => state, update: (updates) => ({ updates, state }) };
    const v = variableOf(tf.scalar(1));
    const a = toOptimizer(held);
    a.minimize(() => tf.square(v) as tf.Scalar, false, [v]);
    const weights = await a.getWeights();
    const b = toOptimizer(held);
    await b.setWeights(weights);
    expect(b.state().state).toEqual(state);
    expect(Object.is((b.state().state as typeof state).d[1], -0)).toBe(true);
    tf.dispose([v, ...weights.map(({ tensor }) => tensor)]);
  });

  test('works in model.compile and fit, also inside tidy, and leaks nothing', async () => {
    const model = tf.sequential({
      layers: [
        tf.layers.dense({ units: 4, inputShape: [3], kernelInitializer: tf.initializers.glorotUniform({ seed: 1 }) }),
        tf.layers.dense({ units: 1, kernelInitializer: tf.initializers.glorotUniform({ seed: 2 }) }),
      ],
    });
    const optimizer = toOptimizer(adam({ learningRate: 0.05 }));
    model.compile({ optimizer, loss: 'meanSquaredError' });
    const xs = tf.randomNormal([64, 3], 0, 1, 'float32', 3);
    const ys = tf.sum(xs, 1, true);
    const history = await model.fit(xs, ys, { epochs: 20, batchSize: 16, verbose: 0, shuffle: false });
    const losses = history.history.loss as number[];
    expect(losses[19]).toBeLessThan(0.05 * losses[0]);
    const count = tf.memory().numTensors;
    await model.fit(xs, ys, { epochs: 2, batchSize: 16, verbose: 0 });
    expect(tf.memory().numTensors).toBe(count);
    const w = variableOf(tf.zeros([3]));
    tf.tidy(() => void optimizer.minimize(loss(w), false, [w]));
    optimizer.minimize(loss(w), false, [w]);
    tf.dispose([xs, ys, w]);
    model.dispose();
    optimizer.dispose();
  });

  test('setLearningRate rescales; a schedule of its own refuses', () => {
    const w = variableOf(tf.scalar(0));
    const name = w.name;
    const step = (optimizer: tf.Optimizer): number => {
      const g = tf.scalar(1);
      optimizer.applyGradients({ [name]: g });
      g.dispose();
      return w.dataSync()[0];
    };
    const optimizer = toOptimizer(sgd({ learningRate: 0.5 }));
    expect(optimizer.learningRate).toBe(0.5);
    expect(step(optimizer)).toBe(-0.5);
    optimizer.setLearningRate(2);
    expect(step(optimizer)).toBe(-2.5);
    optimizer.setLearningRate(0);
    expect(step(optimizer)).toBe(-2.5);
    expect(() => optimizer.setLearningRate(Number.NaN)).toThrow('learningRate: NaN given');
    const scheduled = toOptimizer(sgd({ learningRate: (t) => 1 / (t + 1) }));
    expect(() => scheduled.setLearningRate(1)).toThrow('follows a schedule of its own');
    step(scheduled);
    expect(scheduled.learningRate).toBe(0.5);
    tf.dispose(w);
  });

  test('refuses unknown variables, wrong shapes and what is no transformation', () => {
    const w = variableOf(tf.zeros([2]));
    const g = tf.zeros([3]);
    const optimizer = toOptimizer(scaleByLearningRate(1));
    expect(() => optimizer.applyGradients({ [w.name]: g })).toThrow(
      'gradient of shape [3] for a variable of shape [2]',
    );
    expect(() => optimizer.applyGradients({ nowhere: g })).toThrow('nowhere: no variable of this name exists');
    expect(() => optimizer.getConfig()).toThrow(
      'includeOptimizer: this optimizer cannot be stored within a model file',
    );
    expect(() => toOptimizer({} as GradientTransformation)).toThrow('transformation: not a gradient transformation');
    tf.dispose([w, g]);
  });
});

describe('defineTransformation', () => {
  const info = {
    id: 'demo',
    title: 'Demo',
    family: 'optim',
    kind: 'gradient-transformation',
    paper: { title: 'X', year: 2020 },
  };
  const demo = defineTransformation({
    info,
    config: z.object({ learningRate: z.number().positive().default(0.1), bound: z.number().int().min(1).default(2) }),
    init: (params) => scaleByAdam().init(params),
    update(updates, state, params, { learningRate }) {
      const result = scaleByAdam().update(updates, state, params);
      const scaled = scale(-learningRate);
      return { updates: scaled.update(result.updates, scaled.init(params), params).updates, state: result.state };
    },
  });

  test('makes a validated factory with info and an optimizer', () => {
    expect(demo.info).toBe(info);
    expect(demo().config).toEqual({ learningRate: 0.1, bound: 2 });
    expect(demo({ learningRate: 0.2 }).optimizer().learningRate).toBe(0.2);
    expectClose(trajectory(demo(), 3, gradients), trajectory(adam({ learningRate: 0.1 }), 3, gradients));
  });

  test('another rate is set in the method itself', () => {
    const w = variableOf(tf.scalar(0));
    const seen: number[] = [];
    const method = defineTransformation({
      info,
      config: z.object({ learningRate: z.number().default(0) }),
      init: () => ({}),
      update(updates, state, _, { learningRate }) {
        seen.push(learningRate);
        return { updates, state };
      },
    });
    const optimizer = method().optimizer();
    optimizer.minimize(() => tf.square(w) as tf.Scalar, false, [w]);
    optimizer.setLearningRate(0.25);
    optimizer.minimize(() => tf.square(w) as tf.Scalar, false, [w]);
    expect(seen).toEqual([0, 0.25]);
    tf.dispose(w);
  });

  test('names the option at fault', () => {
    expect(() => demo({ bound: 0 })).toThrow(/demo\.bound/);
    expect(() => demo({ learningrate: 1 } as never)).toThrow(
      /demo\.learningrate: unknown option; did you mean "learningRate"/,
    );
  });
});
