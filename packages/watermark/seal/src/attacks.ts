import {
  attach,
  deltas,
  detach,
  ensure,
  linalg,
  list,
  MatforgeError,
  type Matrix,
  matrix,
  type Random,
  setActive,
  setAdapterTensors,
  toMatrix,
  toTensor,
} from '@matforge/core';
import { lora } from '@matforge/lora';
import * as tf from '@tensorflow/tfjs';
import type { Claim } from './claim.ts';
import { embed, rankPatternOf } from './embed.ts';
import { checkPassports } from './passport.ts';
import { forgedFactors, type ReleasedAdapter } from './release.ts';
import { evidence } from './verify.ts';

/** Trains the trainable weights of a model, in whatever way. */
export type Train = (model: tf.LayersModel) => unknown | Promise<unknown>;

/**
 * What may be done to a published adapter to get rid of the watermark or to claim it. All of it works on what was
 * published: none of it is given the owner's factors or passports.
 */
export const attacks = {
  /** Zeroes the round(fraction·size) entries of smallest magnitude; among equal ones the first. A new tensor. */
  prune(published: tf.Tensor2D, fraction: number): tf.Tensor2D {
    ensure(fraction >= 0 && fraction <= 1, 'fraction', () => `must be in [0, 1], got ${fraction}`);
    const values = Float32Array.from(published.dataSync());
    const count = Math.round(fraction * values.length);
    const sizes = values.map(Math.abs);
    const limit = sizes.slice().sort()[count - 1] ?? -1;
    let ties = count - sizes.reduce((below, size) => below + Number(size < limit), 0);
    for (const [i, size] of sizes.entries()) if (size < limit || (size === limit && ties-- > 0)) values[i] = 0;
    return tf.tensor2d(values, published.shape);
  },

  /** Rounds to multiples of max|W|/(2^(bits−1) − 1): symmetric, one step for the whole tensor. A new tensor. */
  quantize(published: tf.Tensor2D, bits: number): tf.Tensor2D {
    ensure(Number.isInteger(bits) && bits >= 2 && bits <= 24, 'bits', () => `must be an integer 2..24, got ${bits}`);
    return tf.tidy(() => {
      const step = tf.div(tf.max(tf.abs(published)), 2 ** (bits - 1) - 1);
      return tf.mul(tf.round(tf.divNoNan(published, step)), step);
    });
  },

  /** Adds Gaussian noise whose Frobenius norm is `relative` times the tensor's. A new tensor. */
  noise(published: tf.Tensor2D, relative: number, random: Random): tf.Tensor2D {
    ensure(relative >= 0, 'relative', () => `must be >= 0, got ${relative}`);
    return tf.tidy(() => {
      const noise = random.normal(published.shape);
      return tf.add(published, tf.mul(noise, tf.mul(relative, tf.div(tf.norm(published), tf.norm(noise)))));
    });
  },

  /** Other factors of the same product: A·R and R⁻¹·B for an invertible R `[r, r]`. */
  refactor({ A, B, scale }: ReleasedAdapter, R: tf.Tensor2D): ReleasedAdapter {
    checkPassports('refactor', A.shape[1], R);
    return {
      A: toTensor(linalg.matmul(toMatrix(A), toMatrix(R))),
      B: toTensor(linalg.solve(toMatrix(R), toMatrix(B))),
      scale,
    };
  },

  /** The best factors of another rank, from the SVD of the product; above the adapter's rank the product stays. */
  truncate({ A, B, scale }: ReleasedAdapter, rank: number): ReleasedAdapter {
    ensure(Number.isInteger(rank) && rank >= 1, 'rank', () => `must be a positive integer, got ${rank}`);
    const [left, right] = [linalg.qr(toMatrix(A)), linalg.qr(linalg.transpose(toMatrix(B)))];
    const { u, s, v } = linalg.svd(linalg.matmul(left.r, right.r, { transposeB: true }));
    const roots = s.map((value, i) => (i < rank ? Math.sqrt(value) : 0));
    const half = (q: Matrix, vectors: Matrix) => toWidth(linalg.scaleColumns(linalg.matmul(q, vectors), roots), rank);
    return { A: toTensor(half(left.q, u)), B: toTensor(linalg.transpose(half(right.q, v))), scale };
  },

  /** {@link forgedFactors} */
  forge: forgedFactors,

  /**
   * Removal by fine-tuning: the published factors are trained further as plain LoRA.
   *
   * @param model the base model, possibly with adapters; it is afterwards as before.
   * @returns the kernel changes after training, by layer.
   */
  async finetune(
    model: tf.LayersModel,
    published: Record<string, ReleasedAdapter>,
    train: Train,
  ): Promise<Record<string, tf.Tensor2D>> {
    const layers = Object.entries(published);
    ensure(layers.length > 0, 'published', () => 'holds no layer');
    const ranks = Object.fromEntries(layers.map(([layer, { A }]) => [layer, A.shape[1]]));
    const alphas = Object.fromEntries(layers.map(([layer, { A, scale }]) => [layer, scale * A.shape[1]]));
    const method = lora({ rankPattern: rankPatternOf(ranks), alphaPattern: rankPatternOf(alphas) });
    return underAttack(model, train, async (name) => {
      await attach(model, method, { name, targets: (site) => site.name in published });
      setAdapterTensors(model, name, Object.fromEntries(layers.map(([layer, { A, B }]) => [layer, { A, B }])));
    });
  },

  /**
   * Overwriting: a second watermark, of another secret, is embedded into the published update and trained.
   *
   * @param model the base model, possibly with adapters; it is afterwards as before.
   * @returns the kernel changes after training, by layer.
   */
  async overwrite(
    model: tf.LayersModel,
    published: Record<string, tf.Tensor2D>,
    { secret, rank, train }: { secret: number; rank: number; train: Train },
  ): Promise<Record<string, tf.Tensor2D>> {
    return underAttack(model, train, (name) => embed(model, published, { name, rank, secret }));
  },
};

