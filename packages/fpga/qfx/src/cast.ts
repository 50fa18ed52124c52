import { ensure, refuse } from '@matforge/core';
import type { RawData } from './raw.ts';
import { type FixedType, fractionBits, hi, hiBig, lo, loBig, type QuantizationMode } from './types.ts';

// Looked up once: in an isolated context (jest, vm) every look-up of a global is slow.
const { floor, min, max, abs } = Math;

/** Rounds u to an integer: `n` and `f` of |u| are exact in binary floating point, u - floor(u) is not. */
export function quantise(u: number, Q: QuantizationMode): number {
  const a = abs(u);
  const n = floor(a);
  const f = a - n;
  const negative = u < 0;
  let up: boolean;
  switch (Q) {
    case 'AP_TRN':
      up = negative && f > 0;
      break;
    case 'AP_TRN_ZERO':
      up = false;
      break;
    case 'AP_RND':
      up = negative ? f > 0.5 : f >= 0.5;
      break;
    case 'AP_RND_ZERO':
      up = f > 0.5;
      break;
    case 'AP_RND_INF':
      up = f >= 0.5;
      break;
    case 'AP_RND_MIN_INF':
      up = negative ? f >= 0.5 : f > 0.5;
      break;
    case 'AP_RND_CONV':
      up = f > 0.5 || (f === 0.5 && n % 2 === 1);
      break;
  }
  const m = up ? n + 1 : n;
  return negative ? 0 - m : m;
}

/** The overflow of integral doubles, with the constants of a type bound once; exact for W <= 53. */
export function overflower(type: FixedType): (q: number) => number {
  const low = lo(type);
  const high = hi(type);
  const modulus = 2 ** type.W;
  const wrap = (q: number): number => {
    const kept = q - modulus * floor(q / modulus);
    return kept > high ? kept - modulus : kept;
  };
  switch (type.O) {
    case 'AP_SAT':
      return (q) => min(max(q, low), high);
    case 'AP_SAT_ZERO':
      return (q) => (q < low || q > high ? 0 : q);
    case 'AP_SAT_SYM': {
      const least = type.signed ? -high : low;
      return (q) => min(max(q, least), high);
    }
    case 'AP_WRAP':
      return (q) => (q >= low && q <= high ? q : wrap(q));
    case 'AP_WRAP_SM': {
      const bit = (q: number, k: number): number => {
        const scaled = floor(q / 2 ** k);
        return scaled - 2 * floor(scaled / 2);
      };
      return (q) => {
        if (q >= low && q <= high) return q;
        // Inverting all kept bits is -1 - q, modulo 2^W.
        return wrap(bit(q, type.W) === bit(q, type.W - 1) ? q : -1 - (q - modulus * floor(q / modulus)));
      };
    }
  }
}

/** Overflow of an exact integer, any width. */
export function overflowBig(q: bigint, type: FixedType): bigint {
  const low = loBig(type);
  const high = hiBig(type);
  switch (type.O) {
    case 'AP_SAT':
      return q < low ? low : q > high ? high : q;
    case 'AP_SAT_ZERO':
      return q < low || q > high ? 0n : q;
    case 'AP_SAT_SYM': {
      const symmetric = type.signed ? -high : low;
      return q < symmetric ? symmetric : q > high ? high : q;
    }
    case 'AP_WRAP':
      return type.signed ? BigInt.asIntN(type.W, q) : BigInt.asUintN(type.W, q);
    case 'AP_WRAP_SM': {
      const W = BigInt(type.W);
      const inverted = ((q >> W) & 1n) !== ((q >> (W - 1n)) & 1n);
      return BigInt.asIntN(type.W, inverted ? ~q : q);
    }
  }
}

/**
 * The cast of an exact integer v * 2^-vFraction to a type, in integers alone: (v + add) >> sh with sh = vFraction - F.
 * This is the form that the emitted C computes.
 */
export function castBig(v: bigint, vFraction: number, type: FixedType): bigint {
  return overflowBig(shiftRound(v, vFraction - fractionBits(type), type.Q), type);
}

