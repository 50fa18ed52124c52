import { random } from '@matforge/core';
import { testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  type BlastFactors,
  blast,
  blastApply,
  blastFactorize,
  blastRankForBudget,
  blastSweep,
  blastToDense,
} from '../src/index.ts';
import { NAMES, suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

const draw = (a: number, c: number, r: number, q: number, p: number): BlastFactors => ({
  inBasis: random(1).normal([a, q, r]),
  coupling: random(2).normal([a, c, r]),
  outBasis: random(3).normal([c, r, p]),
});

describe('invariants', () => {
  test('a coupling of ones is a product of rank r', () => {
    tf.tidy(() => {
      const { inBasis, outBasis } = draw(2, 3, 2, 4, 2);
      const W = blastToDense({ inBasis, coupling: tf.ones([2, 3, 2]), outBasis });
      const right = tf.reshape(tf.transpose(outBasis, [1, 0, 2]), [2, 6]) as tf.Tensor2D;
      const product = tf.matMul(tf.reshape(inBasis, [8, 2]) as tf.Tensor2D, right);
      expect(tf.max(tf.abs(tf.sub(W, product))).dataSync()[0]).toBeLessThan(1e-5);
    });
  });

  test('couplings of disjoint groups make a block diagonal', () => {
    tf.tidy(() => {
      const { inBasis, outBasis } = draw(2, 2, 4, 3, 3);
      const coupling = tf.tensor3d([1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1], [2, 2, 4]);
      const W = blastToDense({ inBasis, coupling, outBasis }).arraySync();
      for (let row = 0; row < 6; row++) {
        for (let col = 0; col < 6; col++) {
          if (row < 3 !== col < 3) expect(W[row][col]).toBe(0);
          else expect(Math.abs(W[row][col])).toBeGreaterThan(0);
        }
      }
    });
  });

  test('scaling a basis and its coupling against each other leaves the kernel', () => {
    tf.tidy(() => {
      const factors = draw(2, 3, 4, 3, 2);
      const d = tf.tensor1d([2, 0.5, 3, 10]);
      const scaled = { ...factors, inBasis: tf.mul(factors.inBasis, d), coupling: tf.div(factors.coupling, d) };
      const off = tf.sub(blastToDense(scaled), blastToDense(factors));
      expect(tf.max(tf.abs(off)).dataSync()[0]).toBeLessThan(1e-5);
    });
  });

  test('a kernel that is represented already is left alone', () => {
    tf.tidy(() => {
      const factors = draw(2, 3, 2, 4, 3);
      const whole = {
        inBasis: tf.round(factors.inBasis),
        coupling: tf.round(factors.coupling),
        outBasis: tf.round(factors.outBasis),
      };
      const after = blastSweep(blastToDense(whole), whole, {
        learningRate: 1,
        delta: 0.1,
        gradScale: 2,
        precondition: true,
      });
      expect(after.error).toBe(0);
      for (const name of NAMES) expect(Array.from(after[name].dataSync())).toEqual(Array.from(whole[name].dataSync()));
    });
  });

  test('without damping a sweep is three least-squares fits: the error never grows', () => {
    tf.tidy(() => {
      const W = random(4).normal([8, 9]) as tf.Tensor2D;
      let factors = draw(2, 3, 2, 4, 3);
      let last = tf.norm(tf.sub(blastToDense(factors), W)).dataSync()[0];
      for (let n = 0; n < 10; n++) {
        const next = blastSweep(W, factors, { learningRate: 1, delta: 0, gradScale: 1, precondition: true });
        expect(next.error).toBeLessThanOrEqual(last * (1 + 1e-5));
        [factors, last] = [next, next.error];
      }
      // One number of freedom less than the kernel has: it cannot be fitted, but much of it can.
      expect(last).toBeLessThan(0.8 * tf.norm(W).dataSync()[0]);
    });
  });

  test('a constant kernel, which has no deviation, is returned exactly', () => {
    const W = tf.fill([6, 4], -2.5) as tf.Tensor2D;
    const { factors, error, relError } = blastFactorize(W, { inBlocks: 2, outBlocks: 2, rank: 3 });
    expect([error, relError]).toEqual([0, 0]);
    tf.dispose([W, ...Object.values(factors)]);
  });

  test('the history ends at the error that is returned', () => {
    const W = random(4).normal([8, 9]) as tf.Tensor2D;
    const { factors, relError, history } = blastFactorize(W, { inBlocks: 2, outBlocks: 3, rank: 3, iterations: 25 });
    expect(history.length).toBe(25);
    expect(history[24]).toBeCloseTo(relError, 5);
    expect(history[24]).toBeLessThan(history[3]);
    tf.dispose([W, ...Object.values(factors)]);
  });
});

test('a fraction is a share of the smaller width, a budget gives the rank', () => {
  const { tensors } = blast;
  const at = (rank?: number) => {
    const { config } = blast({ rank });
    const site = { name: 'kernel', kind: 'dense' as const, inDim: 16, outDim: 24 };
    return tensors({ inDim: 16, outDim: 24, config, site, group: { sites: [site], maxIn: 16, maxOut: 24 } }).coupling
      ?.shape;
  };
  expect([at(), at(0.5), at(7)]).toEqual([
    [4, 4, 16],
    [4, 4, 8],
    [4, 4, 7],
  ]);
  expect(blastRankForBudget(4096, 4096, 16, 16, 0.5)).toBe(992);
});

test('factors that do not fit are refused by name', () => {
  tf.tidy(() => {
    const factors = draw(2, 3, 2, 4, 3);
    const x = tf.zeros([1, 8]);
    expect(() => blastApply(x, { ...factors, outBasis: tf.zeros([3, 5, 3]) })).toThrow(
      /outBasis: has shape \[3,5,3\]; expected \[3,2,3\]/,
    );
    expect(() => blastApply(tf.zeros([1, 7]), factors)).toThrow(/expected inDim 8 on the last axis, got 7/);
    const W = tf.zeros([8, 9]) as tf.Tensor2D;
    expect(() => blastFactorize(W, { inBlocks: 3, outBlocks: 3, rank: 2 })).toThrow(
      /inBlocks: 3 does not divide in = 8/,
    );
    expect(() => blastFactorize(W, { inBlocks: 2, outBlocks: 2, rank: 2 })).toThrow(
      /outBlocks: 2 does not divide out = 9/,
    );
    expect(() => blastFactorize(W, { inBlocks: 2, outBlocks: 3, rank: 0 })).toThrow(
      /rank: must be a positive integer, got 0/,
    );
    expect(() => blastFactorize(tf.fill([4, 4], Number.NaN), { inBlocks: 2, outBlocks: 2, rank: 1 })).toThrow(
      /non-finite/,
    );
  });
});
