/// <reference types="jest" />
import {
  adam,
  chain,
  perGroup,
  projectionError,
  random,
  type StructuredKernel,
  type StructuredLayerClass,
  type StructuredMethod,
  structuredFamily,
  toOptimizer,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { differences } from './differences.ts';
import { type LinearMethodSuite, testLinearMethod } from './linear-method.ts';
import { openPlace, type Place, scoped, taken, valuesOf } from './place.ts';

/** One size of kernel with the options that suit it. */
export interface StructuredCase {
  readonly inDim: number;
  readonly outDim: number;
  readonly options: Record<string, unknown>;
}

/** What {@link testStructured} needs to know about a method. */
export interface StructuredSuite {
  // biome-ignore lint/suspicious/noExplicitAny: methods of every configuration are tested alike.
  readonly method: StructuredMethod<any, any>;
  // biome-ignore lint/suspicious/noExplicitAny: see above.
  readonly Layer: StructuredLayerClass<any>;
  /** Options that fit kernels of 6×8 and 8×5. */
  readonly options: Record<string, unknown>;
  /** Sizes to test; awkward ones among them where the method allows them. */
  readonly cases: readonly StructuredCase[];
  /** Trained numbers by the paper's formula. */
  readonly parameters: (size: StructuredCase) => number;
  /** Floating-point operations per row by the paper's formula. */
  readonly flops: (size: StructuredCase) => number;
  /** Options of a square kernel of that width, for the tests over widths. */
  readonly atWidth: (width: number) => Record<string, unknown>;
  /** Largest relative error of projecting a kernel of the form itself. Default 1e-4. */
  readonly recovers?: number;
  /** Options of the same method that must be refused at 6×8 and 8×5, each with what the message must say. */
  readonly refused: LinearMethodSuite['refused'];
}

/**
 * Declares the conformance tests of a structured method: those of {@link testLinearMethod}, then its kernels alone
 * (product against dense form, transpose, gradients, counts, budget, projection, state), its starts and learning rates over
 * widths, and its layer (dense round trip, stored models, training).
 *
 * @param where the backend to run on, and where adapters are saved. Default `wasm` and directories.
 */
export function testStructured(suite: StructuredSuite, where: Place = {}): void {
  const place = openPlace(where);
  const { method, Layer, options, cases, recovers = 1e-4 } = suite;
  const family = structuredFamily(method);
  const exactAt = ({ options: given }: StructuredCase) =>
    method.structure.exact?.(method(given as never).config) ?? true;

  const project = (W: tf.Tensor2D, given: object) => place.atHome(() => family.fromDense(W, given as never));

  testLinearMethod(
    {
      configured: method({ ...options, init: 'official' } as never),
      identityAtStart: false,
      parameters: (inDim, outDim) => suite.parameters({ inDim, outDim, options }),
      refused: suite.refused,
    },
    where,
  );

  describe(`structured kernels of ${method.info.id}`, () => {
    beforeAll(place.enter);
    let before: number;
    beforeEach(() => {
      before = tf.memory().numTensors;
    });
    afterEach(() => {
      expect(tf.memory().numTensors).toBe(before);
    });
    const kernelAt = ({ inDim, outDim, options: given }: StructuredCase, seed = 5): StructuredKernel =>
      family.init({ inDim, outDim, ...given } as never, 'muP', seed);
    const named = cases.map(
      (entry) => [`${entry.inDim}×${entry.outDim} ${JSON.stringify(entry.options)}`, entry] as const,
    );

    test.each(named)('%s: the product equals that with the dense form', async (_, entry) => {
      const kernel = kernelAt(entry);
      await scoped(async () => {
        const { inDim, outDim } = entry;
        const W = kernel.toDense();
        expect(W.shape).toEqual([inDim, outDim]);
        await near(kernel.apply(tf.eye(inDim)), W, 1e-5);
        const x = random(1).normal([5, inDim]) as tf.Tensor2D;
        await near(kernel.apply(x), tf.matMul(x, W), 1e-4);
        const sequence = kernel.apply(tf.stack([x, tf.neg(x)]));
        expect(sequence.shape).toEqual([2, 5, outDim]);
        await near(sequence, tf.stack([tf.matMul(x, W), tf.neg(tf.matMul(x, W))]), 1e-4);
        const g = random(2).normal([5, outDim]) as tf.Tensor2D;
        await near(kernel.applyTranspose(g), tf.matMul(g, W, false, true), 1e-4);
      });
      kernel.dispose();
    });

    test.each(named)('%s: gradients of the factors equal finite differences', async (_, entry) => {
      const kernel = kernelAt(entry);
      const [x, g] = [random(1).normal([3, entry.inDim]), random(2).normal([3, entry.outDim])];
      await checkFactors(kernel, () => tf.sum(tf.mul(kernel.apply(x), g)) as tf.Scalar, place.small ? 5 : 20);
      tf.dispose([x, g]);
      kernel.dispose();
    });

    test.each(named)('%s: counts numbers and operations by the formulas', (_, entry) => {
      const kernel = kernelAt(entry);
      const size = { inDim: entry.inDim, outDim: entry.outDim, ...entry.options } as never;
      expect(kernel.paramCount()).toBe(Object.values(kernel.factors).reduce((sum, factor) => sum + factor.size, 0));
      expect(kernel.paramCount()).toBe(suite.parameters(entry));
      expect(family.paramCount(size)).toBe(suite.parameters(entry));
      for (const rows of [1, 7]) expect(kernel.flops(rows)).toBe(rows * suite.flops(entry));
      const multipliers = kernel.lrMultipliers(64);
      const widths = kernel.factorInDims();
      const products = Object.keys(widths).map((key) => multipliers[key] * widths[key]);
      for (const product of products) expect(64 / product).toBeCloseTo(Math.round(64 / product), 6);
      kernel.dispose();
    });

    test('a budget is kept and used up', () => {
      for (const fraction of [0.5, 0.8]) {
        const size = family.fitBudget(24, 24, fraction);
        const used = family.paramCount(size);
        expect(used).toBeLessThanOrEqual(fraction * 24 * 24);
        const shape = { inDim: 24, outDim: 24, config: method(optionsOf(size) as never).config };
        for (const change of method.structure.ladder(shape)) {
          const other = family.paramCount({ ...size, ...change });
          expect(other > used && other <= fraction * 24 * 24).toBe(false);
        }
      }
      expect(() => family.fitBudget(24, 24, 1e-4)).toThrow(/the smallest kernel has \d+/);
    });

    test.each(named)('%s: projecting a kernel of the form finds it again', async (_, entry) => {
      const kernel = kernelAt(entry);
      const W = kernel.toDense();
      const found = await project(W, entry.options);
      expect(found.relError).toBeLessThan(exactAt(entry) ? 1e-4 : recovers);
      found.kernel.dispose();
      W.dispose();
      kernel.dispose();
    });

    for (const [name, entry] of named.filter(([, each]) => exactAt(each))) {
      test(`${name}: the projection is idempotent, and the residual is orthogonal to it`, async () => {
        const W = random(8).normal([entry.inDim, entry.outDim]) as tf.Tensor2D;
        const { kernel, error, relError, exact } = await project(W, entry.options);
        expect(exact).toBe(true);
        const P = kernel.toDense();
        const again = await project(P, entry.options);
        await scoped(async () => {
          await near(again.kernel.toDense(), P, 1e-4);
          const number = async (t: tf.Tensor) => (await t.data())[0];
          const whole = await number(tf.sum(tf.square(W)));
          expect(Math.abs(await number(tf.sum(tf.mul(tf.sub(W, P), P)))) / whole).toBeLessThan(1e-5);
          expect((error ** 2 + (await number(tf.sum(tf.square(P))))) / whole).toBeCloseTo(1, 5);
          expect(relError).toBeCloseTo(error / Math.sqrt(whole), 6);
        });
        tf.dispose([W, P]);
        kernel.dispose();
        again.kernel.dispose();
      });
    }

    test('a kernel of zeros has relative error 0, one that is not finite is refused', async () => {
      const { inDim, outDim, options: given } = cases[0];
      const [zero, broken] = [tf.zeros([inDim, outDim]), tf.fill([inDim, outDim], Number.NaN)] as tf.Tensor2D[];
      const { kernel, relError } = await project(zero, given);
      expect(relError).toBe(0);
      await expect(place.atHome(async () => family.fromDense(broken, given as never))).rejects.toThrow(/non-finite/);
      kernel.dispose();
      tf.dispose([zero, broken]);
    });

    test('the state restores a kernel bit for bit', async () => {
      const [one, two] = [kernelAt(cases[0], 1), kernelAt(cases[0], 2)];
      const state = one.state();
      two.load(state);
      const [a, b] = [one.toDense(), two.toDense()];
      expect(await valuesOf(b)).toEqual(await valuesOf(a));
      const [name] = Object.keys(state);
      const { [name]: left, ...rest } = state;
      expect(() => two.load(rest)).toThrow(new RegExp(`${name}: is missing`));
      const wrong = tf.zeros([left.shape[0] + 1, 2]);
      expect(() => two.load({ ...rest, [name]: wrong })).toThrow(/has shape \[.*\]; expected \[.*\]/);
      tf.dispose([a, b, wrong, ...Object.values(state)]);
      one.dispose();
      two.dispose();
    });

    test('x of another width is refused with both widths', () => {
      const kernel = kernelAt(cases[0]);
      const x = tf.zeros([2, cases[0].inDim + 1]);
      expect(() => kernel.apply(x)).toThrow(new RegExp(`${cases[0].inDim}.*${cases[0].inDim + 1}`));
      x.dispose();
      kernel.dispose();
    });

    test('outputs at the start and updates of one step do not depend on the width', async () => {
      const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
      const rows: { update: number; output: number }[] = [];
      for (const width of place.small ? [64, 256] : [64, 256, 1024]) {
        const sizes: { update: number; output: number }[] = [];
        for (let seed = 1; seed <= 6; seed++) sizes.push(await updateSizes(family, width, suite.atWidth(width), seed));
        rows.push({ update: mean(sizes.map(({ update }) => update)), output: mean(sizes.map(({ output }) => output)) });
      }
      const spread = (values: number[]) => Math.max(...values) / Math.min(...values);
      expect(spread(rows.map(({ update }) => update))).toBeLessThan(1.4);
      expect(spread(rows.map(({ output }) => output))).toBeLessThan(1.6);
    });

    test.each(place.small ? [64] : [64, 256])(
      '20 Adam steps at width %i lower the loss of a regression',
      async (width) => {
        const kernel = family.init({ inDim: width, outDim: width, ...suite.atWidth(width) } as never, 'muP', 3);
        const [x, y] = [random(1).normal([64, width]), random(2).normal([64, width])];
        const names = Object.keys(kernel.factors);
        const multipliers = kernel.lrMultipliers(64);
        const factors = Object.fromEntries(names.map((name) => [kernel.factors[name].name, multipliers[name]]));
        const optimizer = toOptimizer(
          chain(
            adam({ learningRate: 1e-3 }),
            perGroup(factors, (name) => name),
          ),
        );
        const loss = () => tf.tidy(() => tf.losses.meanSquaredError(y, kernel.apply(x)) as tf.Scalar);
        const losses: number[] = [];
        for (let step = 0; step <= 20; step++) {
          const cost = optimizer.minimize(loss, true, Object.values(kernel.factors)) as tf.Scalar;
          losses.push(...(await taken(cost)));
        }
        expect(losses[20]).toBeLessThan(losses[0]);
        optimizer.dispose();
        tf.dispose([x, y]);
        kernel.dispose();
      },
    );
  });

  describe(`the layer of ${method.info.id}`, () => {
    let before: number;
    beforeAll(place.enter);
    beforeEach(() => {
      before = tf.memory().numTensors;
    });
    afterEach(() => {
      expect(tf.memory().numTensors).toBe(before);
    });
    const modelOf = (more: object = {}): tf.Sequential =>
      tf.sequential({
        layers: [
          new Layer({ units: 8, inputShape: [6], activation: 'tanh', seed: 1, ...options, ...more } as never),
          new Layer({ units: 5, seed: 2, ...options, ...more } as never),
        ],
      });

    test('its weights carry the names of the factors, and all of them train', async () => {
      const model = modelOf();
      const kernel = family.init({ inDim: 6, outDim: 8, ...options } as never);
      const declared = Object.keys(kernel.factors);
      kernel.dispose();
      const names = model.layers[0].trainableWeights.map(({ name }) => name.split('/').at(-1)?.replace(/_\d+$/, ''));
      expect(names).toEqual([...declared, 'bias']);
      const weights = () => Promise.all(model.getWeights().map(valuesOf));
      const start = await weights();
      model.compile({ optimizer: toOptimizer(adam({ learningRate: 1e-2 })), loss: 'meanSquaredError' });
      const [x, y] = [random(1).normal([16, 6]), random(2).normal([16, 5])];
      await model.fit(x, y, { epochs: 3, verbose: 0 });
      for (const [i, values] of (await weights()).entries()) expect(values).not.toEqual(start[i]);
      tf.dispose([x, y]);
      model.optimizer.dispose();
      model.dispose();
    });

    test('a stored model comes back with the same outputs and options', async () => {
      const model = modelOf({ kernelInitializer: 'muP' });
      let stored: tf.io.ModelArtifacts | undefined;
      await model.save(
        tf.io.withSaveHandler(async (artifacts) => {
          stored = artifacts;
          return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } };
        }),
      );
      // What is stored is text in the end.
      expect(JSON.parse(JSON.stringify(stored!.modelTopology))).toEqual(stored!.modelTopology);
      const restored = await tf.loadLayersModel(tf.io.fromMemory(stored!));
      const x = random(1).normal([4, 6]);
      const [y, again] = [model, restored].map((each) => each.apply(x) as tf.Tensor);
      expect(await taken(again)).toEqual(await taken(y));
      expect(restored.layers[0].getConfig()).toEqual(model.layers[0].getConfig());
      x.dispose();
      model.dispose();
      restored.dispose();
    });

    test('a dense layer becomes a structured one and back with its bias, activation and name', async () => {
      const dense = tf.layers.dense({ name: 'projection', units: 8, activation: 'relu', inputShape: [6] });
      const model = tf.sequential({ layers: [dense] });
      const given = [random(1).normal([6, 8]), random(2).normal([8])];
      dense.setWeights(given);
      const layer = await place.atHome(() => Layer.fromDenseLayer(dense, options as never));
      expect(layer.name).toBe('projection');
      const back = layer.toDenseLayer();
      const nearest = await project(given[0] as tf.Tensor2D, options);
      const x = random(3).normal([4, 6]);
      await scoped(async () => {
        await near(back.getWeights()[0], layer.denseKernel(), 1e-6);
        if (exactAt({ inDim: 6, outDim: 8, options })) await near(back.getWeights()[0], nearest.kernel.toDense(), 1e-5);
        else {
          const { relError } = await place.atHome(() => projectionError(given[0], back.getWeights()[0]));
          expect(relError).toBeLessThan(1.5 * nearest.relError + recovers);
        }
        expect(await valuesOf(back.getWeights()[1])).toEqual(await valuesOf(given[1]));
        const [y, same] = [layer, back].map((each) => each.apply(x) as tf.Tensor);
        await near(y, same, 1e-4);
        // A device's relu may give -0.
        expect(Math.abs((await valuesOf(tf.min(y)))[0])).toBe(0);
        const sequence = random(4).normal([2, 3, 6]);
        await near(layer.apply(sequence) as tf.Tensor, back.apply(sequence) as tf.Tensor, 1e-4);
      });
      nearest.kernel.dispose();
      tf.dispose([x, ...given]);
      model.dispose();
      for (const each of [layer, back]) tf.sequential({ layers: [each] }).dispose();
    });

    test('a residual branch can start at zero', async () => {
      const layer = new Layer({ units: 8, inputShape: [6], zeroInit: true, ...options } as never);
      await scoped(async () => {
        const y = layer.apply(random(1).normal([3, 6])) as tf.Tensor;
        const bias = (layer.getWeights().at(-1) as tf.Tensor).expandDims(0);
        expect(await valuesOf(tf.max(tf.abs(tf.sub(y, bias))))).toEqual([0]);
      });
      layer.dispose();
    });

    test('options that make no sense are refused by name', () => {
      const id = method.info.id;
      const make = (more: object) => () => new Layer({ units: 4, ...options, ...more } as never);
      expect(make({ units: 0 })).toThrow(new RegExp(`${id}\\.units: must be a positive integer, got 0`));
      expect(make({ kernelInitializer: 'zeros' })).toThrow(
        /kernelInitializer: must be one of "official", "muP", "dense"/,
      );
      expect(make({ init: 'muP' })).toThrow(/kernelInitializer/);
      expect(make({ unheardOf: 1 })).toThrow(new RegExp(`${id}\\.unheardOf: unknown option`));
      const layer = make({})();
      layer.build([null, 6]);
      const x = tf.zeros([2, 7]);
      expect(() => layer.apply(x)).toThrow(/width 7, the kernel takes 6/);
      x.dispose();
      layer.dispose();
    });
  });
}

