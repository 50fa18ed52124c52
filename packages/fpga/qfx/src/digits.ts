import { ensure } from '@matforge/core';

/** Digit sets of the multiplier-free quantizer: the ones of |m|, or signed powers of two. */
export type Digits = 'unsigned' | 'signed';

/** How many non-zero digits a weight may have, and from which digit set. */
export interface MultiplierFreeConfig {
  /** Most digits a weight may have, 1..4. */
  readonly k: number;
  /** Default `unsigned` (the paper's k-hot). */
  readonly digits?: Digits;
}

/** Number of non-zero digits of the magnitude m >= 0: popcount(m), or popcount(3m xor m) for signed digits. */
export function digitCount(m: number, digits: Digits): number {
  if (digits === 'unsigned') {
    let count = 0;
    for (let n = m; n > 0; n = Math.floor(n / 2)) count += n % 2;
    return count;
  }
  let count = 0;
  for (let n = BigInt(m) ^ (3n * BigInt(m)); n > 0n; n >>= 1n) count += Number(n & 1n);
  return count;
}

/**
 * The digits of one raw weight as (sign, shift) pairs, least shift first: raw = sum of sign * 2^shift. Signed digits
 * are the non-adjacent form, so a shift may reach one place above the top bit of |raw| (127 = 128 - 1).
 */
export function digitsOf(raw: bigint, digits: Digits): { sign: number; shift: number }[] {
  const sign = raw < 0n ? -1 : 1;
  const terms: { sign: number; shift: number }[] = [];
  let n = raw < 0n ? -raw : raw;
  for (let shift = 0; n > 0n; shift++, n >>= 1n) {
    if ((n & 1n) === 0n) continue;
    const d = digits === 'unsigned' ? 1 : 2 - Number(n & 3n);
    n -= BigInt(d);
    terms.push({ sign: sign * d, shift });
  }
  return terms;
}

/**
 * Sorted magnitudes 0 <= m <= hi with at most k digits. Built from the digits, not by trying every m, so that wide
 * types stay cheap.
 */
export function digitLevels(hi: number, k: number, digits: Digits): number[] {
  ensure(Number.isInteger(k) && k >= 1 && k <= 4, 'multiplierFree.k', () => `k must be an integer in 1..4, got ${k}`);
  const top = Math.ceil(Math.log2(hi + 1));
  const levels = new Set<number>([0]);
  const grow = (value: number, shift: number, left: number): void => {
    if (value >= 0 && value <= hi) levels.add(value);
    if (left === 0) return;
    for (let s = shift; s <= top; s++) {
      grow(value + 2 ** s, s + 1, left - 1);
      if (digits === 'signed') grow(value - 2 ** s, s + 1, left - 1);
    }
  };
  grow(0, 0, k);
  return [...levels].filter((m) => digitCount(m, digits) <= k).sort((a, b) => a - b);
}
