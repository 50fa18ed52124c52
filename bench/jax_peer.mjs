// The same workloads on @jax-js/jax, in a process of its own: a JSON line each with the least milliseconds. Its fastest
// device in Node is 'wasm', on one thread: its threads are Web Workers, which Node does not have.
// node bench/jax_peer.mjs [sections, by commas]
//
// Before a workload is timed it runs once on both engines from the same numbers: `difference` is the largest one between
// the results, relative to the largest number among ours.
import * as tf from '@tensorflow/tfjs';
import * as engine from '../packages/engine/dist/index.js';
import { lora, product, SIZES, transformer } from './workloads.mjs';

// Node 20 has no `navigator`, which the package reads.
globalThis.navigator ??= { userAgent: `Node.js/${process.versions.node}` };
const jax = await import('@jax-js/jax');
const { numpy: np, nn } = jax;
await jax.init('wasm');
jax.defaultDevice('wasm');
await engine.ready();

const sections = (process.argv[2] ?? 'transformer,lora,adam,matmul').split(',');
let worst = 0;
const report = (name, ms, more = {}) => console.log(JSON.stringify({ name, ms, ...more }));

const array = (numbers, shape) => np.array(Float32Array.from(numbers), { shape });
const moved = (tensor) => array(tensor.dataSync(), tensor.shape);

/** Largest difference between two lists of numbers over the largest number of the second one. */
function difference(got, want) {
  let [apart, largest] = [got.length === want.length ? 0 : Number.NaN, 0];
  want.forEach((value, i) => {
    apart = Math.max(apart, Math.abs(got[i] - value));
    largest = Math.max(largest, Math.abs(value));
  });
  // Where both are nothing but zeros they agree.
  const relative = apart === 0 ? 0 : Number.isFinite(apart) ? apart / largest : Number.MAX_VALUE;
  worst = Math.max(worst, relative);
  return relative;
}

/** Least milliseconds of a call within a time budget: of three calls at least, where they do not take seconds. */
async function least(run, budget) {
  await run();
  let best = Number.POSITIVE_INFINITY;
  const end = performance.now() + budget;
  for (let i = 0; i < 200 && (i < 1 || (i < 3 && best < 2000) || performance.now() < end); i++) {
    const start = performance.now();
    await run();
    best = Math.min(best, performance.now() - start);
  }
  return best;
}

// Every function of the package takes over what it is given; `.ref` keeps a hold.
const layerNorm = (x, gamma, beta) => nn.standardize(x, -1, { epsilon: 1e-5 }).mul(gamma).add(beta);
const affine = (x, w, bias) => np.matmul(x, w).add(bias);
const gelu = (x) => nn.gelu(x, { approximate: false });

function attention(qkv, { d, heads, seq, batch }) {
  const parts = np.split(qkv.reshape([batch, seq, 3, heads, d / heads]), 3, 2);
  const [q, k, v] = parts.map((part) => part.reshape([batch, seq, heads, d / heads]));
  return nn.dotProductAttention(q, k, v, { isCausal: true }).reshape([batch * seq, d]);
}

const tokens = ({ batch, seq, vocab }, shift) =>
  np.array(
    Int32Array.from({ length: batch * seq }, (_, i) => (i * 7919 + shift) % vocab),
    { dtype: np.int32 },
  );

const crossEntropy = (logits, labels, classes) =>
  np.mean(np.sum(nn.logSoftmax(logits).mul(nn.oneHot(labels, classes)), -1)).neg();

