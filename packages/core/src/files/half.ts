/*
 * The two 16-bit float formats of checkpoints. binary16 has 5 exponent and 10 fraction bits; bfloat16 is the upper
 * half of a float32. Writing rounds to the nearest value, ties to even, like every framework that writes checkpoints.
 */

/** float32 values → binary16 bit patterns, rounded to nearest even. Finite values from 65520 on become infinity. */
export function toFloat16(values: ArrayLike<number>): Uint16Array {
  const { bits, odd } = float32Bits(values);
  const halves = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; i++) halves[i] = float16(odd ? bits[i] | odd[i] : bits[i]);
  return halves;
}

/** binary16 bit patterns → the float32 values they stand for, exactly. */
export function fromFloat16(halves: Uint16Array): Float32Array {
  const values = new Float32Array(halves.length);
  const bits = new Uint32Array(values.buffer);
  for (let i = 0; i < halves.length; i++) {
    const sign = (halves[i] & 0x8000) << 16;
    const exponent = (halves[i] >>> 10) & 31;
    const fraction = halves[i] & 0x3ff;
    if (exponent === 0) values[i] = (sign ? -1 : 1) * fraction * 2 ** -24;
    else bits[i] = sign | ((exponent === 31 ? 255 : exponent + 112) << 23) | (fraction << 13);
  }
  return values;
}

/** float32 values → bfloat16 bit patterns, rounded to nearest even. */
export function toBfloat16(values: ArrayLike<number>): Uint16Array {
  const { bits, odd } = float32Bits(values);
  const halves = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const x = odd ? bits[i] | odd[i] : bits[i];
    const notANumber = (x & 0x7fffffff) > 0x7f800000;
    halves[i] = notANumber ? (x >>> 16) | 0x40 : (x + 0x7fff + ((x >>> 16) & 1)) >>> 16;
  }
  return halves;
}

/** bfloat16 bit patterns → the float32 values they stand for, exactly. */
export function fromBfloat16(halves: Uint16Array): Float32Array {
  const bits = new Uint32Array(halves.length);
  for (let i = 0; i < halves.length; i++) bits[i] = halves[i] << 16;
  return new Float32Array(bits.buffer);
}

function float16(x: number): number {
  const sign = (x >>> 16) & 0x8000;
  const fraction = x & 0x7fffff;
  const exponent = ((x >>> 23) & 255) - 112;
  if (exponent === 255 - 112) return sign | 0x7c00 | (fraction ? 0x200 | (fraction >>> 13) : 0);
  if (exponent >= 31) return sign | 0x7c00;
  if (exponent < -10) return sign;
  if (exponent <= 0) return sign | roundShift(fraction | 0x800000, 14 - exponent);
  // A carry out of the fraction moves into the exponent, and out of the largest exponent into infinity: both are right.
  return sign | roundShift((exponent << 23) | fraction, 13);
}

function roundShift(x: number, shift: number): number {
  const quotient = x >>> shift;
  const rest = x & ((1 << shift) - 1);
  const middle = 1 << (shift - 1);
  return quotient + (rest > middle || (rest === middle && quotient & 1) ? 1 : 0);
}

/**
 * float32 bit patterns of the values. Numbers that float32 cannot hold are truncated and remembered in `odd`: with their
 * last bit set ("round to odd") the second rounding, to 16 bits, gives what one rounding of the number itself would.
 */
function float32Bits(values: ArrayLike<number>): { bits: Uint32Array; odd?: Uint8Array } {
  if (values instanceof Float32Array) return { bits: new Uint32Array(Float32Array.from(values).buffer) };
  const rounded = new Float32Array(values.length);
  const bits = new Uint32Array(rounded.buffer);
  const odd = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    rounded[i] = value;
    if (rounded[i] === value || Number.isNaN(value)) continue;
    if (Math.abs(rounded[i]) > Math.abs(value)) bits[i] -= 1;
    odd[i] = 1;
  }
  return { bits, odd };
}
