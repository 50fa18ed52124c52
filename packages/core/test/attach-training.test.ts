import * as tf from '@tensorflow/tfjs';
import {
  adam,
  attach,
  count,
  detach,
  list,
  merge,
  setActive,
  sitesOf,
  toOptimizer,
  train,
  unmerge,
} from '../src/index.ts';
import {
  additive,
  bent,
  discard,
  expectClose,
  expectDifferent,
  moved,
  noise,
  numbers,
  outputs,
  randomise,
  replacing,
  scaling,
  snapshot,
  threeLayers,
  watchLeaks,
} from './attach-methods.ts';

watchLeaks();

const optimizers: Record<string, () => tf.Optimizer> = {
  sgd: () => tf.train.sgd(0.05),
  momentum: () => tf.train.momentum(0.02, 0.9),
  adam: () => tf.train.adam(0.02),
  rmsprop: () => tf.train.rmsprop(0.01, 0.9, 0.5),
  adagrad: () => tf.train.adagrad(0.05),
  adamax: () => tf.train.adamax(0.02),
  'adam of core': () => toOptimizer(adam({ learningRate: 0.02 })),
};

function functionalModel(): tf.LayersModel {
  const input = tf.input({ shape: [4] });
  const first = tf.layers.dense({ name: 'a', units: 5, activation: 'tanh' }).apply(input) as tf.SymbolicTensor;
  const inner = tf.sequential({
    name: 'inner',
    layers: [tf.layers.dense({ name: 'b', units: 6, inputShape: [5], activation: 'tanh' })],
  });
  const middle = inner.apply(first) as tf.SymbolicTensor;
  const last = tf.layers.dense({ name: 'c', units: 3 }).apply(middle) as tf.SymbolicTensor;
  return randomise(tf.model({ inputs: input, outputs: last }));
}

const kinds: Record<string, () => tf.LayersModel> = { Sequential: threeLayers, functional: functionalModel };
const loss = 'meanSquaredError';
const own = ['default/A', 'default/B'];

async function disposeAll(model: tf.LayersModel, optimizer: tf.Optimizer, ...tensors: tf.Tensor[]): Promise<void> {
  detach(model);
  free(optimizer);
  discard(model);
  tf.dispose(tensors);
}

/** tfjs's momentum leaves its learning rate behind. */
function free(optimizer: tf.Optimizer): void {
  optimizer.dispose();
  (optimizer as { c?: tf.Tensor }).c?.dispose();
}