/** The decoder of workloads.mjs from the embedded tokens on; its parameters come in the order of the variables there. */
function transformerLoss([embedded, places, head, gamma, beta, ...rest]) {
  const size = SIZES.transformer;
  const { d, seq, batch, vocab, layers } = size;
  let h = embedded
    .reshape([batch, seq, d])
    .add(places)
    .reshape([batch * seq, d]);
  for (let layer = 0; layer < layers; layer++) {
    const [gamma1, beta1, qkv, qkvBias, out, outBias, gamma2, beta2, up, upBias, down, downBias] = rest.splice(0, 12);
    const mixed = attention(affine(layerNorm(h.ref, gamma1, beta1), qkv, qkvBias), size);
    h = h.add(affine(mixed, out, outBias));
    h = h.ref.add(affine(gelu(affine(layerNorm(h, gamma2, beta2), up, upBias)), down, downBias));
  }
  return crossEntropy(np.matmul(layerNorm(h, gamma, beta), head), tokens(size, 1), vocab);
}

/** Adapters on every linear layer of a frozen decoder. */
function loraLoss(parameters, [embedded, head, ...kernels]) {
  const size = SIZES.lora;
  const rest = [...parameters];
  const normal = (x) => nn.standardize(x, -1, { epsilon: 1e-5 });
  const linear = (x) => {
    const [a, b] = rest.splice(0, 2);
    return np.matmul(x.ref, kernels.shift()).add(np.matmul(np.matmul(x, a), b));
  };
  let h = embedded;
  for (let layer = 0; layer < size.layers; layer++) {
    h = h.ref.add(linear(attention(linear(normal(h)), size)));
    h = h.ref.add(linear(gelu(linear(normal(h)))));
  }
  return crossEntropy(np.matmul(normal(h), head), tokens(size, 1), size.vocab);
}

const [RATE, BETA1, BETA2, EPSILON] = [1e-3, 0.9, 0.999, 1e-7];

/** Adam on lists of arrays, as tf.train.adam does it. */
function adamStep(parameters, gradients, m, v, correct1, correct2) {
  const next = { parameters: [], m: [], v: [] };
  parameters.forEach((w, i) => {
    const g = gradients[i];
    const m2 = m[i].mul(BETA1).add(g.ref.mul(1 - BETA1));
    const v2 = v[i].mul(BETA2).add(np.square(g).mul(1 - BETA2));
    const move = m2.ref.div(correct1.ref).div(np.sqrt(v2.ref.div(correct2.ref)).add(EPSILON));
    next.parameters.push(w.sub(move.mul(RATE)));
    next.m.push(m2);
    next.v.push(v2);
  });
  correct1.dispose();
  correct2.dispose();
  return next;
}

/**
 * Value and gradients of a loss whose first parameter (or constant) is a table of which the rows `tokens` are looked up.
 * jit() cannot compile the gradient of a look-up (0.1.25: "scatter input is not imm"), so that one stays outside.
 */
function differentiate(loss, size, trainsTable) {
  const lookUp = (table) => np.take(table, tokens(size, 0), 0);
  const compiled = jax.jit((parameters, frozen) => jax.valueAndGrad((p) => loss(p, frozen))(parameters));
  return (parameters, frozen) => {
    if (!trainsTable) return compiled(parameters, [lookUp(frozen[0]), ...frozen.slice(1)]);
    const [rows, back] = jax.vjp(lookUp, [parameters[0]]);
    const [value, [slopes, ...gradients]] = compiled([rows, ...parameters.slice(1)], frozen);
    const [table] = back(slopes);
    back.dispose();
    return [value, [table, ...gradients]];
  };
}

/** Training steps from the values of `variables`. */
function trainer(slopes, variables, constants) {
  const frozen = constants.map(moved);
  const update = jax.jit(adamStep);
  const zeros = () => variables.map(({ shape }) => np.zeros(shape));
  let state = { parameters: variables.map(moved), m: zeros(), v: zeros() };
  let t = 0;
  return async () => {
    t++;
    const corrections = [BETA1, BETA2].map((beta) => np.array([1 - beta ** t]));
    const { parameters, m, v } = state;
    const held = frozen.map((each) => each.ref);
    const [value, gradients] = slopes(
      parameters.map((each) => each.ref),
      held,
    );
    state = update(parameters, gradients, m, v, ...corrections);
    await jax.blockUntilReady([value, state]);
    return value.item();
  };
}

