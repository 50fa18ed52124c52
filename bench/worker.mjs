// One TensorFlow.js variant in a process of its own: prints a JSON line per workload with the least milliseconds.
// node bench/worker.mjs engine|stock [sections, by commas]
import * as tf from '@tensorflow/tfjs';
import '@tensorflow/tfjs-backend-wasm';
import { viaCpu } from '../packages/engine/dist/fill.js';
import * as engine from '../packages/engine/dist/index.js';
import { unsortedSegmentSum } from '../packages/engine/dist/kernels/data.js';
import { adam, cnn, lora, product, SIZES, transformer } from './workloads.mjs';

const variant = process.argv[2];

const plain = {
  layerNorm: (x, gamma, beta) => {
    const { mean, variance } = tf.moments(x, -1, true);
    return tf.add(tf.mul(tf.mul(tf.sub(x, mean), tf.rsqrt(tf.add(variance, 1e-5))), gamma), beta);
  },
  gelu: (x) => tf.mul(tf.mul(x, 0.5), tf.add(tf.erf(tf.mul(x, Math.SQRT1_2)), 1)),
  causalSoftmax: (x, scale) => {
    const [queries, keys] = x.shape.slice(-2);
    return tf.softmax(tf.add(tf.mul(x, scale), mask(queries, keys)));
  },
  crossEntropy: (logits, labels) =>
    tf.neg(tf.sum(tf.mul(tf.logSoftmax(logits), tf.cast(tf.oneHot(labels, logits.shape.at(-1)), 'float32')), -1)),
  adam: () => {
    const optimizer = tf.train.adam(1e-3);
    return (gradients) => optimizer.applyGradients(gradients);
  },
};

const masks = new Map();
function mask(queries, keys) {
  if (!masks.has(queries)) {
    const values = Float32Array.from({ length: queries * keys }, (_, i) =>
      i % keys <= Math.floor(i / keys) ? 0 : -1e9,
    );
    masks.set(queries, tf.keep(tf.tensor2d(values, [queries, keys])));
  }
  return masks.get(queries);
}

const fused = {
  layerNorm: engine.layerNorm,
  gelu: engine.gelu,
  causalSoftmax: engine.causalSoftmax,
  crossEntropy: engine.softmaxCrossEntropy,
  adam: plain.adam,
};

if (variant === 'engine') await engine.ready();
else {
  await tf.setBackend('wasm');
  // The least that lets the stock backend train: the cpu backend's kernels, and a plain loop for the one of them that
  // alone would take ten seconds a step.
  for (const { kernelName } of tf.getKernelsForBackend('cpu')) {
    if (tf.getKernel(kernelName, 'wasm')) continue;
    const kernelFunc = kernelName === 'UnsortedSegmentSum' ? unsortedSegmentSum : viaCpu(kernelName);
    tf.registerKernel({ kernelName, backendName: 'wasm', kernelFunc });
  }
}
const lib = variant === 'engine' ? fused : plain;

/** Least milliseconds of a call within a time budget. */
function least(run, budget) {
  let best = Number.POSITIVE_INFINITY;
  const end = performance.now() + budget;
  for (let i = 0; i < 200 && (i < (variant === 'stock' ? 1 : 3) || performance.now() < end); i++) {
    const start = performance.now();
    run();
    best = Math.min(best, performance.now() - start);
  }
  return best;
}

const report = (name, ms, more = {}) => console.log(JSON.stringify({ name, ms, ...more }));
const sections = (process.argv[3] ?? 'transformer,lora,cnn,adam,matmul').split(',');
for (const [name, make] of Object.entries({ transformer, lora, cnn, adam })) {
  if (!sections.includes(name)) continue;
  const step = make(lib);
  const first = step();
  const ms = least(step, variant === 'engine' ? 2500 : 2000);
  report(name, ms, { first, peak: engine.engineInfo().heapBytes });
}
if (sections.includes('matmul'))
  for (const n of SIZES.matmul)
    for (const [ta, tb] of [
      [false, false],
      [false, true],
      [true, false],
      [true, true],
    ]) {
      const multiply = product(n, ta, tb);
      multiply();
      report(`matmul ${n} ${ta ? 't' : 'n'}${tb ? 't' : 'n'}`, least(multiply, 250));
    }
for (const section of ['structured', 'factors', 'optimizers']) {
  if (!sections.includes(section)) continue;
  const { [section]: cases } = await import('./packages.mjs');
  for await (const [name, run, budget] of cases()) {
    run();
    report(name, least(run, budget));
  }
}
report('memory', 0, {
  rss: process.resourceUsage().maxRSS * 1024,
  ...engine.engineInfo(),
});
