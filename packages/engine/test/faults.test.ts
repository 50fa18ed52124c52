import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { guard, heapMemory, heapModule } from '../src/backend.ts';
import { registerFused } from '../src/fused.ts';
import { adamStep, causalSoftmax, engineInfo, gelu, layerNorm, ready, softmaxCrossEntropy } from '../src/index.ts';
import { registerKernels } from '../src/register.ts';

interface HostMemory {
  readonly buffer: ArrayBuffer;
}
// The types of WebAssembly come with lib.dom only.
const { WebAssembly } = globalThis as unknown as {
  WebAssembly: object & {
    Memory: new (options: { initial: number; maximum?: number; shared?: boolean }) => HostMemory;
  };
};

const values = (shape: number[], seed: number): tf.Tensor => tf.randomNormal(shape, 0, 1, 'float32', seed);

/** A variable that owns its first value. */
const variable = (make: () => tf.Tensor): tf.Variable => tf.tidy(() => tf.variable(make()));

/** A model that needs the filled-in, the replaced and the fused kernels; its loss after each of a few steps. */
function train(): number[] {
  const filter = variable(() => values([3, 3, 1, 2], 1));
  const [gamma, beta] = [variable(() => tf.ones([8])), variable(() => tf.zeros([8]))];
  const w = variable(() => values([8, 4], 2));
  const image = values([3, 4, 4, 1], 3) as tf.Tensor4D;
  const labels = tf.tensor1d([0, 3, 1], 'int32');
  const optimizer = tf.train.adam(0.05);
  const loss = (): tf.Scalar => {
    const pooled = tf.maxPool(tf.conv2d(image, filter as unknown as tf.Tensor4D, 1, 'same'), 2, 2, 'valid');
    const hidden = gelu(layerNorm(tf.reshape(pooled, [3, 8]), gamma, beta));
    const scores = causalSoftmax(tf.matMul(hidden, hidden, false, true));
    return tf.mean(softmaxCrossEntropy(tf.matMul(tf.matMul(scores, hidden), w), labels)) as tf.Scalar;
  };
  const losses = Array.from({ length: 5 }, () => {
    const value = optimizer.minimize(loss, true) as tf.Scalar;
    const [number] = value.dataSync();
    value.dispose();
    return number;
  });
  optimizer.dispose();
  tf.dispose([filter, gamma, beta, w, image, labels]);
  return losses;
}

function expectClose(got: ArrayLike<number>, expected: ArrayLike<number>, tolerance = 1e-4): void {
  expect(got.length).toBe(expected.length);
  for (let i = 0; i < got.length; i++) {
    expect(Math.abs(got[i] - expected[i])).toBeLessThanOrEqual(tolerance * (1 + Math.abs(expected[i])));
  }
}

describe('a machine without SIMD', () => {
  const HELD = Symbol.for('matforge.engine.native');
  const fused = () => tf.getKernelsForBackend('wasm').filter(({ kernelName }) => kernelName.startsWith('Matforge'));

  it('trains all the same, on the stock and the portable kernels', async () => {
    await tf.setBackend('cpu');
    const expected = train();
    await ready();
    const before = tf.memory().numTensors;
    expectClose(train(), expected);
    const backend = tf.backend() as unknown as { [HELD]?: unknown };
    const held = backend[HELD];
    delete backend[HELD];
    for (const { kernelName } of fused()) tf.unregisterKernel(kernelName, 'wasm');
    try {
      await jest.isolateModulesAsync(async () => {
        jest.doMock('../src/webassembly.ts', () => ({
          webAssembly: { ...WebAssembly, validate: () => false },
          isMemory: () => true,
        }));
        const engine = await import('../src/ready.ts');
        await engine.ready();
        expect(engine.engineInfo().kernels).toBe('none');
      });
      expect(fused()).toEqual([]);
      expectClose(train(), expected);
      expect(tf.memory().numTensors).toBe(before);
    } finally {
      jest.dontMock('../src/webassembly.ts');
      backend[HELD] = held;
      registerKernels(true);
      registerFused();
    }
    expect(engineInfo().kernels).not.toBe('none');
    expectClose(train(), expected);
  });
});