const fused = {
  layerNorm: engine.layerNorm,
  gelu: engine.gelu,
  causalSoftmax: engine.causalSoftmax,
  crossEntropy: engine.softmaxCrossEntropy,
  adam: () => {
    const optimizer = tf.train.adam(RATE);
    return (gradients) => optimizer.applyGradients(gradients);
  },
};

for (const [name, make, loss] of [
  ['transformer', transformer, transformerLoss],
  ['lora', lora, loraLoss],
]) {
  if (!sections.includes(name)) continue;
  const ours = make(fused);
  const slopesOf = differentiate(loss, SIZES[name], name === 'transformer');
  const theirs = trainer(slopesOf, ours.variables, ours.frozen);
  const [, gradients] = slopesOf(ours.variables.map(moved), ours.frozen.map(moved));
  const { value, grads } = tf.variableGrads(ours.loss, ours.variables);
  const slopes = Math.max(
    ...ours.variables.map((variable, i) => difference(gradients[i].dataSync(), grads[variable.name].dataSync())),
  );
  tf.dispose([value, grads]);
  const losses = [[], []];
  for (let i = 0; i < 4; i++) {
    losses[0].push(await theirs());
    losses[1].push(ours());
  }
  const ms = await least(theirs, 2000);
  report(name, ms, { first: losses[0][0], difference: Math.max(slopes, difference(...losses)) });
}

if (sections.includes('adam')) {
  const count = SIZES.adam;
  const [w, g] = [1, 2].map((seed) => tf.randomNormal([count], 0, 0.02, 'float32', seed));
  const update = jax.jit(adamStep);
  const gradient = moved(g);
  let state = { parameters: [moved(w)], m: [np.zeros([count])], v: [np.zeros([count])] };
  let t = 0;
  const run = () => {
    t++;
    const corrections = [BETA1, BETA2].map((beta) => np.array([1 - beta ** t]));
    state = update(state.parameters, [gradient.ref], state.m, state.v, ...corrections);
    return jax.blockUntilReady(state);
  };
  const variable = tf.variable(w);
  tf.train.adam(RATE).applyGradients({ [variable.name]: g });
  await run();
  const apart = difference(state.parameters[0].ref.dataSync(), variable.dataSync());
  report('adam', await least(run, 1000), { difference: apart });
}

for (const n of sections.includes('matmul') ? SIZES.matmul : [])
  for (const [ta, tb] of [
    [false, false],
    [false, true],
    [true, false],
    [true, true],
  ]) {
    const ours = product(n, ta, tb);
    const [a, b] = ours.factors.map(moved);
    const multiply = jax.jit((x, y) => np.matmul(ta ? np.transpose(x) : x, tb ? np.transpose(y) : y));
    const wanted = tf.tidy(() => tf.matMul(...ours.factors, ta, tb).dataSync());
    const apart = difference(multiply(a.ref, b.ref).dataSync(), wanted);
    const run = async () => (await multiply(a.ref, b.ref).blockUntilReady()).dispose();
    report(`matmul ${n} ${ta ? 't' : 'n'}${tb ? 't' : 'n'}`, await least(run, 250), { difference: apart });
    tf.dispose(ours.factors);
    for (const each of [a, b, multiply]) each.dispose();
  }

if (sections.includes('factors')) {
  const n = 512;
  const values = tf.randomNormal([n, n], 0, 1, 'float32', 7);
  const matrix = moved(values);
  const factors = () => jax.blockUntilReady(np.linalg.svd(matrix.ref, { fullMatrices: false }));
  const [, singular] = await factors();
  const apart = difference(singular.dataSync(), engine.linalg64.svd(n, n, values.dataSync()).s);
  // Six seconds a call: once.
  const began = performance.now();
  await factors();
  report(`svd ${n}`, performance.now() - began, { difference: apart });
}

report('memory', 0, { device: jax.defaultDevice(), threads: 1, worst });
