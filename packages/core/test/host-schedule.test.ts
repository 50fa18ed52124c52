import * as tf from '@tensorflow/tfjs';
import { z } from 'zod';
import {
  attach,
  count,
  defineLinearMethod,
  detach,
  memoryStorage,
  normal,
  ones,
  type StepDecision,
  type StepInfo,
  setActive,
  train,
  trainable,
} from '../src/index.ts';
import { discard, moved, noise, numbers, outputs, snapshot, threeLayers, watchLeaks } from './attach-methods.ts';

watchLeaks();

type Key = 'A' | 'c';
let decide: (info: StepInfo<Key>) => StepDecision<Key> | undefined = () => undefined;
const seen: string[] = [];

/** y = (x·A + base(x))·c with the schedule that a test wants. */
const scheduled = defineLinearMethod({
  info: { id: 'scheduled', title: 'scheduled', family: 'test', kind: 'adapter', paper: { title: '', year: 2024 } },
  config: z.object({ penalty: z.number().default(0), dropout: z.number().default(0) }),
  tensors: ({ inDim, outDim }) => ({ A: trainable([inDim, outDim], normal(0.3)), c: trainable([outDim], ones) }),
  forward: (x, { A, c }, { base, dropout }) =>
    tf.mul(tf.add(base.apply(x), tf.matMul(dropout(x) as tf.Tensor2D, A as tf.Tensor2D)), c),
  penalty: ({ A }, { config }) => tf.mul(tf.sum(tf.square(A)), config.penalty) as tf.Scalar,
  schedule(sites) {
    // Counts its steps and sums the gradients of one tensor, as state of both kinds.
    let steps = 0;
    let sum: tf.Tensor = tf.zerosLike(sites[0].tensors.c);
    return {
      onStep(info) {
        steps++;
        const gradient = info.gradient(sites[0].site.name, 'c');
        seen.push(`${info.step}/${info.totalSteps} ${steps} ${gradient ? 'c' : '-'}`);
        if (gradient) {
          const next = tf.add(sum, gradient);
          sum.dispose();
          sum = next;
        }
        return decide(info as StepInfo<Key>);
      },
      state: () => ({ steps, sum: tf.clone(sum) }),
      restore(state) {
        const { steps: before, sum: total } = state as { steps: number; sum: tf.Tensor };
        steps = before;
        sum.dispose();
        sum = tf.clone(total);
        seen.push(`restored ${before}`);
      },
      dispose() {
        sum.dispose();
        seen.push('disposed');
      },
    };
  },
});

beforeEach(() => {
  seen.length = 0;
  decide = () => undefined;
});

async function fit(model: tf.LayersModel, optimizer: tf.Optimizer, steps: number): Promise<void> {
  const [x, y] = [noise([8, 4]), noise([8, 3], 5)];
  model.compile({ optimizer, loss: 'meanSquaredError' });
  for (let i = 0; i < steps; i++) tf.dispose(await model.trainOnBatch(x, y));
  tf.dispose([x, y]);
}

test('runs at every step of the active adapter and ends with it', async () => {
  const model = threeLayers();
  await attach(model, scheduled(), { targets: ['b', 'c'] });
  await attach(model, scheduled(), { targets: ['c'], name: 'other' });
  const optimizer = tf.train.sgd(0.1);
  setActive(model, 'default');
  await fit(model, optimizer, 2);
  expect(seen).toEqual(['1/undefined 1 c', '2/undefined 2 c']);
  detach(model, 'default');
  expect(seen).toEqual(['1/undefined 1 c', '2/undefined 2 c', 'disposed']);
  setActive(model, 'other');
  await fit(model, optimizer, 1);
  expect(seen.at(-1)).toBe('3/undefined 1 c');
  detach(model);
  optimizer.dispose();
  discard(model);
});

test('what is frozen stops at once, under momentum as well, also after switching away and back', async () => {
  const model = threeLayers();
  await attach(model, scheduled(), { targets: ['b', 'c'] });
  decide = ({ step }) => (step === 3 ? { freeze: [{ site: 'b', tensor: 'A' }] } : undefined);
  const optimizer = tf.train.adam(0.05);
  const start = count(model).trainable;
  await fit(model, optimizer, 2);
  const before = snapshot(model);
  await fit(model, optimizer, 1);
  expect(moved(model, before)).toEqual(['default/c', 'default/A', 'default/c']);
  expect(count(model).trainable).toBe(start - 30);
  setActive(model, []);
  setActive(model, 'default');
  expect(count(model).trainable).toBe(start - 30);
  const frozen = snapshot(model);
  await fit(model, optimizer, 2);
  expect(moved(model, frozen)).toEqual(['default/c', 'default/A', 'default/c']);
  detach(model);
  optimizer.dispose();
  discard(model);
});

