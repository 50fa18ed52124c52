import { ensure } from '@matforge/core';
import type * as tf from '@tensorflow/tfjs';
import { cosine } from './passport.ts';

/** How much of a passport is in what was extracted. */
export interface WatermarkStats {
  /** Entries whose sign agrees. */
  readonly matched: number;
  /** Entries compared. */
  readonly total: number;
  /** 1 − matched/total: 0 for the passport itself, about 1/2 for an unrelated one. */
  readonly bitErrorRate: number;
  /** log₁₀ of P[Binomial(total, 1/2) ≥ matched]. */
  readonly log10p: number;
  /** (2·matched − total)/√total. */
  readonly z: number;
  readonly mse: number;
  /** In decibels for a range of 2; 99 where mse ≤ 1e-9. */
  readonly psnr: number;
  readonly cosine: number;
}

/**
 * Compares what was extracted with a claimed passport; the bit of an entry is 1 where it is positive. Layers may be given
 * as lists: their entries are put together.
 *
 * @throws MatforgeError when the shapes differ.
 */
export function watermarkStats(
  X: tf.Tensor | readonly tf.Tensor[],
  C: tf.Tensor | readonly tf.Tensor[],
): WatermarkStats {
  const [extracted, claimed] = [[X].flat() as tf.Tensor[], [C].flat() as tf.Tensor[]];
  ensure(
    extracted.map(({ shape }) => shape).join('; ') === claimed.map(({ shape }) => shape).join('; '),
    'X',
    () =>
      `what was extracted and the passport differ in shape: ${extracted.map(({ shape }) => `[${shape}]`)} and ${claimed.map(({ shape }) => `[${shape}]`)}`,
  );
  const join = (tensors: readonly tf.Tensor[]) =>
    Float64Array.from(tensors.flatMap((tensor) => Array.from(tensor.dataSync())));
  return statsOf(join(extracted), join(claimed));
}

/** {@link watermarkStats} of numbers. */
export function statsOf(extracted: ArrayLike<number>, claimed: ArrayLike<number>): WatermarkStats {
  const total = extracted.length;
  let [matched, squares] = [0, 0];
  for (let i = 0; i < total; i++) {
    if (extracted[i] > 0 === claimed[i] > 0) matched++;
    squares += (extracted[i] - claimed[i]) ** 2;
  }
  const mse = squares / total;
  return {
    matched,
    total,
    bitErrorRate: 1 - matched / total,
    log10p: binomialLog10Tail(matched, total),
    z: (2 * matched - total) / Math.sqrt(total),
    mse,
    psnr: mse <= 1e-9 ? 99 : 10 * Math.log10(4 / mse + 1e-6),
    cosine: cosine(extracted, claimed),
  };
}

/**
 * log₁₀ of P[Binomial(n, 1/2) ≥ matched]: how likely that many bits agree by coin flips. Summed exactly, in logarithms:
 * nothing underflows, and n may be a million.
 *
 * @throws MatforgeError unless 0 ≤ matched ≤ n are integers.
 */
export function binomialLog10Tail(matched: number, n: number): number {
  ensure(Number.isInteger(n) && n >= 1, 'n', () => `must be a positive integer, got ${n}`);
  ensure(
    Number.isInteger(matched) && matched >= 0 && matched <= n,
    'matched',
    () => `must be an integer from 0 to ${n}, got ${matched}`,
  );
  if (matched === 0) return 0;
  if (2 * matched > n) return logTail(n - matched, n) / Math.LN10;
  // The upper tail is the larger part: what is missing to 1 is the lower tail up to matched − 1.
  return Math.log1p(-Math.exp(logTail(matched - 1, n))) / Math.LN10;
}

/** ln P[Binomial(n, 1/2) ≤ k] for k ≤ n/2, by the sum over falling j of C(n, j) = C(n, j+1)·(j+1)/(n−j). */
function logTail(k: number, n: number): number {
  let [sum, term] = [1, 1];
  for (let j = k; j > 0 && term > sum * 2 ** -60; j--) {
    term *= j / (n - j + 1);
    sum += term;
  }
  return logChoose(n, k) + Math.log(sum) - n * Math.LN2;
}

/** ln C(n, k), the logarithms of its k factors added with compensation (Kahan). */
function logChoose(n: number, k: number): number {
  let [sum, lost] = [0, 0];
  for (let i = 1; i <= k; i++) {
    const addend = Math.log((n - k + i) / i) - lost;
    const next = sum + addend;
    lost = next - sum - addend;
    sum = next;
  }
  return sum;
}
