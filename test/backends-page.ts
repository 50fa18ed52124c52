// Runs in a browser: what backends.test.ts asks of a backend, returned as numbers.
import * as core from '@matforge/core';
import { dora } from '@matforge/dora';
import { causalSoftmax, gelu, layerNorm, silu, softmaxCrossEntropy } from '@matforge/engine';
import { lora } from '@matforge/lora';
import { monarch } from '@matforge/monarch';
import { pissa } from '@matforge/pissa';
import { road } from '@matforge/road';
import { vera } from '@matforge/vera';
import * as tf from '@tensorflow/tfjs';

const methods = {
  lora: () => lora({ rank: 3 }),
  dora: () => dora({ rank: 3 }),
  pissa: () => pissa({ rank: 3 }),
  vera: () => vera({ rank: 16 }),
  road: () => road({ groupSize: 4 }),
  monarch: () => monarch({ nblocks: 2 }),
};

/** Names of the methods that {@link runMethod} knows. */
export const methodNames = (): string[] => Object.keys(methods);

/** Makes a backend current. Returns its name, or what was refused. */
export async function makeReady(backend: string): Promise<string> {
  return core.ready(backend).catch((error: Error) => `${error.name}: ${error.message}`);
}

/** Registers the backend that `@tensorflow/tfjs` does not bring. */
export async function importWebgpu(): Promise<void> {
  await import('@tensorflow/tfjs-backend-webgpu');
}

/** What a method does on a backend: values as numbers, read without blocking. */
interface Run {
  start: number[];
  forward: number[];
  gradients: Record<string, number[]>;
  losses: number[];
  trained: number[];
  merged: number[];
  unmerged: number[];
  kernel: number[];
  kernelAfter: number[];
  leaked: number;
}

async function numbers(tensor: tf.Tensor): Promise<number[]> {
  const values = Array.from(await tensor.data());
  tensor.dispose();
  return values;
}

/** Where adapters are attached and merged: webgpu cannot read values while the program waits. */
const home = (backend: string): string => (backend === 'webgpu' ? 'cpu' : backend);

async function run(backend: string, name: keyof typeof methods): Promise<Run> {
  await core.ready(home(backend));
  const before = tf.memory().numTensors;
  const stream = core.random(3);
  const model = tf.sequential({
    layers: [
      tf.layers.dense({ name: 'up', units: 12, inputShape: [8], activation: 'tanh' }),
      tf.layers.dense({ name: 'down', units: 8 }),
    ],
  });
  const weights = model.getWeights().map(({ shape }) => stream.normal(shape, 0, 0.4));
  model.setWeights(weights);
  const [x, goal] = [stream.normal([6, 8]), stream.normal([6, 8])];
  const predict = () => numbers(model.predict(x) as tf.Tensor);
  const kernel = () => numbers(model.layers[0].getWeights()[0].clone());

  await core.attach(model, methods[name](), { targets: ['up', 'down'], seed: 7 });
  await core.ready(backend);
  const start = await predict();
  const variables = model.trainableWeights.map((weight) => weight.read() as tf.Variable);
  for (const variable of variables) {
    const moved = tf.tidy(() => tf.add(variable, stream.normal(variable.shape, 0, 0.1)));
    variable.assign(moved);
    moved.dispose();
  }
  const forward = await predict();
  const loss = (): tf.Scalar => tf.mean(tf.square(tf.sub(model.apply(x) as tf.Tensor, goal)));
  const { value, grads } = tf.variableGrads(loss, variables);
  value.dispose();
  const gradients: Record<string, number[]> = {};
  for (const [i, variable] of variables.entries()) {
    gradients[`${i} ${variable.shape}`] = await numbers(grads[variable.name]);
  }
  const optimizer = core.toOptimizer(core.adam({ learningRate: 0.02 }));
  const losses: number[] = [];
  for (let step = 0; step < 4; step++) losses.push(...(await numbers(optimizer.minimize(loss, true, variables)!)));
  const trained = await predict();
  const original = await kernel();
  await core.ready(home(backend));
  core.merge(model);
  await core.ready(backend);
  const merged = await predict();
  core.unmerge(model);
  const unmerged = await predict();
  const kernelAfter = await kernel();
  optimizer.dispose();
  core.detach(model);
  model.dispose();
  tf.dispose([x, goal, ...weights]);
  const leaked = tf.memory().numTensors - before;
  return { start, forward, gradients, losses, trained, merged, unmerged, kernel: original, kernelAfter, leaked };
}

/** Largest |a-b|/(1+|b|). */
function deviation(a: number[], b: number[]): number {
  if (a.length !== b.length || a.length === 0) return 1e9;
  // Math.max keeps a NaN, which JSON turns into null and the test refuses.
  return a.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b[i]) / (1 + Math.abs(b[i]))), 0);
}