describe.each(Object.entries(kinds))('%s', (_, make) => {
  test.each(['before', 'after'])('compiled %s attaching, fit trains the adapter alone', async (when) => {
    const model = make();
    const optimizer = tf.train.adam(0.02);
    const [x, y] = [noise([16, 4]), noise([16, 3], 9)];
    if (when === 'before') model.compile({ optimizer, loss, metrics: ['mse'] });
    await attach(model, additive(), { targets: ['a', 'b'] });
    if (when === 'after') model.compile({ optimizer, loss, metrics: ['mse'] });
    const before = snapshot(model);
    expect(model.trainableWeights.map(({ originalName }) => originalName)).toEqual([...own, ...own]);
    const seen: string[] = [];
    const { history } = await model.fit(x, y, {
      epochs: 8,
      batchSize: 8,
      verbose: 0,
      validationData: [x, y],
      callbacks: { onEpochEnd: async (epoch, logs) => void seen.push(`${epoch} ${Object.keys(logs ?? {})}`) },
    });
    expect(history.loss[7]).toBeLessThan(history.loss[0] as number);
    expect(seen).toHaveLength(8);
    expect(seen[0]).toContain('val_loss');
    expect(moved(model, before)).toEqual([...own, ...own]);
    const measured = model.evaluate(x, y, { verbose: 0 }) as tf.Scalar[];
    const expected = tf.tidy(() => tf.losses.meanSquaredError(y, model.predict(x) as tf.Tensor).dataSync()[0]);
    expect(numbers(measured[0])[0]).toBeCloseTo(expected, 5);
    const lines: string[] = [];
    model.summary(80, undefined, (line) => lines.push(line));
    const params = count(model);
    expect(lines.join('\n')).toContain(`Total params: ${params.total}`);
    expect(lines.join('\n')).toContain(`Trainable params: ${params.trainable}`);
    expect(params.trainable).toBe(2 * (4 + 5) + 2 * (5 + 6));
    tf.dispose(measured);
    await disposeAll(model, optimizer, x, y);
  });

  test.each(Object.entries(optimizers))(
    'trainOnBatch with %s: switching trains the new adapter, exactly',
    async (_, optimizer) => {
      const [x, y] = [noise([8, 4]), noise([8, 3], 9)];
      const run = async (switching: boolean) => {
        const model = make();
        const used = optimizer();
        await attach(model, additive(), { targets: ['a'], name: 'first', seed: 1 });
        if (switching) {
          // Of other sizes than the first, and compiled before it is attached.
          model.compile({ optimizer: used, loss });
          await attach(model, additive({ rank: 3 }), { targets: ['b', 'c'], name: 'second', seed: 2 });
          setActive(model, 'first');
        } else model.compile({ optimizer: used, loss });
        const step = async () => tf.dispose(await model.trainOnBatch(x, y));
        for (let i = 0; i < 3; i++) await step();
        let mine = snapshot(model);
        if (switching) {
          setActive(model, 'second');
          await step();
          expect(moved(model, mine)).toEqual(['second/A', 'second/B', 'second/A', 'second/B']);
          mine = snapshot(model);
          setActive(model, 'first');
        } else used.applyGradients({});
        await step();
        expect(moved(model, mine)).toEqual(['first/A', 'first/B']);
        const values = outputs(model, x);
        await disposeAll(model, used);
        return values;
      };
      // The steps of the second adapter leave the first one's optimizer state alone; only Adam's count is common to all.
      expectClose(await run(true), await run(false), 1e-6);
      tf.dispose([x, y]);
    },
  );

  test('the optimizer trains the base before and after an adapter, with its own state', async () => {
    const model = make();
    const optimizer = tf.train.momentum(0.02, 0.9);
    model.compile({ optimizer, loss });
    const plain = make();
    const other = tf.train.momentum(0.02, 0.9);
    plain.compile({ optimizer: other, loss });
    const [x, y] = [noise([8, 4]), noise([8, 3], 9)];
    const step = async (one: tf.LayersModel) => tf.dispose(await one.trainOnBatch(x, y));
    await step(model);
    await attach(model, additive(), { targets: ['b'] });
    await step(model);
    await step(model);
    detach(model);
    await step(model);
    await step(plain);
    await step(plain);
    expectClose(outputs(model, x), outputs(plain, x), 1e-6);
    free(optimizer);
    free(other);
    discard(model, plain);
    tf.dispose([x, y]);
  });

  test('fitDataset, the loop of core, and a method without a kernel', async () => {
    const model = make();
    const optimizer = tf.train.sgd(0.05);
    await attach(model, bent(), { targets: ['b'] });
    model.compile({ optimizer, loss });
    const [x, y] = [noise([8, 4]), noise([8, 3], 9)];
    const before = snapshot(model);
    const rows = tf.data.generator(function* () {
      for (let i = 0; i < 4; i++) yield { xs: noise([4], i), ys: noise([3], i) };
    });
    const held = tf.memory().numTensors;
    await model.fitDataset(rows.batch(2), { epochs: 2, verbose: 0 });
    expect(moved(model, before)).toEqual(['default/A']);
    const between = snapshot(model);
    await train(model, { xs: x, ys: y }, { epochs: 2, batchSize: 4 });
    expect(moved(model, between)).toEqual(['default/A']);
    expect(tf.memory().numTensors).toBe(held);
    await disposeAll(model, optimizer, x, y);
  });

  test('layers that the user froze stay frozen, an adapter on them trains, detaching leaves them frozen', async () => {
    const model = make();
    const [a, b] = sitesOf(model).map(({ layer }) => layer as unknown as tf.layers.Layer);
    a.trainable = false;
    b.trainable = false;
    const before = snapshot(model);
    const optimizer = tf.train.sgd(0.05);
    const [x, y] = [noise([8, 4]), noise([8, 3], 9)];
    await attach(model, additive(), { targets: ['a'] });
    await attach(model, replacing(), { targets: ['c'], name: 'whole' });
    setActive(model, 'default');
    model.compile({ optimizer, loss });
    let between = snapshot(model);
    tf.dispose(await model.trainOnBatch(x, y));
    expect(moved(model, between)).toEqual(own);
    setActive(model, 'whole');
    between = snapshot(model);
    tf.dispose(await model.trainOnBatch(x, y));
    // The rest of the model trains with it, but for what the user froze and the kernel that it stands for.
    expect(moved(model, between)).toEqual(['c/bias', 'whole/K']);
    detach(model);
    expect([a.trainable, b.trainable]).toEqual([false, false]);
    expect(Object.values(snapshot(model)).map(({ trainable }) => trainable)).toEqual(
      Object.values(before).map(({ trainable }) => trainable),
    );
    optimizer.dispose();
    discard(model);
    tf.dispose([x, y]);
  });

  test('getWeights and setWeights carry the adapter', async () => {
    const [model, other] = [make(), make()];
    await attach(model, scaling(), { targets: ['a', 'c'], seed: 1 });
    await attach(other, scaling(), { targets: ['a', 'c'], seed: 2 });
    const x = noise([3, 4]);
    expectDifferent(outputs(model, x), outputs(other, x));
    other.setWeights(model.getWeights());
    expect(outputs(other, x)).toEqual(outputs(model, x));
    expect(list(other)[0].trainable).toBe(5 + 3);
    for (const one of [model, other]) detach(one);
    discard(model, other);
    x.dispose();
  });
});

test('a merged adapter is not trained: refused, until it is unmerged', async () => {
  const model = randomise(tf.sequential({ layers: [tf.layers.dense({ name: 'map', units: 2, inputShape: [3] })] }));
  await attach(model, additive(), { targets: ['map'] });
  const data = { xs: tf.ones([4, 3]), ys: tf.ones([4, 2]) };
  const run = () => train(model, data, { optimizer: adam(), loss: 'meanSquaredError' });
  merge(model);
  await expect(run()).rejects.toThrow(
    /^model: has merged adapters \(default\).*; unmerge\(model\) first, or mergeAndUnload/,
  );
  unmerge(model);
  expect((await run()).step).toBe(1);
  tf.dispose([data.xs, data.ys]);
  discard(model);
});
