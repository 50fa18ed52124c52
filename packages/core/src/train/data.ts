import * as tf from '@tensorflow/tfjs';
import { ensure, refuse } from '../errors.ts';
import { type Random, random } from '../tensors/random.ts';

/** One tensor, or several by position or by the model's input or output names. */
export type Tensors = tf.Tensor | tf.Tensor[] | Record<string, tf.Tensor>;

/** Inputs and targets; the first axis of every tensor counts the samples. */
export interface TrainingBatch {
  xs: Tensors;
  ys: Tensors;
}

/** What an epoch's batches may be made from. */
export interface EpochInfo {
  /** 0-based. */
  epoch: number;
  /** A stream of its own for this epoch, the same whenever the epoch is opened. */
  random: Random;
}

/**
 * Training data: whole tensors (cut into batches and shuffled by the loop), a `tf.data.Dataset`, an array or another
 * iterable of batches, or a function that opens an epoch. Batches that come out of a dataset, a generator or a function
 * belong to the loop, which disposes them; batches in an array stay the caller's.
 */
export type TrainingData<B = TrainingBatch> =
  | (B & { readonly [Symbol.iterator]?: never })
  | tf.data.Dataset<tf.TensorContainer>
  | Iterable<B>
  | AsyncIterable<B>
  | ((info: EpochInfo) => Iterable<B> | AsyncIterable<B>);

/** How whole tensors are cut into batches. */
export interface BatchOptions {
  /** Samples in a batch, for whole tensors. Default 32. */
  batchSize?: number;
  /** Draw the samples of whole tensors in a new order each epoch. Default true for training, false for evaluation. */
  shuffle?: boolean;
  /** Leave out a last batch with fewer samples. Default false. */
  dropRemainder?: boolean;
  /** Default 0. */
  seed?: number;
}

/** The batches of one epoch. */
export interface OpenEpoch<B> {
  /** The next batch, or undefined after the last. */
  next(): Promise<B | undefined>;
  close(): Promise<void>;
}

/** Opens epochs; batches that are `owned` are disposed by who draws them. */
export interface BatchSource<B> {
  /** Batches in an epoch, where that is known. */
  readonly length?: number;
  readonly owned: boolean;
  open(epoch: number, skip: number): Promise<OpenEpoch<B>>;
}

export function openData<B>(data: TrainingData<B>, options: BatchOptions, field = 'data'): BatchSource<B> {
  const given = data as unknown;
  if (isDataset(given)) return datasetSource<B>(given);
  if (Array.isArray(given)) {
    ensure(given.length > 0, field, () => 'an empty array of batches given');
    return { ...iterableSource<B>(() => given, false), length: given.length };
  }
  if (typeof given === 'function') {
    const streams = random(options.seed ?? 0).fork('data');
    return iterableSource<B>((epoch) => given({ epoch, random: streams.fork(epoch) }), true);
  }
  if (isIterable(given)) return iterableSource<B>(() => given as Iterable<B>, true);
  if (typeof given === 'object' && given !== null && 'xs' in given) {
    return tensorSource(given as unknown as TrainingBatch, options, field) as unknown as BatchSource<B>;
  }
  refuse(
    field,
    'accepted are { xs, ys } tensors, a tf.data.Dataset, an iterable or async iterable of batches, or a function of the epoch that returns one',
  );
}

function isDataset(value: unknown): value is tf.data.Dataset<tf.TensorContainer> {
  return value instanceof tf.data.Dataset;
}

function isIterable(value: unknown): boolean {
  return typeof value === 'object' && value !== null && (Symbol.iterator in value || Symbol.asyncIterator in value);
}