describe('the optional addon', () => {
  const HELD = Symbol.for('matforge.engine.native');

  it('changes nothing but speed: switched off and on in one process, where there is a binary', async () => {
    await ready();
    const expected = train();
    const backend = tf.backend() as unknown as { [HELD]?: unknown };
    const held = backend[HELD];
    const wanted = process.env.MATFORGE_NATIVE;
    const warn = jest.spyOn(console, 'warn').mockImplementation(() => {});
    try {
      for (const setting of ['1', '0']) {
        delete backend[HELD];
        process.env.MATFORGE_NATIVE = setting;
        await ready();
        expect(engineInfo().kernels).not.toBe('none');
        if (setting === '0') expect(engineInfo().native).toBeNull();
        // Either the addon is in use or it has said why not.
        else expect(engineInfo().native !== null || warn.mock.calls.length === 1).toBe(true);
        expectClose(train(), expected, 1e-5);
      }
    } finally {
      if (wanted === undefined) delete process.env.MATFORGE_NATIVE;
      else process.env.MATFORGE_NATIVE = wanted;
      backend[HELD] = held;
      warn.mockRestore();
    }
  });
});

describe('the memory of the backend', () => {
  const backendWith = (memory: HostMemory | null, HEAPU8: Uint8Array): BackendWasm =>
    ({ wasm: { asm: memory ? { memory } : {}, HEAPU8 } }) as unknown as BackendWasm;

  it('is found, unless there is none to be had', () => {
    const memory = new WebAssembly.Memory({ initial: 1 });
    expect(heapMemory(backendWith(memory, new Uint8Array(memory.buffer)))).toBe(memory);
    expect(heapMemory(backendWith(null, new Uint8Array(8)))).toBeNull();
    // One that is not the heap.
    expect(heapMemory(backendWith(memory, new Uint8Array(8)))).toBeNull();
  });

  /** A backend whose heap has room for 100 bytes, as the stock one allocates: it takes 0 for an address. */
  class Full {
    readonly written: number[] = [];
    free = 100;
    readonly wasm = {
      HEAPU8: new Uint8Array(256),
      _malloc: (bytes: number): number => {
        if (bytes > this.free) return 0;
        this.free -= bytes;
        return 128 - this.free;
      },
      _free: (): void => {
        this.free = 100;
      },
    };
    move(_: object, __: unknown, shape: number[]): void {
      this.written.push(this.wasm._malloc(4 * tf.util.sizeFromShape(shape)));
    }
    readSync(): null {
      return null;
    }
  }

  it('says which tensor it has no room for, and writes nothing', () => {
    const backend = new Full();
    guard(backend as unknown as BackendWasm);
    backend.move({}, null, [2, 3]);
    expect(backend.written).toEqual([128 - 76]);
    const move = backend.move as unknown as (id: object, values: null, shape: number[], dtype: string) => void;
    expect(() => move({}, null, [4, 5], 'int32')).toThrow(
      /out of memory: a int32 tensor of shape \[4,5\] needs 80 bytes and the wasm heap of 256 bytes cannot grow/,
    );
    expect(() => backend.wasm._malloc(77)).toThrow(/out of memory: a work area needs 77 bytes/);
    expect(backend.written.length).toBe(1);
    // What fits is still given.
    expect(backend.wasm._malloc(76)).toBeGreaterThan(0);
  });

  it('takes no memory that ends beyond the heap', () => {
    const backend = new Full();
    // Just below 4 GiB, as a signed number, as the allocator gives it.
    const given = [2 ** 32 - 200, 2 ** 32 - 200].map((at) => at | 0);
    const freed: number[] = [];
    Object.assign(backend.wasm, {
      HEAPU8: { byteLength: 2 ** 32 - 100, buffer: new ArrayBuffer(0) },
      _malloc: (bytes: number) => (bytes === 8 ? 16 : given.pop()),
      _free: (at: number) => freed.push(at >>> 0),
    });
    guard(backend as unknown as BackendWasm);
    freed.length = 0;
    expect(backend.wasm._malloc(100)).toBe(2 ** 32 - 200);
    expect(() => backend.wasm._malloc(101)).toThrow(/out of memory: a work area needs 101 bytes/);
    expect(freed).toEqual([2 ** 32 - 200]);
  });
});

