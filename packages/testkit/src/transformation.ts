/// <reference types="jest" />
import {
  disposeTree,
  type MethodTransformation,
  parseConfig,
  random,
  type TransformationMethod,
  type TransformationOptimizer,
  tensorsOf,
  tidyTree,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { openPlace, type Place, taken, valuesOf } from './place.ts';

/** What {@link testTransformation} needs to know about a method. */
export interface TransformationSuite {
  /** Tells several suites of one method apart. */
  title?: string;
  // biome-ignore lint/suspicious/noExplicitAny: configurations differ per method.
  method: TransformationMethod<any, any>;
  /** Options that suit a regression with a kernel [6, 4] and a bias [4], and reduce its loss. */
  options: Record<string, unknown>;
  /** Options that must be refused, each with what the message must say. */
  refused: readonly (readonly [options: Record<string, unknown>, message: RegExp])[];
}

/**
 * Declares the conformance tests of a gradient transformation: purity, constant memory, states by name, exact
 * continuation, one backend against another, training, bad input.
 *
 * @param where the backend to run on. Default `wasm`.
 */
export function testTransformation({ title, method, options, refused }: TransformationSuite, where: Place = {}): void {
  const place = openPlace(where);
  // biome-ignore lint/suspicious/noExplicitAny: see TransformationSuite.method.
  const make = (): MethodTransformation<any, any> => method(options);
  const draw = (seed: number): Record<'kernel' | 'bias', tf.Tensor> => ({
    kernel: random(seed).normal([6, 4]),
    bias: random(seed + 100).normal([4]),
  });

  describe(`conformance of ${[method.info.id, ...(title ? [title] : [])].join(', ')}`, () => {
    let before: number;
    beforeEach(async () => {
      await place.enter();
      before = tf.memory().numTensors;
    });
    afterEach(() => {
      expect(tf.memory().numTensors).toBe(before);
    });

    test('update changes and disposes nothing it is given, and returns updates of the same names and shapes', async () => {
      const transformation = make();
      const [params, gradients] = [draw(1), draw(2)];
      const values = () => Promise.all([...Object.values(params), ...Object.values(gradients)].map(valuesOf));
      const given = await values();
      const start = tidyTree(() => transformation.init(params));
      // Intermediates are the driver's to tidy; the optimizer does it so.
      const { updates, state } = tidyTree(() => transformation.update(gradients, start, params));
      expect(await values()).toEqual(given);
      expect(Object.fromEntries(Object.entries(updates).map(([name, { shape }]) => [name, shape]))).toEqual({
        kernel: [6, 4],
        bias: [4],
      });
      const kept = new Set([
        ...tensorsOf(start),
        ...tensorsOf(state),
        ...tensorsOf(updates),
        ...tensorsOf([params, gradients]),
      ]);
      for (const tensor of kept) tensor.dispose();
    });

    const steps = place.small ? 10 : 50;
    test(`memory stays the same over ${steps} steps`, () => {
      const trainee = regression(make().optimizer());
      for (let i = 0; i < 5; i++) trainee.step();
      const held = tf.memory().numTensors;
      for (let i = 0; i < steps; i++) trainee.step();
      expect(tf.memory().numTensors).toBe(held);
      trainee.dispose();
    });

    test('reduces the loss', async () => {
      const trainee = regression(make().optimizer());
      const first = await trainee.loss();
      for (let i = 0; i < 80; i++) trainee.step();
      expect(await trainee.loss()).toBeLessThan(0.7 * first);
      trainee.dispose();
    });

    test('a variable without a gradient keeps its state, whatever the others do', async () => {
      const [alone, beside] = [regression(make().optimizer()), regression(make().optimizer())];
      for (let i = 0; i < 3; i++) alone.step();
      for (let i = 0; i < 3; i++) {
        beside.step();
        // A step in which the kernel is frozen must leave the kernel and its state as they are.
        const kernel = await valuesOf(beside.kernel);
        beside.step({ freeze: beside.kernel.name });
        expect(await valuesOf(beside.kernel)).toEqual(kernel);
      }
      const { names } = withState(beside.optimizer, ({ names: all }) => ({ names: [...all] }));
      expect(new Set(names)).toEqual(new Set([beside.kernel.name, beside.bias.name]));
      alone.dispose();
      beside.dispose();
    });

    test('a restored optimizer continues bit for bit', async () => {
      const whole = regression(make().optimizer());
      for (let i = 0; i < 12; i++) whole.step();
      const first = regression(make().optimizer());
      for (let i = 0; i < 7; i++) first.step();
      const state = first.optimizer.state();
      const second = regression(make().optimizer(), first);
      second.optimizer.restore(state);
      disposeTree(state);
      for (let i = 0; i < 5; i++) second.step();
      expect(await valuesOf(second.kernel)).toEqual(await valuesOf(whole.kernel));
      expect(await valuesOf(second.bias)).toEqual(await valuesOf(whole.bias));
      second.dispose();
      first.leave();
      whole.dispose();
    });

    test(`agrees with ${place.reference}`, async () => {
      const run = async (at: typeof place): Promise<number[]> => {
        await at.enter();
        const trainee = regression(make().optimizer());
        for (let i = 0; i < 6; i++) trainee.step();
        const result = await valuesOf(trainee.kernel);
        trainee.dispose();
        return result;
      };
      const own = await run(place);
      const reference = await run(openPlace({ backend: place.reference }));
      await place.enter();
      expect(own.map((value, i) => Math.abs(value - reference[i])).filter((off) => !(off < 1e-3))).toEqual([]);
    });

    test.each(refused.map(([given, message]) => [JSON.stringify(given), given, message] as const))(
      'refuses %s',
      (_, given, message) => {
        const attempt = () => {
          parseConfig(method.info.id, method.config, { ...options, ...given });
          const params = draw(1);
          try {
            disposeTree(method({ ...options, ...given }).init(params));
          } finally {
            tf.dispose(Object.values(params));
          }
        };
        expect(attempt).toThrow(message);
      },
    );
  });
}

interface Trainee {
  readonly kernel: tf.Variable;
  readonly bias: tf.Variable;
  readonly optimizer: TransformationOptimizer;
  /** One update. */
  step(options?: { freeze?: string }): void;
  loss(): Promise<number>;
  /** Disposes everything but the variables. */
  leave(): void;
  dispose(): void;
}

/** Least squares of 32 seeded samples; goes on with the variables of `from`, under their names. */
function regression(optimizer: TransformationOptimizer, from?: Trainee): Trainee {
  const stream = random(5);
  const [x, target, bias0] = [
    stream.normal([32, 6]) as tf.Tensor2D,
    stream.normal([6, 4]) as tf.Tensor2D,
    stream.normal([4]),
  ];
  const y = tf.tidy(() => tf.add(tf.matMul(x, target), bias0));
  const [kernel, bias] = from ? [from.kernel, from.bias] : [variable([6, 4]), variable([4])];
  tf.dispose([target, bias0]);
  const loss = () => tf.losses.meanSquaredError(y, tf.add(tf.matMul(x, kernel as tf.Tensor2D), bias)) as tf.Scalar;
  return {
    kernel,
    bias,
    optimizer,
    step: ({ freeze } = {}) => {
      const { value, grads } = tf.variableGrads(loss, [kernel, bias]);
      const given = Object.entries(grads).map(([name, tensor]) => ({ name, tensor: name === freeze ? null : tensor }));
      optimizer.applyGradients(given as { name: string; tensor: tf.Tensor }[]);
      tf.dispose([value, ...Object.values(grads)]);
    },
    loss: async () => (await taken(tf.tidy(loss)))[0],
    leave: () => {
      optimizer.dispose();
      tf.dispose([x, y]);
    },
    dispose: () => {
      optimizer.dispose();
      tf.dispose([x, y, kernel, bias]);
    },
  };
}

function variable(shape: number[]): tf.Variable {
  const start = tf.zeros(shape);
  const made = tf.variable(start);
  start.dispose();
  return made;
}

function withState<T>(
  optimizer: TransformationOptimizer,
  read: (state: ReturnType<TransformationOptimizer['state']>) => T,
): T {
  const state = optimizer.state();
  const result = read(state);
  disposeTree(state);
  return result;
}