/** How far a method on a backend is from the same on cpu. */
export async function runMethod(backend: string, name: keyof typeof methods): Promise<Record<string, number>> {
  const expected = await run('cpu', name);
  const got = await run(backend, name);
  const gradients = Object.keys(expected.gradients).map((key) =>
    deviation(got.gradients[key] ?? [], expected.gradients[key]),
  );
  return {
    start: deviation(got.start, expected.start),
    forward: deviation(got.forward, expected.forward),
    gradients: Math.max(...gradients),
    variables: gradients.length,
    losses: deviation(got.losses, expected.losses),
    trained: deviation(got.trained, expected.trained),
    merged: deviation(got.merged, expected.trained),
    unmerged: deviation(got.unmerged, got.trained),
    restored: deviation(got.kernelAfter, got.kernel),
    // How much training changed: an optimizer that does nothing would agree with another that does nothing.
    moved: deviation(expected.trained, expected.forward),
    leaked: got.leaked,
  };
}

/** How far a model that train() made on a backend is from the one it made on cpu, and how far training moved it. */
export async function runTrain(backend: string): Promise<{ trained: number; moved: number; leaked: number }> {
  const results: number[][] = [];
  let [moved, leaked] = [0, 0];
  for (const name of ['cpu', backend]) {
    await core.ready(home(name));
    const before = tf.memory().numTensors;
    const stream = core.random(5);
    const [xs, ys] = [stream.normal([24, 6]), stream.normal([24, 3])];
    const model = tf.sequential({ layers: [tf.layers.dense({ name: 'map', units: 3, inputShape: [6] })] });
    const weights = model.getWeights().map(({ shape }) => stream.normal(shape, 0, 0.4));
    model.setWeights(weights);
    await core.attach(model, lora({ rank: 2 }), { targets: ['map'], seed: 7 });
    await core.ready(name);
    const start = await numbers(model.predict(xs) as tf.Tensor);
    const optimizer = core.toOptimizer(core.chain(core.clipByGlobalNorm(1), core.adamw({ learningRate: 0.05 })));
    await core.train(model, { xs, ys }, { optimizer, loss: 'meanSquaredError', batchSize: 8, epochs: 3, seed: 1 });
    results.push(await numbers(model.predict(xs) as tf.Tensor));
    moved = deviation(results[0], start);
    optimizer.dispose();
    core.detach(model);
    model.dispose();
    tf.dispose([xs, ys, ...weights]);
    leaked += tf.memory().numTensors - before;
  }
  return { trained: deviation(results[1], results[0]), moved, leaked };
}

type Op = (...xs: tf.Tensor[]) => tf.Tensor;
const flat = (...ts: tf.Tensor[]): tf.Tensor => tf.concat(ts.map((t) => tf.reshape(t, [-1])));
const symmetric = (a: tf.Tensor): tf.Tensor => tf.add(a, tf.transpose(a, [0, 2, 1]));
const definite = (a: tf.Tensor): tf.Tensor => tf.add(tf.matMul(a, a, false, true), tf.eye(3));
const indices = (values: number[], shape: number[]): tf.Tensor => tf.tensor(values, shape, 'int32');

