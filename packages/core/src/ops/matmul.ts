import * as tf from '@tensorflow/tfjs';
import { ensure, refuse } from '../errors.ts';
import { broadcastShape, sameShape, sizeOf } from './shapes.ts';

/**
 * The dense map y = x·W + b that every method uses.
 *
 * @param x `[..., in]`
 * @param kernel `[in, out]`
 * @param bias `[out]`, optional
 * @returns `[..., out]`
 * @throws MatforgeError when the shapes do not fit.
 */
export function linear(x: tf.Tensor, kernel: tf.Tensor, bias?: tf.Tensor | null): tf.Tensor {
  ensure(kernel.rank === 2, 'kernel', () => `has shape [${kernel.shape}]; a dense kernel is [in, out]`);
  const [inDim, outDim] = kernel.shape;
  ensure(
    x.rank >= 1 && x.shape[x.rank - 1] === inDim,
    'x',
    () => `has shape [${x.shape}]; its last axis must be the kernel's input dimension ${inDim}`,
  );
  ensure(
    !bias || sameShape(bias.shape, [outDim]),
    'bias',
    () => `has shape [${bias!.shape}]; it must be [${outDim}], the kernel's output dimension`,
  );
  return tf.tidy(() => {
    const lead = x.shape.slice(0, -1);
    const rows = x.rank === 2 ? x : tf.reshape(x, [sizeOf(lead), inDim]);
    const product = tf.matMul(rows, kernel);
    const y = bias ? tf.add(product, bias) : product;
    return x.rank === 2 ? y : tf.reshape(y, [...lead, outDim]);
  });
}

/**
 * Matrix product over the last two axes; the leading axes broadcast against each other as in NumPy. `tf.matMul` has
 * wrong gradients when one side is broadcast and wrong values when both are.
 *
 * @param a `[..., m, k]` (`[..., k, m]` with `transposeA`)
 * @param b `[..., k, n]` (`[..., n, k]` with `transposeB`)
 * @returns `[..., m, n]`
 * @throws MatforgeError when the shapes do not fit.
 */
export function batchMatMul(a: tf.Tensor, b: tf.Tensor, transposeA = false, transposeB = false): tf.Tensor {
  ensure(a.rank >= 2, 'a', () => `has shape [${a.shape}]; at least two axes are needed`);
  ensure(b.rank >= 2, 'b', () => `has shape [${b.shape}]; at least two axes are needed`);
  const [batchA, batchB] = [a.shape.slice(0, -2), b.shape.slice(0, -2)];
  const batch = broadcastShape(batchA, batchB);
  if (!batch) refuse('b', `batch axes [${batchB}] do not broadcast against [${batchA}] of a`);
  const [m, k] = transposeA ? [a.shape.at(-1)!, a.shape.at(-2)!] : [a.shape.at(-2)!, a.shape.at(-1)!];
  const [kb, n] = transposeB ? [b.shape.at(-1)!, b.shape.at(-2)!] : [b.shape.at(-2)!, b.shape.at(-1)!];
  ensure(k === kb, 'b', () => `contracts ${kb} entries, a contracts ${k} (shapes [${a.shape}] and [${b.shape}])`);

  return tf.tidy(() => {
    if (sizeOf(batchB) === 1) {
      // One matrix on the right: all rows of all batches in a single product.
      const straight = transposeA ? swapLastAxes(a) : a;
      const rows = tf.reshape(straight, [sizeOf(batchA) * m, k]);
      return tf.reshape(tf.matMul(rows, tf.reshape(b, b.shape.slice(-2)), false, transposeB), [...batch, m, n]);
    }
    const full = (x: tf.Tensor): tf.Tensor => {
      const shape = [...batch, ...x.shape.slice(-2)];
      const lifted = sameShape(x.shape, shape) ? x : broadcastTo(x, shape);
      return tf.reshape(lifted, [sizeOf(batch), ...x.shape.slice(-2)]);
    };
    return tf.reshape(tf.matMul(full(a), full(b), transposeA, transposeB), [...batch, m, n]);
  });
}

// Not tf.broadcastTo: its gradient is one slice per repetition.
function broadcastTo(x: tf.Tensor, shape: number[]): tf.Tensor {
  return tf.mul(x, tf.ones(shape));
}

export function swapLastAxes(x: tf.Tensor): tf.Tensor {
  const axes = x.shape.map((_, i) => i);
  axes.push(...axes.splice(-2).reverse());
  return tf.transpose(x, axes);
}
