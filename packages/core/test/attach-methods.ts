import * as tf from '@tensorflow/tfjs';
import { z } from 'zod';
import { defineLinearMethod, normal, ones, random, ready, trainable, zeros } from '../src/index.ts';

const info = (id: string) => ({
  id,
  title: id,
  family: 'test',
  kind: 'adapter' as const,
  paper: { title: id, year: 2024 },
});

const rank = { rank: z.number().int().min(1).default(2) };

/** Adds A·B to the kernel; not the identity at the start. */
export const additive = defineLinearMethod({
  info: info('additive'),
  config: z.object(rank),
  tensors: ({ inDim, outDim, config }) => ({
    A: trainable([inDim, config.rank], normal(0.5)),
    B: trainable([config.rank, outDim], normal(0.5)),
  }),
  forward: (x, { A, B }, { base }) => {
    const rows = tf.reshape(x, [-1, A.shape[0]]) as tf.Tensor2D;
    const product = tf.matMul(tf.matMul(rows, A as tf.Tensor2D), B as tf.Tensor2D);
    return tf.add(base.apply(x), tf.reshape(product, [...x.shape.slice(0, -1), B.shape[1] as number]));
  },
  kernel: ({ A, B }, { base }) => tf.add(base.kernel, tf.matMul(A as tf.Tensor2D, B as tf.Tensor2D)),
  lookup: (indices, { A, B }, { base }) =>
    tf.add(base.lookup(indices), tf.matMul(tf.gather(A, indices) as tf.Tensor2D, B as tf.Tensor2D)),
});

/** Scales every output, bias included, and adds a bias of its own where told to. */
export const scaling = defineLinearMethod({
  info: info('scaling'),
  config: z.object({ shift: z.boolean().default(false) }),
  tensors: ({ outDim, config }) => ({
    c: trainable([outDim], (shape, source) => tf.add(1, source.normal(shape, 0, 0.5))),
    ...(config.shift && { d: trainable([outDim], normal(1)) }),
  }),
  forward: (x, { c, d }, { base }) => {
    const y = tf.mul(base.apply(x), c);
    return d ? tf.add(y, d) : y;
  },
  kernel: ({ c, d }, { base }) => {
    const bias = base.bias && (tf.mul(base.bias, c) as tf.Tensor1D);
    return { kernel: tf.mul(base.kernel, c) as tf.Tensor2D, bias: d ? (tf.add(bias ?? 0, d) as tf.Tensor1D) : bias };
  },
  lookup: (indices, { c }, { base }) => tf.mul(base.lookup(indices), c),
});

/** Adds tanh(x·A), which no kernel can hold. */
export const bent = defineLinearMethod({
  info: info('bent'),
  config: z.object({}),
  tensors: ({ inDim, outDim }) => ({ A: trainable([inDim, outDim], normal(0.5)) }),
  forward: (x, { A }, { base }) => {
    const rows = tf.reshape(x, [-1, A.shape[0]]) as tf.Tensor2D;
    const bend = tf.tanh(tf.matMul(rows, A as tf.Tensor2D));
    return tf.add(base.apply(x), tf.reshape(bend, [...x.shape.slice(0, -1), A.shape[1] as number]));
  },
});

/** A kernel of its own in the place of the layer's; the rest of the model trains along. */
export const replacing = defineLinearMethod({
  info: info('replacing'),
  trains: 'model',
  config: z.object({}),
  tensors: ({ inDim, outDim }) => ({ K: trainable([inDim, outDim]) }),
  init: ({ kernel }) => ({ K: kernel }),
  forward: (x, { K }, { base }) => {
    const rows = tf.reshape(x, [-1, K.shape[0]]) as tf.Tensor2D;
    const y = tf.reshape(tf.matMul(rows, K as tf.Tensor2D), [...x.shape.slice(0, -1), K.shape[1] as number]);
    return base.bias ? tf.add(y, base.bias) : y;
  },
  kernel: ({ K }) => K as tf.Tensor2D,
});

/** Fails at a layer of the given name, after the layers before it have got their tensors. */
export const failing = defineLinearMethod({
  info: info('failing'),
  config: z.object({ at: z.string(), when: z.enum(['init', 'validate', 'shape']) }),
  tensors: ({ outDim }) => ({ c: trainable([outDim], ones), d: trainable([outDim], zeros) }),
  plan: (sites) =>
    Object.fromEntries(sites.map(({ name, outDim }) => [name, { data: { column: tf.zeros([outDim]) } }])),
  validate: ({ name }, { at, when }) => {
    if (when === 'validate' && name === at) throw new Error(`${name} does not fit`);
  },
  init: ({ site, config: { at, when } }) => {
    if (site.name !== at) return {};
    if (when === 'init') throw new Error(`${site.name} cannot start`);
    return { c: tf.ones([site.outDim + 1]) };
  },
  forward: (x, _, { base }) => base.apply(x),
  kernel: (_, { base }) => base.kernel,
});

