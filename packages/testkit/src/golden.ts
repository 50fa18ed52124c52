/// <reference types="jest" />
import * as tf from '@tensorflow/tfjs';
import { openPlace, type Place } from './place.ts';

/** A tensor of a golden file: flat data in row-major order. */
export interface GoldenTensor {
  readonly shape: number[];
  readonly data: number[];
}

/** What an input or an expectation may be. */
export type GoldenValue =
  | GoldenTensor
  | number
  | string
  | boolean
  | null
  | GoldenValue[]
  | { [key: string]: GoldenValue };

/** One case of a golden file. */
export interface GoldenCase {
  readonly name: string;
  readonly kind: string;
  // biome-ignore lint/suspicious/noExplicitAny: every kind has its own configuration.
  readonly config: any;
  readonly inputs: Record<string, GoldenValue>;
  readonly expected: Record<string, GoldenValue>;
  readonly tolerance: { readonly rtol: number; readonly atol: number };
}

/** What a kind computes: one entry per expected field, as a tensor, number, boolean, list or nesting of these. */
export type GoldenResult = Record<string, unknown>;

/** A case's inputs, ready for use. */
export interface GoldenInputs {
  /** Input tensor by name; throws when the case has none of that name. */
  tensor(name: string): tf.Tensor;
  matrix(name: string): tf.Tensor2D;
  vector(name: string): tf.Tensor1D;
  /** Undefined when the case has none of that name. */
  optional(name: string): tf.Tensor | undefined;
  /** Float64 values and shape, for code that works on numbers. */
  values(name: string): { shape: number[]; data: Float64Array };
  /** Any input as it stands in the file. */
  raw(name: string): GoldenValue | undefined;
  names(): string[];
}

/** Computes every expected field of a case of one kind. */
// biome-ignore lint/suspicious/noExplicitAny: see GoldenCase.config.
export type GoldenKind = (inputs: GoldenInputs, config: any, test: GoldenCase) => unknown;

/**
 * Declares one jest test per golden case of a method, and one that every kind is covered.
 *
 * @param source what the cases were read from, for messages.
 * @param where the backend to run on. Default `wasm`.
 */
export function testGoldenCases(
  method: string,
  cases: readonly GoldenCase[],
  kinds: Record<string, GoldenKind>,
  source: string,
  where: Place = {},
): void {
  const place = openPlace(where);
  describe(`golden cases of ${method}`, () => {
    beforeAll(place.enter);
    test('every kind in the file is covered', () => {
      const missing = [...new Set(cases.map(({ kind }) => kind))].filter((kind) => !kinds[kind]);
      expect({ source, missing }).toEqual({ source, missing: [] });
      expect(cases.length).toBeGreaterThan(0);
    });
    for (const golden of cases) {
      const run = kinds[golden.kind];
      if (run) test(`${golden.kind}: ${golden.name}`, () => checkCase(golden, run));
    }
  });
}

/** Runs one case and compares every expected field; throws a jest assertion that lists what is off. */
export async function checkCase(golden: GoldenCase, run: GoldenKind): Promise<void> {
  const before = tf.memory().numTensors;
  const opened: tf.Tensor[] = [];
  const result = (await run(openInputs(golden, opened), golden.config, golden)) as GoldenResult;
  const failures: string[] = [];
  for (const [field, expected] of Object.entries(golden.expected)) {
    if (!(field in result)) failures.push(`${field}: not computed`);
    else await compare(field, result[field], expected, golden.tolerance, failures);
  }
  disposeAll(result);
  tf.dispose(opened);
  expect(failures).toEqual([]);
  expect(tf.memory().numTensors).toBe(before);
}

