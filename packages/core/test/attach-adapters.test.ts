import * as tf from '@tensorflow/tfjs';
import {
  adapterTensors,
  attach,
  count,
  deltas,
  detach,
  disable,
  list,
  merge,
  mergeAndUnload,
  predictMixed,
  setActive,
  setAdapterTensors,
  unmerge,
} from '../src/index.ts';
import {
  additive,
  bent,
  discard,
  expectClose,
  expectDifferent,
  kernelOf,
  noise,
  numbers,
  outputs,
  scaling,
  snapshot,
  threeLayers,
  watchLeaks,
} from './attach-methods.ts';

watchLeaks(() => {
  discard(model);
  x.dispose();
});

let model: tf.Sequential;
let x: tf.Tensor2D;
let start: number[];
beforeEach(() => {
  model = threeLayers();
  x = noise([3, 4]) as tf.Tensor2D;
  start = outputs(model, x);
});
const read = (name: string, site: string, tensor: string) => adapterTensors(model, name)[site][tensor];

/** x through the three layers with the kernels and biases that `change` makes, by plain tfjs. */
function reference(change: (name: string, kernel: tf.Tensor, bias: tf.Tensor) => [tf.Tensor, tf.Tensor]): number[] {
  return tf.tidy(() => {
    const y = model.layers.reduce<tf.Tensor>((input, layer, i) => {
      const [kernel, bias] = change(layer.name, ...kernelOf(model, layer.name));
      const sum = tf.add(tf.matMul(input as tf.Tensor2D, kernel as tf.Tensor2D), bias);
      return i < 2 ? tf.tanh(sum) : sum;
    }, x);
    return numbers(y);
  });
}

const product = (name: string, site: string) =>
  tf.matMul(read(name, site, 'A') as tf.Tensor2D, read(name, site, 'B') as tf.Tensor2D);

