import { ensure, linalg, toMatrix, toTensor } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { checkPassports } from './passport.ts';
import type { MarkedAdapter, ReleasedAdapter } from './release.ts';

/** Factors A' and F⁻¹·B' with the passport F: the product of a release, and an extraction without a wrong bit. */
export function attackForge({ A, B, scale }: ReleasedAdapter, F: tf.Tensor2D): MarkedAdapter {
  ensure(B.shape[0] === A.shape[1], 'B', () => `has ${B.shape[0]} rows, A has ${A.shape[1]} columns`);
  checkPassports('forge', A.shape[1], F);
  return { A: tf.clone(A), B: toTensor(linalg.solve(toMatrix(F), toMatrix(B))), C: tf.clone(F), scale };
}
