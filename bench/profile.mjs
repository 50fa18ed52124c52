// Where the time of one workload goes, kernel by kernel: node bench/profile.mjs transformer|lora|cnn [calls]
import * as tf from '@tensorflow/tfjs';
import * as engine from '../packages/engine/dist/index.js';
import { cnn, lora, transformer } from './workloads.mjs';

await engine.ready();
const lib = {
  layerNorm: engine.layerNorm,
  gelu: engine.gelu,
  causalSoftmax: engine.causalSoftmax,
  crossEntropy: engine.softmaxCrossEntropy,
  adam: () => {
    const optimizer = tf.train.adam(1e-3);
    return (gradients) => optimizer.applyGradients(gradients);
  },
};
const step = { transformer, lora, cnn }[process.argv[2] ?? 'transformer'](lib);
for (let i = 0; i < 3; i++) step();
const spent = new Map();
for (const config of tf.getKernelsForBackend('wasm')) {
  const { kernelName, kernelFunc } = config;
  tf.unregisterKernel(kernelName, 'wasm');
  tf.registerKernel({
    ...config,
    kernelFunc: (args) => {
      const start = performance.now();
      const out = kernelFunc(args);
      const ms = performance.now() - start;
      const entry = spent.get(kernelName) ?? { calls: 0, ms: 0 };
      spent.set(kernelName, { calls: entry.calls + 1, ms: entry.ms + ms });
      return out;
    },
  });
}
const rounds = Number(process.argv[3] ?? 5);
const start = performance.now();
for (let i = 0; i < rounds; i++) step();
const total = (performance.now() - start) / rounds;
console.log(`${total.toFixed(1)} ms a step`);
for (const [name, { calls, ms }] of [...spent].sort((a, b) => b[1].ms - a[1].ms).slice(0, 25)) {
  console.log(name.padEnd(28), (calls / rounds).toFixed(0).padStart(5), (ms / rounds).toFixed(2).padStart(9));
}
