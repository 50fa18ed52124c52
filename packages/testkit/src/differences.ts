import * as tf from '@tensorflow/tfjs';
import { taken } from './place.ts';

const STEP = 1e-2;

/**
 * Slopes of a loss in some entries of a variable, by central differences with Richardson's extrapolation: with the double
 * step the error of second order cancels. All losses are read at once, because on a device every read is a wait.
 *
 * @param original the variable's values, which it has again afterwards.
 */
export async function differences(
  loss: () => tf.Scalar,
  variable: tf.Variable,
  original: readonly number[],
  indices: readonly number[],
): Promise<number[]> {
  const assign = (values: readonly number[]) =>
    tf.tidy(() => variable.assign(tf.tensor(values as number[], variable.shape)));
  const at = (index: number, change: number): tf.Scalar => {
    assign(original.map((value, i) => (i === index ? value + change : value)));
    return tf.tidy(loss);
  };
  const losses = indices.flatMap((index) => [STEP, -STEP, 2 * STEP, -2 * STEP].map((change) => at(index, change)));
  assign(original);
  const values = await taken(tf.stack(losses));
  tf.dispose(losses);
  return indices.map((_, i) => {
    const [up, down, farUp, farDown] = values.slice(4 * i, 4 * i + 4);
    return (4 * ((up - down) / (2 * STEP)) - (farUp - farDown) / (4 * STEP)) / 3;
  });
}
