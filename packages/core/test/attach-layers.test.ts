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
  namedLayers,
  predictMixed,
  setActive,
  unmerge,
} from '../src/index.ts';
import {
  additive,
  bent,
  discard,
  expectClose,
  expectDifferent,
  noise,
  numbers,
  outputs,
  randomise,
  scaling,
  snapshot,
  watchLeaks,
} from './attach-methods.ts';

watchLeaks();

interface Case {
  make: () => tf.LayersModel;
  input: () => tf.Tensor | tf.Tensor[];
  /** Names of the adapted layers. */
  sites: string[];
}

/** y = x·k, a layer of the user's own with a trainable vector. */
class Gain extends tf.layers.Layer {
  static className = 'AttachTestGain';
  private gain?: { read(): tf.Tensor };
  override build(shape: tf.Shape): void {
    this.gain = this.addWeight('gain', [shape[shape.length - 1] as number], 'float32', tf.initializers.ones());
    this.built = true;
  }
  override call(inputs: tf.Tensor | tf.Tensor[]): tf.Tensor {
    return tf.tidy(() => tf.mul(Array.isArray(inputs) ? inputs[0] : inputs, this.gain?.read() as tf.Tensor));
  }
}
tf.serialization.registerClass(Gain as unknown as Parameters<typeof tf.serialization.registerClass>[0]);

function image(args: Partial<Parameters<typeof tf.layers.conv2d>[0]>): Case {
  return {
    make: () =>
      tf.sequential({
        layers: [
          tf.layers.conv2d({ name: 'conv', filters: 4, kernelSize: 3, inputShape: [7, 6, 2], ...args }),
          tf.layers.flatten(),
          tf.layers.dense({ name: 'head', units: 2 }),
        ],
      }),
    input: () => noise([2, 7, 6, 2]),
    sites: ['conv', 'head'],
  };
}

