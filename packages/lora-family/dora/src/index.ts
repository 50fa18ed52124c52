import {
  defineLinearMethod,
  kaimingUniform,
  linear,
  loraConvolution,
  loraFromJson,
  loraJson,
  loraKeys,
  lowRankApply,
  lowRankOptions,
  lowRankPlan,
  lowRankProduct,
  lowRankScale,
  refuse,
  stopGradient,
  trainable,
  zeros,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';

/**
 * DoRA (Liu et al. 2024): a kernel is a magnitude per output times a direction; LoRA learns the direction and the
 * magnitude m is learned itself: y = (x·V)∘q + b with V = W + s·A·B and q = m/‖V‖ (eq. 5), ‖·‖ per column.
 *
 * The norm counts as a constant in the backward pass (section 4.3) unless `detachNorm` is false. Starts as the base
 * model. Trains r(in + out) + out numbers per layer.
 */
export const dora = defineLinearMethod({
  info: {
    id: 'dora',
    title: 'DoRA',
    family: 'lora-family',
    kind: 'adapter',
    paper: { title: 'DoRA: Weight-Decomposed Low-Rank Adaptation', arxiv: '2402.09353', year: 2024 },
  },
  config: z.object({
    ...lowRankOptions,
    /** Take ‖V‖ as a constant in the backward pass, as the paper and PEFT do. */
    detachNorm: z.boolean().default(true),
    /** False leaves the magnitude as it is and trains the direction only. */
    trainMagnitude: z.boolean().default(true),
  }),
  tensors: ({ inDim, outDim, config: { rank, trainMagnitude } }) => ({
    A: trainable([inDim, rank], kaimingUniform),
    B: trainable([rank, outDim], zeros),
    magnitude: { ...trainable([outDim]), role: trainMagnitude ? 'trainable' : 'frozen' },
  }),
  plan: lowRankPlan,
  init({ kernel, site }) {
    const norms = columnNorms(kernel);
    const zero = norms.dataSync().indexOf(0);
    if (zero >= 0)
      refuse(
        site.name,
        `zero-norm output: column ${zero} of the kernel is zero and has no direction; exclude the layer`,
      );
    return { magnitude: norms };
  },
  forward(x, { A, B, magnitude }, { config, base, dropout }) {
    const s = lowRankScale(config);
    const norms = columnNorms(tf.add(base.kernel, lowRankProduct(A, B, s)));
    const q = tf.div(magnitude, config.detachNorm ? stopGradient(norms) : norms);
    const kept = dropout(x);
    if (kept === x) {
      const y = tf.mul(tf.add(base.linear(x), lowRankApply(x, A, B, s)), q);
      return base.bias ? tf.add(y, base.bias) : y;
    }
    // Dropout acts on the adapter's path only: the base output stays whole, its change by q does not.
    const change = tf.mul(linear(kept, base.kernel), tf.sub(q, 1));
    return tf.add(base.apply(x), tf.add(change, tf.mul(lowRankApply(kept, A, B, s), q)));
  },
  kernel({ A, B, magnitude }, { config, base }) {
    const V = tf.add(base.kernel, lowRankProduct(A, B, lowRankScale(config)));
    return tf.mul(V, tf.div(magnitude, columnNorms(V))) as tf.Tensor2D;
  },
  peft: {
    type: 'LORA',
    accepts: (json) => json.use_dora === true,
    toJson: (config) => loraJson(config, { use_dora: true }),
    fromJson: loraFromJson,
    keys: (site) => ({ ...loraKeys(site), magnitude: 'lora_magnitude_vector' }),
    convolution: { ...loraConvolution, magnitude: 'channels' },
  },
});

/** ‖W[:, j]‖₂ for each output j: `[in, out]` → `[out]`. */
export function columnNorms(W: tf.Tensor): tf.Tensor1D {
  return tf.sqrt(tf.sum(tf.square(W), 0));
}

/** How far training moved a kernel in magnitude and in direction. */
export interface MagnitudeDirection {
  /** Mean over outputs of |‖W₁‖ − ‖W₀‖| (ΔM, eq. 3). */
  readonly deltaMagnitude: number;
  /** Mean over outputs of 1 − cos(W₁, W₀) (ΔD, eq. 4). */
  readonly deltaDirection: number;
  /** Cosine per output, `[out]`. */
  readonly cosine: tf.Tensor1D;
}

/** Decomposes the change from W₀ to W₁, both `[in, out]`, as section 3.2 does. */
export function magnitudeDirection(W0: tf.Tensor2D, W1: tf.Tensor2D): MagnitudeDirection {
  const [cosine, magnitude] = tf.tidy(() => {
    const [n0, n1] = [columnNorms(W0), columnNorms(W1)];
    return [tf.div(tf.sum(tf.mul(W0, W1), 0), tf.mul(n0, n1)) as tf.Tensor1D, tf.mean(tf.abs(tf.sub(n1, n0)))];
  });
  const deltaMagnitude = magnitude.dataSync()[0];
  magnitude.dispose();
  const mean = Array.from(cosine.dataSync()).reduce((sum, value) => sum + value, 0) / cosine.size;
  return { deltaMagnitude, deltaDirection: 1 - mean, cosine };
}
