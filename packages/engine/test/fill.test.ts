import * as tf from '@tensorflow/tfjs';
import { ready } from '../src/index.ts';

/** Runs `compute` on a backend and returns its outputs as plain numbers. */
async function on(backend: string, compute: () => tf.Tensor | tf.Tensor[]): Promise<number[][]> {
  if (backend === 'wasm') await ready();
  else await tf.setBackend(backend);
  return tf.tidy(() => [compute()].flat().map((tensor) => Array.from(tensor.dataSync() as Float32Array)));
}

function expectClose(got: number[][], expected: number[][], tolerance = 1e-4): void {
  expect(got.map((values) => values.length)).toEqual(expected.map((values) => values.length));
  got.forEach((values, output) => {
    values.forEach((value, i) => {
      const want = expected[output][i];
      if (Number.isNaN(want)) expect(value).toBeNaN();
      else if (!Number.isFinite(want)) expect(value).toBe(want);
      else if (!(Math.abs(value - want) <= tolerance * (1 + Math.abs(want)))) {
        throw new Error(`output ${output}, element ${i}: got ${value}, cpu says ${want}`);
      }
    });
  });
}

const normal = (shape: number[], seed: number, mean = 0): tf.Tensor => tf.randomNormal(shape, mean, 1, 'float32', seed);

/** Value and gradients of sum(f(...) * weights), which lets no output element hide. */
function withGradients(f: (...xs: tf.Tensor[]) => tf.Tensor, ...xs: tf.Tensor[]): tf.Tensor[] {
  const weigh = (y: tf.Tensor): tf.Scalar => {
    const size = y.size;
    const weights = tf.cos(tf.range(0, size, 1, 'float32')).reshape(y.shape);
    return tf.sum(tf.mul(y, weights)) as tf.Scalar;
  };
  return [f(...xs), ...tf.grads((...args: tf.Tensor[]) => weigh(f(...args)))(xs)];
}

const CASES: Record<string, () => tf.Tensor | tf.Tensor[]> = {
  'gather rows': () => withGradients((x) => tf.gather(x, tf.tensor1d([1, 0, 3, 3, 1], 'int32')), normal([5, 3], 1)),
  'conv2d same, stride 2': () =>
    withGradients(
      (x, w) => tf.conv2d(x as tf.Tensor4D, w as tf.Tensor4D, 2, 'same'),
      normal([2, 7, 6, 3], 1),
      normal([3, 3, 3, 4], 2),
    ),
  'depthwise conv2d': () =>
    withGradients(
      (x, w) => tf.depthwiseConv2d(x as tf.Tensor4D, w as tf.Tensor4D, 1, 'same'),
      normal([2, 5, 6, 3], 1),
      normal([3, 3, 3, 2], 2),
    ),
  'max pool of negative values': () =>
    withGradients((x) => tf.maxPool(x as tf.Tensor4D, 2, 2, 'valid'), normal([2, 6, 6, 3], 1, -9)),
  'max pool with places, of negative values, padded': () => {
    const { result, indexes } = tf.maxPoolWithArgmax(normal([2, 5, 6, 3], 1, -9) as tf.Tensor4D, 3, 2, 'same', true);
    return [result, indexes];
  },
  conv3d: () =>
    withGradients(
      (x, w) => tf.conv3d(x as tf.Tensor5D, w as tf.Tensor5D, 1, 'same'),
      normal([1, 4, 5, 3, 2], 1),
      normal([2, 3, 2, 2, 3], 2),
    ),
  'dilation2d of negative values': () =>
    withGradients(
      (x, w) => tf.dilation2d(x as tf.Tensor4D, w as tf.Tensor3D, 1, 'valid'),
      normal([1, 5, 5, 2], 1, -9),
      normal([2, 2, 2], 2),
    ),
  'max pool 3d of negative values': () =>
    withGradients((x) => tf.maxPool3d(x as tf.Tensor5D, 2, 2, 'valid'), normal([1, 4, 4, 4, 2], 1, -9)),
  'rfft and back': () => tf.spectral.irfft(tf.spectral.rfft(normal([3, 8], 1))),
  'complex arithmetic': () => {
    const z = tf.complex(normal([2, 3], 1), normal([2, 3], 2));
    const product = tf.mul(tf.add(z, z), z);
    return [tf.real(product), tf.imag(product), tf.abs(tf.transpose(z)), tf.real(tf.concat([z, z], 1))];
  },
  'cast to bool': () => tf.cast(tf.tensor1d([0.5, 0, 256, -1, Number.NaN]), 'bool').toInt(),
  'max pool on int32': () =>
    tf.maxPool(tf.range(0, 16, 1, 'int32').reshape([1, 4, 4, 1]) as tf.Tensor4D, 2, 2, 'valid'),
  'matMul on int32': () => tf.matMul(tf.tensor2d([[1, 2]], [1, 2], 'int32'), tf.tensor2d([[3], [4]], [2, 1], 'int32')),
};