describe('a kernel that fails half-way', () => {
  const wasm = () => tf.backend() as BackendWasm;
  const state = () => {
    const { numTensors, numDataBuffers, numBytes } = tf.memory();
    return [
      wasm().numDataIds(),
      (tf.findBackend('cpu') as tf.KernelBackend).numDataIds(),
      numTensors,
      numDataBuffers,
      numBytes,
    ];
  };

  /** Runs `f` with room for 0, 1, 2, ... allocations, until it comes to an end; how many there were. */
  function withEveryFailure(f: () => void, check: () => void): number {
    const module = heapModule(wasm());
    const malloc = module._malloc;
    for (let room = 0; room < 100; room++) {
      let left = room;
      let ended = false;
      module._malloc = (bytes) => {
        if (left-- > 0) return malloc(bytes);
        throw new Error('engine: out of memory: no room in this test.');
      };
      try {
        f();
        ended = true;
      } catch (error) {
        expect(String(error)).toContain('no room in this test');
      } finally {
        module._malloc = malloc;
      }
      check();
      if (ended) return room;
    }
    throw new Error('no end');
  }

  type Row = [name: string, shapes: number[][], f: (...xs: tf.Tensor[]) => unknown, least: number];
  const complex = (a: tf.Tensor, b: tf.Tensor): tf.Tensor => tf.complex(a, b);
  it.each<Row>([
    ['split', [[6, 4]], (x) => tf.split(x, 3), 3],
    ['unstack', [[3, 4]], (x) => tf.unstack(x), 3],
    [
      'einsum',
      [
        [2, 3, 4],
        [4, 5],
      ],
      (a, b) => tf.einsum('bij,jk->kbi', a, b),
      2,
    ],
    [
      'einsum of three',
      [
        [2, 3],
        [3, 4],
        [4, 5],
      ],
      (...xs) => tf.einsum('ij,jk,kl->li', ...xs),
      3,
    ],
    [
      'batch norm, composed',
      [
        [2, 3, 4],
        [1, 3, 1],
      ],
      (x, v) =>
        tf
          .engine()
          .runKernel(
            'FusedBatchNorm',
            { x, mean: tf.engine().runKernel('Identity', { x }) as tf.Tensor, variance: v },
            {},
          ),
      3,
    ],
    [
      'fused product',
      [[2, 3], [3, 4], [4]],
      (a, b, bias) =>
        tf.fused.matMul({
          a: a as tf.Tensor2D,
          b: b as tf.Tensor2D,
          bias,
          activation: 'prelu',
          preluActivationWeights: bias,
        }),
      1,
    ],
    [
      'Fourier transform',
      [
        [2, 6],
        [2, 6],
      ],
      (a, b) => tf.fft(complex(a, b)),
      2,
    ],
    [
      'a kernel of the cpu backend with two results',
      [[1, 4, 4, 1]],
      (x) => tf.maxPoolWithArgmax(x as tf.Tensor4D, 2, 2, 'valid'),
      2,
    ],
    ['sums of a part', [[3, 4, 5]], (x) => tf.sum(tf.transpose(x, [2, 0, 1]), [0, 2]), 2],
    ['layer norm', [[3, 4], [4], [4]], (x, gamma, beta) => layerNorm(x, gamma, beta), 1],
  ])('%s: what it has made is freed, and its inputs are as they were', async (_, shapes, f, least) => {
    await ready();
    const xs = shapes.map((shape, i) => values(shape, i + 1));
    const numbers = xs.map((x) => x.arraySync());
    // Work areas grow once, caches fill once.
    tf.tidy(() => void f(...xs));
    const before = state();
    const count = withEveryFailure(
      () => tf.tidy(() => void f(...xs)),
      () => {
        expect(state()).toEqual(before);
        expect(xs.map((x) => wasm().refCount(x.dataId))).toEqual(xs.map(() => 1));
        expect(xs.map((x) => x.arraySync())).toEqual(numbers);
      },
    );
    expect(count).toBeGreaterThanOrEqual(least);
    tf.dispose(xs);
    expect(state()[2]).toBe(before[2] - xs.length);
  });

  it('a training step that runs out of memory can be taken again', async () => {
    await ready();
    const [w, v] = [variable(() => values([4, 5], 1)), variable(() => values([5, 1], 2))];
    const x = values([3, 4], 3);
    const optimizer = tf.train.sgd(0.1);
    const loss = () => tf.mean(tf.square(tf.matMul(gelu(tf.matMul(x, w)), tf.tanh(v)))) as tf.Scalar;
    const step = () => optimizer.minimize(loss);
    step();
    const before = state();
    expect(withEveryFailure(step, () => expect(state()).toEqual(before))).toBeGreaterThan(10);
    tf.dispose([w, v, x]);
    optimizer.dispose();
  });

  it('a stock kernel that traps leaves its output to nobody: the cpu backend computes it anew', async () => {
    await ready();
    const [a, b] = [tf.tensor1d([5, 7, 9], 'int32'), tf.tensor1d([2, 0, 4], 'int32')];
    const before = state();
    tf.tidy(() => {
      const c = tf.mod(a, b);
      expect(wasm().numDataIds()).toBe(before[0] + 1);
      const [first, , third] = c.dataSync();
      expect([first, third]).toEqual([1, 1]);
    });
    expect(state()).toEqual(before);
    tf.dispose([a, b]);
  });
});

