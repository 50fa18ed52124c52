// From the first import to the result of a first product: a JSON line. With `stock`, on TensorFlow.js alone.
const began = performance.now();
const tf = await import('@tensorflow/tfjs');
const imported = performance.now();
if (process.argv[2] === 'stock') {
  await import('@tensorflow/tfjs-backend-wasm');
  await tf.setBackend('wasm');
} else {
  const { ready } = await import('../packages/engine/dist/index.js');
  await ready();
}
const a = tf.ones([64, 64]);
tf.matMul(a, a).dataSync();
const ended = performance.now();
console.log(JSON.stringify({ name: 'start', ms: ended - began }));
console.log(JSON.stringify({ name: 'start: import of TensorFlow.js alone', ms: imported - began }));