const cases: Record<string, Case> = {
  'a functional model with two inputs and two outputs': {
    make() {
      const [left, right] = [tf.input({ shape: [3] }), tf.input({ shape: [4] })];
      const joined = tf.layers
        .concatenate()
        .apply([
          tf.layers.dense({ name: 'left', units: 4, activation: 'relu' }).apply(left) as tf.SymbolicTensor,
          tf.layers.dense({ name: 'right', units: 4, useBias: false }).apply(right) as tf.SymbolicTensor,
        ]);
      const outputs = ['first', 'second'].map(
        (name) => tf.layers.dense({ name, units: 2, activation: 'softmax' }).apply(joined) as tf.SymbolicTensor,
      );
      return tf.model({ inputs: [left, right], outputs });
    },
    input: () => [noise([5, 3]), noise([5, 4], 8)],
    sites: ['left', 'right', 'first', 'second'],
  },
  'models within models': {
    make() {
      const input = tf.input({ shape: [4] });
      const deep = tf.layers.dense({ name: 'deep', units: 4, activation: 'tanh' });
      const core = tf.model({ inputs: input, outputs: deep.apply(input) as tf.SymbolicTensor, name: 'core' });
      const block = tf.sequential({ name: 'block' });
      block.add(tf.layers.dense({ name: 'inner', units: 4, inputShape: [4] }));
      block.add(core);
      const outer = tf.input({ shape: [4] });
      const head = tf.layers.dense({ name: 'head', units: 2 });
      return tf.model({ inputs: outer, outputs: head.apply(block.apply(outer)) as tf.SymbolicTensor });
    },
    input: () => noise([3, 4]),
    sites: ['block.inner', 'block.core.deep', 'head'],
  },
  'one layer at two places': {
    make() {
      const input = tf.input({ shape: [4] });
      const shared = tf.layers.dense({ name: 'shared', units: 4, activation: 'tanh' });
      const once = shared.apply(input) as tf.SymbolicTensor;
      const head = tf.layers.dense({ name: 'head', units: 2 });
      return tf.model({ inputs: input, outputs: head.apply(shared.apply(once)) as tf.SymbolicTensor });
    },
    input: () => noise([3, 4]),
    sites: ['shared', 'head'],
  },
  'one layer inside and outside of a nested model': {
    make() {
      const shared = tf.layers.dense({ name: 'shared', units: 4, activation: 'tanh' });
      const inner = tf.input({ shape: [4] });
      const block = tf.model({ inputs: inner, outputs: shared.apply(inner) as tf.SymbolicTensor, name: 'block' });
      const input = tf.input({ shape: [4] });
      return tf.model({ inputs: input, outputs: block.apply(shared.apply(input)) as tf.SymbolicTensor });
    },
    input: () => noise([3, 4]),
    sites: ['shared'],
  },
  'TimeDistributed, of a layer and of a model': {
    make() {
      const block = tf.sequential({
        name: 'block',
        layers: [tf.layers.dense({ name: 'in', units: 4, inputShape: [5] })],
      });
      return tf.sequential({
        layers: [
          tf.layers.timeDistributed({
            name: 'each',
            layer: tf.layers.dense({ name: 'step', units: 5, activation: 'tanh' }),
            inputShape: [3, 4],
          }),
          tf.layers.timeDistributed({ name: 'again', layer: block }),
        ],
      });
    },
    input: () => noise([2, 3, 4]),
    sites: ['each.step', 'again.block.in'],
  },
  'sequences through dense layers': {
    make: () =>
      tf.sequential({
        layers: [
          tf.layers.dense({ name: 'a', units: 5, inputShape: [3, 2, 4], activation: 'elu' }),
          tf.layers.dense({ name: 'b', units: 2, useBias: false }),
        ],
      }),
    input: () => noise([2, 3, 2, 4]),
    sites: ['a', 'b'],
  },
  'a convolution': image({}),
  'a convolution with padding, strides and an activation': image({
    padding: 'same',
    strides: [2, 3],
    activation: 'relu',
  }),
  'a dilated convolution without a bias': image({ dilationRate: 2, useBias: false, padding: 'same' }),
  'a convolution of 1×1': image({ kernelSize: 1, activation: 'tanh' }),
  'an oblong convolution': image({ kernelSize: [2, 3] }),
  'channels before pixels': {
    make: () =>
      tf.sequential({
        layers: [
          tf.layers.conv2d({
            name: 'conv',
            filters: 3,
            kernelSize: 2,
            inputShape: [2, 6, 5],
            dataFormat: 'channelsFirst',
            activation: 'relu',
          }),
        ],
      }),
    input: () => noise([2, 2, 6, 5]),
    sites: ['conv'],
  },
  'an embedding': {
    make: () =>
      tf.sequential({
        layers: [
          tf.layers.embedding({ name: 'words', inputDim: 7, outputDim: 4, inputLength: 3 }),
          tf.layers.dense({ name: 'head', units: 2 }),
        ],
      }),
    input: () => tf.tensor2d([0, 6, 3, 3, 1, 5], [2, 3]),
    sites: ['words', 'head'],
  },
  'a layer of the user between dense layers': {
    make: () =>
      tf.sequential({
        layers: [
          tf.layers.dense({ name: 'a', units: 5, inputShape: [4] }),
          new Gain({ name: 'gain' }),
          tf.layers.dense({ name: 'b', units: 2 }),
        ],
      }),
    input: () => noise([3, 4]),
    sites: ['a', 'b'],
  },
};

/** The same model with kernels (and biases) written in by hand. */
function byHand(make: () => tf.LayersModel, change: Record<string, (...parts: tf.Tensor[]) => tf.Tensor[]>) {
  const model = randomise(make());
  for (const { name, layer } of namedLayers(model)) {
    const own = layer as unknown as tf.layers.Layer;
    const values = tf.tidy(() => change[name]?.(...(own.getWeights() as [tf.Tensor, tf.Tensor])));
    if (!values) continue;
    own.setWeights(values);
    tf.dispose(values);
  }
  return model;
}

