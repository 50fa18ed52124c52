import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { MatforgeError } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import {
  arrays,
  type BatchOptions,
  csv,
  type Dataset,
  idx,
  jsonLines,
  readIdx,
  readJsonLines,
  text,
  textFile,
} from '../src/index.ts';

beforeAll(() => tf.setBackend('cpu'));
let directory: string;
let tensorsBefore: number;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'matforge-datasets-'));
  tensorsBefore = tf.memory().numTensors;
});
afterEach(() => {
  rmSync(directory, { recursive: true });
  expect(tf.memory().numTensors).toBe(tensorsBefore);
});
const file = (name: string, content: string | Uint8Array): string => {
  const path = join(directory, name);
  writeFileSync(path, content);
  return path;
};

async function rows(
  dataset: Dataset,
  batchSize = 4,
  options?: BatchOptions,
): Promise<{ xs: number[][]; ys: unknown[] }[]> {
  const batches: { xs: number[][]; ys: unknown[] }[] = [];
  for await (const { xs, ys } of dataset.batches(batchSize, options)) {
    const flat = tf.tidy(() => tf.reshape(xs, [xs.shape[0], -1]));
    batches.push({ xs: flat.arraySync() as number[][], ys: ys.arraySync() as unknown[] });
    tf.dispose([xs, ys, flat]);
  }
  return batches;
}
const all = async (dataset: Dataset) => (await rows(dataset, Math.max(1, dataset.size)))[0];
const numbered = (size: number): Dataset =>
  arrays({
    xs: Float32Array.from({ length: 2 * size }, (_, i) => i),
    ys: Int32Array.from({ length: size }, (_, i) => i % 3),
    shape: [2],
    classes: 3,
  });
const firsts = (batches: { xs: number[][] }[]) => batches.flatMap(({ xs }) => xs.map(([x]) => x / 2));