/** v * 2^-sh rounded to an integer. */
export function shiftRound(v: bigint, sh: number, Q: QuantizationMode): bigint {
  if (sh <= 0) return v << BigInt(-sh);
  const shift = BigInt(sh);
  const h = 1n << (shift - 1n);
  const negative = v < 0n ? 1n : 0n;
  let add: bigint;
  switch (Q) {
    case 'AP_TRN':
      add = 0n;
      break;
    case 'AP_TRN_ZERO':
      add = negative * ((1n << shift) - 1n);
      break;
    case 'AP_RND':
      add = h;
      break;
    case 'AP_RND_ZERO':
      add = h - 1n + negative;
      break;
    case 'AP_RND_INF':
      add = h - negative;
      break;
    case 'AP_RND_MIN_INF':
      add = h - 1n;
      break;
    case 'AP_RND_CONV':
      add = h - 1n + ((v >> shift) & 1n);
      break;
  }
  return (v + add) >> shift;
}

/** A finite double as the exact integer v and fraction bits with value = v * 2^-fraction. */
export function dyadic(value: number): { v: bigint; fraction: number } {
  let v = value;
  let fraction = 0;
  // Multiplying by two is exact; a finite double becomes integral after at most 1074 doublings.
  while (!Number.isInteger(v)) {
    v *= 2;
    fraction++;
  }
  return { v: BigInt(v), fraction };
}

/** True when the double path of {@link castNumber} gives the exact raw value of a type. */
export function fitsDouble(type: FixedType): boolean {
  return type.W <= 53;
}

/**
 * The raw integer of a real number under a type, W <= 53: quantise, then overflow. Exact as long as |value * 2^F| or
 * the wrap of it is representable, which holds for every double (scaling by a power of two is exact).
 */
export function castNumber(value: number, type: FixedType): number {
  return overflower(type)(quantise(value * 2 ** fractionBits(type), type.Q)) + 0;
}

/** A value -> raw function with the type's constants bound once, for loops. W <= 53. */
export function caster(type: FixedType): (value: number) => number {
  const scale = 2 ** fractionBits(type);
  if (type.Q === 'AP_RND' && type.O === 'AP_SAT' && type.W <= 50) {
    const [low, high] = [lo(type), hi(type)];
    return (value) => {
      const u = value * scale;
      // Far outside, u + 1/2 may round, but saturates all the same; inside, only u just below a tie needs the long way.
      const q = floor(u + 0.5);
      return min(max(q - u > 0.5 ? q - 1 : q, low), high) + 0;
    };
  }
  const overflow = overflower(type);
  return (value) => overflow(quantise(value * scale, type.Q)) + 0;
}

/** An integer (in units of 2^-vFraction) -> raw function on doubles; |v| must stay below 2^53. W <= 53. */
export function rawCaster(vFraction: number, type: FixedType): (v: number) => number {
  const scale = 2 ** (fractionBits(type) - vFraction);
  const overflow = overflower(type);
  return (v) => overflow(quantise(v * scale, type.Q)) + 0;
}

/**
 * The stored integer of `value` under `type`.
 * @throws MatforgeError for NaN and infinity.
 */
export function castRaw(value: number, type: FixedType): bigint {
  ensure(Number.isFinite(value), 'value', () => `cannot represent ${Number.isNaN(value) ? 'NaN' : value}`);
  const { v, fraction } = dyadic(value);
  return castBig(v, fraction, type);
}

/**
 * Real numbers to raw integers: doubles for W <= 53, bigint above.
 * @throws MatforgeError for NaN and infinity.
 */
export function toRaw(values: ArrayLike<number>, type: FixedType): Float64Array | bigint[] {
  if (!fitsDouble(type)) return Array.from(values, (value) => castRaw(value, type));
  const cast = caster(type);
  const raw = new Float64Array(values.length);
  for (let i = 0; i < raw.length; i++) {
    const value = values[i];
    // NaN and infinity alone differ from themselves by something else than 0.
    if (value - value !== 0) refuse('value', `cannot represent ${value}`);
    raw[i] = cast(value);
  }
  return raw;
}

/** raw * 2^-F as doubles (exact up to 53 significant bits, to nearest above). */
export function fromRaw(raw: RawData | ArrayLike<number> | ArrayLike<bigint>, type: FixedType): Float64Array {
  const step = 2 ** -fractionBits(type);
  const values = new Float64Array(raw.length);
  if (typeof raw[0] === 'bigint') for (let i = 0; i < values.length; i++) values[i] = Number(raw[i]) * step;
  else for (let i = 0; i < values.length; i++) values[i] = (raw[i] as number) * step;
  return values;
}
