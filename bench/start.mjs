// From the start of the process to the result of a first product: a JSON line. With `stock`, on TensorFlow.js alone.
import * as tf from '@tensorflow/tfjs';

if (process.argv[2] === 'stock') {
  await import('@tensorflow/tfjs-backend-wasm');
  await tf.setBackend('wasm');
} else {
  const { ready } = await import('../packages/engine/dist/index.js');
  await ready();
}
const a = tf.ones([64, 64]);
tf.matMul(a, a).dataSync();
console.log(JSON.stringify({ name: 'start', ms: performance.now() }));
