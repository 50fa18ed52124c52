import * as tf from '@tensorflow/tfjs';
import { repairGradients } from '../src/ops/index.ts';
import { backends, deviation, gradientError, leaked, useBackend, values } from './backends.ts';

describe.each(backends)('gradients of convolutions and pooling on %s', (backend) => {
  beforeAll(async () => {
    await useBackend(backend);
    repairGradients();
  });
  beforeEach(() => tf.engine().startScope());
  afterEach(() => tf.engine().endScope());

  test.each([
    ['same', 2],
    ['valid', 3],
  ] as const)('conv1d, padding %s, dilation %i', (pad, dilation) => {
    const [x, w] = [values([2, 11, 3]), values([3, 3, 2], 2)];
    const f = (a: tf.Tensor, b: tf.Tensor): tf.Tensor =>
      tf.conv1d(a as tf.Tensor3D, b as tf.Tensor3D, 1, pad, 'NWC', dilation);
    expect(gradientError(f, [x, w])).toBeLessThan(2e-3);
    expect(leaked((a, b) => f(a, b), [x, w])).toBe(0);
  });

  test('a dilated convolution has the gradients of the one whose filter holds zeros', () => {
    const [x, w] = [values([1, 9, 8, 2]), values([2, 3, 2, 4], 2)];
    const dilatedBy = tf.grads((a, b) => tf.conv2d(a as tf.Tensor4D, b as tf.Tensor4D, 1, 'same', 'NHWC', [3, 2]));
    const byZeros = tf.grads((a, b) => {
      const rows = tf.stack([0, 1].flatMap((i) => [tf.gather(b, i), ...(i === 0 ? [0, 0] : []).map(() => empty(b))]));
      const filter = tf.stack(
        [0, 1, 2].flatMap((i) => [tf.gather(rows, i, 1), ...(i < 2 ? [tf.zerosLike(tf.gather(rows, i, 1))] : [])]),
        1,
      );
      return tf.conv2d(a as tf.Tensor4D, filter as tf.Tensor4D, 1, 'same');
    });
    const empty = (b: tf.Tensor): tf.Tensor => tf.zerosLike(tf.gather(b, 0));
    const dy = values([1, 9, 8, 4], 3);
    const expected = byZeros([x, w], dy);
    dilatedBy([x, w], dy).forEach((gradient, i) => {
      expect(gradient.shape).toEqual(expected[i].shape);
      expect(deviation(gradient, expected[i])).toBeLessThan(1e-6);
    });
  });

  test('channels first', () => {
    const [x, w] = [values([1, 2, 7, 6]), values([3, 2, 2, 3], 2)];
    const f = (a: tf.Tensor, b: tf.Tensor): tf.Tensor =>
      tf.conv2d(a as tf.Tensor4D, b as tf.Tensor4D, 1, 'valid', 'NCHW', 2);
    expect(gradientError(f, [x, w])).toBeLessThan(2e-3);
  });

  test('the penalty on a gradient, of a network with convolutions and pooling, has a gradient', () => {
    const [x, w, v] = [values([1, 6, 6, 2]), values([3, 3, 2, 3], 2), values([2, 2, 3, 2], 3)];
    const network = (image: tf.Tensor, first: tf.Tensor, second: tf.Tensor): tf.Tensor => {
      const hidden = tf.elu(tf.conv2d(image as tf.Tensor4D, first as tf.Tensor4D, 1, 'same'));
      const pooled = tf.avgPool(hidden as tf.Tensor4D, 2, 2, 'valid');
      return tf.tanh(tf.depthwiseConv2d(pooled, second as tf.Tensor4D, 1, 'valid'));
    };
    const penalty = (first: tf.Tensor, second: tf.Tensor): tf.Tensor => {
      const slope = tf.grad((image) => tf.sum(network(image, first, second)))(x);
      return tf.square(tf.sub(tf.sqrt(tf.add(tf.sum(tf.square(slope)), 1e-3)), 1));
    };
    expect(gradientError(penalty, [w, v], 4e-3)).toBeLessThan(5e-3);
  });
});
