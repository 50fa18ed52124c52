import * as tf from '@tensorflow/tfjs';
import { cubicBSplineBasis, defineElementwiseKernel, tableKernel } from '../src/kernels/index.ts';
import { linear } from '../src/ops/index.ts';
import { backends, deviation, gradientError, leaked, useBackend, values } from './backends.ts';

const swish = () =>
  defineElementwiseKernel({
    name: 'swish',
    inputs: ['x', 'beta'],
    body: 'const s = 1 / (1 + Math.exp(-beta * x)); return x * s;',
    gradient: {
      x: 'const s = 1 / (1 + Math.exp(-beta * x)); return dy * (s + beta * x * s * (1 - s));',
      beta: 'const s = 1 / (1 + Math.exp(-beta * x)); return dy * x * x * s * (1 - s);',
    },
  });

describe.each(backends)('element-wise kernels on %s', (backend) => {
  beforeAll(() => useBackend(backend));
  beforeEach(() => tf.engine().startScope());
  afterEach(() => tf.engine().endScope());

  test('two inputs broadcast, with gradients for both', () => {
    const f = swish();
    const [x, beta] = [values([3, 4]), tf.tensor([0.5, 1, 1.5, 2])];
    expect(deviation(f(x, beta), tf.mul(x, tf.sigmoid(tf.mul(x, beta))))).toBeLessThan(1e-6);
    expect(gradientError(f, [x, beta])).toBeLessThan(1e-3);
    expect(gradientError(f, [x, tf.scalar(1.5)])).toBeLessThan(1e-3);
    expect(leaked(f, [x, beta])).toBe(0);
    expect(f(tf.tensor([1, 2], [2], 'int32'), tf.scalar(1)).dtype).toBe('float32');
  });

  test('a function as body, constants, tables and channels', () => {
    const f = defineElementwiseKernel({
      name: 'powers',
      inputs: ['x'],
      constants: { shift: 0.5 },
      tables: { scale: [1, 10, 100] },
      channels: 3,
      body: (x: number, channel: number, scale: number[], shift: number) => {
        let power = 1;
        for (let i = 0; i < 3; i++) if (i < channel) power *= x + shift;
        return power * scale[channel];
      },
      gradient: {
        x: (x: number, channel: number, scale: number[], shift: number, dy: number) => {
          let slope = 0;
          if (channel === 1) slope = 1;
          if (channel === 2) slope = 2 * (x + shift);
          return dy * slope * scale[channel];
        },
      },
    });
    const y = f(tf.tensor([[0.5], [1.5]]));
    expect(y.shape).toEqual([2, 1, 3]);
    expect(Array.from(y.dataSync())).toEqual([1, 10, 100, 1, 20, 400]);
    expect(gradientError(f, [values([2, 3])])).toBeLessThan(1e-2);
    expect(leaked(f, [values([2, 3])])).toBe(0);
  });

  test('gradients as tensors, straight-through, and none', () => {
    const cube = defineElementwiseKernel({
      name: 'cube',
      inputs: ['x'],
      body: 'x * x * x',
      gradient: (dy, { x }) => ({ x: tf.mul(dy, tf.mul(3, tf.square(x))) }),
    });
    expect(gradientError(cube, [values([5])])).toBeLessThan(1e-3);
    expect(leaked(cube, [values([5])])).toBe(0);
    const round = defineElementwiseKernel({
      name: 'round8',
      inputs: ['x'],
      body: 'Math.floor(x * 8 + 0.5) / 8',
      gradient: 'straight-through',
    });
    expect(Array.from(round(tf.tensor([0.3, -0.3])).dataSync())).toEqual([0.25, -0.25]);
    expect(
      Array.from(
        tf
          .grad((t) => tf.sum(round(t)))(values([2]))
          .dataSync(),
      ),
    ).toEqual([1, 1]);
    const frozen = defineElementwiseKernel({
      name: 'frozen',
      inputs: ['x', 'y'],
      body: 'x * y',
      gradient: { x: 'dy * y' },
    });
    const [a, b] = [values([3]), values([3], 2)];
    expect(deviation(tf.grad((t) => tf.sum(frozen(t, b)))(a), b)).toBeLessThan(1e-6);
    expect(() => tf.grad((t) => tf.sum(frozen(a, t)))(b)).toThrow("frozen.gradient: is not defined for the input 'y'");
  });

  test('cubic B-spline basis: partition of unity, known values, gradient, a trained spline', () => {
    const basis = cubicBSplineBasis({ low: -1, high: 1, intervals: 4 });
    const x = tf.linspace(-1, 1, 23);
    expect(basis(x).shape).toEqual([23, 7]);
    expect(deviation(tf.sum(basis(x), 1), tf.ones([23]))).toBeLessThan(1e-6);
    // At a knot the three splines around it have the values 1/6, 2/3, 1/6.
    expect(deviation(basis(tf.tensor([0])), [0, 0, 1 / 6, 2 / 3, 1 / 6, 0, 0])).toBeLessThan(1e-6);
    expect(gradientError(basis, [values([2, 5])])).toBeLessThan(1e-2);
    expect(gradientError(basis, [tf.tensor([-2.2, -1.3, 1.1, 1.9, 3])])).toBeLessThan(1e-2);
    expect(leaked(basis, [x])).toBe(0);

    const coefficients = tf.variable(tf.zeros([7, 1]));
    const target = tf.reshape(tf.sin(tf.mul(x, 2.5)), [23, 1]);
    const loss = (): tf.Scalar => tf.losses.meanSquaredError(target, linear(basis(x), coefficients)) as tf.Scalar;
    const optimizer = tf.train.sgd(1);
    for (let step = 0; step < 300; step++) optimizer.minimize(loss);
    expect(loss().dataSync()[0]).toBeLessThan(1e-3);
    coefficients.dispose();
    optimizer.dispose();
  });

  test('tables: linear between the entries, B-spline on control points, constant outside', () => {
    const ramp = tableKernel([0, 1, 4, 9], { low: 0, high: 3 });
    const at = tf.tensor([-1, 0, 0.5, 1.25, 2.5, 3, 7]);
    expect(deviation(ramp(at), [0, 0, 0.5, 1.75, 6.5, 9, 9])).toBeLessThan(1e-6);
    expect(gradientError(ramp, [tf.tensor([-0.5, 0.3, 1.4, 2.6, 3.5])])).toBeLessThan(1e-3);

    const points = [0.3, -1, 2, 0.5, 1.5, -0.7, 0.1];
    const spline = tableKernel(points, { low: -1, high: 1, interpolation: 'b-spline' });
    const x = tf.linspace(-1, 1, 41);
    const basis = cubicBSplineBasis({ low: -1, high: 1, intervals: 4 });
    expect(deviation(spline(x), linear(basis(x), tf.tensor(points, [7, 1])))).toBeLessThan(1e-5);
    expect(gradientError(spline, [tf.tensor([-1.5, -0.9, -0.3, 0.2, 0.77, 1.2])])).toBeLessThan(2e-3);
    expect(leaked(spline, [x])).toBe(0);
  });

  test('a kernel inside a model trained by tf.LayersModel.fit', async () => {
    const activation = tableKernel([1.6, 0.4, 0, 0.4, 1.6], { low: -2, high: 2, interpolation: 'b-spline' });
    class Activation extends tf.layers.Layer {
      static className = `TableActivation${backend}`;
      override call(inputs: tf.Tensor | tf.Tensor[]): tf.Tensor {
        return activation(Array.isArray(inputs) ? inputs[0] : inputs);
      }
    }
    const model = tf.sequential({
      layers: [
        tf.layers.dense({ units: 8, inputShape: [2], kernelInitializer: tf.initializers.glorotNormal({ seed: 1 }) }),
        new Activation(),
        tf.layers.dense({ units: 1, kernelInitializer: tf.initializers.glorotNormal({ seed: 2 }) }),
      ],
    });
    model.compile({ optimizer: tf.train.adam(0.05), loss: 'meanSquaredError' });
    const x = values([64, 2]);
    const y = tf.sum(tf.square(x), 1, true);
    const { history } = await model.fit(x, y, { epochs: 30, batchSize: 64, shuffle: false, verbose: 0 });
    const losses = history['loss'] as number[];
    expect(losses[29]).toBeLessThan(losses[0] / 5);
    model.dispose();
  });
});