describe('several adapters', () => {
  test('additive ones add up in any order; a site that one of them lacks runs without it', async () => {
    await attach(model, additive(), { name: 'one', targets: ['a', 'b'], seed: 1 });
    await attach(model, additive({ rank: 1 }), { name: 'two', targets: ['b', 'c'], seed: 2 });
    expect(list(model).map(({ name, active }) => [name, active])).toEqual([
      ['one', false],
      ['two', true],
    ]);
    setActive(model, ['one', 'two']);
    const both = outputs(model, x);
    const expected = reference((name, kernel, bias) => {
      const terms = [kernel];
      if (name !== 'c') terms.push(product('one', name));
      if (name !== 'a') terms.push(product('two', name));
      return [tf.addN(terms), bias];
    });
    expectClose(both, expected);
    setActive(model, ['two', 'one']);
    expectClose(outputs(model, x), both);
    merge(model);
    expectClose(outputs(model, x), both);
    unmerge(model);
    detach(model);
    expect(outputs(model, x)).toEqual(start);
  });

  test('multiplicative ones apply in the order of the list', async () => {
    await attach(model, additive(), { name: 'sum', targets: ['b'], seed: 1 });
    await attach(model, scaling(), { name: 'scale', targets: ['b'], seed: 2 });
    const c = read('scale', 'b', 'c');
    const orders = {
      'sum,scale': (kernel: tf.Tensor) => tf.mul(tf.add(kernel, product('sum', 'b')), c),
      'scale,sum': (kernel: tf.Tensor) => tf.add(tf.mul(kernel, c), product('sum', 'b')),
    };
    const results = Object.entries(orders).map(([order, apply]) => {
      setActive(model, order.split(','));
      const y = outputs(model, x);
      expectClose(
        y,
        reference((name, kernel, bias) => (name === 'b' ? [apply(kernel), tf.mul(bias, c)] : [kernel, bias])),
      );
      merge(model);
      expectClose(outputs(model, x), y);
      unmerge(model);
      expect(outputs(model, x)).toEqual(y);
      return y;
    });
    expectDifferent(results[0], results[1]);
    detach(model);
  });

  test('one without a kernel works on top of others, and others on top of it', async () => {
    await attach(model, bent(), { name: 'bent', targets: ['b'], seed: 1 });
    await attach(model, scaling({ shift: true }), { name: 'scale', targets: ['b'], seed: 2 });
    setActive(model, ['bent', 'scale']);
    const [A, c, d] = [read('bent', 'b', 'A'), read('scale', 'b', 'c'), read('scale', 'b', 'd')];
    const expected = tf.tidy(() => {
      const [a, b, last] = ['a', 'b', 'c'].map((name) => kernelOf(model, name));
      const h = tf.tanh(tf.add(tf.matMul(x, a[0]), a[1])) as tf.Tensor2D;
      const base = tf.add(tf.add(tf.matMul(h, b[0]), b[1]), tf.tanh(tf.matMul(h, A as tf.Tensor2D)));
      const y = tf.tanh(tf.add(tf.mul(base, c), d)) as tf.Tensor2D;
      return numbers(tf.add(tf.matMul(y, last[0]), last[1]));
    });
    expectClose(outputs(model, x), expected);
    expect(() => merge(model)).toThrow(/bent: bent is not mergeable/);
    expect(() => deltas(model, 'bent')).toThrow(/b: bent is not mergeable/);
    detach(model);
  });

  test('one of two is deleted, its name is free again', async () => {
    await attach(model, additive(), { name: 'one', targets: ['a', 'b'], seed: 1 });
    const one = outputs(model, x);
    const held = tf.memory().numTensors;
    await attach(model, scaling(), { name: 'two', targets: ['b', 'c'], seed: 2 });
    const two = outputs(model, x);
    detach(model, 'two');
    expect(tf.memory().numTensors).toBe(held);
    expect(outputs(model, x)).toEqual(start);
    expect(list(model).map(({ name, active }) => [name, active])).toEqual([['one', false]]);
    setActive(model, 'one');
    expect(outputs(model, x)).toEqual(one);
    await attach(model, scaling(), { name: 'two', targets: ['b', 'c'], seed: 2 });
    expect(outputs(model, x)).toEqual(two);
    detach(model, 'one');
    expect(outputs(model, x)).toEqual(two);
    expect(() => detach(model, 'one')).toThrow(/name: there is no adapter "one"; attached: two/);
    detach(model);
    expect(() => detach(model)).toThrow(/model: has no adapters/);
    await attach(model, scaling(), { name: 'two', targets: ['b', 'c'], seed: 2 });
    expect(outputs(model, x)).toEqual(two);
    detach(model);
  });

  test('what cannot be chosen is refused', async () => {
    await attach(model, additive(), { name: 'one' });
    expect(() => setActive(model, 'two')).toThrow(/adapter: there is no adapter "two"; attached: one/);
    expect(() => setActive(model, ['one', 'one'])).toThrow(/names: lists an adapter twice: one, one/);
    expect(list(model)[0].active).toBe(true);
    merge(model);
    expect(() => setActive(model, [])).toThrow(/model: has merged adapters \(one\); unmerge first/);
    await expect(attach(model, additive(), { name: 'two' })).rejects.toThrow(/has merged adapters \(one\)/);
    expect(() => detach(model)).toThrow(/has merged adapters \(one\)/);
    expect(() => predictMixed(model, x, ['one', 'one', 'one'])).toThrow(/has merged adapters \(one\)/);
    unmerge(model);
    detach(model);
  });
});

