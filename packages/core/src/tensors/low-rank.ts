import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { option } from '../contracts/config.ts';
import {
  type ForwardContext,
  frozen,
  type PlannedSite,
  type Site,
  type SitePlan,
  trainable,
} from '../contracts/linear-method.ts';
import { refuse } from '../errors.ts';
import { matchPattern } from '../host/sites.ts';
import { linear } from '../ops/index.ts';

/** Options of every adapter that adds a product of two thin factors: `z.object({ ...lowRankOptions, … })`. */
export const lowRankOptions = {
  /** Rank r of the factors. */
  rank: option.rank().default(8),
  /** Numerator of the scale. */
  alpha: option.positive().default(8),
  dropout: option.dropout(),
  /** Scale alpha/√rank instead of alpha/rank (rsLoRA, Kalajdzievski 2023), so that the signal does not fade with rank. */
  useRslora: z.boolean().default(false),
  /** Rank per module name; first match wins. */
  rankPattern: option.pattern(option.rank()),
  /** Alpha per module name; first match wins. */
  alphaPattern: option.pattern(option.positive()),
};

/** Options of {@link lowRankOptions}, validated; `alpha` absent means alpha = rank, scale 1 (or √rank with rsLoRA). */
export interface LowRankConfig {
  rank: number;
  alpha?: number;
  dropout: number;
  useRslora: boolean;
  rankPattern: Record<string, number>;
  alphaPattern: Record<string, number>;
}

/** s = alpha/rank, or alpha/√rank with rsLoRA. */
export function lowRankScale({
  rank,
  alpha = rank,
  useRslora = false,
}: Pick<LowRankConfig, 'rank' | 'alpha'> & { useRslora?: boolean }): number {
  return useRslora ? alpha / Math.sqrt(rank) : alpha / rank;
}

/** Rank and alpha of each site after the patterns. */
export function lowRankPlan<C extends LowRankConfig>(
  sites: readonly PlannedSite[],
  config: C,
): Record<string, SitePlan<C>> {
  return Object.fromEntries(
    sites.map(({ name }) => {
      const rank = matchPattern(config.rankPattern, name) ?? config.rank;
      const alpha = matchPattern(config.alphaPattern, name) ?? config.alpha;
      return [name, { config: { rank, ...(alpha === undefined ? {} : { alpha }) } as Partial<C> }];
    }),
  );
}

/** s·(x·A)·B without forming A·B: x `[..., in]`, A `[in, r]`, B `[r, out]` → `[..., out]`. */
export function lowRankApply(x: tf.Tensor, A: tf.Tensor, B: tf.Tensor, scale = 1): tf.Tensor {
  const y = linear(linear(x, A), B);
  return scale === 1 ? y : tf.mul(y, scale);
}

/** s·A·B, `[in, out]`. */
export function lowRankProduct(A: tf.Tensor, B: tf.Tensor, scale = 1): tf.Tensor2D {
  const product = tf.matMul(A as tf.Tensor2D, B as tf.Tensor2D);
  return (scale === 1 ? product : tf.mul(product, scale)) as tf.Tensor2D;
}

/** Refuses a rank beyond min(in, out), for methods whose factors come from the kernel's own decomposition. */
export function validateRank({ name, inDim, outDim }: Site, { rank }: { rank: number }): void {
  const limit = Math.min(inDim, outDim);
  if (rank > limit)
    refuse(
      `${name}.rank`,
      `rank ${rank} exceeds min(in, out) = ${limit} of the [${inDim}, ${outDim}] kernel; choose rank <= ${limit}`,
    );
}

/** PEFT's LORA fields for {@link lowRankOptions}; `extra` adds or replaces fields. */
export function loraJson(config: LowRankConfig, extra: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    r: config.rank,
    lora_alpha: config.alpha ?? config.rank,
    lora_dropout: config.dropout,
    use_rslora: config.useRslora,
    use_dora: false,
    init_lora_weights: true,
    rank_pattern: config.rankPattern,
    alpha_pattern: config.alphaPattern,
    fan_in_fan_out: false,
    lora_bias: false,
    layers_to_transform: null,
    layers_pattern: null,
    exclude_modules: null,
    ...extra,
  };
}

/**
 * {@link lowRankOptions} from PEFT's LORA fields.
 *
 * @throws MatforgeError for an adapter that belongs to a changed base model.
 */
export function loraFromJson(json: Record<string, unknown>): Record<string, unknown> {
  const start = String(json.init_lora_weights);
  if (/^(pissa|corda|olora|loftq)/.test(start)) {
    refuse(
      'init_lora_weights',
      `"${start}" adapters belong to a base model that the start has changed; save it in Python with path_initial_model_for_weight_conversion, which makes it plain LoRA`,
    );
  }
  return {
    rank: json.r ?? 8,
    alpha: json.lora_alpha ?? 8,
    dropout: json.lora_dropout ?? 0,
    useRslora: json.use_rslora ?? false,
    rankPattern: json.rank_pattern ?? {},
    alphaPattern: json.alpha_pattern ?? {},
  };
}

