import { ensure, openSource, refuse } from '@matforge/core';
import type { Dataset } from './dataset.ts';
import { chunks, type FileSource } from './files.ts';
import { type RecordOptions, type Row, recordDataset, toNumber } from './records.ts';

/** Options of {@link csv}. */
export interface CsvOptions extends RecordOptions {
  /** Column of the target: its name, or its position from 0 when there is no header. */
  label: string | number;
  /** Columns of the inputs, by name or position, in this order. Default: all others. */
  columns?: (string | number)[];
  /** Whether the first row names the columns. Default true. */
  header?: boolean;
  /** What stands between two values. Default ','. */
  delimiter?: string;
}

/**
 * A table of numbers with one target column. The file is read through once when it is opened, so that every fault is
 * found before training; rows of large files are then read again by ranges.
 *
 * @throws MatforgeError naming file and line: a row with more or fewer values, a value that is no finite number, a label
 *   out of range; naming the columns there are when one is not found.
 */
export async function csv(source: FileSource, options: CsvOptions): Promise<Dataset> {
  const { parse: parseAll } = await csvParseSync();
  const form = {
    delimiter: options.delimiter ?? ',',
    // Given, not guessed: the guess fails when a chunk ends between the two characters of a line's end.
    record_delimiter: ['\r\n', '\n'],
    skip_empty_lines: true,
    bom: true,
  };
  let columns: Columns | undefined;
  let start = 0;

  async function* scan(): AsyncGenerator<Row> {
    for await (const { record, info, where } of recordsOf(source, form)) {
      if (!columns) {
        columns = findColumns(record, options, where);
        if (options.header ?? true) {
          start = info.bytes;
          continue;
        }
      }
      const { inputs, label, names } = columns;
      const xs = inputs.map((column) => toNumber(record[column], `${where}, column ${names[column]}`));
      yield { xs, label: record[label].trim(), end: info.bytes, where };
    }
  }
  return recordDataset(
    {
      source,
      scan,
      start: () => start,
      shape: () => [columns!.inputs.length],
      parse: (bytes) =>
        parseAll(bytes as Buffer, form).map((record: string[]) =>
          columns!.inputs.map((column) => Number(record[column])),
        ),
    },
    options,
  );
}

interface CsvRecord {
  record: string[];
  info: { bytes: number; lines: number };
}

async function* recordsOf(source: FileSource, form: object): AsyncGenerator<CsvRecord & { where: string }> {
  const { parse } = await csvParse();
  const bytes = await openSource(source);
  const parser = parse({ ...form, info: true });
  const records: CsvRecord[] = [];
  let failure: Error | undefined;
  parser.on('data', (record: CsvRecord) => records.push(record));
  parser.on('error', (cause: Error) => {
    failure = cause;
  });
  function* parsed(): Generator<CsvRecord & { where: string }> {
    if (failure) refuseRecord(failure, bytes.name);
    for (const record of records.splice(0)) yield { ...record, where: `${bytes.name}: line ${record.info.lines}` };
  }
  try {
    for await (const chunk of chunks(bytes)) {
      await new Promise((done) => parser.write(chunk, done));
      yield* parsed();
    }
    await new Promise((done) => parser.on('end', done).on('error', done).end());
    yield* parsed();
  } finally {
    parser.destroy();
    await bytes.close();
  }
}

function refuseRecord(cause: Error & { code?: string; lines?: number; record?: string[] }, file: string): never {
  const where = `${file}: line ${cause.lines ?? '?'}`;
  if (cause.code === 'CSV_RECORD_INCONSISTENT_FIELDS_LENGTH') {
    refuse(where, `has ${cause.record?.length} values, not as many as the rows before it (${cause.message})`, {
      cause,
    });
  }
  return refuse(where, `is not CSV: ${cause.message}`, { cause });
}

/** The library's browser build brings its own buffers and streams. */
async function csvParse(): Promise<typeof import('csv-parse')> {
  return typeof Buffer === 'undefined' ? import('csv-parse/browser/esm') : import('csv-parse');
}

async function csvParseSync(): Promise<typeof import('csv-parse/sync')> {
  return typeof Buffer === 'undefined' ? import('csv-parse/browser/esm/sync') : import('csv-parse/sync');
}

interface Columns {
  names: string[];
  inputs: number[];
  label: number;
}

function findColumns(first: string[], { label, columns, header = true }: CsvOptions, where: string): Columns {
  const names = header ? first.map((name) => name.trim()) : first.map((_, i) => String(i));
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  ensure(twice === undefined, where, () => `two columns are called ${JSON.stringify(twice)}`);
  const find = (column: string | number): number => {
    const index = typeof column === 'number' ? column : names.indexOf(column);
    return index >= 0 && index < names.length
      ? index
      : refuse(where, `has no column ${JSON.stringify(column)}; there are ${names.slice(0, 30).join(', ')}`);
  };
  const target = find(label);
  const inputs = columns?.map(find) ?? names.map((_, i) => i).filter((i) => i !== target);
  ensure(inputs.length > 0, where, () => 'no column is left for the inputs; is the delimiter right?');
  return { names, inputs, label: target };
}