describe('executors', () => {
  beforeAll(() => useBackend('wasm'));
  beforeEach(() => tf.engine().startScope());
  afterEach(() => tf.engine().endScope());

  const spline = () => tableKernel([0.3, -1, 2, 0.5, 1.5, -0.7, 0.1], { low: -1, high: 1, interpolation: 'b-spline' });

  test('gpu.js computes what the plain loop computes, in any size, and forgets nothing of earlier results', async () => {
    const [plain, fast] = [spline(), await spline().ready({ executor: 'gpu.js' })];
    expect(fast.executor).toBe('gpu.js:webasm');
    expect(plain.executor).toBe('loop');
    const x = values([100, 100]);
    const first = fast(x);
    expect(deviation(first, plain(x))).toBeLessThan(1e-5);
    for (const n of [8192, 20000, 9001, 5])
      expect(deviation(fast(values([n], n)), plain(values([n], n)))).toBeLessThan(1e-5);
    expect(deviation(first, plain(x))).toBeLessThan(1e-5);
    const slope = (f: typeof plain) => tf.grad((t) => tf.sum(tf.square(f(t))))(x);
    expect(deviation(slope(fast), slope(plain))).toBeLessThan(1e-4);
    expect(leaked(fast, [x])).toBe(0);
    fast.dispose();
    expect(fast.executor).toBe('loop');
    expect(deviation(fast(x), first)).toBeLessThan(1e-5);
  });

  test('channels and several inputs through gpu.js', async () => {
    const grid = { low: -1, high: 1, intervals: 5 };
    const basis = await cubicBSplineBasis(grid).ready({ executor: 'gpu.js' });
    const x = values([5000]);
    expect(deviation(basis(x), cubicBSplineBasis(grid)(x))).toBeLessThan(1e-5);
    const weights = values([8, 1], 3);
    const slope = (f: typeof basis) => tf.grad((t) => tf.sum(linear(f(t), weights)))(x);
    expect(deviation(slope(basis), slope(cubicBSplineBasis(grid)))).toBeLessThan(1e-4);
    basis.dispose();
    const two = await swish().ready({ executor: 'gpu.js' });
    const [a, b] = [values([9000]), values([9000], 2)];
    expect(deviation(two(a, b), swish()(a, b))).toBeLessThan(1e-5);
    two.dispose();
  });

  test("'auto' takes the faster one and otherwise says why not", async () => {
    const kernel = await spline().ready();
    if (kernel.executor === 'loop') expect(kernel.reason).toMatch(/webasm: takes .* ms where the plain loop takes/);
    else expect(kernel.executor).toBe('gpu.js:webasm');
    kernel.dispose();
  });

  test('an absent gpu.js, a module that is none, a mode that does not exist', async () => {
    const absent = { load: () => Promise.reject(new Error("Cannot find package 'gpu.js'")) };
    const kernel = await spline().ready(absent);
    expect([kernel.executor, kernel.reason]).toEqual(['loop', "Cannot find package 'gpu.js'"]);
    expect((await kernel.ready({ load: async () => ({}) })).reason).toMatch('has no GPU class');
    expect((await kernel.ready({ modes: ['abacus'] })).reason).toMatch(/^abacus: /);
    await expect(kernel.ready({ ...absent, executor: 'gpu.js' })).rejects.toThrow('gpu.js cannot be used: Cannot find');
    expect(kernel(tf.tensor([0])).shape).toEqual([1]);
  });

  test('an executor that disagrees or answers later is not taken', async () => {
    const fake = (result: (n: number) => unknown) => ({
      GPU: class {
        createKernel() {
          let n = 0;
          return Object.assign(() => result(n), {
            setOutput: ([size]: number[]) => {
              n = size;
            },
          });
        }
        destroy() {}
      },
    });
    const kernel = await spline().ready({ load: async () => fake((n) => new Float32Array(n)), modes: ['x'] });
    expect(kernel.reason).toMatch(/x: gives 0 where the plain loop gives/);
    const later = await kernel.ready({ load: async () => fake(async (n) => new Float32Array(n)), modes: ['x'] });
    expect(later.reason).toBe('x: gpu.js (x) did not answer at once with 65536 numbers');
  });
});

