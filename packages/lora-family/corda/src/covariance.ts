import { ensure } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** What the inputs of a batch are divided by: max|X|, |max X|, or 1. */
export type Normalisation = 'absmax' | 'official' | 'none';

/**
 * X̂ᵀX̂ of one batch, `[in, in]`.
 *
 * @param X `[rows, in]`.
 * @param name the layer, for errors.
 * @throws MatforgeError when the divisor is zero.
 */
export function normalisedGram(X: tf.Tensor2D, normalize: Normalisation, name = 'activations'): tf.Tensor2D {
  return tf.tidy(() => {
    if (normalize === 'none') return tf.matMul(X, X, true) as tf.Tensor2D;
    const divisor = tf.abs(tf.max(normalize === 'absmax' ? tf.abs(X) : X));
    ensure(divisor.dataSync()[0] !== 0, name, () =>
      normalize === 'absmax'
        ? 'activations are all zero; leave the layer out or use other samples'
        : 'the largest activation is zero; use normalize "absmax"',
    );
    const scaled = tf.div(X, divisor) as tf.Tensor2D;
    return tf.matMul(scaled, scaled, true) as tf.Tensor2D;
  });
}

/**
 * Collects the covariance of a layer's inputs: the mean over batches of X̂ᵀX̂. Batches are not divided by their number of
 * rows. Holds one `[in, in]` tensor; {@link CovarianceCollector.dispose} frees it.
 */
export class CovarianceCollector {
  private readonly normalize: Normalisation;
  private sum: tf.Tensor2D | undefined;
  private batches = 0;

  constructor({ normalize = 'absmax' }: { normalize?: Normalisation } = {}) {
    this.normalize = normalize;
  }

  /**
   * Takes one batch of inputs `[..., in]`.
   *
   * @throws MatforgeError for activations that are all zero, not finite, or of another width than before.
   */
  add(X: tf.Tensor): void {
    const width = X.shape[X.rank - 1] as number;
    const [known] = this.sum?.shape ?? [width];
    ensure(width === known, 'activations', () => `have width ${width}, the batches before had ${known}`);
    const gram = tf.tidy(() => normalisedGram(tf.reshape(X, [-1, width]) as tf.Tensor2D, this.normalize));
    const before = this.sum;
    const sum = tf.tidy(() => (before ? tf.add(before, gram) : tf.clone(gram)) as tf.Tensor2D);
    gram.dispose();
    const finite = tf.tidy(() => tf.all(tf.isFinite(sum)).dataSync()[0]);
    if (!finite) sum.dispose();
    ensure(finite, 'activations', () => 'are not finite; look for NaN or infinity in the data');
    before?.dispose();
    this.sum = sum;
    this.batches++;
  }

  /**
   * The mean so far, `[in, in]`, as a new tensor.
   *
   * @throws MatforgeError before the first batch.
   */
  covariance(): tf.Tensor2D {
    const { sum, batches } = this;
    ensure(sum, 'covariance', () => 'covariance is empty: add at least one calibration batch');
    return tf.tidy(() => tf.div(sum as tf.Tensor2D, batches)) as tf.Tensor2D;
  }

  /** Frees what was collected. */
  dispose(): void {
    this.sum?.dispose();
    this.sum = undefined;
    this.batches = 0;
  }
}