function openInputs(golden: GoldenCase, opened: tf.Tensor[]): GoldenInputs {
  const find = (name: string): GoldenTensor => {
    const value = golden.inputs[name];
    if (!isGoldenTensor(value)) {
      throw new Error(`${golden.name} has no input tensor "${name}"; it has ${Object.keys(golden.inputs).join(', ')}`);
    }
    return value;
  };
  const tensor = (name: string): tf.Tensor => {
    const { shape, data } = find(name);
    const made = tf.tensor(data, shape, 'float32');
    opened.push(made);
    return made;
  };
  return {
    tensor,
    matrix: (name) => tensor(name) as tf.Tensor2D,
    vector: (name) => tensor(name) as tf.Tensor1D,
    optional: (name) => (golden.inputs[name] == null ? undefined : tensor(name)),
    values: (name) => ({ shape: find(name).shape, data: Float64Array.from(find(name).data) }),
    raw: (name) => golden.inputs[name],
    names: () => Object.keys(golden.inputs),
  };
}

function isGoldenTensor(value: GoldenValue | undefined): value is GoldenTensor {
  return typeof value === 'object' && value !== null && 'data' in value && 'shape' in value;
}

async function compare(
  field: string,
  got: unknown,
  expected: GoldenValue,
  tolerance: GoldenCase['tolerance'],
  failures: string[],
): Promise<void> {
  if (got instanceof tf.Tensor) {
    const shape = isGoldenTensor(expected) ? expected.shape : [];
    if (isGoldenTensor(expected) && String(got.shape) !== String(shape)) {
      failures.push(`${field}: shape [${got.shape}], expected [${shape}]`);
      return;
    }
    compareNumbers(
      field,
      await got.data(),
      isGoldenTensor(expected) ? expected.data : [expected].flat(9),
      tolerance,
      failures,
    );
  } else if (isGoldenTensor(expected)) {
    compareNumbers(field, flatten(got), expected.data, tolerance, failures);
  } else if (Array.isArray(expected)) {
    const list =
      Array.isArray(got) || ArrayBuffer.isView(got) ? [...(got as ArrayLike<unknown> & Iterable<unknown>)] : [got];
    if (list.length !== expected.length) failures.push(`${field}: ${list.length} entries, expected ${expected.length}`);
    else
      for (const [i, entry] of expected.entries()) await compare(`${field}[${i}]`, list[i], entry, tolerance, failures);
  } else if (typeof expected === 'object' && expected !== null) {
    for (const [key, entry] of Object.entries(expected)) {
      await compare(`${field}.${key}`, (got as Record<string, unknown>)?.[key], entry, tolerance, failures);
    }
  } else if (typeof expected === 'number') {
    compareNumbers(field, [Number(got)], [expected], tolerance, failures);
  } else if (got !== expected) {
    failures.push(`${field}: got ${String(got)}, expected ${String(expected)}`);
  }
}

function compareNumbers(
  field: string,
  got: ArrayLike<number | boolean>,
  expected: ArrayLike<GoldenValue>,
  { rtol, atol }: GoldenCase['tolerance'],
  failures: string[],
): void {
  if (got.length !== expected.length) {
    failures.push(`${field}: ${got.length} numbers, expected ${expected.length}`);
    return;
  }
  for (let i = 0; i < expected.length; i++) {
    const [a, b] = [Number(got[i]), Number(expected[i])];
    // Written so that NaN fails.
    if (!(Math.abs(a - b) <= atol + rtol * Math.abs(b))) {
      failures.push(`${field}[${i}]: got ${a}, expected ${b} (off by ${Math.abs(a - b)})`);
      return;
    }
  }
}

function flatten(value: unknown): number[] {
  if (Array.isArray(value)) return value.flatMap(flatten);
  if (ArrayBuffer.isView(value)) return Array.from(value as unknown as ArrayLike<number>, Number);
  if (typeof value === 'object' && value !== null && 'data' in value) return flatten((value as { data: unknown }).data);
  return [Number(value)];
}

function disposeAll(value: unknown): void {
  if (value instanceof tf.Tensor) value.dispose();
  else if (Array.isArray(value)) value.forEach(disposeAll);
  else if (typeof value === 'object' && value !== null && !ArrayBuffer.isView(value))
    Object.values(value).forEach(disposeAll);
}
