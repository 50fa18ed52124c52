import * as tf from '@tensorflow/tfjs';
import type { Initializer } from '../contracts/linear-method.ts';

/** Zeros. */
export const zeros: Initializer = (shape) => tf.zeros(shape);

/** Ones. */
export const ones: Initializer = (shape) => tf.ones(shape);

/** Every entry equal to `value`. */
export const constant =
  (value: number): Initializer =>
  (shape) =>
    tf.fill(shape, value);

/** U(-limit, limit). */
export const uniform =
  (limit: number): Initializer =>
  (shape, random) =>
    random.uniform(shape, -limit, limit);

/** N(0, deviation²). */
export const normal =
  (deviation: number): Initializer =>
  (shape, random) =>
    random.normal(shape, 0, deviation);

/** Kaiming uniform with slope √5 over the first axis, U(±1/√fanIn): PyTorch's default for linear layers. */
export const kaimingUniform: Initializer = (shape, random) => uniform(1 / Math.sqrt(shape[0]))(shape, random);
