import * as tf from '@tensorflow/tfjs';

/** Number of entries of a shape. */
export const sizeOf = (shape: readonly number[]): number => shape.reduce((size, n) => size * n, 1);

export const sameShape = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((n, i) => n === b[i]);

/** Shape of `a` and `b` broadcast against each other, or undefined. */
export function broadcastShape(a: readonly number[], b: readonly number[]): number[] | undefined {
  const rank = Math.max(a.length, b.length);
  const shape: number[] = [];
  for (let i = 0; i < rank; i++) {
    const n = a[i - rank + a.length] ?? 1;
    const m = b[i - rank + b.length] ?? 1;
    if (n !== m && n !== 1 && m !== 1) return undefined;
    shape.push(n === 1 ? m : n);
  }
  return shape;
}

/** [outer, n, inner] with `step` − 1 zeros between the n entries. */
export function insertZeros(x: tf.Tensor, step: number): tf.Tensor {
  if (step === 1) return x;
  const [outer, n, inner] = x.shape;
  const padded = tf.pad(tf.reshape(x, [outer, n, 1, inner]), [
    [0, 0],
    [0, 0],
    [0, step - 1],
    [0, 0],
  ]);
  return tf.slice(tf.reshape(padded, [outer, n * step, inner]), [0, 0, 0], [outer, (n - 1) * step + 1, inner]);
}
