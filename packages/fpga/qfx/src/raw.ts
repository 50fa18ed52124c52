import { ensure, refuse } from '@matforge/core';
import { type FixedType, hi, hiBig, lo, loBig } from './types.ts';

/**
 * Raw integers as JSON can carry them: numbers when every element is a safe integer (|raw| < 2^53), otherwise all of
 * them as decimal strings. Row-major.
 */
export interface RawTensor {
  readonly shape: readonly number[];
  readonly data: readonly number[] | readonly string[];
}

/** Raw integers in memory: doubles up to 53 bits, bigint above. */
export type RawData = Int32Array | Float64Array | bigint[];

/** What the graph builder reads as raw integers. */
export type RawLike = ArrayLike<number> | ArrayLike<bigint> | ArrayLike<string>;

/** Stores integers in the form that JSON can carry. */
export function rawTensor(data: RawLike, shape: readonly number[], field = 'raw'): RawTensor {
  const size = shape.reduce((a, b) => a * b, 1);
  ensure(data.length === size, field, () => `${data.length} integers do not fill the shape [${shape.join(', ')}]`);
  const first = data.length > 0 ? data[0] : 0;
  if (typeof first === 'number') {
    const numbers = Array.from(data as ArrayLike<number>);
    // -0 would print differently from 0 in text and compare unequal in tests.
    for (let i = 0; i < numbers.length; i++) {
      if (!Number.isSafeInteger(numbers[i])) refuse(field, `raw values must be safe integers, got ${numbers[i]}`);
      numbers[i] += 0;
    }
    return { shape: [...shape], data: numbers };
  }
  const big = Array.from(data as ArrayLike<bigint | string>, (v) => BigInt(v));
  const safe = big.every((v) => v <= BigInt(Number.MAX_SAFE_INTEGER) && v >= -BigInt(Number.MAX_SAFE_INTEGER));
  return { shape: [...shape], data: safe ? big.map(Number) : big.map(String) };
}

/** The integers as doubles. Refused when one of them is wider than 53 bits. */
export function rawNumbers(tensor: RawTensor, field = 'raw'): Float64Array {
  const { data } = tensor;
  ensure(
    data.length === 0 || typeof data[0] === 'number',
    field,
    () => 'wider than 53 bits: read the integers as bigint',
  );
  return Float64Array.from(data as readonly number[]);
}

/** The integers as bigint, whatever their width. */
export function rawBigints(tensor: RawTensor): bigint[] {
  return (tensor.data as readonly (number | string)[]).map((v) => BigInt(v));
}

/** Refuses integers that the type cannot store. */
export function checkRange(tensor: RawTensor, type: FixedType, field: string): void {
  const complain = (raw: number | bigint): never =>
    refuse(field, `raw value ${raw} does not fit ${type.W} ${type.signed ? 'signed' : 'unsigned'} bits`);
  if (type.W <= 53 && (tensor.data.length === 0 || typeof tensor.data[0] === 'number')) {
    const low = lo(type);
    const high = hi(type);
    for (const raw of tensor.data as readonly number[]) if (raw < low || raw > high) complain(raw);
    return;
  }
  const low = loBig(type);
  const high = hiBig(type);
  for (const raw of rawBigints(tensor)) if (raw < low || raw > high) complain(raw);
}
