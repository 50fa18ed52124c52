import {
  defineLinearMethod,
  ensure,
  gelu,
  kaimingUniform,
  linear,
  lowRankProduct,
  option,
  type PlannedSite,
  type Site,
  trainable,
  uniform,
  zeros,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';

/** act(0) = 0 for all of them. `gelu` is the exact one. */
const ACTIVATIONS = {
  gelu: (x: tf.Tensor) => gelu(x),
  relu: (x: tf.Tensor) => tf.relu(x),
  tanh: (x: tf.Tensor) => tf.tanh(x),
  identity: (x: tf.Tensor) => x,
};

/** Start of the decoder under relu, whose gradient at 0 is 0. */
const SMALL = 0.01;

/**
 * DenseLoRA (Mu et al. 2025): layers of equal module type and shape share one encoder E and one decoder D, each layer l
 * learns only a dense core M_l: y = x·W + b + s·act(act(x·E)·M_l·D) with s = alpha/rank.
 *
 * D starts at zero, so the model starts as it was (under relu D starts in ±0.01, almost as it was). Trains r(in + out)
 * numbers per group and r² per layer. Not mergeable, because of the activations, unless `activation` is `'identity'`.
 */
export const denselora = defineLinearMethod({
  info: {
    id: 'denselora',
    title: 'DenseLoRA',
    family: 'lora-family',
    kind: 'adapter',
    paper: {
      title: 'DenseLoRA: Dense Low-Rank Adaptation of Large Language Models',
      arxiv: '2505.23808',
      year: 2025,
    },
  },
  config: z.object({
    rank: option.rank().default(16),
    /** s = alpha/rank. */
    alpha: option.positive().default(32),
    /** Behind the encoder and behind the decoder. */
    activation: z.enum(['gelu', 'relu', 'tanh', 'identity']).default('gelu'),
    /** While training: on the input, behind the inner activation and on the adapter's output, as the authors' code. */
    dropout: option.dropout(),
    /** Which layers share: those of one module name (last part of the layer's name) and shape, or of one shape. */
    groupBy: z.enum(['moduleAndShape', 'module', 'shape']).default('moduleAndShape'),
    /** D starts uniform in ± this. Default 0; under relu 0.01, because 0 would never learn. */
    decoderInit: z.number('must be a number >= 0').min(0, 'must be a number >= 0').optional(),
  }),
  validate({ name }, { activation, decoderInit }) {
    ensure(
      activation !== 'relu' || decoderInit !== 0,
      `${name}.decoderInit`,
      () => 'must be > 0 with activation "relu": a decoder of zeros would never get a gradient',
    );
  },
  plan(sites, { groupBy }) {
    if (groupBy === 'module') ensureOneShape(sites);
    return {};
  },
  tensors({ inDim, outDim, site, config: { rank, activation, groupBy, decoderInit } }) {
    const key = groupKey(site, groupBy);
    const limit = decoderInit ?? (activation === 'relu' ? SMALL : 0);
    return {
      encoder: trainable([inDim, rank], kaimingUniform, `encoder.${key}`),
      core: trainable([rank, rank], kaimingUniform),
      decoder: trainable([rank, outDim], limit === 0 ? zeros : uniform(limit), `decoder.${key}`),
    };
  },
  forward(x, { encoder, core, decoder }, { config, base, dropout }) {
    const act = ACTIVATIONS[config.activation];
    const code = dropout(act(linear(dropout(x), encoder)));
    const change = dropout(act(linear(linear(code, core), decoder)));
    return tf.add(base.apply(x), tf.mul(change, config.alpha / config.rank));
  },
  mergeable: ({ activation }) => activation === 'identity',
  kernel: ({ encoder, core, decoder }, { config, base }) =>
    tf.add(base.kernel, lowRankProduct(tf.matMul(encoder, core), decoder, config.alpha / config.rank)),
});

type GroupBy = 'moduleAndShape' | 'module' | 'shape';

/** Layers with equal keys share encoder and decoder. */
function groupKey({ name, inDim, outDim }: Site, groupBy: GroupBy): string {
  const shape = `${inDim}x${outDim}`;
  return { moduleAndShape: `${moduleOf(name)}.${shape}`, module: moduleOf(name), shape }[groupBy];
}

function moduleOf(name: string): string {
  return name.slice(name.lastIndexOf('.') + 1);
}

function ensureOneShape(sites: readonly PlannedSite[]): void {
  for (const site of sites) {
    const first = sites.find(({ name }) => moduleOf(name) === moduleOf(site.name)) as PlannedSite;
    ensure(
      first.inDim === site.inDim && first.outDim === site.outDim,
      'denselora.groupBy',
      () =>
        `the group "${moduleOf(site.name)}" has layers of different shapes: ${first.name} [${first.inDim}, ${first.outDim}] and ${site.name} [${site.inDim}, ${site.outDim}]; use "moduleAndShape"`,
    );
  }
}

/** Layers that share an encoder and a decoder. */
export interface DenseLoraGroup {
  readonly in: number;
  readonly out: number;
  /** Number of layers. */
  readonly layers: number;
}

/** Trainable numbers of DenseLoRA at rank r: shared r(in + out) per group, cores r² per layer; `lora` is LoRA's count. */
export function denseLoraParameterCount(
  groups: readonly DenseLoraGroup[],
  r: number,
): { shared: number; core: number; total: number; lora: number } {
  const sum = (term: (group: DenseLoraGroup) => number) => groups.reduce((total, group) => total + term(group), 0);
  const shared = sum((group) => r * (group.in + group.out));
  const core = sum(({ layers }) => layers * r * r);
  return { shared, core, total: shared + core, lora: sum((group) => group.layers * r * (group.in + group.out)) };
}