describe.each(Object.entries(cases))('%s', (title, { make, input, sites }) => {
  test('an additive adapter acts as the kernel that it stands for; merging and detaching change nothing', async () => {
    const model = randomise(make());
    const x = input();
    const [start, before] = [outputs(model, x), snapshot(model)];
    await attach(model, additive(), { targets: () => true, seed: 4 });
    expect(list(model)[0].sites).toEqual(sites);
    const added = deltas(model, 'default');
    const y = outputs(model, x);
    expectDifferent(y, start);
    for (const [name, { A, B }] of Object.entries(adapterTensors(model, 'default'))) {
      const product = tf.matMul(A as tf.Tensor2D, B as tf.Tensor2D);
      expectClose(numbers(added[name]), numbers(product));
      product.dispose();
    }
    const reference = byHand(
      make,
      Object.fromEntries(
        sites.map((name) => [
          name,
          (kernel: tf.Tensor, bias?: tf.Tensor) => {
            const changed = tf.add(kernel, tf.reshape(added[name], kernel.shape));
            return bias ? [changed, tf.clone(bias)] : [changed];
          },
        ]),
      ),
    );
    expectClose(y, outputs(reference, x));
    merge(model);
    expectClose(outputs(model, x), y);
    unmerge(model);
    expect(outputs(model, x)).toEqual(y);
    expect(disable(model, () => outputs(model, x))).toEqual(start);
    setActive(model, []);
    expect(outputs(model, x)).toEqual(start);
    detach(model);
    expect(outputs(model, x)).toEqual(start);
    expect(snapshot(model)).toEqual(before);
    tf.dispose([added, x]);
    discard(reference);
    discard(model);
  });

  test('a multiplicative adapter changes kernel and bias; gradients reach its tensors alone', async () => {
    const model = randomise(make());
    const x = input();
    await attach(model, scaling(), { targets: () => true, seed: 4 });
    const y = outputs(model, x);
    const tensors = adapterTensors(model, 'default');
    const reference = byHand(
      make,
      Object.fromEntries(
        sites.map((name) => [name, (...parts: tf.Tensor[]) => parts.map((part) => tf.mul(part, tensors[name].c))]),
      ),
    );
    expectClose(y, outputs(reference, x));
    expect([...new Set(model.trainableWeights)].map(({ originalName }) => originalName)).toEqual(
      sites.map(() => 'default/c'),
    );
    expect(count(model).trainable).toBe(sites.reduce((sum, name) => sum + tensors[name].c.size, 0));
    // tfjs has no gradient of a dilated convolution.
    if (!title.includes('dilated')) {
      const loss = () => {
        const out = model.apply(x) as tf.Tensor | tf.Tensor[];
        return tf.addN((Array.isArray(out) ? out : [out]).map((part) => tf.sum(tf.square(part)))) as tf.Scalar;
      };
      const { value, grads } = tf.variableGrads(loss);
      expect(Object.keys(grads).sort()).toEqual(sites.map((name) => (tensors[name].c as tf.Variable).name).sort());
      for (const gradient of Object.values(grads))
        expect(Math.max(...numbers(gradient).map(Math.abs))).toBeGreaterThan(0);
      tf.dispose([value, grads]);
    }
    tf.dispose(x);
    discard(reference);
    detach(model);
    discard(model);
  });

  test('rows of a mixed batch equal their own runs', async () => {
    const model = randomise(make());
    const x = input();
    await attach(model, additive(), { targets: () => true, name: 'first', seed: 4 });
    await attach(model, scaling(), { targets: [sites[0]], name: 'second', seed: 5 });
    const batch = (Array.isArray(x) ? x[0] : x).shape[0];
    const names = ['second', 'first', '__base__', 'first', 'second'].slice(0, batch);
    const mixed = predictMixed(model, x, names);
    const parts = Array.isArray(mixed) ? mixed : [mixed];
    const rows = names.map((name, row) => {
      setActive(model, name === '__base__' ? [] : name);
      const one = (Array.isArray(x) ? x : [x]).map((part) => tf.gather(part, [row]));
      const y = model.predict(one.length === 1 ? one[0] : one) as tf.Tensor | tf.Tensor[];
      const values = (Array.isArray(y) ? y : [y]).map(numbers);
      tf.dispose([one, y]);
      return values;
    });
    parts.forEach((part, i) => {
      const expected = rows.flatMap((row) => row[i]);
      expectClose(numbers(part), expected);
    });
    tf.dispose([mixed, x]);
    detach(model);
    discard(model);
  });
});

test('what has no kernel is refused for convolutions, what cannot look up for embeddings', async () => {
  const pictures = cases['a convolution'].make();
  await expect(attach(pictures, bent(), { targets: ['conv'] })).rejects.toThrow(
    /conv: bent cannot be applied to a convolution/,
  );
  const words = cases['an embedding'].make();
  await expect(attach(words, bent(), { targets: ['words'] })).rejects.toThrow(
    /words: bent cannot be applied to an embedding/,
  );
  discard(pictures, words);
});

test('recurrent layers keep their weights while an adapter trains beside them', async () => {
  const model = randomise(
    tf.sequential({
      layers: [
        tf.layers.lstm({ name: 'lstm', units: 3, returnSequences: true, inputShape: [4, 2] }),
        tf.layers.bidirectional({ name: 'both', layer: tf.layers.gru({ units: 2 }) as tf.RNN, mergeMode: 'concat' }),
        tf.layers.batchNormalization({ name: 'norm' }),
        tf.layers.dense({ name: 'head', units: 2 }),
      ],
    }),
  );
  const before = snapshot(model);
  await attach(model, additive(), { targets: ['head'] });
  expect(model.trainableWeights.map(({ originalName }) => originalName)).toEqual(['default/A', 'default/B']);
  detach(model);
  expect(snapshot(model)).toEqual(before);
  discard(model);
});
