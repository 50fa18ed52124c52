/** Entries that share one scale. */
export const BLOCK = 256;

/** A tensor in 8 bits: a code per entry and the largest magnitude of each block of {@link BLOCK} entries. */
export interface Quantized {
  codes: Uint8Array;
  scales: Float32Array;
}

/**
 * Dynamic tree code (Dettmers et al., arXiv 2110.02861, section 1.3): a number is ±10^-E · f, where E is the count of
 * leading zero bits and the bits that are left spread f over [0.1, 1]. The further from the largest magnitude, the
 * smaller the numbers it can tell apart: seven decades in 8 bits.
 */
function dynamicCode(signed: boolean): Float32Array {
  const magnitudes: number[] = [];
  for (let zeros = 0; zeros < 7; zeros++) {
    const fractions = 2 ** ((signed ? 6 : 7) - zeros);
    for (let i = 0; i < fractions; i++) magnitudes.push(10 ** -zeros * (0.1 + (0.9 * (i + 0.5)) / fractions));
  }
  const values = signed ? [...magnitudes, ...magnitudes.map((x) => -x)] : magnitudes;
  return Float32Array.from([...values, 0, 1]).sort();
}

const SIGNED = dynamicCode(true);
const UNSIGNED = dynamicCode(false);

/** To 8 bits, each entry to the nearest code of its block. What is not zero does not become zero. */
export function quantize(values: ArrayLike<number>, signed: boolean): Quantized {
  const code = signed ? SIGNED : UNSIGNED;
  const zero = code.indexOf(0);
  const codes = new Uint8Array(values.length);
  const scales = new Float32Array(Math.ceil(values.length / BLOCK));
  for (let block = 0; block < scales.length; block++) {
    const end = Math.min(values.length, (block + 1) * BLOCK);
    let largest = 0;
    for (let i = block * BLOCK; i < end; i++) largest = Math.max(largest, Math.abs(values[i]));
    scales[block] = largest;
    for (let i = block * BLOCK; i < end; i++) {
      const value = largest === 0 ? 0 : values[i] / largest;
      const nearest = nearestIndex(code, value);
      codes[i] = nearest === zero && value !== 0 ? zero + Math.sign(value) : nearest;
    }
  }
  return { codes, scales };
}

/** The numbers that the codes stand for. */
export function dequantize({ codes, scales }: Quantized, signed: boolean): Float32Array {
  const code = signed ? SIGNED : UNSIGNED;
  return Float32Array.from(codes, (index, i) => code[index] * scales[Math.floor(i / BLOCK)]);
}

function nearestIndex(code: Float32Array, value: number): number {
  let [low, high] = [0, code.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (code[middle] <= value) low = middle;
    else high = middle;
  }
  return value - code[low] <= code[high] - value ? low : high;
}