function optionsOf(size: object): object {
  const { inDim, outDim, ...rest } = size as { inDim: number; outDim: number };
  return rest;
}

function largestOf(values: ArrayLike<number>): number {
  return Array.from(values).reduce((max, value) => Math.max(max, Math.abs(value)), 0);
}

async function near(got: tf.Tensor, expected: tf.Tensor, tolerance: number): Promise<void> {
  expect(got.shape).toEqual(expected.shape);
  const [a, b] = [await got.data(), await expected.data()];
  const scale = Math.max(1e-3, largestOf(b));
  let worst = 0;
  for (let i = 0; i < b.length; i++) worst = Math.max(worst, Math.abs(a[i] - b[i]));
  expect(worst / scale).toBeLessThan(tolerance);
}

/** Some random entries of each factor. */
async function checkFactors(kernel: StructuredKernel, loss: () => tf.Scalar, entries: number): Promise<void> {
  const { value, grads } = tf.variableGrads(loss, Object.values(kernel.factors));
  value.dispose();
  const stream = random(17);
  for (const [name, factor] of Object.entries(kernel.factors)) {
    const gradient = await grads[factor.name].data();
    const largest = largestOf(gradient);
    const original = await valuesOf(factor);
    const indices = Array.from({ length: Math.min(entries, original.length) }, () => stream.integer(original.length));
    const numeric = await differences(loss, factor, original, indices);
    const off = indices.map((index, i) => Math.abs(gradient[index] - numeric[i]) / (largest + 0.2));
    expect({ name, far: off.filter((value) => !(value < 1e-2)) }).toEqual({ name, far: [] });
  }
  tf.dispose(grads);
}

