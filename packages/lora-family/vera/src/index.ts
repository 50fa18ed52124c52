import {
  constant,
  defineLinearMethod,
  ensure,
  frozen,
  linear,
  option,
  seeded,
  torchRandom,
  trainable,
  zeros,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';

/**
 * VeRA (Kopiczko et al. 2023): one pair of frozen random matrices A, B serves every layer, each layer learns two scaling
 * vectors: y = x·W + b + ((x·A)∘d)·B∘l (eq. 2), A and B cut to the layer's size.
 *
 * l starts at zero, so the model starts as it was. Trains r + out numbers per layer.
 */
export const vera = defineLinearMethod({
  info: {
    id: 'vera',
    title: 'VeRA',
    family: 'lora-family',
    kind: 'adapter',
    paper: { title: 'VeRA: Vector-based Random Matrix Adaptation', arxiv: '2310.11454', year: 2023 },
  },
  config: z.object({
    /** Rank of the shared matrices; may exceed the layers' sizes. */
    rank: option.rank().default(256),
    /** Start of d. */
    dInitial: z
      .number('must be a number other than 0')
      .refine((value) => value !== 0, 'must not be 0: with l = 0 both gradients would vanish for ever')
      .default(0.1),
    /** Seed of A and B, drawn as PEFT draws them. */
    projectionPrngKey: z
      .number('must be an integer >= 0')
      .int('must be an integer >= 0')
      .min(0, 'must be an integer >= 0')
      .default(0),
    /** Store A and B with the adapter, or draw them again from the key. */
    saveProjection: z.boolean().default(true),
    dropout: option.dropout(),
  }),
  tensors({ outDim, group, config: { rank, dInitial, projectionPrngKey, saveProjection } }) {
    const projection = () => veraProjection(group.maxIn, group.maxOut, rank, projectionPrngKey);
    const shared = saveProjection ? frozen : seeded;
    return {
      A: shared([group.maxIn, rank], () => projection().A, 'A'),
      B: shared([rank, group.maxOut], () => projection().B, 'B'),
      lambdaD: trainable([rank], constant(dInitial)),
      lambdaB: trainable([outDim], zeros),
    };
  },
  coexist(mine, other) {
    const [key, otherKey] = [mine.config.projectionPrngKey, other.config.projectionPrngKey];
    ensure(
      key === otherKey,
      'vera.projectionPrngKey',
      () => `must be the same for all adapters of a model, got ${key} beside ${otherKey}`,
    );
    const [save, otherSave] = [mine.config.saveProjection, other.config.saveProjection];
    ensure(
      save === otherSave,
      'vera.saveProjection',
      () => `must be the same for all adapters of a model, got ${save} beside ${otherSave}`,
    );
    for (const size of ['maxIn', 'maxOut'] as const) {
      const [needed, there] = [mine.group[size], other.group[size]];
      ensure(
        needed <= there,
        'vera',
        () =>
          `the shared projection has a size of ${there} but ${needed} or greater is required; attach the adapter with the largest layers first`,
      );
    }
  },
  forward: (x, tensors, { base, dropout, site }) => {
    const { A, B } = slices(tensors, site);
    const z = linear(tf.mul(linear(dropout(x), A), tensors.lambdaD), B);
    return tf.add(base.apply(x), tf.mul(z, tensors.lambdaB));
  },
  kernel: (tensors, { base, site }) => tf.add(base.kernel, veraDelta(tensors, site)),
  peft: {
    type: 'VERA',
    toJson: (config) => ({
      r: config.rank,
      projection_prng_key: config.projectionPrngKey,
      save_projection: config.saveProjection,
      vera_dropout: config.dropout,
      d_initial: config.dInitial,
      fan_in_fan_out: false,
      init_weights: true,
      layers_to_transform: null,
      layers_pattern: null,
    }),
    fromJson: (json) => ({
      rank: json.r ?? 256,
      projectionPrngKey: json.projection_prng_key ?? 0,
      saveProjection: json.save_projection ?? true,
      dropout: json.vera_dropout ?? 0,
      dInitial: json.d_initial ?? 0.1,
    }),
    keys: () => ({ A: 'vera_A', B: 'vera_B', lambdaD: 'vera_lambda_d', lambdaB: 'vera_lambda_b' }),
  },
});

type Size = { readonly inDim: number; readonly outDim: number };

/** The rows of A and columns of B that a layer of the given size uses. */
function slices({ A, B }: Record<'A' | 'B', tf.Tensor>, { inDim, outDim }: Size): { A: tf.Tensor; B: tf.Tensor } {
  return { A: tf.slice(A, [0, 0], [inDim, -1]), B: tf.slice(B, [0, 0], [-1, outDim]) };
}

/** (A∘d)·(B∘l), `[in, out]`, with A and B cut to the layer's size. */
export function veraDelta(tensors: Record<'A' | 'B' | 'lambdaD' | 'lambdaB', tf.Tensor>, size: Size): tf.Tensor2D {
  return tf.tidy(() => {
    const { A, B } = slices(tensors, size);
    return tf.matMul(tf.mul(A, tensors.lambdaD) as tf.Tensor2D, tf.mul(B, tensors.lambdaB) as tf.Tensor2D);
  });
}

/** Bounds of the uniform distributions that A and B are drawn from: Kaiming with gain √2, over the widest layer. */
export function veraBounds(maxIn: number, rank: number): { A: number; B: number } {
  return { A: Math.sqrt(6 / maxIn), B: Math.sqrt(6 / rank) };
}

/**
 * The shared matrices A `[maxIn, rank]` and B `[rank, maxOut]` as PEFT draws them from a key: PyTorch's stream, A first,
 * each filled row-major in PyTorch's orientation.
 */
export function veraProjection(
  maxIn: number,
  maxOut: number,
  rank: number,
  key: number,
): { A: tf.Tensor2D; B: tf.Tensor2D } {
  const bounds = veraBounds(maxIn, rank);
  const stream = torchRandom(key);
  return tf.tidy(() => ({
    A: tf.transpose(stream.uniform([rank, maxIn], -bounds.A, bounds.A)) as tf.Tensor2D,
    B: tf.transpose(stream.uniform([maxOut, rank], -bounds.B, bounds.B)) as tf.Tensor2D,
  }));
}
