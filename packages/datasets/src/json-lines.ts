import { ensure, openSource, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import type { Dataset } from './dataset.ts';
import { type FileSource, lines, utf8 } from './files.ts';
import { type RecordOptions, type Row, recordDataset, toNumber } from './records.ts';

type JsonRecord = Record<string, unknown>;

/** Options of {@link jsonLines}. */
export interface JsonLinesOptions extends RecordOptions {
  /** Field with the inputs, a number or (nested) list of numbers, or a function that makes them from the record. */
  xs: string | ((record: JsonRecord) => unknown);
  /** Field with the target, a number or text, or a function that makes it from the record. */
  label: string | ((record: JsonRecord) => unknown);
}

/**
 * One JSON object a line. The file is read through once when it is opened, so that every fault is found before training;
 * rows of large files are then read again by ranges.
 *
 * @throws MatforgeError naming file and line: a line that is not a JSON object, a field that is missing, a row of another
 *   length, a value that is no finite number, a label out of range.
 */
export async function jsonLines(source: FileSource, options: JsonLinesOptions): Promise<Dataset> {
  let shape: number[] | undefined;
  async function* scan(): AsyncGenerator<Row> {
    for await (const { record, end, where } of readJsonLines(source)) {
      const xs = pick(record, options.xs, where);
      const label = pick(record, options.label, where);
      ensure(
        typeof label === 'string' || typeof label === 'number',
        `${where}: label`,
        () => `must be a number or text, is ${JSON.stringify(label)}`,
      );
      shape ??= shapeOf(xs);
      yield { xs: numbers(xs, where), label, end, where };
    }
  }
  return recordDataset(
    {
      source,
      scan,
      start: () => 0,
      shape: () => shape!,
      parse: (bytes) =>
        utf8(bytes, 'JSON lines', 0)
          .split('\n')
          .filter((line) => line.trim())
          .map((line) => numbers(pick(JSON.parse(line), options.xs, 'row'), 'row')),
    },
    options,
  );
}

/** The objects of a JSON lines file one by one, with their places. Empty lines are passed over. */
export async function* readJsonLines(
  source: FileSource,
): AsyncGenerator<{ record: JsonRecord; end: number; where: string }> {
  const bytes = await openSource(source);
  try {
    for await (const { text, end, number } of lines(bytes)) {
      if (!text.trim()) continue;
      const where = `${bytes.name}: line ${number}`;
      yield { record: parseObject(text, where), end, where };
    }
  } finally {
    await bytes.close();
  }
}

function parseObject(text: string, where: string): JsonRecord {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    refuse(where, `is not JSON: ${(cause as Error).message}`, { cause });
  }
  ensure(typeof value === 'object' && value !== null && !Array.isArray(value), where, () => 'is not a JSON object');
  return value as JsonRecord;
}

function pick(record: JsonRecord, from: string | ((record: JsonRecord) => unknown), where: string): unknown {
  if (typeof from === 'function') return from(record);
  return from in record
    ? record[from]
    : refuse(where, `has no field ${JSON.stringify(from)}; there are ${Object.keys(record).slice(0, 30).join(', ')}`);
}

function numbers(value: unknown, where: string): number[] {
  const flat: unknown[] = Array.isArray(value) ? tf.util.flatten(value) : [value];
  return flat.map((item) => toNumber(item, where));
}

/** Extents of a nested list, taken along its first items; `[1]` for a number. */
function shapeOf(value: unknown): number[] {
  const shape: number[] = [];
  for (let item = value; Array.isArray(item); item = item[0]) shape.push(item.length);
  return shape.length ? shape : [1];
}
