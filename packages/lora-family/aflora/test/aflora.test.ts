import { adapterTensors, attach, count, detach, list, memoryStorage, random, setActive, train } from '@matforge/core';
import { denseModel, testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { AdaptiveFreezer, aflora, type FreezerConfig } from '../src/index.ts';
import { suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

describe('the freezing schedule', () => {
  test('freezes nothing before the warm-up ends and everything in the final phase, also under Adam with momentum', async () => {
    const model = denseModel([4, 6, 3]);
    await attach(model, aflora({ rank: 2, totalSteps: 40, warmupSteps: 10, finalSteps: 10, window: 5 }), {
      targets: ['layer0', 'layer1'],
    });
    model.compile({ optimizer: tf.train.adam(0.05), loss: 'meanSquaredError' });
    const [x, y] = [tf.ones([2, 4]), tf.ones([2, 3])];
    const start = count(model).trainable;
    const counts: number[] = [];
    const projections = () =>
      model.weights.filter((w) => /\/[AB]$/.test(w.originalName)).map((w) => Array.from(w.read().dataSync()));
    let atFreeze: number[][] = [];
    for (let step = 1; step <= 40; step++) {
      tf.dispose(await model.trainOnBatch(x, y));
      counts.push(list(model)[0].trainable);
      if (step === 31) atFreeze = projections();
    }
    expect(counts[9]).toBe(start);
    expect(counts[24]).toBeLessThan(start);
    expect(counts[30]).toBe(2 + 6 + 2 + 3);
    expect(counts.every((value, i) => i === 0 || value <= counts[i - 1])).toBe(true);
    expect(projections()).toEqual(atFreeze);
    tf.dispose([x, y]);
    detach(model);
    model.dispose();
  });

  test('decisions do not depend on the scale or the sign of the gradients', () => {
    const run = (factor: number) => {
      const freezer = new AdaptiveFreezer(
        { a: 2, b: 2, c: 2 },
        { beta1: 0.5, beta2: 0.5, window: 2, rule: 'count', totalSteps: 12, warmupSteps: 1, finalSteps: 3 },
      );
      const chosen: string[][] = [];
      for (let t = 1; t <= 8; t++) {
        const g = (k: number) => Float64Array.from([factor * Math.sin(k * t), factor * Math.cos(k + t)]);
        freezer.update(t, { a: g(1), b: g(2), c: g(3) });
        chosen.push(freezer.decide(t));
      }
      return { chosen, mean: freezer.scores().a.mean };
    };
    const [plain, scaled] = [run(1), run(-3)];
    expect(scaled.chosen).toEqual(plain.chosen);
    expect(plain.chosen.flat().length).toBeGreaterThan(0);
    expect(scaled.mean / plain.mean).toBeCloseTo(9, 10);
  });

  test('refuses to decide before an update, and gradients of another size', () => {
    const freezer = new AdaptiveFreezer(
      { a: 2 },
      { beta1: 0.5, beta2: 0.5, window: 2, rule: 'count', totalSteps: 12, warmupSteps: 1, finalSteps: 3 },
    );
    expect(() => freezer.decide(1)).toThrow(/cannot decide before the first update/);
    expect(() => freezer.update(1, { a: new Float64Array(3) })).toThrow(/a: gradient has 3 entries, the matrix 2/);
  });
});

describe('a resumed training', () => {
  const options = { targets: ['layer0', 'layer1'], seed: 5 };
  const method = () => aflora({ rank: 2, warmupSteps: 4, finalSteps: 6, window: 3 });

  async function run(stops: readonly number[]) {
    const storage = memoryStorage();
    let values: Record<string, number[]> = {};
    for (const steps of stops) {
      const model = denseModel([4, 6, 3]);
      await attach(model, method(), options);
      const optimizer = tf.train.adam(0.05);
      model.compile({ optimizer, loss: 'meanSquaredError' });
      const stream = random(9);
      const data = { xs: stream.normal([12, 4]), ys: stream.normal([12, 3]) };
      const abort = new AbortController();
      await train(model, data, {
        batchSize: 4,
        steps: 24,
        seed: 1,
        checkpoint: { storage, resume: true },
        signal: abort.signal,
        onProgress: ({ step }) => {
          if (step === steps) abort.abort();
        },
      });
      const tensors = adapterTensors(model, 'default');
      values = {
        trainable: [list(model)[0].trainable, count(model).trainable],
        ...Object.fromEntries(
          Object.entries(tensors).flatMap(([site, own]) =>
            Object.entries(own).map(([key, tensor]) => [`${site}.${key}`, Array.from(tensor.dataSync())]),
          ),
        ),
      };
      // Freezing survives a switch after the resume as well.
      setActive(model, []);
      setActive(model, 'default');
      expect(count(model).trainable).toBe(values.trainable[1]);
      detach(model);
      optimizer.dispose();
      model.dispose();
      tf.dispose(Object.values(data));
    }
    return values;
  }

  test.each([[[2]], [[7]], [[9, 13]], [[20]]])('equals the uninterrupted one when stopped at %j', async (stops) => {
    const before = tf.memory().numTensors;
    const whole = await run([24]);
    expect(whole.trainable).toEqual([2 + 6 + 2 + 3, 2 + 6 + 2 + 3]);
    expect(await run([...stops, 24])).toEqual(whole);
    expect(tf.memory().numTensors).toBe(before);
  });

  test('starts from a state of the same matrices only', () => {
    const config = { beta1: 0.5, beta2: 0.5, window: 2, rule: 'count', totalSteps: 12, warmupSteps: 1, finalSteps: 3 };
    const make = (sizes: Record<string, number>) => new AdaptiveFreezer(sizes, config as FreezerConfig);
    const freezer = make({ a: 2, b: 3 });
    freezer.update(1, { a: new Float64Array([1, 2]), b: new Float64Array([1, 2, 3]) });
    const state = freezer.state();
    freezer.update(2, { a: new Float64Array([5, 5]), b: new Float64Array([5, 5, 5]) });
    expect(Array.from(state.scores.a.importance)).toEqual([0.5, 1]);
    expect(() => make({ a: 2, c: 3 }).restore(state)).toThrow(/c: has 3 entries, the state none/);
    expect(() => make({ a: 2, b: 4 }).restore(state)).toThrow(/b: has 4 entries, the state 3/);
  });
});