/** File suffixes of the factors A and B in PEFT's LORA format. */
export function loraKeys(site: Site): { A: string; B: string } {
  return site.kind === 'embedding'
    ? { A: 'lora_embedding_A', B: 'lora_embedding_B' }
    : { A: 'lora_A.weight', B: 'lora_B.weight' };
}

/** How PEFT stores the factors at a convolution: as two convolutions, the second one of size 1×1. */
export const loraConvolution = { A: 'patches', B: 'pointwise' } as const;

/**
 * Declarations, forward pass, dense kernel and file format of adapters whose factors start with a part of the kernel
 * itself (PiSSA, CorDA, …): W' = W + s·(A·B − A₀·B₀), where A₀ and B₀ are the factors' start values. The residual
 * W − s·A₀·B₀ is never formed, so the adapter costs r(in + out) frozen numbers instead of a copy of the kernel, and
 * stacks on other adapters. The file holds the same map as plain LoRA of rank 2r over the original kernel:
 * A' = [A, A₀], B' = [B; −B₀].
 *
 * `init` returns A, B, A0 and B0.
 */
export const shiftedLowRank = {
  tensors: ({ inDim, outDim, config: { rank } }: { inDim: number; outDim: number; config: { rank: number } }) => ({
    A: trainable([inDim, rank]),
    B: trainable([rank, outDim]),
    A0: frozen([inDim, rank]),
    B0: frozen([rank, outDim]),
  }),
  forward(x: tf.Tensor, t: ShiftedTensors, { config, base, dropout }: ForwardContext<LowRankConfig>): tf.Tensor {
    const s = lowRankScale(config);
    return tf.add(
      base.apply(x),
      tf.sub(lowRankApply(dropout(x), t.A, t.B, s), lowRankApply(dropout(x), t.A0, t.B0, s)),
    );
  },
  kernel(t: ShiftedTensors, { config, base }: ForwardContext<LowRankConfig>): tf.Tensor2D {
    const s = lowRankScale(config);
    return tf.add(base.kernel, tf.sub(lowRankProduct(t.A, t.B, s), lowRankProduct(t.A0, t.B0, s)));
  },
  lookup(indices: tf.Tensor1D, t: ShiftedTensors, { config, base }: ForwardContext<LowRankConfig>): tf.Tensor {
    const s = lowRankScale(config);
    const rows = (A: tf.Tensor, B: tf.Tensor) => lowRankProduct(tf.gather(A, indices), B, s);
    return tf.add(base.lookup(indices), tf.sub(rows(t.A, t.B), rows(t.A0, t.B0)));
  },
  peft: {
    type: 'LORA',
    // The file is plain LoRA: it is for lora to read back.
    accepts: () => false,
    toJson: shiftedJson,
    fromJson: loraFromJson,
    keys: loraKeys,
    convolution: loraConvolution,
    convert: plainLowRank,
  },
};

function shiftedJson(config: LowRankConfig): Record<string, unknown> {
  const { rank, alpha, useRslora, rankPattern, alphaPattern } = config;
  const alphaOf = (value: number) => doubledRank(rank, value, useRslora).alpha;
  // Without an alpha, alpha follows the rank; plain LoRA has to be told so wherever a pattern changes the rank.
  const implied = alpha === undefined ? rankPattern : {};
  return loraJson({
    ...config,
    ...doubledRank(rank, alpha ?? rank, useRslora),
    rankPattern: mapValues(rankPattern, (value) => 2 * value),
    alphaPattern: mapValues({ ...alphaPattern, ...implied, ...alphaPattern }, alphaOf),
  });
}

/** Tensors of {@link shiftedLowRank}. */
export type ShiftedTensors = Record<'A' | 'B' | 'A0' | 'B0', tf.Tensor>;

/** Plain LoRA factors of rank 2r with A'·B' = A·B − A₀·B₀: A' = [A, A₀], B' = [B; −B₀]. */
export function plainLowRank({ A, B, A0, B0 }: ShiftedTensors): { A: tf.Tensor2D; B: tf.Tensor2D } {
  if (String(A.shape) !== String(A0.shape) || String(B.shape) !== String(B0.shape)) {
    refuse(
      'A0',
      `start factors [${A0.shape}]·[${B0.shape}] and trained factors [${A.shape}]·[${B.shape}] differ in shape; they belong to different adapters`,
    );
  }
  return tf.tidy(() => ({ A: tf.concat([A, A0], 1) as tf.Tensor2D, B: tf.concat([B, tf.neg(B0)], 0) as tf.Tensor2D }));
}

/** Rank 2r and the alpha that leaves the scale unchanged. */
export function doubledRank(rank: number, alpha: number, useRslora: boolean): { rank: number; alpha: number } {
  return { rank: 2 * rank, alpha: (useRslora ? Math.SQRT2 : 2) * alpha };
}

function mapValues<T>(record: Record<string, T>, f: (value: T) => T): Record<string, T> {
  return Object.fromEntries(Object.entries(record).map(([key, value]) => [key, f(value)]));
}
