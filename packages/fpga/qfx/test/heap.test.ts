import { execFileSync, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { random, ready } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { FixedQuantizer, type QuantizerConfig } from '../src/index.ts';

/** Values on and beside ties, ends of the range, and in between. */
function values(n: number, seed: number): Float32Array {
  const { next, integer } = random(seed);
  return Float32Array.from({ length: n }, () =>
    integer(2) === 0 ? (integer(200) - 100) / 16 + (integer(3) - 1) * 2 ** -22 : 24 * next() - 12,
  );
}

interface Outcome {
  y: number[];
  gradients: number[][];
}

/** Result and all gradients of cast(relu(v + bias)) on the current backend. */
function run(config: QuantizerConfig, shape: number[], channels: number | undefined, relu: boolean): Outcome {
  const n = tf.util.sizeFromShape(shape);
  const v = tf.variable(tf.tensor(values(n, 1), shape));
  const dy = tf.tensor(values(n, 2), shape);
  const bias = channels ? tf.variable(tf.tensor1d(values(channels, 3))) : undefined;
  const quantizer = new FixedQuantizer(config);
  const wrt = [v, ...(bias ? [bias] : []), quantizer.theta] as tf.Variable[];
  const y = tf.tidy(() => Array.from(quantizer.roundSum(v, bias, relu).dataSync()));
  const before = tf.memory().numTensors;
  const { value, grads } = tf.variableGrads(
    () => tf.sum(tf.mul(quantizer.roundSum(v, bias, relu), dy)) as tf.Scalar,
    wrt,
  );
  const gradients = wrt.map(({ name }) => Array.from(grads[name].dataSync()));
  tf.dispose([value, grads]);
  expect(tf.memory().numTensors).toBe(before);
  tf.dispose([dy, ...wrt]);
  return { y, gradients };
}

describe('the kernels on the wasm heap', () => {
  const cases: [string, QuantizerConfig, number[], number | undefined, boolean][] = [
    ['a weight of odd size', { W: 5, theta: 3 }, [7, 9], undefined, false],
    ['a single number', { W: 5, theta: 3 }, [1], undefined, false],
    ['an activation with a bias in odd channels', { W: 6, theta: 2.6, signed: false }, [5, 3, 7], 7, true],
    ['with a bias in eight channels', { W: 8, theta: 4 }, [6, 8], 8, false],
    ['symmetric, coarse steps', { W: 3, theta: 6, O: 'AP_SAT_SYM' }, [40], undefined, false],
    ['lsq', { W: 4, theta: 2, positionGrad: 'lsq' }, [33], undefined, true],
  ];
  test.each(cases)('give the numbers of the portable path: %s', async (_, config, shape, channels, relu) => {
    await tf.setBackend('cpu');
    const expected = run(config, shape, channels, relu);
    await ready();
    const got = run(config, shape, channels, relu);
    expect(got.y).toEqual(expected.y);
    got.gradients.forEach((gradient, i) => {
      expect(gradient).toHaveLength(expected.gradients[i].length);
      gradient.forEach((g, j) => {
        expect(Math.abs(g - expected.gradients[i][j])).toBeLessThanOrEqual(1e-5 * (1 + Math.abs(g)));
      });
    });
  });

  test.each([Number.NaN, Number.NEGATIVE_INFINITY])('refuse %p wherever it stands', async (bad) => {
    await ready();
    const quantizer = new FixedQuantizer({ W: 8, theta: 2 });
    for (const at of [0, 5, 9]) {
      const x = tf.tensor1d(Array.from({ length: 10 }, (_, i) => (i === at ? bad : i)));
      expect(() => quantizer.apply(x)).toThrow('cannot represent');
      x.dispose();
    }
    quantizer.theta.dispose();
  });

  const compiler =
    spawnSync('clang-19', ['--version']).status === 0 && spawnSync('wasm-ld-19', ['--version']).status === 0;
  const check = compiler ? test : test.skip;
  check(`are what c/cast.c compiles to${compiler ? '' : ' (skipped: clang-19 and lld-19 are not installed)'}`, () => {
    execFileSync('node', [join(__dirname, '..', 'c', 'build.mjs'), '--check']);
  });

  afterAll(() => tf.setBackend('cpu'));
});
