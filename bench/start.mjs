// From the start of the process to the result of a first product: a JSON line.
import * as tf from '@tensorflow/tfjs';
import { engineInfo, ready } from '../packages/engine/dist/index.js';

await ready();
const a = tf.ones([64, 64]);
tf.matMul(a, a).dataSync();
console.log(JSON.stringify({ name: 'start', ms: performance.now(), ...engineInfo() }));
