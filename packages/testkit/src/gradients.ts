import * as tf from '@tensorflow/tfjs';

/**
 * y = f(tensors), L = Σ G∘y and dL/d(tensor) for every tensor: what golden gradient cases list.
 *
 * @param upstream G, of y's shape.
 */
export function lossAndGradients<K extends string>(
  f: (tensors: Record<K, tf.Tensor>) => tf.Tensor,
  tensors: Record<K, tf.Tensor>,
  upstream: tf.Tensor,
): { y: tf.Tensor; loss: tf.Scalar; gradients: Record<K, tf.Tensor> } {
  const names = Object.keys(tensors) as K[];
  const byName = (values: tf.Tensor[]) =>
    Object.fromEntries(names.map((name, i) => [name, values[i]])) as Record<K, tf.Tensor>;
  const values = names.map((name) => tensors[name]);
  const gradients = tf.grads((...at: tf.Tensor[]) => f(byName(at)))(values, upstream);
  const y = f(tensors);
  return { y, loss: tf.tidy(() => tf.sum(tf.mul(upstream, y)) as tf.Scalar), gradients: byName(gradients) };
}
