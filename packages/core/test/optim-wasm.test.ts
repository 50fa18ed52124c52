import { ready } from '@matforge/engine';
import * as tf from '@tensorflow/tfjs';
import { adamw, schedules, type TransformationOptimizer, toOptimizer } from '../src/optim/index.ts';

// The same optimizer on the portable backend and on the fused kernels of wasm.

const make = (): TransformationOptimizer =>
  toOptimizer(adamw({ learningRate: schedules.linear({ from: 0.1, to: 0.01, steps: 10 }), weightDecay: 0.1 }));

function setUp(): { w: tf.Variable; loss: () => tf.Scalar } {
  const initial = tf.randomNormal([5, 3], 0, 1, 'float32', 1);
  const w = tf.variable(initial, true);
  initial.dispose();
  return { w, loss: () => tf.sum(tf.square(tf.sub(tf.sin(w), 0.3))) as tf.Scalar };
}

async function on(backend: 'cpu' | 'wasm'): Promise<void> {
  if (backend === 'wasm') await ready();
  else await tf.setBackend(backend);
}

async function run(backend: 'cpu' | 'wasm'): Promise<number[]> {
  await on(backend);
  const { w, loss } = setUp();
  const optimizer = make();
  for (let i = 0; i < 8; i++) optimizer.minimize(loss);
  const numbers = Array.from(w.dataSync());
  optimizer.dispose();
  w.dispose();
  return numbers;
}

describe('adamw on the fused kernels of wasm', () => {
  let before: number;
  beforeAll(() => ready());
  beforeEach(() => {
    before = tf.memory().numTensors;
  });
  afterEach(() => {
    expect(tf.memory().numTensors).toBe(before);
  });

  it('ends where plain ops end, to rounding', async () => {
    const expected = await run('cpu');
    const got = await run('wasm');
    got.forEach((value, i) => {
      expect(Math.abs(value - expected[i])).toBeLessThan(1e-5);
    });
  });

  it('continues bit for bit from a saved state', async () => {
    const straight = await run('wasm');
    const { w, loss } = setUp();
    const first = make();
    for (let i = 0; i < 3; i++) first.minimize(loss);
    const saved = await first.getWeights();
    first.dispose();
    const second = make();
    await second.setWeights(saved);
    for (let i = 3; i < 8; i++) second.minimize(loss);
    expect(Array.from(w.dataSync())).toEqual(straight);
    second.dispose();
    tf.dispose([w, ...saved.map(({ tensor }) => tensor)]);
  });

  it('keeps its state when the backend changes on the way', async () => {
    const straight = await run('wasm');
    const { w, loss } = setUp();
    const optimizer = make();
    for (let i = 0; i < 8; i++) {
      await on(i % 3 === 2 ? 'cpu' : 'wasm');
      optimizer.minimize(loss);
    }
    w.dataSync().forEach((value, i) => {
      expect(Math.abs(value - straight[i])).toBeLessThan(1e-5);
    });
    optimizer.dispose();
    w.dispose();
  });
});
