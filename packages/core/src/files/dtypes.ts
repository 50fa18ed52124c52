import * as tf from '@tensorflow/tfjs';
import { ensure, refuse } from '../errors.ts';
import { fromBfloat16, fromFloat16, toBfloat16, toFloat16 } from './half.ts';

/** Element types whose values matforge reads and writes. */
export type SafetensorsDtype = 'F64' | 'F32' | 'F16' | 'BF16' | 'I64' | 'I32' | 'I16' | 'I8' | 'U8' | 'BOOL';

/** Values of one tensor in the typed array that holds them without loss; I64 as float64, at most 2^53 in magnitude. */
export interface TensorValues {
  dtype: SafetensorsDtype;
  shape: number[];
  data: Float64Array | Float32Array | Int32Array | Int16Array | Int8Array | Uint8Array;
}

/** Bytes per element. The types after BOOL are known to the format; their bytes can be read, their values cannot. */
const elementBytes: ReadonlyMap<string, number> = new Map([
  ['F64', 8],
  ['F32', 4],
  ['F16', 2],
  ['BF16', 2],
  ['I64', 8],
  ['I32', 4],
  ['I16', 2],
  ['I8', 1],
  ['U8', 1],
  ['BOOL', 1],
  ['U64', 8],
  ['U32', 4],
  ['U16', 2],
  ['F8_E4M3', 1],
  ['F8_E5M2', 1],
  ['F8_E8M0', 1],
]);

const readable = new Set<string>(['F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U8', 'BOOL']);
const integerRange: Record<string, [number, number]> = {
  I64: [-(2 ** 53), 2 ** 53],
  I32: [-(2 ** 31), 2 ** 31 - 1],
  I16: [-32768, 32767],
  I8: [-128, 127],
  U8: [0, 255],
  BOOL: [0, 1],
};

export function bytesPerElement(dtype: string, field: string): number {
  const bytes = elementBytes.get(dtype);
  return (
    bytes ?? refuse(field, `unknown dtype ${JSON.stringify(dtype)}; known are ${[...elementBytes.keys()].join(', ')}`)
  );
}

export function isReadable(dtype: string): dtype is SafetensorsDtype {
  return readable.has(dtype);
}

/** Little-endian bytes of `data` in the file's `dtype`; a value that the type cannot hold is refused. */
export function encodeValues(
  data: ArrayLike<number | bigint | boolean>,
  dtype: SafetensorsDtype,
  field: string,
): Uint8Array {
  if (dtype === 'F32' && data instanceof Float32Array) return bytesOf(data);
  if (data instanceof BigInt64Array && dtype === 'I64') return bytesOf(data);
  const values: ArrayLike<number> =
    ArrayBuffer.isView(data) && !(data instanceof BigInt64Array || data instanceof BigUint64Array)
      ? (data as ArrayLike<number>)
      : Array.from(data, Number);
  if (dtype in integerRange) return encodeIntegers(values, dtype, field);
  if (dtype === 'F64') return bytesOf(Float64Array.from(values));
  if (dtype === 'F32') return checkOverflow(values, Float32Array.from(values), dtype, field);
  if (dtype === 'F16') {
    const halves = toFloat16(values);
    checkOverflow(values, fromFloat16(halves), dtype, field);
    return bytesOf(halves);
  }
  const halves = toBfloat16(values);
  checkOverflow(values, fromBfloat16(halves), dtype, field);
  return bytesOf(halves);
}

function checkOverflow(values: ArrayLike<number>, stored: Float32Array, dtype: string, field: string): Uint8Array {
  for (let i = 0; i < stored.length; i++) {
    if (Math.abs(stored[i]) === Infinity && Number.isFinite(values[i])) {
      refuse(field, `value ${values[i]} at index ${i} is too large for ${dtype}; write it in a wider dtype`);
    }
  }
  return bytesOf(stored);
}