describe('every dataset', () => {
  test('batches in order, a short last one, dropped on request, others passed over', async () => {
    const dataset = numbered(10);
    const batches = await rows(dataset);
    expect(batches.map(({ xs }) => xs.length)).toEqual([4, 4, 2]);
    expect(batches[1]).toEqual({
      xs: [
        [8, 9],
        [10, 11],
        [12, 13],
        [14, 15],
      ],
      ys: [1, 2, 0, 1],
    });
    expect(await rows(dataset, 4, { dropLast: true })).toEqual(batches.slice(0, 2));
    expect(await rows(dataset, 4, { skip: 2 })).toEqual(batches.slice(2));
    expect(await rows(dataset, 4, { skip: 3 })).toEqual([]);
  });

  test('shuffled batches are a permutation, repeatable, different for each epoch and seed', async () => {
    const dataset = numbered(50);
    const order = async (options: BatchOptions) => firsts(await rows(dataset, 8, options));
    const first = await order({ seed: 1 });
    expect([...first].sort((a, b) => a - b)).toEqual(Array.from({ length: 50 }, (_, i) => i));
    expect(first).not.toEqual(Array.from({ length: 50 }, (_, i) => i));
    expect(await order({ seed: 1 })).toEqual(first);
    expect(await order({ seed: 1, epoch: 0 })).toEqual(first);
    expect(await order({ seed: 1, epoch: 1 })).not.toEqual(first);
    expect(await order({ seed: 2 })).not.toEqual(first);
    // A run that stopped after three batches goes on with the same rows.
    expect(await order({ seed: 1, skip: 3 })).toEqual(first.slice(24));
  });

  test('take, shuffle and split', async () => {
    const dataset = numbered(10);
    expect(firsts(await rows(dataset.take(3)))).toEqual([0, 1, 2]);
    expect(dataset.take(0).size).toBe(0);
    const shuffled = dataset.shuffle(7);
    expect(firsts(await rows(shuffled))).toEqual(firsts(await rows(dataset.shuffle(7))));
    const [a, b] = dataset.split(0.7, 3);
    expect([a.size, b.size]).toEqual([7, 3]);
    const parts = [...firsts(await rows(a)), ...firsts(await rows(b))];
    expect([...parts].sort((x, y) => x - y)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(parts).not.toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(firsts(await rows(dataset.split(0.25)[0]))).toEqual([0, 1, 2]);
    const whole = await shuffled.toTensors();
    expect(whole.xs.shape).toEqual([10, 2]);
    expect(whole.ys.dtype).toBe('int32');
    tf.dispose([whole.xs, whole.ys]);
  });

  test('wrong arguments are refused', () => {
    const dataset = numbered(10);
    expect(() => dataset.take(11)).toThrow(/take: asks for 11 rows, there are 10/);
    expect(() => dataset.take(1.5)).toThrow(/take/);
    expect(() => dataset.split(1)).toThrow(/leaves one side empty/);
    expect(() => dataset.batches(0)).toThrow(/batchSize.*from 1 on, is 0/);
    expect(() => dataset.batches(4, { skip: -1 })).toThrow(/skip/);
    const x = (xs: number[], ys: number[]) => () =>
      arrays({ xs: Float32Array.from(xs), ys: Int32Array.from(ys), shape: [2], classes: 2 });
    expect(x([1, 2, 3], [0, 1])).toThrow(/3 values do not make 2 rows/);
    expect(x([1, 2, NaN, 4], [0, 1])).toThrow(/xs: row 1 holds NaN/);
    expect(x([1, 2, 3, 4], [0, 2])).toThrow(/label 2 of row 1 is out of range.*2 classes/);
    expect(x([1, 2, 3, 4], [0, -1])).toThrow(MatforgeError);
  });
});

describe('idx', () => {
  const header = (type: number, shape: number[]) => {
    const bytes = Buffer.alloc(4 + 4 * shape.length);
    bytes.set([0, 0, type, shape.length]);
    shape.forEach((extent, i) => {
      bytes.writeUInt32BE(extent, 4 + 4 * i);
    });
    return bytes;
  };
  const images = Buffer.concat([header(8, [3, 1, 2]), Buffer.from([0, 255, 51, 102, 153, 204])]);
  const labels = Buffer.concat([header(8, [3]), Buffer.from([2, 0, 1])]);

  test.each([
    ['plain', images, undefined],
    ['gzip', gzipSync(images), undefined],
    ['by ranges', images, 0],
  ])('images and labels, %s', async (_, bytes, maxMemoryBytes) => {
    const dataset = await idx({ images: file('images', bytes), labels: file('labels', labels), maxMemoryBytes });
    expect(dataset.features).toEqual({
      xs: { dtype: 'float32', shape: [1, 2, 1] },
      ys: { dtype: 'int32', shape: [], classes: ['0', '1', '2'] },
    });
    const { xs, ys } = await all(dataset);
    expect(ys).toEqual([2, 0, 1]);
    const expected = [0, 1, 0.2, 0.4, 0.6, 0.8];
    xs.flat().forEach((x, i) => {
      expect(x).toBeCloseTo(expected[i], 7);
    });
    const shuffled = await rows(dataset, 2, { seed: 5 });
    expect(shuffled.flatMap((batch) => batch.ys).sort()).toEqual([0, 1, 2]);
    for (const batch of shuffled) expect(batch.xs).toEqual(batch.ys.map((label) => xs[ys.indexOf(label)]));
  });

  test('every element type, big-endian; bytes in memory and Blobs', async () => {
    const read = async (type: number, bytes: number[], width: number) => [
      ...(await readIdx(new Uint8Array(Buffer.concat([header(type, [bytes.length / width]), Buffer.from(bytes)]))))
        .data,
    ];
    expect(await read(0x09, [255, 1], 1)).toEqual([-1, 1]);
    expect(await read(0x0b, [255, 254, 1, 0], 2)).toEqual([-2, 256]);
    expect(await read(0x0c, [0, 1, 0, 0], 4)).toEqual([65536]);
    expect(await read(0x0d, [0x3f, 0x80, 0, 0], 4)).toEqual([1]);
    expect(await read(0x0e, [0xbf, 0xf8, 0, 0, 0, 0, 0, 0], 8)).toEqual([-1.5]);
    expect(await readIdx(new Blob([gzipSync(labels)]))).toEqual({ shape: [3], data: Uint8Array.of(2, 0, 1) });
  });

  test.each<[string, () => Promise<unknown>, RegExp]>([
    ['wrong magic', () => readIdx(file('bad', 'PNG data here')), /bad: is not an IDX file: it starts with 50 4e 47 20/],
    ['empty', () => readIdx(file('bad', '')), /bad: is not an IDX file: it starts with nothing/],
    [
      'cut in its header',
      () => readIdx(file('bad', images.subarray(0, 10))),
      /ends within its header, at byte 10 of 16/,
    ],
    [
      'cut in its data',
      () => readIdx(file('bad', images.subarray(0, 20))),
      /shape \[3,1,2\] takes 6 bytes, the file has 4; it is truncated/,
    ],
    [
      'too long',
      () => readIdx(file('bad', Buffer.concat([images, Buffer.of(0)]))),
      /has 7; it is not what its header says/,
    ],
    [
      'damaged gzip',
      () => readIdx(file('bad', gzipSync(images).subarray(0, 20))),
      /bad: starts like gzip but cannot be unpacked/,
    ],
    ['exchanged', () => idx({ images: file('i', labels), labels: file('l', images) }), /exchanged/],
    [
      'other counts',
      () => idx({ images: file('i', images), labels: new Uint8Array(Buffer.concat([header(8, [1]), Buffer.of(0)])) }),
      /3 images.*1 labels/,
    ],
    [
      'label out of range',
      () => idx({ images: file('i', images), labels: file('l', labels), classes: 2 }),
      /l: label 2 of row 0 is out of range/,
    ],
    ['missing', () => readIdx(join(directory, 'none')), /none: could not be read: .*does not exist/],
  ])('%s is refused', async (_, read, message) => {
    await expect(read()).rejects.toThrow(message);
    await expect(read()).rejects.toThrow(MatforgeError);
  });

  test('NaN in a file too large for memory is found when its rows are read, by row', async () => {
    const floats = Buffer.concat([header(0x0d, [3, 1]), Buffer.from([0x3f, 0x80, 0, 0, 0x7f, 0xc0, 0, 0, 0, 0, 0, 0])]);
    const options = { images: file('i', floats), labels: file('l', labels) };
    await expect(idx(options)).rejects.toThrow(/row 1 holds NaN/);
    await expect(all(await idx({ ...options, maxMemoryBytes: 0 }))).rejects.toThrow(/row 1 holds NaN/);
  });

  test('a file that changes under a dataset is refused', async () => {
    const path = file('i', images);
    const dataset = await idx({ images: path, labels: file('l', labels), maxMemoryBytes: 0 });
    appendFileSync(path, 'x');
    await expect(all(dataset)).rejects.toThrow(/has changed: 22 bytes when it was opened, 23 now/);
  });
});

describe('csv', () => {
  const table = '\ufeffage,kind,size\r\n1,"b, c",0.5\r\n\r\n2,a,-1e3\r\n3,"b, c",7\r\n4,a,8';

  test.each([
    ['in memory', undefined],
    ['from the file', 0],
  ])('%s: quotes, blank lines, a byte order mark, class names', async (_, maxMemoryBytes) => {
    const dataset = await csv(file('t.csv', table), { label: 'kind', maxMemoryBytes });
    expect(dataset.size).toBe(4);
    expect(dataset.features).toEqual({
      xs: { dtype: 'float32', shape: [2] },
      ys: { dtype: 'int32', shape: [], classes: ['a', 'b, c'] },
    });
    expect(await all(dataset)).toEqual({
      xs: [
        [1, 0.5],
        [2, -1000],
        [3, 7],
        [4, 8],
      ],
      ys: [1, 0, 1, 0],
    });
    expect((await rows(dataset, 3, { seed: 1 })).flatMap(({ xs }) => xs.map(([x]) => x)).sort()).toEqual([1, 2, 3, 4]);
  });

  test.each([
    ['in memory', undefined],
    ['from the file', 0],
  ])('%s: no header, columns, delimiter, scale, shape, numbers as target', async (_, maxMemoryBytes) => {
    const dataset = await csv(file('t.csv', '1;2;3;4;0.5\n5;6;7;8;0.25\n'), {
      label: 4,
      columns: [3, 2, 1, 0],
      header: false,
      delimiter: ';',
      scale: 0.5,
      shape: [2, 2, 1],
      target: 'number',
      maxMemoryBytes,
    });
    expect(dataset.features).toEqual({
      xs: { dtype: 'float32', shape: [2, 2, 1] },
      ys: { dtype: 'float32', shape: [] },
    });
    expect(await all(dataset)).toEqual({
      xs: [
        [2, 1.5, 1, 0.5],
        [4, 3.5, 3, 2.5],
      ],
      ys: [0.5, 0.25],
    });
  });

  test('a table of many chunks gives the same rows from memory and from the file', async () => {
    const lines = Array.from({ length: 60000 }, (_, i) => `${i},${(i * 7919) % 1000},"${i % 4}"\r\n`);
    const path = file('large.csv', `a,b,c\r\n${lines.join('')}`);
    const held = await csv(path, { label: 'c' });
    const streamed = await csv(path, { label: 'c', maxMemoryBytes: 0 });
    expect(held.size).toBe(60000);
    expect(held.features.ys.classes).toEqual(['0', '1', '2', '3']);
    const options = { seed: 3, skip: 1195 };
    const some = await rows(streamed, 50, options);
    expect(some).toEqual(await rows(held, 50, options));
    expect(some).toHaveLength(5);
    for (const [a, b] of some.flatMap(({ xs }) => xs)) expect(b).toBe((a * 7919) % 1000);
  });

  test.each<[string, string, object, RegExp]>([
    ['a ragged row', 'a,b,y\n1,2,0\n1,2,3,0\n', {}, /t\.csv: line 3: has 4 values, not as many as the rows before/],
    ['a short row', 'a,b,y\n1,2,0\n\n1,0\n', {}, /t\.csv: line 4: has 2 values/],
    [
      'text where a number should be',
      'a,b,y\n1,2,0\n1,x,0\n',
      {},
      /t\.csv: line 3, column b: "x" is not a finite number/,
    ],
    ['an empty value', 'a,b,y\n1,,0\n', {}, /line 2, column b: "" is not a finite number/],
    ['NaN', 'a,b,y\n1,NaN,0\n', {}, /line 2, column b: "NaN" is not a finite number/],
    ['an unknown column', 'a,b,y\n1,2,0\n', { label: 'z' }, /line 1: has no column "z"; there are a, b, y/],
    ['two columns of one name', 'a,a,y\n1,2,0\n', {}, /line 1: two columns are called "a"/],
    [
      'the wrong delimiter',
      'a;b;y\n1;2;0\n',
      { label: 'a;b;y' },
      /no column is left for the inputs; is the delimiter right/,
    ],
    [
      'a label out of range',
      'a,b,y\n1,2,0\n1,2,3\n',
      { classes: 3 },
      /t\.csv: line 3: label: "3" is out of range; the 3 classes/,
    ],
    ['an unknown class', 'a,b,y\n1,2,cow\n', { classes: ['cat', 'dog'] }, /line 2: label: "cow".*cat, dog/],
    ['no label', 'a,b,y\n1,2,\n', {}, /line 2: label: is empty/],
    ['a target that is no number', 'a,b,y\n1,2,q\n', { target: 'number' }, /line 2: label: "q" is not a finite number/],
    ['a quote that never ends', 'a,b,y\n1,"2,0\n', {}, /is not CSV: Quote Not Closed/],
    ['no rows', 'a,b,y\n', {}, /t\.csv: holds no rows/],
    ['an empty file', '', {}, /t\.csv: holds no rows/],
    ['a shape that does not fit', 'a,b,y\n1,2,0\n', { shape: [3] }, /line 2: has 2 values where shape \[3\] needs 3/],
    ['an unknown target', 'a,b,y\n1,2,0\n', { target: 'color' }, /target: is "color"; accepted/],
  ])('%s is refused with its line', async (_, content, options, message) => {
    const path = file('t.csv', content);
    const read = csv(path, { label: 'y', ...options });
    await expect(read).rejects.toThrow(message);
    await expect(read).rejects.toThrow(MatforgeError);
  });
});

describe('jsonLines', () => {
  const content = '{"x":[[1,2],[3,4]],"y":"b"}\r\n\n{"x":[[5,6],[7,8.5]],"y":"ä"}\n{"x":[[0,0],[0,0]],"y":"b"}';

  test.each([
    ['in memory', undefined],
    ['from the file', 0],
  ])('%s: nested lists, class names', async (_, maxMemoryBytes) => {
    const dataset = await jsonLines(file('t.jsonl', content), { xs: 'x', label: 'y', maxMemoryBytes });
    expect(dataset.features.xs).toEqual({ dtype: 'float32', shape: [2, 2] });
    expect(dataset.features.ys.classes).toEqual(['b', 'ä']);
    expect(await all(dataset)).toEqual({
      xs: [
        [1, 2, 3, 4],
        [5, 6, 7, 8.5],
        [0, 0, 0, 0],
      ],
      ys: [0, 1, 0],
    });
    expect(await all(dataset.shuffle(2).take(2))).toEqual(
      await all((await jsonLines(file('u', content), { xs: 'x', label: 'y' })).shuffle(2).take(2)),
    );
  });

  test('functions in place of fields; the objects themselves', async () => {
    const path = file('t.jsonl', '{"a":1,"b":2}\n{"a":3,"b":4}\n');
    const dataset = await jsonLines(path, { xs: ({ a }) => [a, 1], label: ({ b }) => b, target: 'number' });
    expect(await all(dataset)).toEqual({
      xs: [
        [1, 1],
        [3, 1],
      ],
      ys: [2, 4],
    });
    const records: unknown[] = [];
    for await (const { record } of readJsonLines(path)) records.push(record);
    expect(records).toEqual([
      { a: 1, b: 2 },
      { a: 3, b: 4 },
    ]);
  });

  test.each<[string, string | Uint8Array, RegExp]>([
    ['broken JSON', '{"x":[1],"y":0}\n{"x":[1],"y":', /t\.jsonl: line 2: is not JSON/],
    ['no object', '[1]\n', /line 1: is not a JSON object/],
    ['a missing field', '{"x":[1]}\n', /line 1: has no field "y"; there are x/],
    ['another length', '{"x":[1],"y":0}\n\n{"x":[1,2],"y":0}\n', /line 3: has 2 values where shape \[1\] needs 1/],
    ['null', '{"x":[null],"y":0}\n', /line 1: null is not a finite number/],
    ['a label that is a list', '{"x":[1],"y":[0]}\n', /line 1: label: must be a number or text, is \[0\]/],
    ['a label out of range', '{"x":[1],"y":2}\n', /line 1: label: "2" is out of range/],
    ['bytes that are no text', Uint8Array.of(0x7b, 0xff, 0x7d), /line 1: is not text in UTF-8/],
  ])('%s is refused with its line', async (_, bytes, message) => {
    await expect(jsonLines(file('t.jsonl', bytes), { xs: 'x', label: 'y', classes: 2 })).rejects.toThrow(message);
  });
});

describe('text', () => {
  const tokenize = (document: string) => Array.from(document, (character) => character.charCodeAt(0) - 97);

  test('rows are packed one behind the other, targets are one token ahead', async () => {
    const dataset = await text('abcdefghijk', { tokenize, length: 3, vocabulary: 26 });
    expect(dataset.features).toEqual({ xs: { dtype: 'int32', shape: [3] }, ys: { dtype: 'int32', shape: [3] } });
    expect(await all(dataset)).toEqual({
      xs: [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
      ],
      ys: [
        [1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
      ],
    });
    // Nine tokens: the third row would need a tenth.
    expect((await text('abcdefghi', { tokenize, length: 3 })).size).toBe(2);
  });

  test('documents with a separator, overlapping rows, tokens on the disk', async () => {
    const options = { tokenize: async (t: string) => tokenize(t), length: 4, stride: 2, separator: 99 };
    const spill = join(directory, 'tokens');
    for (const dataset of [
      await text(['ab', 'cde', 'f'], options),
      await text(['ab', 'cde', 'f'], { ...options, spill }),
    ]) {
      expect(await all(dataset)).toEqual({
        xs: [
          [0, 1, 99, 2],
          [99, 2, 3, 4],
          [3, 4, 99, 5],
        ],
        ys: [
          [1, 99, 2, 3],
          [2, 3, 4, 99],
          [4, 99, 5, 99],
        ],
      });
    }
    await expect(text('abcdef', { ...options, spill })).rejects.toThrow(/tokens: exists already/);
  });

  test('a file in pieces of whole lines gives the tokens of the whole', async () => {
    const content = Array.from({ length: 500 }, (_, i) => `line ${i} of grün text\n`).join('');
    const path = file('t.txt', content);
    const pieces: string[] = [];
    for await (const piece of textFile(path, { pieceBytes: 100 })) pieces.push(piece);
    expect(pieces.join('')).toBe(content);
    expect(pieces.length).toBeGreaterThan(90);
    const codes = (t: string) => Array.from(t, (c) => c.codePointAt(0)!);
    const a = await text(textFile(path, { pieceBytes: 100 }), { tokenize: codes, length: 64 });
    expect(await rows(a, 7, { seed: 1 })).toEqual(
      await rows(await text(content, { tokenize: codes, length: 64 }), 7, { seed: 1 }),
    );
  });

  test('tokens out of range, texts that are too short and wrong lengths are refused', async () => {
    await expect(text('abz', { tokenize, length: 1, vocabulary: 25 })).rejects.toThrow(
      /tokenizer gave 25, accepted are integers from 0 to 24/,
    );
    await expect(text('ab', { tokenize: () => [0.5], length: 1 })).rejects.toThrow(/gave 0\.5/);
    await expect(text('abc', { tokenize, length: 3 })).rejects.toThrow(/has 3 tokens; a row of 3 needs 4/);
    await expect(text('abc', { tokenize, length: 0 })).rejects.toThrow(/length: must be a positive integer/);
  });
});