describe('bad definitions', () => {
  const define = (part: object) => () => defineElementwiseKernel({ name: 'k', inputs: ['x'], body: 'x', ...part });
  test.each([
    [{ body: 'x * fator' }, /k\.body: fails: fator is not defined; it may use x, channel, Math/],
    [{ body: 'x *' }, /k\.body: does not compile/],
    [{ inputs: [] }, /k\.inputs: is empty/],
    [{ inputs: ['x', 'x'] }, /'x' names two values/],
    [{ inputs: ['return'] }, /'return' cannot name a value/],
    [{ constants: { c: Number.NaN } }, /k\.constants\.c: is NaN/],
    [{ tables: { t: [] } }, /k\.tables\.t: is empty/],
    [{ tables: { t: [1, Number.POSITIVE_INFINITY] } }, /k\.tables\.t/],
    [{ channels: 0 }, /k\.channels: is 0/],
    [{ body: (z: number) => z }, /k\.body: has a parameter 'z'; parameters are named after x, channel/],
    [{ body: Math.sin }, /cannot be read/],
    [{ gradient: { z: 'dy' } }, /k\.gradient\.z: is for no input/],
    [{ gradient: { x: 'dz' } }, /k\.gradient\.x\.body: fails: dz is not defined/],
    [{ inputs: ['x', 'y'], gradient: 'straight-through' }, /'straight-through' is for one input/],
  ])('%p', (part, message) => {
    expect(define(part)).toThrow(message);
  });

  test('wrong tensors', () => {
    const kernel = define({ inputs: ['x', 'z'] })();
    const [a, b] = [tf.ones([2, 3]), tf.ones([4])];
    expect(() => kernel(a)).toThrow('k: takes 2 tensors (x, z), given were 1');
    expect(() => kernel(a, b)).toThrow('k.z: has shape [4], which does not broadcast against [2,3]');
    expect(() => tableKernel([1], { low: 0, high: 1 })).toThrow('table.values: has 1 entries; linear needs 2');
    expect(() => tableKernel([1, 2], { low: 1, high: 1 })).toThrow('table.low: [1, 1] is not a range');
    expect(() => cubicBSplineBasis({ low: 0, high: 1, intervals: 2.5 })).toThrow('intervals: is 2.5');
    tf.dispose([a, b]);
  });
});