const ops: Record<string, [Op, ...number[][]]> = {
  einsum: [(a, b) => core.einsum('bqhd,bkhd->bhqk', a, b), [2, 3, 2, 4], [2, 5, 2, 4]],
  batchMatMul: [(a, b) => core.batchMatMul(a, b), [2, 1, 3, 4], [5, 4, 2]],
  'tf.matMul, broadcast': [(a, b) => tf.matMul(a, b), [3, 2, 4], [1, 4, 2]],
  rfft: [(a) => flat(...Object.values(core.rfft(a))), [3, 12]],
  irfft: [(a, b) => core.irfft({ real: a, imag: b }, 13), [3, 7], [3, 7]],
  circularCorrelate: [(a, b) => core.circularCorrelate(a, b), [2, 3, 12], [3, 12]],
  topk: [(a) => core.topk(a, 3).values, [2, 3, 8]],
  cumprod: [(a) => core.cumprod(a, 1, true, true), [3, 5]],
  gatherNd: [(a) => core.gatherNd(a, indices([0, 2, 2, 1], [2, 2])), [3, 4]],
  scatterNd: [(a) => core.scatterNd(indices([0, 2, 0], [3, 1]), a, [4, 2]), [3, 2]],
  stridedSlice: [(a) => core.stridedSlice(a, [2, 3], [-4, 0], [-1, -2]), [3, 4]],
  depthToSpace: [(a) => core.depthToSpace(a as tf.Tensor4D, 2), [2, 2, 3, 8]],
  where: [(a, b) => core.where(tf.greater(a, 0.1), tf.mul(a, b), b), [3, 4], [4]],
  qr: [(a) => flat(...Object.values(core.qr(a)).map((t) => tf.exp(t))), [2, 4, 3]],
  cholesky: [(a) => core.cholesky(definite(a)), [2, 3, 3]],
  eigh: [(a) => core.eigh(symmetric(a)).values, [2, 3, 3]],
  'embedding gather': [(a) => tf.gather(a, indices([1, 3, 1], [3])), [5, 4]],
  layerNorm: [(a, g, b) => layerNorm(a, g, b), [3, 6], [6], [6]],
  causalSoftmax: [(a) => causalSoftmax(a, 0.5), [2, 4, 4]],
  softmaxCrossEntropy: [(a) => softmaxCrossEntropy(a, indices([1, 0, 4], [3]) as tf.Tensor1D), [3, 5]],
  'gelu, silu': [(a) => tf.add(gelu(a), silu(a)), [3, 5]],
  'sine, cosine of large angles': [(a) => flat(tf.sin(tf.mul(a, 300)), tf.cos(tf.mul(a, 300))), [3, 40]],
  'softmax of moments': [
    (a) => {
      const { mean, variance } = tf.moments(a, -1, true);
      return tf.softmax(tf.mul(tf.sub(a, mean), tf.rsqrt(tf.add(variance, 1e-3))));
    },
    [3, 6],
  ],
  'conv2d, maxPool': [
    (a, w) => tf.maxPool(tf.conv2d(a as tf.Tensor4D, w as tf.Tensor4D, 1, 'same'), 2, 2, 'valid'),
    [2, 6, 6, 3],
    [3, 3, 3, 4],
  ],
  depthwiseConv2d: [
    (a, w) => tf.depthwiseConv2d(a as tf.Tensor4D, w as tf.Tensor4D, 1, 'same'),
    [2, 5, 5, 3],
    [3, 3, 3, 2],
  ],
  dilation2d: [(a, w) => tf.dilation2d(a as tf.Tensor4D, w as tf.Tensor3D, 1, 'valid'), [1, 5, 5, 2], [2, 2, 2]],
};

/** For every op how far its values and gradients on a backend are from those on cpu; 'shape' or the error where it fails. */
export async function runOps(backend: string): Promise<Record<string, number | string>> {
  const all = async (
    name: string,
    [f, ...shapes]: [Op, ...number[][]],
  ): Promise<{ shape: string; values: number[] }[]> => {
    await core.ready(name);
    const xs = shapes.map((shape, i) => core.random(i + 1).uniform(shape, -1, 1));
    const y = f(...xs);
    const grads = tf.grads((...ts) => tf.sum(tf.square(f(...ts))))(xs);
    const found = [];
    for (const t of [y, ...grads]) found.push({ shape: String(t.shape), values: await numbers(t) });
    tf.dispose(xs);
    return found;
  };
  const result: Record<string, number | string> = {};
  for (const [name, op] of Object.entries(ops)) {
    try {
      const [expected, got] = [await all('cpu', op), await all(backend, op)];
      const fits = expected.every(({ shape }, i) => shape === got[i].shape);
      result[name] = fits ? Math.max(...expected.map(({ values }, i) => deviation(got[i].values, values))) : 'shape';
    } catch (error) {
      result[name] = String(error);
    }
  }
  return result;
}

const attempt = async (act: () => unknown): Promise<string> => {
  try {
    return String(await act());
  } catch (error) {
    return String(error);
  }
};

/** What kernels that the backend lacks give: numbers from cpu's, or a refusal. */
export async function standIns(backend: string): Promise<Record<string, string>> {
  await core.ready(backend);
  const whole = () => tf.tensor1d([5, 3, 5, 6], 'int32');
  const and = (x: tf.Tensor, y: tf.Tensor) =>
    attempt(async () => (await tf.bitwiseAnd(x, y).data()).slice(0, 4).join(' '));
  // Small sums of values that are on the host are not worth the device's while.
  const many = () => tf.tensor1d(new Int32Array(5000).fill(6), 'int32');
  return {
    unique: await attempt(async () => (await tf.unique(whole()).values.data()).join(' ')),
    bitwiseAnd: await and(tf.tensor1d([1, 2, 4, 7], 'int32'), whole()),
    computed: await and(tf.add(many(), many()), many()),
    draw: await attempt(() => tf.engine().runKernel('Draw', { image: tf.zeros([2, 2, 3]) }, {})),
  };
}

/** What attaching on the backend itself gives, and merging there. */
export async function attachThere(backend: string): Promise<string> {
  await core.ready(backend);
  const model = tf.sequential({ layers: [tf.layers.dense({ name: 'up', units: 4, inputShape: [4] })] });
  await (model.predict(tf.ones([1, 4])) as tf.Tensor).data();
  return attempt(async () => {
    await core.attach(model, dora({ rank: 2 }), { targets: ['up'] });
    return 'attached';
  });
}