/** What is left of a watermark after an attack, and of the model. */
export interface AttackReport {
  /** Task metric of the attacked model; NaN when it was not measured. */
  readonly metric: number;
  readonly bitErrorRate: number;
  readonly log10p: number;
}

/** Extracts the owner's watermark from an attacked product, kernel changes by layer. */
export function attackReport(claim: Claim, attacked: Record<string, tf.Tensor2D>, metric = Number.NaN): AttackReport {
  const { bitErrorRate, log10p } = evidence(claim, attacked).stats;
  return { metric, bitErrorRate, log10p };
}

/** Runs an attack that trains, in an adapter of its own that is removed again. */
async function underAttack(
  model: tf.LayersModel,
  train: Train,
  prepare: (name: string) => Promise<unknown>,
): Promise<Record<string, tf.Tensor2D>> {
  const present = adaptersOf(model);
  const name = uniqueName(present.map((adapter) => adapter.name));
  await prepare(name);
  try {
    await train(model);
    return deltas(model, name);
  } finally {
    detach(model, name);
    if (present.length > 0)
      setActive(
        model,
        present.filter(({ active }) => active).map((adapter) => adapter.name),
      );
  }
}

function adaptersOf(model: tf.LayersModel): { name: string; active: boolean }[] {
  try {
    return list(model);
  } catch (error) {
    if (error instanceof MatforgeError && error.field === 'model') return [];
    throw error;
  }
}

function uniqueName(taken: readonly string[]): string {
  for (let i = 1; ; i++) if (!taken.includes(`attack-${i}`)) return `attack-${i}`;
}

/** The first columns of M, or M with columns of zeros behind it. */
function toWidth(M: Matrix, width: number): Matrix {
  return matrix(M.rows, width, (i, j) => (j < M.cols ? M.data[i * M.cols + j] : 0));
}