function encodeIntegers(values: ArrayLike<number>, dtype: string, field: string): Uint8Array {
  const [low, high] = integerRange[dtype];
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    ensure(
      Number.isInteger(value) && value >= low && value <= high,
      field,
      () => `value ${value} at index ${i} is not an integer in ${low} … ${high}, which ${dtype} requires`,
    );
  }
  if (dtype === 'I64') return bytesOf(BigInt64Array.from(Array.from(values, BigInt)));
  if (dtype === 'I32') return bytesOf(Int32Array.from(values));
  if (dtype === 'I16') return bytesOf(Int16Array.from(values));
  if (dtype === 'I8') return bytesOf(Int8Array.from(values));
  return Uint8Array.from(values);
}

/** The values of a tensor's bytes. I64 beyond 2^53 and BOOL bytes other than 0 and 1 are refused. */
export function decodeValues(bytes: Uint8Array, dtype: string, shape: number[], field: string): TensorValues {
  if (!isReadable(dtype)) {
    refuse(field, `dtype ${dtype} is not supported; convert the tensor to one of ${[...readable].join(', ')}`);
  }
  return { dtype, shape, data: decode(bytes, dtype, field) };
}

function decode(bytes: Uint8Array, dtype: SafetensorsDtype, field: string): TensorValues['data'] {
  // A copy starts at an address that every typed array accepts; the file's own offsets need not.
  const buffer = bytes.slice().buffer as ArrayBuffer;
  switch (dtype) {
    case 'F64':
      return new Float64Array(buffer);
    case 'F32':
      return new Float32Array(buffer);
    case 'F16':
      return fromFloat16(new Uint16Array(buffer));
    case 'BF16':
      return fromBfloat16(new Uint16Array(buffer));
    case 'I64':
      return Float64Array.from(new BigInt64Array(buffer), (value, i) => {
        const near = Number(value);
        return Math.abs(near) <= 2 ** 53 && BigInt(near) === value
          ? near
          : refuse(field, `I64 value ${value} at index ${i} is beyond 2^53; read the tensor's bytes instead`);
      });
    case 'I32':
      return new Int32Array(buffer);
    case 'I16':
      return new Int16Array(buffer);
    case 'I8':
      return new Int8Array(buffer);
    case 'U8':
      return new Uint8Array(buffer);
    case 'BOOL': {
      const flags = new Uint8Array(buffer);
      const wrong = flags.findIndex((flag) => flag > 1);
      ensure(
        wrong < 0,
        field,
        () => `BOOL byte ${flags[wrong]} at index ${wrong} is neither 0 nor 1; the file is damaged`,
      );
      return flags;
    }
  }
}

/**
 * A tensor of the values: floats as float32, integers as int32, BOOL as bool. Integers beyond int32 and finite F64 values
 * beyond float32 are refused, because tfjs has no type for them.
 */
export function valuesToTensor({ dtype, shape, data }: TensorValues, field: string): tf.Tensor {
  if (dtype === 'BOOL') return tf.tensor(data as Uint8Array, shape, 'bool');
  if (dtype === 'I64') {
    const wide = data.findIndex((value) => value !== (value | 0));
    ensure(
      wide < 0,
      field,
      () =>
        `I64 value ${data[wide]} at index ${wide} does not fit int32, the widest integer of tfjs; read its values instead`,
    );
    return tf.tensor(Int32Array.from(data), shape, 'int32');
  }
  if (dtype === 'F64') {
    const narrow = Float32Array.from(data);
    const wide = narrow.findIndex((value, i) => Math.abs(value) === Infinity && Number.isFinite(data[i]));
    ensure(
      wide < 0,
      field,
      () => `F64 value ${data[wide]} at index ${wide} does not fit float32; read its values instead`,
    );
    return tf.tensor(narrow, shape, 'float32');
  }
  if (data instanceof Float32Array) return tf.tensor(data, shape, 'float32');
  return tf.tensor(data instanceof Int32Array ? data : Int32Array.from(data), shape, 'int32');
}

export function bytesOf(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}
