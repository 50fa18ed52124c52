import { attach, mergeAndUnload, random, structureReport } from '@matforge/core';
import { denseModel, testConformance, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { monarch, monarchApply, monarchBlocks, monarchProject, monarchToDense, reverseSparsify } from '../src/index.ts';
import { suites } from './suite.ts';

testConformance(suites);

testGolden(suites.id, __dirname, suites.golden);

describe('invariants', () => {
  test('Kronecker products and the Hadamard transform are Monarch matrices', () => {
    tf.tidy(() => {
      const kron = (P: tf.Tensor2D, Q: tf.Tensor2D) => {
        const [[a, b], [c, d]] = [P.shape, Q.shape];
        return tf.reshape(tf.mul(tf.reshape(P, [a, 1, b, 1]), tf.reshape(Q, [1, c, 1, d])), [
          a * c,
          b * d,
        ]) as tf.Tensor2D;
      };
      const [P, Q] = [random(1).normal([4, 6]), random(2).normal([5, 4])] as tf.Tensor2D[];
      expect(monarchProject(kron(P, Q), 4).relError).toBeLessThan(1e-6);
      const h2 = tf.tensor2d([1, 1, 1, -1], [2, 2]);
      const hadamard = [1, 2, 3, 4, 5].reduce((h) => kron(h, h2), h2);
      expect(monarchProject(hadamard, 8).relError).toBeLessThan(1e-6);
    });
  });

  test('one block is a product of full rank: every kernel projects without error', () => {
    tf.tidy(() => {
      expect(monarchProject(random(3).normal([9, 6]) as tf.Tensor2D, 1).relError).toBeLessThan(1e-6);
    });
  });

  test('rows of block k and columns congruent to l make pieces of rank at most ρ(k, l)', () => {
    tf.tidy(() => {
      const [inDim, outDim, nblocks] = [12, 15, 4];
      const { p, r, s } = monarchBlocks(inDim, outDim, nblocks);
      const [A, B] = [random(1).normal([nblocks, p, r]), random(2).normal([nblocks, r, s])];
      const W = monarchToDense(A, B, { inDim, outDim });
      for (let k = 0; k < nblocks; k++) {
        for (let l = 0; l < nblocks; l++) {
          const rank = Array.from({ length: r }, (_, j) => k * r + j).filter((f) => f % nblocks === l).length;
          const columns = Array.from({ length: outDim }, (_, o) => o).filter((o) => o % nblocks === l);
          const piece = tf.gather(tf.slice(W, [k * p, 0], [p, outDim]), columns, 1) as tf.Tensor2D;
          // A piece of rank 1 has no 2×2 minor, one of rank 0 no entry.
          const values = piece.arraySync();
          const [a, b] = [values[0], values[1]];
          if (rank === 0) expect(Math.max(...values.flat().map(Math.abs))).toBe(0);
          else if (rank === 1) expect(a[0] * b[1] - a[1] * b[0]).toBeCloseTo(0, 5);
        }
      }
    });
  });

  test('both factors of a projection have one norm', () => {
    tf.tidy(() => {
      const { blkdiag1, blkdiag2 } = monarchProject(random(4).normal([10, 14]) as tf.Tensor2D, 3);
      expect(tf.norm(blkdiag1).dataSync()[0]).toBeCloseTo(tf.norm(blkdiag2).dataSync()[0], 5);
    });
  });
});

test('factors that do not chain are refused by name with both shapes', () => {
  tf.tidy(() => {
    const [x, A] = [tf.zeros([2, 8]), tf.zeros([2, 4, 4])];
    const size = { inDim: 8, outDim: 8 };
    expect(() => monarchApply(x, A, tf.zeros([2, 3, 4]), size)).toThrow(
      /blkdiag2: has shape \[2,3,4\]; expected \[2,4,4\]/,
    );
    expect(() => monarchApply(x, tf.zeros([2, 5, 4]), A, size)).toThrow(
      /blkdiag1: has shape \[2,5,4\]; expected \[2,4,4\]/,
    );
    expect(() => monarchApply(tf.zeros([2, 9]), A, A, size)).toThrow(/x: expected inDim 8 on the last axis, got 9/);
    expect(() => monarchProject(tf.fill([4, 4], Number.POSITIVE_INFINITY), 2)).toThrow(/non-finite/);
  });
});

test('attached to a pretrained model it starts at the nearest kernels and says how near', async () => {
  const model = denseModel([8, 12, 6]);
  const kernel = model.layers[0].getWeights()[0].clone() as tf.Tensor2D;
  await attach(model, monarch({ nblocks: 2 }), { targets: ['layer0'] });
  const [report] = structureReport(model);
  const { relError, blkdiag1, blkdiag2 } = monarchProject(kernel, 2);
  expect(report).toMatchObject({ layer: 'layer0', paramsBefore: 96, paramsAfter: 80 });
  expect(report.relError).toBeCloseTo(relError, 5);
  tf.dispose([kernel, blkdiag1, blkdiag2]);
  mergeAndUnload(model);
  model.dispose();
});

test('reverse sparsification trains structured, then dense', async () => {
  const held = tf.memory().numTensors;
  const model = denseModel([8, 8]);
  const seen: [number, string[]][] = [];
  await reverseSparsify(model, monarch({ nblocks: 2 }), {
    steps: 20,
    reverseFraction: 0.7,
    targets: ['layer0'],
    train: (trained, steps) => {
      seen.push([steps, trained.trainableWeights.map(({ originalName }) => originalName)]);
    },
  });
  expect(seen).toEqual([
    [14, ['layer0/bias', 'default/blkdiag1', 'default/blkdiag2'].map((name) => expect.stringContaining(name))],
    [6, ['layer0/kernel', 'layer0/bias'].map((name) => expect.stringContaining(name))],
  ]);
  // The dense kernel that is left is a Monarch matrix.
  const again = monarchProject(model.getWeights()[0] as tf.Tensor2D, 2);
  expect(again.relError).toBeLessThan(1e-5);
  tf.dispose([again.blkdiag1, again.blkdiag2]);
  await expect(
    reverseSparsify(model, monarch(), { steps: 1, reverseFraction: 2, train: () => undefined }),
  ).rejects.toThrow(/monarch\.reverseFraction: must be in \[0, 1\], got 2/);
  model.dispose();
  expect(tf.memory().numTensors).toBe(held);
});