describe('disable', () => {
  test('runs the base model in a function, in a promise, and after an error', async () => {
    await attach(model, additive());
    const y = outputs(model, x);
    expect(disable(model, () => outputs(model, x))).toEqual(start);
    expect(outputs(model, x)).toEqual(y);
    const slow = disable(model, async () => {
      await new Promise((resolve) => setTimeout(resolve, 5));
      return outputs(model, x);
    });
    expect(outputs(model, x)).toEqual(start);
    expect(await slow).toEqual(start);
    expect(outputs(model, x)).toEqual(y);
    // A promise of tfjs's own, which need not be of this realm.
    const read = disable(model, () => {
      const prediction = model.predict(x) as tf.Tensor;
      return prediction.data().finally(() => prediction.dispose());
    });
    expect(outputs(model, x)).toEqual(start);
    expect(Array.from(await read)).toEqual(start);
    expect(outputs(model, x)).toEqual(y);
    const fail = () => {
      throw new Error('no');
    };
    expect(() => disable(model, fail)).toThrow('no');
    await expect(disable(model, async () => fail())).rejects.toThrow('no');
    expect(outputs(model, x)).toEqual(y);
    disable(model, () => {
      disable(model, () => 0);
      expect(outputs(model, x)).toEqual(start);
    });
    expect(outputs(model, x)).toEqual(y);
    detach(model);
  });

  test('unmerges a merged model for its time', async () => {
    await attach(model, scaling());
    merge(model);
    const merged = outputs(model, x);
    expect(disable(model, () => outputs(model, x))).toEqual(start);
    expect(outputs(model, x)).toEqual(merged);
    expect(list(model)[0].merged).toBe(true);
    unmerge(model);
    detach(model);
  });
});

describe('merging', () => {
  test('adapters one after the other equal both at once; unmerging restores bit for bit', async () => {
    const before = snapshot(model);
    await attach(model, additive(), { name: 'one', targets: ['a', 'b'], seed: 1 });
    await attach(model, scaling(), { name: 'two', targets: ['b', 'c'], seed: 2 });
    setActive(model, ['one', 'two']);
    const both = outputs(model, x);
    const held = tf.memory().numTensors;
    merge(model, 'one');
    expect(list(model).map(({ merged }) => merged)).toEqual([true, false]);
    merge(model, ['two']);
    const merged = outputs(model, x);
    expectClose(merged, both);
    expect(() => merge(model, 'one')).toThrow(/names: adapter "one" is merged already/);
    unmerge(model);
    expect(tf.memory().numTensors).toBe(held);
    expect(() => unmerge(model)).toThrow(/model: has no merged adapters/);
    expect(outputs(model, x)).toEqual(both);
    merge(model);
    expect(outputs(model, x)).toEqual(merged);
    unmerge(model);
    expect(() => merge(model, ['one', 'one'])).toThrow(/names: adapter "one" is merged already/);
    expect(() => merge(model, 'three')).toThrow(/there is no adapter "three"; attached: one, two/);
    setActive(model, []);
    expect(() => merge(model)).toThrow(/names: no adapter is active/);
    detach(model);
    expect(snapshot(model)).toEqual(before);
  });

  test.each([Number.NaN, Number.POSITIVE_INFINITY])(
    '%d in an adapter is refused, unless safe is off',
    async (value) => {
      await attach(model, additive(), { name: 'good', targets: ['a', 'b'] });
      await attach(model, additive(), { name: 'broken', targets: ['a', 'b'] });
      const before = snapshot(model);
      const bad = tf.fill([2, 6], value);
      setAdapterTensors(model, 'broken', { b: { B: bad } });
      merge(model, 'good');
      const good = outputs(model, x);
      const held = tf.memory().numTensors;
      expect(() => merge(model, 'broken')).toThrow(/NaNs detected in the merged weights. The adapter broken seems/);
      expect(tf.memory().numTensors).toBe(held);
      expect(outputs(model, x)).toEqual(good);
      merge(model, 'broken', { safe: false });
      expect(outputs(model, x).every(Number.isFinite)).toBe(false);
      expect(disable(model, () => outputs(model, x))).toEqual(start);
      unmerge(model);
      bad.dispose();
      detach(model, 'broken');
      expect(Object.keys(snapshot(model)).length).toBe(Object.keys(before).length - 4);
      detach(model);
      expect(outputs(model, x)).toEqual(start);
    },
  );

  test('a bias without a place is refused, where the adapter itself runs', async () => {
    const plain = tf.sequential({
      layers: [tf.layers.dense({ name: 'a', units: 2, inputShape: [4], useBias: false })],
    });
    await attach(plain, scaling({ shift: true }));
    const y = outputs(plain, x);
    const { c, d } = adapterTensors(plain, 'default').a;
    expectClose(
      y,
      tf.tidy(() => numbers(tf.add(tf.mul(tf.matMul(x, kernelOf(plain, 'a')[0]), c), d))),
    );
    expect(() => merge(plain)).toThrow(/a: the adapter has a bias and the layer has none/);
    await expect(plain.save(tf.io.withSaveHandler(async () => ({ modelArtifactsInfo: {} as never })))).rejects.toThrow(
      /a: the adapter has a bias and the layer has none/,
    );
    expect(outputs(plain, x)).toEqual(y);
    detach(plain);
    discard(plain);
  });

  test('mergeAndUnload leaves an ordinary model', async () => {
    const keys = model.layers.map((layer) => Object.keys(layer).sort());
    const own = Object.keys(model).sort();
    const flags = Object.values(snapshot(model)).map(({ trainable }) => trainable);
    const held = tf.memory().numTensors;
    await attach(model, additive(), { name: 'one', targets: ['a', 'b'], seed: 1 });
    await attach(model, scaling(), { name: 'two', targets: ['b'], seed: 2 });
    setActive(model, ['one', 'two']);
    const y = outputs(model, x);
    mergeAndUnload(model);
    expectClose(outputs(model, x), y);
    expect(tf.memory().numTensors).toBe(held);
    expect(() => list(model)).toThrow(/has no adapters/);
    expect(Object.values(snapshot(model)).map(({ trainable }) => trainable)).toEqual(flags);
    expect(model.layers.map((layer) => Object.keys(layer).sort())).toEqual(keys);
    expect(Object.keys(model).filter((key) => !own.includes(key) && key !== 'stopTraining')).toEqual([]);

    await attach(model, additive(), { name: 'three', targets: ['c'] });
    merge(model, 'three');
    const merged = outputs(model, x);
    mergeAndUnload(model);
    expect(outputs(model, x)).toEqual(merged);
  });
});