describe('what the stock wasm backend lacks or gets wrong agrees with the cpu backend', () => {
  it.each(Object.keys(CASES))('%s', async (name) => {
    const expected = await on('cpu', CASES[name]);
    expectClose(await on('wasm', CASES[name]), expected);
  });
});

describe('einsum', () => {
  // The cpu backend's einsum gives wrong shapes for permuted outputs, so the sums are written out here.
  it.each([
    ['ab,bc->ac', [2, 3], [3, 4]],
    ['abc,cd->da', [2, 3, 4], [4, 5]],
    ['abc,d->ca', [2, 3, 4], [5]],
    ['abij,abjk->baki', [2, 3, 4, 2], [2, 3, 2, 3]],
    ['ab,ab->b', [3, 2], [3, 2]],
    ['abc->cb', [2, 3, 4], null],
  ])('%s', async (equation, first, second) => {
    await ready();
    const shapes = second ? [first, second] : [first];
    const operands = shapes.map((shape, i) => normal(shape, i + 1));
    const got = tf.einsum(equation, ...operands);
    const [left, right] = equation.split('->');
    const terms = left.split(',');
    const sizes: Record<string, number> = {};
    terms.forEach((term, i) => {
      [...term].forEach((label, axis) => {
        sizes[label] = shapes[i][axis];
      });
    });
    const labels = Object.keys(sizes);
    const values = operands.map((operand) => operand.dataSync());
    const at = (term: string, index: Record<string, number>): number =>
      [...term].reduce((offset, label) => offset * sizes[label] + index[label], 0);
    const expected = new Array(tf.util.sizeFromShape([...right].map((label) => sizes[label]))).fill(0);
    const visit = (depth: number, index: Record<string, number>): void => {
      if (depth < labels.length) {
        for (let i = 0; i < sizes[labels[depth]]; i++) visit(depth + 1, { ...index, [labels[depth]]: i });
        return;
      }
      expected[at(right, index)] += terms.reduce((product, term, i) => product * values[i][at(term, index)], 1);
    };
    visit(0, {});
    expect(got.shape).toEqual([...right].map((label) => sizes[label]));
    expectClose([Array.from(got.dataSync())], [expected]);
    tf.dispose([got, ...operands]);
  });
});

describe('ready', () => {
  it('may be called again and again', async () => {
    expect(await ready()).toBe('wasm');
    expect(await ready()).toBe('wasm');
    expect(tf.getBackend()).toBe('wasm');
  });

  it('leaves no cpu kernel of tfjs without a wasm counterpart', async () => {
    await ready();
    const missing = tf
      .getKernelsForBackend('cpu')
      .filter(({ kernelName }) => !kernelName.startsWith('Matforge') && !tf.getKernel(kernelName, 'wasm'));
    expect(missing).toEqual([]);
  });

  it('copies nothing for an identity', async () => {
    await ready();
    const x = tf.ones([4]);
    const before = tf.engine().backend.numDataIds();
    const same = tf.clone(x);
    expect(tf.engine().backend.numDataIds()).toBe(before);
    x.dispose();
    expect(Array.from(same.dataSync())).toEqual([1, 1, 1, 1]);
    same.dispose();
  });

  it('refuses a tensor that the heap cannot hold and goes on', async () => {
    await ready();
    const before = tf.memory().numTensors;
    expect(() => tf.fill([1 << 16, 1 << 16], 0)).toThrow(/out of memory.*65536,65536.*17179869184 bytes/);
    expect(tf.memory().numTensors).toBe(before);
    expect(Array.from(tf.tidy(() => tf.add([1, 2], [3, 4]).dataSync()))).toEqual([4, 6]);
  });

  it('leaks nothing through the cpu backend', async () => {
    await ready();
    const cpu = tf.findBackend('cpu') as tf.KernelBackend;
    const wasm = tf.engine().backend;
    const before = [cpu.numDataIds(), wasm.numDataIds(), tf.memory().numTensors];
    tf.dispose(tf.tidy(CASES['complex arithmetic']));
    tf.dispose(tf.tidy(CASES['dilation2d of negative values']));
    expect([cpu.numDataIds(), wasm.numDataIds(), tf.memory().numTensors]).toEqual(before);
  });
});
