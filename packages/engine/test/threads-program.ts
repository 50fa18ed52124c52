// Programs for threads.test.ts: each is one start of the engine.
import * as tf from '@tensorflow/tfjs';
import '@tensorflow/tfjs-backend-wasm';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { engineInfo, gelu, layerNorm, ready, softmaxCrossEntropy } from '../src/index.ts';

const heap = () => (tf.backend() as BackendWasm & { wasm: { HEAPU8: Uint8Array } }).wasm.HEAPU8.buffer;
const about = () => ({
  threads: engineInfo().threads,
  isShared: Object.prototype.toString.call(heap()) === '[object SharedArrayBuffer]',
});

/** A small convolutional network whose kernels are large enough to be shared; its loss after each of 12 steps. */
function train() {
  const before = tf.memory().numTensors;
  const started = engineInfo().heapBytes;
  const normal = (shape: number[], scale: number, seed: number) => tf.randomNormal(shape, 0, scale, 'float32', seed);
  const variables = tf.tidy(() => ({
    filter: tf.variable(normal([3, 3, 3, 16], 0.2, 1)),
    gamma: tf.variable(tf.ones([14 * 14 * 16])),
    beta: tf.variable(tf.zeros([14 * 14 * 16])),
    up: tf.variable(normal([14 * 14 * 16, 64], 0.02, 2)),
    down: tf.variable(normal([64, 10], 0.1, 3)),
  }));
  const { filter, gamma, beta, up, down } = variables;
  const images = normal([32, 28, 28, 3], 1, 4) as tf.Tensor4D;
  const labels = tf.tidy(() => tf.range(0, 32, 1, 'int32').mod(tf.scalar(10, 'int32')).toInt());
  const optimizer = tf.train.adam(0.002);
  const loss = () => {
    const drawn = tf.maxPool(tf.conv2d(images, filter as unknown as tf.Tensor4D, 1, 'same'), 2, 2, 'valid');
    const flat = layerNorm(tf.reshape(drawn, [32, -1]), gamma, beta);
    return tf.mean(softmaxCrossEntropy(tf.matMul(gelu(tf.matMul(flat, up)), down), labels)) as tf.Scalar;
  };
  const losses: number[] = [];
  for (let step = 0; step < 12; step++) {
    // Half way the heap has to grow.
    const large = step === 6 ? tf.zeros([1 << 23]) : null;
    const value = optimizer.minimize(loss, true) as tf.Scalar;
    losses.push(value.dataSync()[0]);
    tf.dispose([value, ...(large ? [large] : [])]);
  }
  optimizer.dispose();
  tf.dispose([...Object.values(variables), images, labels]);
  return {
    ...about(),
    losses,
    last: losses[11],
    grew: engineInfo().heapBytes / started,
    leaked: tf.memory().numTensors - before,
  };
}

const product = () => tf.tidy(() => [...tf.matMul(tf.ones([300, 200]), tf.fill([200, 300], 0.1)).dataSync()]);
const message = (error: unknown): string => (error instanceof Error ? error.message : String(error));

const PROGRAMS: Record<string, () => Promise<object>> = {
  train: async () => {
    await ready();
    return train();
  },
  ask: async () => {
    const asked: number[] = [];
    const results: string[] = [];
    for (const threads of [2, 3, 1, 2]) {
      await ready({ threads });
      asked.push(engineInfo().threads);
      results.push(JSON.stringify(product()));
    }
    return { ...about(), asked, same: new Set(results).size === 1 };
  },
  late: async () => {
    tf.env().set('WASM_HAS_MULTITHREAD_SUPPORT', false);
    await tf.setBackend('wasm');
    await ready();
    return train();
  },
  'no-sharing': async () => {
    (globalThis as { SharedArrayBuffer?: unknown }).SharedArrayBuffer = undefined;
    await ready();
    return train();
  },
  forbidden: async () => {
    const threads = process.getBuiltinModule('node:worker_threads') as { Worker: unknown };
    threads.Worker = class {
      constructor() {
        throw new Error('forbidden');
      }
    };
    await ready();
    return train();
  },
  full: async () => {
    await ready();
    let said = '';
    try {
      tf.fill([1_073_700_000], 1).dispose();
    } catch (error) {
      said = message(error);
    }
    return { message: said, after: tf.tidy(() => tf.sum(tf.tensor([1, 2, 3])).dataSync()[0]) };
  },
  // Long enough for a worker that cannot serve to say so.
  settled: async () => {
    await ready();
    const first = product();
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const last = product();
    return { ...about(), same: first.every((value, i) => value === last[i]) };
  },
  broken: async () => {
    const threads = process.getBuiltinModule('node:worker_threads') as {
      Worker: new (program: string, options: object) => object;
    };
    const { Worker } = threads;
    threads.Worker = class extends Worker {
      constructor(program: string, options: object) {
        super(`absent();${program}`, options);
      }
    };
    return PROGRAMS.settled();
  },
  wrong: async () => ({ message: await ready({ threads: 0 }).then(String, message) }),
};

console.log(JSON.stringify(await PROGRAMS[process.argv[2]]()));