function tensorSource(data: TrainingBatch, options: BatchOptions, field: string): BatchSource<TrainingBatch> {
  const { batchSize = 32, shuffle = true, dropRemainder = false, seed = 0 } = options;
  ensure(
    Number.isInteger(batchSize) && batchSize >= 1,
    'batchSize',
    () => `${batchSize} given; accepted is an integer >= 1`,
  );
  for (const part of ['xs', 'ys'] as const) {
    ensure(
      listTensors(data[part]).length > 0,
      `${field}.${part}`,
      () => 'holds no tensor; make one of an array with tf.tensor(array)',
    );
  }
  const rows = rowsOf(data.xs);
  ensure(rows !== undefined && rows > 0, `${field}.xs`, () => 'holds no samples');
  for (const part of ['xs', 'ys'] as const) {
    for (const tensor of listTensors(data[part])) {
      ensure(
        tensor.shape[0] === rows,
        `${field}.${part}`,
        () => `${tensor.shape[0] ?? 'no'} samples where xs has ${rows}; the first axis counts the samples`,
      );
    }
  }
  const length = dropRemainder ? Math.floor(rows / batchSize) : Math.ceil(rows / batchSize);
  ensure(length > 0, 'batchSize', () => `${batchSize} given for ${rows} samples with dropRemainder: no batch is left`);
  const orders = random(seed).fork('shuffle');
  return {
    length,
    owned: true,
    async open(epoch, skip) {
      const order = shuffle ? orders.fork(epoch).permutation(rows) : undefined;
      let at = skip;
      return {
        async next() {
          if (at >= length) return undefined;
          const start = at++ * batchSize;
          const end = Math.min(rows, start + batchSize);
          const take = (tensor: tf.Tensor): tf.Tensor =>
            order
              ? tf.tidy(() => tf.gather(tensor, tf.tensor1d(order.slice(start, end), 'int32')))
              : tf.slice(tensor, start, end - start);
          return { xs: mapTensorList(data.xs, take), ys: mapTensorList(data.ys, take) };
        },
        async close() {},
      };
    },
  };
}

function datasetSource<B>(dataset: tf.data.Dataset<tf.TensorContainer>): BatchSource<B> {
  let opened = 0;
  const { size } = dataset as { size?: number | null };
  return {
    ...(size != null && Number.isFinite(size) && { length: size }),
    owned: true,
    async open(epoch, skip) {
      // A dataset that shuffles draws a new order for every iterator made: a resumed run makes those of the past too.
      for (; opened < epoch; opened++) await dataset.iterator();
      opened++;
      const iterator = await dataset.iterator();
      const next = async (): Promise<B | undefined> => {
        const { done, value } = await iterator.next();
        return done ? undefined : (value as B);
      };
      for (let i = 0; i < skip; i++) disposeBatch(await next());
      return { next, async close() {} };
    },
  };
}

function iterableSource<B>(epochOf: (epoch: number) => Iterable<B> | AsyncIterable<B>, owned: boolean): BatchSource<B> {
  return {
    owned,
    async open(epoch, skip) {
      const iterable = epochOf(epoch);
      const iterator =
        Symbol.asyncIterator in iterable ? iterable[Symbol.asyncIterator]() : iterable[Symbol.iterator]();
      const next = async (): Promise<B | undefined> => {
        const { done, value } = await iterator.next();
        return done ? undefined : value;
      };
      for (let i = 0; i < skip; i++) {
        const batch = await next();
        if (owned) disposeBatch(batch);
      }
      return {
        next,
        async close() {
          await iterator.return?.();
        },
      };
    },
  };
}

/** The tensors of a batch part, in order. */
export function listTensors(part: unknown): tf.Tensor[] {
  if (part instanceof tf.Tensor) return [part];
  if (Array.isArray(part)) return part.flatMap(listTensors);
  if (typeof part === 'object' && part !== null && !ArrayBuffer.isView(part)) {
    return Object.values(part).flatMap(listTensors);
  }
  return [];
}

/** Number of samples in a batch (part): the first axis of its first tensor that has one. */
export function rowsOf(part: unknown): number | undefined {
  return listTensors(part).find((tensor) => tensor.rank > 0)?.shape[0];
}

export function disposeBatch(batch: unknown): void {
  for (const tensor of listTensors(batch)) tensor.dispose();
}

function mapTensorList(part: Tensors, f: (tensor: tf.Tensor) => tf.Tensor): Tensors {
  if (part instanceof tf.Tensor) return f(part);
  if (Array.isArray(part)) return part.map(f);
  return Object.fromEntries(Object.entries(part).map(([name, tensor]) => [name, f(tensor)]));
}
