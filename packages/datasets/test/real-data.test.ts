import { createHash } from 'node:crypto';
import * as tf from '@tensorflow/tfjs';
import { type Dataset, fashionMnist, mnist, mobyDick, stateOfTheUnion } from '../src/index.ts';

beforeAll(() => tf.setBackend('cpu'));

/** Labels of all rows, pixel mean and deviation, and the hash of every image's bytes, read in batches. */
async function survey(dataset: Dataset) {
  const counts = Array<number>(10).fill(0);
  const hashes: string[] = [];
  let sum = 0;
  let squares = 0;
  let least = Infinity;
  let most = -Infinity;
  for await (const { xs, ys } of dataset.batches(1000)) {
    for (const label of ys.dataSync()) counts[label]++;
    const values = xs.dataSync();
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      sum += value;
      squares += value * value;
      if (value < least) least = value;
      if (value > most) most = value;
    }
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    for (let i = 0; i < bytes.length; i += 4 * 784) {
      hashes.push(
        createHash('md5')
          .update(bytes.subarray(i, i + 4 * 784))
          .digest('hex'),
      );
    }
    tf.dispose([xs, ys]);
  }
  const mean = sum / dataset.size / 784;
  return { counts, mean, deviation: Math.sqrt(squares / dataset.size / 784 - mean * mean), least, most, hashes };
}

test('MNIST: the original counts, order, class sizes and pixel statistics', async () => {
  const before = tf.memory().numTensors;
  const { train, test: held } = await mnist();
  expect([train.size, held.size]).toEqual([60000, 10000]);
  expect(train.features.xs).toEqual({ dtype: 'float32', shape: [28, 28, 1] });
  expect(train.features.ys).toMatchObject({ dtype: 'int32', shape: [] });
  // The numbers of the collection's own page and of every tutorial on it.
  const first = await train.take(10).toTensors();
  expect([...first.ys.dataSync()]).toEqual([5, 0, 4, 1, 9, 2, 1, 3, 1, 4]);
  expect(first.xs.shape).toEqual([10, 28, 28, 1]);
  tf.dispose([first.xs, first.ys]);
  const a = await survey(train);
  expect(a.counts).toEqual([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]);
  expect(a.mean).toBeCloseTo(0.1307, 4);
  expect(a.deviation).toBeCloseTo(0.3081, 4);
  expect([a.least, a.most]).toEqual([0, 1]);
  const b = await survey(held);
  expect(b.counts).toEqual([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]);
  expect(tf.memory().numTensors).toBe(before);
});

test('Fashion-MNIST: 6,000 and 1,000 images of each class, pixel statistics, the same order for the same seed', async () => {
  const before = tf.memory().numTensors;
  const { train, test: held } = await fashionMnist();
  expect([train.size, held.size]).toEqual([60000, 10000]);
  expect(train.features.ys.classes).toHaveLength(10);
  const a = await survey(train);
  const b = await survey(held);
  expect(a.counts).toEqual(Array(10).fill(6000));
  expect(b.counts).toEqual(Array(10).fill(1000));
  expect(a.mean).toBeCloseTo(0.286, 3);
  expect(a.deviation).toBeCloseTo(0.353, 3);
  expect([a.least, a.most]).toEqual([0, 1]);
  // The collection repeats a few images; the README says how many are on both sides.
  const seen = new Set(a.hashes);
  expect(b.hashes.filter((hash) => seen.has(hash)).length).toBe(10);

  const labels = async (dataset: Dataset) => {
    const { xs, ys } = await dataset.take(40).toTensors();
    const values = [...ys.dataSync()];
    tf.dispose([xs, ys]);
    return values;
  };
  const again = await fashionMnist();
  expect(await labels(again.train)).toEqual(await labels(train));
  expect(new Set(await labels(train)).size).toBeGreaterThan(5);
  expect(tf.memory().numTensors).toBe(before);
});

test('Moby-Dick is whole', async () => {
  const book = await mobyDick();
  expect(book.length).toBeGreaterThan(1_200_000);
  expect(book.length).toBeLessThan(1_220_000);
  expect(book).toContain('CHAPTER 1. Loomings.\n\nCall me Ishmael. Some years ago');
  expect(book.match(/^CHAPTER \d+\. /gm)).toHaveLength(135);
  expect(book.trimEnd().endsWith('found another orphan.')).toBe(true);
});

test('the addresses on the state of the union, all or some years', async () => {
  const all = await stateOfTheUnion();
  expect(all.length).toBeGreaterThan(10_000_000);
  const lincoln = await stateOfTheUnion({ from: 1861, to: 1864 });
  expect(
    lincoln.startsWith('Fellow-Citizens of the Senate and House of Representatives: In the midst of unprecedented'),
  ).toBe(true);
  expect(all).toContain(lincoln);
  expect(lincoln.length).toBeLessThan(all.length / 40);
  await expect(stateOfTheUnion({ from: 1900, to: 1800 })).rejects.toThrow(/1790 to 2021/);
});