test('masked entries stay, others move; assigned values are there after the step', async () => {
  const model = threeLayers();
  await attach(model, scheduled(), { targets: ['b'] });
  decide = ({ step }) => {
    if (step === 2) return { masks: [{ site: 'b', tensor: 'c', mask: tf.tensor1d([0, 1, 0, 1, 1, 1]) }] };
    return step === 3 ? { assign: [{ site: 'b', tensor: 'c', value: tf.fill([6], 2) }] } : undefined;
  };
  const optimizer = tf.train.adam(0.05);
  const c = () => {
    const weight = model.weights.find(({ originalName }) => originalName === 'default/c');
    return numbers(weight?.read() as tf.Tensor);
  };
  await fit(model, optimizer, 1);
  const first = c();
  await fit(model, optimizer, 1);
  const second = c();
  expect(second.map((value, i) => value === first[i])).toEqual([true, false, true, false, false, false]);
  await fit(model, optimizer, 1);
  expect(c()).toEqual(new Array(6).fill(2));
  detach(model);
  optimizer.dispose();
  discard(model);
});

test('a decision about a tensor that does not train is an error that names it', async () => {
  const model = threeLayers();
  await attach(model, scheduled(), { targets: ['b'] });
  decide = () => ({ freeze: [{ site: 'a', tensor: 'A' }] });
  const optimizer = tf.train.sgd(0.05);
  const [x, y] = [noise([2, 4]), noise([2, 3])];
  await expect(train(model, { xs: x, ys: y }, { optimizer, loss: 'meanSquaredError' })).rejects.toThrow(
    /a\.A: is not a trainable tensor of the adapter/,
  );
  tf.dispose([x, y]);
  detach(model);
  optimizer.dispose();
  discard(model);
});

test('its state, tensors included, and what it froze go on in a resumed training', async () => {
  const storage = memoryStorage();
  const run = async (steps: number) => {
    const model = threeLayers();
    await attach(model, scheduled(), { targets: ['b', 'c'] });
    decide = ({ step }) => (step === 2 ? { freeze: [{ site: 'c', tensor: 'A' }] } : undefined);
    const [xs, ys] = [noise([8, 4]), noise([8, 3], 5)];
    const optimizer = tf.train.momentum(0.05, 0.9);
    model.compile({ optimizer, loss: 'meanSquaredError' });
    await train(model, { xs, ys }, { batchSize: 4, steps, checkpoint: { storage, resume: true } });
    const trained = count(model).trainable;
    const values = outputs(model, xs);
    detach(model);
    optimizer.dispose();
    (optimizer as unknown as { c: tf.Tensor }).c.dispose();
    discard(model);
    tf.dispose([xs, ys]);
    return { trained, values };
  };
  await run(3);
  const resumed = await run(5);
  expect(seen).toEqual([
    ...['1/3 1 c', '2/3 2 c', '3/3 3 c', 'disposed'],
    ...['restored 3', '4/5 4 c', '5/5 5 c', 'disposed'],
  ]);
  storage.files.clear();
  expect(await run(5)).toEqual(resumed);
  expect(resumed.trained).toBe(5 * 6 + 6 + 3);
});

test('a penalty is part of the loss while its adapter is active', async () => {
  const model = threeLayers();
  await attach(model, scheduled({ penalty: 0.7 }), { targets: ['b', 'c'] });
  const [x, y] = [noise([8, 4]), noise([8, 3], 5)];
  const optimizer = tf.train.sgd(0);
  model.compile({ optimizer, loss: 'meanSquaredError' });
  const measure = () => tf.tidy(() => numbers(tf.losses.meanSquaredError(y, model.predict(x) as tf.Tensor))[0]);
  const squares = model.weights
    .filter(({ originalName }) => originalName === 'default/A')
    .reduce((sum, weight) => sum + numbers(weight.read()).reduce((total, value) => total + value ** 2, 0), 0);
  expect(await model.trainOnBatch(x, y)).toBeCloseTo(measure() + 0.7 * squares, 4);
  await attach(model, scheduled(), { targets: ['a'], name: 'other' });
  expect(await model.trainOnBatch(x, y)).toBeCloseTo(measure(), 5);
  detach(model, 'default');
  expect(await model.trainOnBatch(x, y)).toBeCloseTo(measure(), 5);
  tf.dispose([x, y]);
  detach(model);
  optimizer.dispose();
  discard(model);
});

test('dropout acts while training only, and by the seed', async () => {
  const model = threeLayers();
  const x = noise([8, 4]);
  const apply = (training: boolean) => tf.tidy(() => numbers(model.apply(x, { training }) as tf.Tensor));
  const draw = async (seed: number) => {
    await attach(model, scheduled({ dropout: 0.5 }), { targets: ['a', 'b'], seed });
    const drawn = [apply(true), apply(true), apply(false), apply(false)];
    detach(model);
    return drawn;
  };
  const [one, again, other] = [await draw(1), await draw(1), await draw(2)];
  expect(again).toEqual(one);
  expect(one[1]).not.toEqual(one[0]);
  expect(one[3]).toEqual(one[2]);
  expect(one[2]).not.toEqual(one[0]);
  expect(other[0]).not.toEqual(one[0]);
  x.dispose();
  discard(model);
});
