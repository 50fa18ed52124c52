import { functional, linalg, toMatrix } from '@matforge/core';
import { lora } from '@matforge/lora';
import { lossAndGradients, type MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { attacks, extract, judge, release, seal, watermarkStats } from '../src/index.ts';

const matrices = <K extends string>(inputs: { matrix(name: string): tf.Tensor2D }, ...names: K[]) =>
  Object.fromEntries(names.map((name) => [name, inputs.matrix(name)])) as Record<K, tf.Tensor2D>;

const product = (...factors: tf.Tensor2D[]) => factors.reduce((left, right) => tf.matMul(left, right));

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'seal',
  linear: [
    {
      configured: seal({ rank: 2, alpha: 4, secret: 5 }),
      parameters: (inDim, outDim) => 2 * (inDim + outDim),
      readers: [lora],
      refused: [
        [{ rank: 1 }, /seal\.rank: must be an integer >= 2, got 1/],
        [{ secret: 0.5 }, /seal\.secret: must be an integer, got 0\.5/],
        [{ secret: undefined }, /seal\.secret: must be an integer, got undefined/],
        [{ schedule: 'sometimes' }, /seal\.schedule: must be one of "random", "alternate", got "sometimes"/],
        [{ alpha: 0 }, /seal\.alpha: must be a finite number > 0, got 0/],
      ],
    },
  ],
  golden: {
    forward: (inputs, { rank, scale, passport }) =>
      tf.tidy(() => {
        const own = matrices(inputs, 'A', 'B', 'C', 'Cp');
        const method = functional(seal({ rank, alpha: scale * rank, secret: 0 }), { kernel: inputs.matrix('W') });
        const fixed = { C: own.C, Cp: own.Cp, passport: tf.scalar(passport) };
        const { y, gradients } = lossAndGradients(
          ({ x, ...trained }) => method.forward(x, { ...trained, ...fixed }),
          { x: inputs.tensor('x'), A: own.A, B: own.B },
          inputs.tensor('dy'),
        );
        return { y, dA: gradients.A, dB: gradients.B, dx: gradients.x };
      }),
    release: (inputs, { scale }) =>
      tf.tidy(() => {
        const marked = matrices(inputs, 'A', 'B', 'C');
        const { A, B } = release({ ...marked, scale });
        return {
          delta: tf.mul(product(A, B), scale),
          singularValues: tf.tensor1d(Float32Array.from(linalg.singularValues(toMatrix(marked.C)))),
          gramA: tf.matMul(A, A, false, true),
          gramB: tf.matMul(B, B, true),
        };
      }),
    extract: (inputs, { scale }) =>
      tf.tidy(() => {
        const { A, B, C, Cp, delta } = matrices(inputs, 'A', 'B', 'C', 'Cp', 'delta');
        const extracted = extract({ A, B, scale }, delta);
        const other = watermarkStats(extracted, Cp);
        return {
          extracted,
          ...watermarkStats(extracted, C),
          otherMatched: other.matched,
          otherCosine: other.cosine,
          otherLog10p: other.log10p,
        };
      }),
    attack: (inputs, { scale, pruneFraction, quantBits }) =>
      tf.tidy(() => {
        const { A, B, C, R, releasedA, releasedB } = matrices(inputs, 'A', 'B', 'C', 'R', 'releasedA', 'releasedB');
        const D = tf.mul(product(A, C, B), scale) as tf.Tensor2D;
        const refactored = attacks.refactor({ A: releasedA, B: releasedB, scale }, R);
        const found = (delta: tf.Tensor2D) => {
          const X = extract({ A, B, scale }, delta);
          return { X, ...watermarkStats(X, C) };
        };
        const pruned = attacks.prune(D, pruneFraction);
        const quantized = attacks.quantize(D, quantBits);
        const refactoredDelta = tf.mul(product(refactored.A, refactored.B), scale) as tf.Tensor2D;
        const [afterPruning, afterQuantizing, afterRefactoring] = [pruned, quantized, refactoredDelta].map(found);
        return {
          pruned,
          prunedExtracted: afterPruning.X,
          prunedMatched: afterPruning.matched,
          prunedLog10p: afterPruning.log10p,
          quantized,
          quantizedExtracted: afterQuantizing.X,
          quantizedMatched: afterQuantizing.matched,
          refactoredDelta,
          refactoredExtracted: afterRefactoring.X,
          refactoredMatched: afterRefactoring.matched,
        };
      }),
    forge: (inputs, { scale }) =>
      tf.tidy(() => {
        const { releasedA, releasedB, F, F2, x } = matrices(inputs, 'releasedA', 'releasedB', 'F', 'F2', 'x');
        const forged = attacks.forge({ A: releasedA, B: releasedB, scale }, F);
        const extracted = extract(forged, tf.mul(product(releasedA, releasedB), scale) as tf.Tensor2D);
        const y = product(x, releasedA, releasedB);
        const error = (passport: tf.Tensor2D) =>
          tf.div(tf.norm(tf.sub(product(x, forged.A, passport, forged.B), y)), tf.norm(y));
        return {
          forgedB: forged.B,
          extracted,
          matched: watermarkStats(extracted, F).matched,
          reconstructionError: error(F),
          secondPassportError: error(F2),
        };
      }),
    verify: (inputs, { alpha, maxFidelityGap, maxPassportCosine }) => {
      const keys = ['matched', 'total', 'fidelityC', 'fidelityCp', 'passportCosine'] as const;
      const columns = keys.map((key) => inputs.values(key).data);
      const verdicts = Array.from(columns[0], (_, i) => {
        const claim = Object.fromEntries(keys.map((key, column) => [key, columns[column][i]]));
        return judge(claim as Record<(typeof keys)[number], number>, {
          alphaLevel: alpha,
          maxFidelityGap,
          maxPassportCosine,
        });
      });
      const fields = ['log10p', 'z', 'bitsPass', 'fidelityPass', 'distancePass', 'accepted'] as const;
      return Object.fromEntries(fields.map((field) => [field, { data: verdicts.map((verdict) => +verdict[field]) }]));
    },
  },
};