describe('backends switched while tensors live', () => {
  it('carries every tensor over, both ways, and frees it where it was', async () => {
    const cpu = () => tf.findBackend('cpu') as tf.KernelBackend;
    await tf.setBackend('cpu');
    await ready();
    const wasm = tf.backend();
    const before = [cpu().numDataIds(), wasm.numDataIds(), tf.memory().numTensors];
    const a = values([5, 7], 1);
    const shared = tf.reshape(a, [7, 5]);
    await tf.setBackend('cpu');
    const b = values([5, 7], 2);
    const expected = Array.from(tf.tidy(() => tf.matMul(a, b, false, true).dataSync()));
    await ready();
    expectClose(
      tf.tidy(() => tf.matMul(a, b, false, true).dataSync()),
      expected,
      1e-6,
    );
    expectClose(
      tf.tidy(() => tf.matMul(shared, b).sum().dataSync()),
      [tf.tidy(() => tf.sum(tf.mul(tf.sum(shared, 0), tf.sum(b, 1))).dataSync()[0])],
    );
    await tf.setBackend('cpu');
    expectClose(
      tf.tidy(() => tf.matMul(a, b, false, true).dataSync()),
      expected,
      1e-6,
    );
    await ready();
    tf.dispose([a, b, shared]);
    expect([cpu().numDataIds(), wasm.numDataIds(), tf.memory().numTensors]).toEqual(before);
  });

  it('lets an optimizer step go on with variables of another backend', async () => {
    const steps = async (backends: string[]): Promise<Float32Array> => {
      await tf.setBackend('cpu');
      const [w, m, v] = [1, 0, 0].map((value) => variable(() => tf.fill([9], value)));
      for (const [i, backend] of backends.entries()) {
        if (backend === 'wasm') await ready();
        else await tf.setBackend(backend);
        tf.tidy(() => adamStep(w, values([9], i + 1), m, v, { learningRate: 0.1, step: i + 1 }));
      }
      const numbers = Float32Array.from(w.dataSync());
      tf.dispose([w, m, v]);
      return numbers;
    };
    const expected = await steps(['cpu', 'cpu', 'cpu', 'cpu', 'cpu']);
    expectClose(await steps(['wasm', 'cpu', 'wasm', 'wasm', 'cpu']), expected, 1e-5);
  });
});
