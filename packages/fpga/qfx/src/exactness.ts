import { ensure, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import type { Format } from './rounding.ts';
import { ceilLog2, type FixedType, fractionBits } from './types.ts';

// Looked up once: in an isolated context (jest, vm) every look-up of a global is slow.
const { abs, floor } = Math;

/** `auto` splits a product that float32 cannot sum exactly; `fast` does not, and the graph says so. */
export type Exactness = 'auto' | 'fast';

/** float32 holds every integer up to 2^24, whatever the order in which they were added. */
const FLOAT32 = 2 ** 24;
/** float64 with a bit to spare for the half step of rounding. */
const FLOAT64 = 2 ** 51;

/** Bits of the largest magnitude: |raw| <= 2^magnitudeBits. */
export function magnitudeBits({ W, signed }: Pick<Format, 'W' | 'signed'>): number {
  return signed ? W - 1 : W;
}

/**
 * Refuses a tensor format whose raw values a float32 tensor cannot hold.
 * @throws MatforgeError unless |raw| <= 2^24 or exactness is waived.
 */
export function checkHolds(format: Format, exact: Exactness, field: string): void {
  ensure(
    exact === 'fast' || magnitudeBits(format) <= 24,
    field,
    () =>
      `W = ${format.W} ${format.signed ? 'signed' : 'unsigned'} bits do not fit the 24 bits of float32 in training; ` +
      "use at most 25 signed or 24 unsigned bits, or exact: 'fast'",
  );
}

/** Refuses sums whose raw integers float64 cannot hold exactly. */
export function checkFloat64(largest: number, exact: Exactness, field: string): void {
  ensure(
    exact === 'fast' || largest <= FLOAT64,
    field,
    () => `sums of ${ceilLog2(largest)} bits are not exact in float64 (51 bits); use narrower types, or exact: 'fast'`,
  );
}

/** Tensors must be readable at once and in full float32 precision. */
export function checkBackend(field: string): void {
  const backend = tf.getBackend();
  if (backend === 'webgpu') refuse(field, 'the webgpu backend reads tensors only asynchronously; use cpu or wasm');
  if (backend === 'webgl' && !tf.env().getBool('WEBGL_RENDER_FLOAT32_ENABLED')) {
    refuse(field, 'this webgl backend computes in 16 bits; use cpu or wasm');
  }
}

/** Largest sum over channels (index modulo `channels`) of |raw| of the weights. */
export function largestColumn(weights: ArrayLike<number>, fractions: readonly number[], channels: number): number {
  const sums = new Float64Array(channels);
  for (let i = 0, c = 0; i < weights.length; i++) {
    sums[c] += abs(weights[i]);
    if (++c === channels) c = 0;
  }
  let largest = 0;
  for (let c = 0; c < channels; c++) largest = Math.max(largest, sums[c] * 2 ** fractions[c % fractions.length]);
  return largest;
}

/** What is known of a product before it is computed. */
export interface ProductBound {
  /** True when float32 sums it exactly in any order. */
  exact: boolean;
  /** Bound of |sum of x*w| in raw units. */
  largest: number;
}

/** Whether float32 gives the exact sum of `terms` products: by the types, else by the weights' own sums. */
export function productBound(x: FixedType, w: Format, terms: number, largestColumn: () => number): ProductBound {
  const byType = 2 ** (magnitudeBits(x) + magnitudeBits(w)) * terms;
  if (byType <= FLOAT32) return { exact: true, largest: byType };
  const largest = 2 ** magnitudeBits(x) * largestColumn();
  return { exact: largest <= FLOAT32, largest };
}

/**
 * The exact sum of products in float64: x and w are cut into parts so narrow that float32 sums each pair of parts
 * exactly, x = x1*2^h + x0 with 0 <= x0 < 2^h, and the parts are added in float64.
 * @param product the layer's own linear map on float32 tensors
 */
export function splitProduct(
  x: tf.Tensor,
  xType: FixedType,
  w: tf.Tensor,
  wFormat: Format,
  fractions: readonly number[],
  terms: number,
  product: (x: tf.Tensor, w: tf.Tensor) => tf.Tensor,
  field: string,
): Float64Array {
  const budget = 24 - ceilLog2(terms);
  const mx = magnitudeBits(xType);
  const mw = magnitudeBits(wFormat);
  const plan = choosePlan(mx, mw, budget) ?? refuse(field, `a sum of ${terms} terms cannot be split for float32`);
  const xParts = cut(x.dataSync() as Float32Array, [fractionBits(xType)], plan.x.count, plan.x.bits);
  const wParts = cut(w.dataSync() as Float32Array, fractions, plan.w.count, plan.w.bits);
  let total: Float64Array | undefined;
  for (const [i, xPart] of xParts.entries()) {
    for (const [j, wPart] of wParts.entries()) {
      const part = tf.tidy(() => product(tf.tensor(xPart, x.shape), tf.tensor(wPart, w.shape)));
      const values = part.dataSync();
      part.dispose();
      total ??= new Float64Array(values.length);
      const scale = 2 ** (i * plan.x.bits + j * plan.w.bits - fractionBits(xType));
      const { length } = fractions;
      for (let k = 0; k < values.length; k++) total[k] += values[k] * scale * 2 ** -fractions[k % length];
    }
  }
  return total as Float64Array;
}

interface Cut {
  count: number;
  bits: number;
}

/** The fewest pairs of parts that stay within the budget of bits. */
function choosePlan(mx: number, mw: number, budget: number): { x: Cut; w: Cut } | undefined {
  let best: { x: Cut; w: Cut } | undefined;
  for (let nx = 1; nx <= Math.max(mx, 1); nx++) {
    for (let nw = 1; nw <= Math.max(mw, 1); nw++) {
      const plan = { x: { count: nx, bits: Math.ceil(mx / nx) }, w: { count: nw, bits: Math.ceil(mw / nw) } };
      if (plan.x.bits + plan.w.bits > budget) continue;
      if (!best || nx * nw < best.x.count * best.w.count) best = plan;
    }
  }
  return best;
}

/** Raw integers in `count` parts of `bits` bits, the least first; the last keeps the sign. */
function cut(values: Float32Array, fractions: readonly number[], count: number, bits: number): Float32Array[] {
  const parts = Array.from({ length: count }, () => new Float32Array(values.length));
  const base = 2 ** bits;
  const { length } = fractions;
  for (let i = 0; i < values.length; i++) {
    let raw = values[i] * 2 ** fractions[i % length];
    for (let p = 0; p < count - 1; p++) {
      const rest = floor(raw / base);
      parts[p][i] = raw - rest * base;
      raw = rest;
    }
    parts[count - 1][i] = raw;
  }
  return parts;
}
