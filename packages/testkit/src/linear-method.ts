/// <reference types="jest" />
import {
  type AnyConfiguredMethod,
  type AnyLinearMethod,
  type AttachOptions,
  attach,
  count,
  decodeSafetensors,
  detach,
  disable,
  encodeSafetensors,
  load,
  merge,
  predictMixed,
  random,
  save,
  setActive,
  unmerge,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { differences } from './differences.ts';
import { type OpenPlace, openPlace, type Place, taken, valuesOf } from './place.ts';

/** What {@link testLinearMethod} needs to know about a method. */
export interface LinearMethodSuite {
  /** Tells several suites of one method apart. */
  title?: string;
  /** The method with options that suit kernels of the sizes in `dims`. */
  configured: AnyConfiguredMethod;
  /** Layer widths of the test model, input first. Default [6, 8, 5]. */
  dims?: readonly number[];
  /** Trainable numbers of one adapted layer, or of the whole adapter for shared tensors. */
  parameters: (inDim: number, outDim: number) => number;
  /** Trainable numbers that all layers share, counted once. Default 0. */
  sharedParameters?: number;
  /** False for methods whose start is not the base model. Default true. */
  identityAtStart?: boolean;
  /** Relative tolerance of "starts as the base model". Default 1e-5. */
  startTolerance?: number;
  /** More options of `attach`, e.g. calibration; called anew for each attach. */
  attachOptions?: (model: tf.LayersModel) => AttachOptions;
  /** Methods to read the saved files with. Default the method itself. */
  readers?: readonly AnyLinearMethod[];
  /** Options that must be refused, each with what the message must say. */
  refused: readonly (readonly [options: Record<string, unknown>, message: RegExp])[];
}

/**
 * Declares the conformance tests of a linear method: start, gradients against finite differences, forward against dense
 * kernel, merge and unmerge, files, counts, freezing of the base, mixed batches, leaks, seeds, backends, bad input.
 *
 * @param where the backend to run on, and where adapters are saved. Default `wasm` and directories.
 */
export function testLinearMethod(suite: LinearMethodSuite, where: Place = {}): void {
  const place = openPlace(where);
  const { configured, dims = [6, 8, 5], identityAtStart = true } = suite;
  const { method } = configured;
  const mergeable = Boolean(method.kernel) && (method.mergeable?.(configured.config) ?? true);
  const targets = dims.slice(1).map((_, i) => `layer${i}`);
  const attachTo = (model: tf.Sequential, options: AttachOptions = {}, at = place): Promise<tf.Sequential> =>
    at.atHome(() => attach(model, configured, { targets, seed: 7, ...suite.attachOptions?.(model), ...options }));
  const attached = (options?: AttachOptions): Promise<tf.Sequential> => attachTo(denseModel(dims), options);
  const input = (seed = 3, shape = [4, dims[0]]): tf.Tensor => random(seed).normal(shape);

  describe(`conformance of ${[method.info.id, ...(suite.title ? [suite.title] : [])].join(', ')}`, () => {
    beforeAll(place.enter);

    let before: number;
    beforeEach(() => {
      before = tf.memory().numTensors;
    });
    afterEach(() => {
      expect(tf.memory().numTensors).toBe(before);
    });

    if (identityAtStart) {
      test('starts as the base model', async () => {
        const model = await attached();
        const x = input();
        const y = await predict(model, x);
        const base = await taken(disable(model, () => model.apply(x) as tf.Tensor));
        expectClose(y, base, suite.startTolerance ?? 1e-5);
        close(model, x);
      });
    }

    test('gradients of the trainable tensors equal finite differences', async () => {
      const model = await attached();
      perturb(model);
      const x = input();
      const upstream = input(11, [4, dims[dims.length - 1]]);
      await checkGradients(model, x, upstream, place.small ? 3 : 6);
      upstream.dispose();
      close(model, x);
    });

    if (mergeable) {
      test('merging gives the same outputs on matrices and sequences, unmerging restores the kernels bit for bit', async () => {
        const model = await attached();
        perturb(model);
        const x = input();
        const kernels = await baseKernels(model);
        const y = await predict(model, x);
        await place.atHome(() => merge(model));
        expectClose(await predict(model, x), y, 1e-4);
        unmerge(model);
        expect(await baseKernels(model)).toEqual(kernels);
        expect(await predict(model, x)).toEqual(y);
        close(model, x);

        const sequences = await attachTo(denseModel(dims, true));
        perturb(sequences);
        const x3 = input(5, [2, 3, dims[0]]);
        const y3 = await predict(sequences, x3);
        await place.atHome(() => merge(sequences));
        expectClose(await predict(sequences, x3), y3, 1e-4);
        unmerge(sequences);
        close(sequences, x3);
      });
    } else {
      test('refuses to merge', async () => {
        const model = await attached();
        expect(() => merge(model)).toThrow(/not mergeable/);
        close(model);
      });
    }

    test('saving, then loading, restores every output', async () => {
      const model = await attached();
      perturb(model);
      const x = input();
      const y = await predict(model, x);
      await place.withFiles(async (target) => {
        await save(model, target);
        await expect(save(model, target)).rejects.toThrow(/exist/);
        const other = denseModel(dims);
        await place.atHome(() => load(other, target, { methods: suite.readers ?? [method] }));
        const restored = await predict(other, x);
        // A file that is another method's holds other factors of the same map: equal to rounding.
        if (method.peft?.convert) expectClose(restored, y, 1e-4);
        else expect(restored).toEqual(y);
        close(other);
      });
      close(model, x);
    });

    test('damaged files are refused by key, and the model stays as it was', async () => {
      const model = await attached();
      await place.withFiles(async (target, files) => {
        await save(model, target);
        const { tensors } = decodeSafetensors((await files.read(WEIGHTS)) as Uint8Array);
        const key = Object.keys(tensors)[0];
        const reload = async (changed: Record<string, tf.Tensor>): Promise<string> => {
          await files.write(WEIGHTS, await encodeSafetensors(changed));
          const other = denseModel(dims);
          const weights = await Promise.all(other.getWeights().map(valuesOf));
          const error = await place
            .atHome(() => load(other, target, { methods: suite.readers ?? [method] }))
            .then(
              () => '',
              (reason: Error) => reason.message,
            );
          expect(await Promise.all(other.getWeights().map(valuesOf))).toEqual(weights);
          other.dispose();
          return error;
        };
        const broken = tf.fill(tensors[key].shape, Number.NaN);
        expect(await reload({ ...tensors, [key]: broken })).toContain(key);
        const { [key]: removed, ...rest } = tensors;
        if (Object.keys(rest).length > 0) expect(await reload(rest)).toContain(key);
        expect(await reload({ ...tensors, [`${key}.more`]: removed })).toContain(`${key}.more`);
        broken.dispose();
        tf.dispose(Object.values(tensors));
      });
      close(model);
    });

    test('training moves the adapter and leaves the base as it was', async () => {
      const model = await attached();
      const kernels = await baseKernels(model);
      const weights = () => Promise.all(model.trainableWeights.map((weight) => valuesOf(weight.read())));
      const start = await weights();
      model.compile({ optimizer: tf.train.adam(0.01), loss: 'meanSquaredError' });
      const x = input(1, [16, dims[0]]);
      const y = input(2, [16, dims[dims.length - 1]]);
      await model.fit(x, y, { epochs: 10, batchSize: 8, verbose: 0 });
      if (method.trains !== 'model') expect(await baseKernels(model)).toEqual(kernels);
      const moved = (await weights()).filter((values, i) => values.some((value, j) => value !== start[i][j]));
      expect(moved.length).toBeGreaterThan(0);
      expect(moved.flat().filter((value) => !Number.isFinite(value))).toEqual([]);
      y.dispose();
      model.optimizer.dispose();
      close(model, x);
    });

    test('counts its parameters by the formula', async () => {
      const model = await attached();
      const expected = dims
        .slice(1)
        .reduce((sum, outDim, i) => sum + suite.parameters(dims[i], outDim), suite.sharedParameters ?? 0);
      expect(count(model).adapters.default).toBe(expected);
      close(model);
    });

    test('a mixed batch equals running each row with its own adapter', async () => {
      const model = await attached({ name: 'first', seed: 1 });
      perturb(model, 21);
      await attachTo(model, { name: 'second', seed: 2 });
      perturb(model, 22);
      const x = input(9, [5, dims[0]]);
      const names = ['second', '__base__', 'first', 'second', 'first'];
      const y = await taken(predictMixed(model, x, names) as tf.Tensor);
      const rows: number[][] = [];
      for (const [row, name] of names.entries()) {
        setActive(model, name === '__base__' ? [] : name);
        const one = tf.slice(x, [row, 0], [1, dims[0]]);
        rows.push(await predict(model, one));
        one.dispose();
      }
      expectClose(y, rows.flat(), 1e-5);
      expect(() => predictMixed(model, x, ['first'])).toThrow(/1 names for a batch of 5/);
      expect(() =>
        predictMixed(
          model,
          x,
          names.map(() => 'absent'),
        ),
      ).toThrow(/absent/);
      close(model, x);
    });

    const calls = place.small ? 10 : 100;
    test(`leaks no tensor over ${calls} calls`, async () => {
      const model = await attached();
      const x = input();
      const held = tf.memory().numTensors;
      for (let i = 0; i < calls; i++) tf.dispose(model.apply(x) as tf.Tensor);
      expect(tf.memory().numTensors).toBe(held);
      close(model, x);
    });

    test('the same seed gives the same adapter', async () => {
      const [a, b] = [await attached(), await attached()];
      expect(await adapterWeights(a)).toEqual(await adapterWeights(b));
      close(a);
      close(b);
    });

    test(`agrees with ${place.reference}`, async () => {
      const run = async (at: OpenPlace): Promise<number[]> => {
        await at.enter();
        const model = await attachTo(denseModel(dims), {}, at);
        perturb(model);
        const x = input();
        const y = await predict(model, x);
        close(model, x);
        return y;
      };
      const own = await run(place);
      const reference = await run(openPlace({ backend: place.reference }));
      await place.enter();
      expectClose(own, reference, 1e-4);
    });

    test('refuses inputs of the wrong width with both numbers', async () => {
      const model = await attached();
      const layer = model.getLayer(targets[0]) as unknown as { call(x: tf.Tensor, kwargs: object): tf.Tensor };
      const x = input(3, [4, dims[0] + 1]);
      expect(() => tf.tidy(() => layer.call(x, {}))).toThrow(new RegExp(`${dims[0] + 1}.*${dims[0]}`));
      close(model, x);
    });

    test.each(suite.refused.map(([options, message]) => [JSON.stringify(options), options, message] as const))(
      'refuses %s',
      async (_, options, message) => {
        const model = denseModel(dims);
        const attempt = place.atHome(async () =>
          attach(model, method({ ...definedOptions(configured), ...options }), {
            targets,
            ...suite.attachOptions?.(model),
          }),
        );
        await expect(attempt).rejects.toThrow(message);
        model.dispose();
      },
    );

    test('refuses a kernel that is not finite', async () => {
      const model = denseModel(dims);
      const kernel = model.layers[0].getWeights()[0];
      const broken = tf.fill(kernel.shape, Number.NaN);
      model.layers[0].setWeights([broken, ...model.layers[0].getWeights().slice(1)]);
      broken.dispose();
      await expect(
        place.atHome(() => attach(model, configured, { targets, ...suite.attachOptions?.(model) })),
      ).rejects.toThrow(/not finite/);
      model.dispose();
    });
  });
}

const WEIGHTS = 'adapter_model.safetensors';

function definedOptions({ config }: AnyConfiguredMethod): Record<string, unknown> {
  return Object.fromEntries(Object.entries(config as object).filter(([, value]) => value !== undefined));
}

/** Dense layers `layer0`, `layer1`, … of the given widths with seeded weights, tanh between them. */
export function denseModel(dims: readonly number[], sequence = false): tf.Sequential {
  const stream = random(42);
  const model = tf.sequential();
  dims.slice(1).forEach((units, i) => {
    const weights = [stream.normal([dims[i], units], 0, 1 / Math.sqrt(dims[i])), stream.normal([units], 0, 0.1)];
    model.add(
      tf.layers.dense({
        name: `layer${i}`,
        units,
        activation: i < dims.length - 2 ? 'tanh' : 'linear',
        ...(i === 0 && { inputShape: sequence ? [3, dims[0]] : [dims[0]] }),
        weights,
      }),
    );
    tf.dispose(weights);
  });
  return model;
}

function predict(model: tf.LayersModel, x: tf.Tensor): Promise<number[]> {
  return taken(model.apply(x) as tf.Tensor);
}

function close(model: tf.LayersModel, ...tensors: tf.Tensor[]): void {
  detach(model);
  model.dispose();
  tf.dispose(tensors);
}

interface Weight {
  read(): tf.Variable;
  write(value: tf.Tensor): unknown;
  originalName: string;
}

function adapterVariables(model: tf.LayersModel): Weight[] {
  return (model.trainableWeights as unknown as Weight[]).filter(
    ({ originalName }) => /^[^/]+\/[^/]+$/.test(originalName) && !/^layer\d/.test(originalName),
  );
}

function adapterWeights(model: tf.LayersModel): Promise<number[][]> {
  return Promise.all(adapterVariables(model).map((weight) => valuesOf(weight.read())));
}

/** Moves the active adapter away from its start, where many gradients vanish. */
function perturb(model: tf.LayersModel, seed = 13): void {
  const stream = random(seed);
  for (const weight of adapterVariables(model)) {
    const moved = tf.tidy(() => tf.add(weight.read(), stream.normal(weight.read().shape, 0, 0.1)));
    weight.write(moved);
    moved.dispose();
  }
}

function baseKernels(model: tf.LayersModel): Promise<number[][]> {
  const kernelOf = (layer: tf.layers.Layer) => (layer as unknown as { kernel: { read(): tf.Tensor } }).kernel.read();
  return Promise.all(model.layers.map((layer) => valuesOf(kernelOf(layer))));
}

/** Some random entries of each tensor. */
async function checkGradients(
  model: tf.LayersModel,
  x: tf.Tensor,
  upstream: tf.Tensor,
  entries: number,
): Promise<void> {
  const loss = (): tf.Scalar => tf.tidy(() => tf.sum(tf.mul(model.apply(x) as tf.Tensor, upstream)));
  const weights = adapterVariables(model);
  const { value, grads } = tf.variableGrads(
    loss,
    weights.map((weight) => weight.read()),
  );
  value.dispose();
  const stream = random(17);
  for (const weight of weights) {
    const variable = weight.read();
    const gradient = await valuesOf(grads[variable.name]);
    const largest = gradient.reduce((max, entry) => Math.max(max, Math.abs(entry)), 0);
    const original = await valuesOf(variable);
    const indices = Array.from({ length: Math.min(entries, original.length) }, () => stream.integer(original.length));
    const numeric = await differences(loss, variable, original, indices);
    for (const [i, index] of indices.entries()) {
      if (!(Math.abs(gradient[index] - numeric[i]) <= 2e-3 + 5e-3 * largest)) {
        throw new Error(
          `${weight.originalName}[${index}]: gradient ${gradient[index]}, finite difference ${numeric[i]}`,
        );
      }
    }
  }
  tf.dispose(grads);
}

function expectClose(got: readonly number[], expected: readonly number[], tolerance: number): void {
  expect(got.length).toBe(expected.length);
  const scale = expected.reduce((max, value) => Math.max(max, Math.abs(value)), 1e-3);
  const worst = got.reduce((max, value, i) => Math.max(max, Math.abs(value - expected[i])), 0);
  expect(worst / scale).toBeLessThan(tolerance);
}