describe('tensors', () => {
  test('deltas are what merging adds, also while merged', async () => {
    await attach(model, scaling(), { name: 'two', targets: ['b'], seed: 2 });
    const before = deltas(model, 'two');
    expect(Object.keys(before)).toEqual(['b']);
    const kernel = kernelOf(model, 'b')[0];
    expectClose(
      numbers(before.b),
      tf.tidy(() => numbers(tf.mul(kernel, tf.sub(read('two', 'b', 'c'), 1)))),
    );
    merge(model);
    const after = deltas(model, 'two');
    expect(numbers(after.b)).toEqual(numbers(before.b));
    unmerge(model);
    tf.dispose([before, after]);
    detach(model);
  });

  test('replaced tensors act at once; what does not fit replaces nothing', async () => {
    await attach(model, additive(), { name: 'one', targets: ['a', 'b'], seed: 1 });
    const y = outputs(model, x);
    const [A, wrong] = [tf.ones([4, 2]), tf.ones([3, 2])];
    const held = tf.memory().numTensors;
    const set =
      (values: Parameters<typeof setAdapterTensors>[2], name = 'one') =>
      () =>
        setAdapterTensors(model, name, values);
    expect(set({ a: { A }, b: { A: wrong } })).toThrow(/one\.b\.A: has shape \[5,2\], got a value of shape \[3,2\]/);
    expect(set({ a: { A, C: A } })).toThrow(/one\.a\.C: no such tensor; the layer has A, B/);
    expect(set({ a: { A }, c: { A } })).toThrow(/one\.c\.A: the adapter has no layer "c"; it has a, b/);
    expect(set({}, 'two')).toThrow(/there is no adapter "two"/);
    expect(outputs(model, x)).toEqual(y);
    expect(tf.memory().numTensors).toBe(held);
    set({ a: { A } })();
    expect(numbers(read('one', 'a', 'A'))).toEqual(new Array(8).fill(1));
    expectDifferent(outputs(model, x), y);
    expect(tf.memory().numTensors).toBe(held);
    A.dispose();
    expect(numbers(read('one', 'a', 'A'))).toEqual(new Array(8).fill(1));
    wrong.dispose();
    expect(count(model)).toEqual({
      trainable: 2 * 9 + 2 * 11,
      total: 2 * 9 + 2 * 11 + 25 + 36 + 21,
      adapters: { one: 40 },
    });
    detach(model);
  });
});