/** Every test of the file must leave as many tensors as it found, after `tidyUp`. */
export function watchLeaks(tidyUp?: () => void): void {
  let before: number;
  beforeAll(async () => {
    await ready();
  });
  beforeEach(() => {
    before = tf.memory().numTensors;
  });
  afterEach(() => {
    tidyUp?.();
    expect(tf.memory().numTensors).toBe(before);
  });
}

export type Numbers = number[];

export const numbers = (tensor: tf.Tensor): Numbers => Array.from(tensor.dataSync());

/** Outputs of a model, all of them in one row. */
export function outputs(model: tf.LayersModel, x: tf.Tensor | tf.Tensor[]): Numbers {
  return tf.tidy(() => {
    const y = model.predict(x);
    return (Array.isArray(y) ? y : [y]).flatMap(numbers);
  });
}

export interface Weight {
  readonly id: number;
  readonly originalName: string;
  trainable: boolean;
  read(): tf.Variable;
}

/** Values and flags of all weights of the model, by their order of creation. */
export function snapshot(model: tf.LayersModel): Record<string, { trainable: boolean; values: Numbers }> {
  const weights = [...(model.weights as unknown as Weight[])].sort((a, b) => a.id - b.id);
  return Object.fromEntries(
    weights.map((weight, i) => [
      `${i} ${weight.originalName}`,
      { trainable: weight.trainable, values: numbers(weight.read()) },
    ]),
  );
}

/** Names of the weights whose values differ from the snapshot. */
export function moved(model: tf.LayersModel, before: ReturnType<typeof snapshot>): string[] {
  return Object.entries(snapshot(model))
    .filter(([name, { values }]) => values.some((value, i) => value !== before[name]?.values[i]))
    .map(([name]) => name.slice(name.indexOf(' ') + 1));
}

/** A layer's kernel and bias, wherever adapters have put them in the order of its weights. */
export function kernelOf(model: tf.LayersModel, name: string): [tf.Tensor2D, tf.Tensor1D] {
  const layer = model.getLayer(name) as unknown as Record<'kernel' | 'bias', { read(): tf.Tensor }>;
  return [layer.kernel.read() as tf.Tensor2D, layer.bias?.read() as tf.Tensor1D];
}

export function expectClose(got: Numbers, expected: Numbers, tolerance = 1e-5): void {
  expect(got.length).toBe(expected.length);
  const scale = Math.max(1e-3, ...expected.map(Math.abs));
  const worst = Math.max(...got.map((value, i) => Math.abs(value - expected[i])));
  expect(worst / scale).toBeLessThan(tolerance);
}

export function expectDifferent(got: Numbers, other: Numbers): void {
  expect(got.length).toBe(other.length);
  const worst = Math.max(...got.map((value, i) => Math.abs(value - other[i])));
  expect(worst).toBeGreaterThan(1e-3);
}

export const noise = (shape: number[], seed = 3): tf.Tensor => random(seed).normal(shape);

/** Fills every weight of a model from the seed, biases included, so that nothing is zero. */
export function randomise<M extends tf.LayersModel>(model: M, seed = 1): M {
  const stream = random(seed);
  const values = (model.weights as unknown as Weight[]).map((weight) => {
    const { shape } = weight.read();
    // Variances may not be negative.
    return weight.originalName.includes('variance') ? stream.uniform(shape, 0.5, 1.5) : stream.normal(shape, 0, 0.4);
  });
  model.setWeights(values);
  tf.dispose(values);
  return model;
}

/** Dense layers named a, b, c: 4 → 5 → 6 → 3, tanh between them. */
export function threeLayers(): tf.Sequential {
  const layers = [
    tf.layers.dense({ name: 'a', units: 5, inputShape: [4], activation: 'tanh' }),
    tf.layers.dense({ name: 'b', units: 6, activation: 'tanh' }),
    tf.layers.dense({ name: 'c', units: 3 }),
  ];
  return randomise(tf.sequential({ layers }));
}

/** Frees a model with every weight; tfjs leaves those of layers that are used more than once. */
export function discard(...models: tf.LayersModel[]): void {
  for (const model of models) {
    const variables = (model.weights as unknown as Weight[]).map((weight) => weight.read());
    model.dispose();
    for (const variable of variables) variable.dispose();
  }
}