/** Root mean squares of the output at the start and of its change by one sign step with the multiplied rates. */
async function updateSizes(
  family: ReturnType<typeof structuredFamily>,
  width: number,
  options: Record<string, unknown>,
  seed: number,
): Promise<{ output: number; update: number }> {
  const kernel = family.init({ inDim: width, outDim: width, ...options } as never, 'muP', seed);
  const stream = random(seed).fork(width);
  const [x, g] = [stream.normal([1, width]), stream.normal([1, width])];
  const multipliers = kernel.lrMultipliers(64);
  const rms = (t: tf.Tensor) => tf.sqrt(tf.mean(tf.square(t)));
  const [output, update] = tf.tidy(() => {
    const y = kernel.apply(x);
    const { grads } = tf.variableGrads(
      () => tf.sum(tf.mul(kernel.apply(x), g)) as tf.Scalar,
      Object.values(kernel.factors),
    );
    for (const [name, factor] of Object.entries(kernel.factors)) {
      factor.assign(tf.sub(factor, tf.mul(tf.sign(grads[factor.name]), 1e-3 * multipliers[name])));
    }
    return [rms(y), rms(tf.sub(kernel.apply(x), y))];
  });
  const result = { output: (await taken(output))[0], update: (await taken(update))[0] };
  tf.dispose([x, g]);
  kernel.dispose();
  return result;
}
