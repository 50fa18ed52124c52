import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { memoryStorage } from '../src/files/index.ts';
import {
  adam,
  adamw,
  chain,
  clipByGlobalNorm,
  type GradientTransformation,
  schedules,
  sgd,
} from '../src/optim/index.ts';
import { random } from '../src/tensors/random.ts';
import {
  addGradientHook,
  CHECKPOINT_FILE,
  evaluateModel,
  type FunctionModel,
  type TrainingBatch,
  type TrainingOptions,
  type TrainingProgress,
  train,
} from '../src/train/index.ts';

let before: number;
beforeAll(() => tf.setBackend('cpu'));
beforeEach(() => {
  before = tf.memory().numTensors;
});
afterEach(() => {
  expect(tf.memory().numTensors).toBe(before);
});

/** A small classifier with a regulariser, the same numbers at every call. */
function classifier(): tf.LayersModel {
  const init = (seed: number) => tf.initializers.glorotUniform({ seed });
  return tf.sequential({
    layers: [
      tf.layers.dense({
        units: 8,
        inputShape: [5],
        activation: 'tanh',
        kernelInitializer: init(1),
        kernelRegularizer: tf.regularizers.l2({ l2: 0.01 }),
      }),
      tf.layers.dense({ units: 3, activation: 'softmax', kernelInitializer: init(2) }),
    ],
  });
}

function classes(rows = 50): { xs: tf.Tensor; ys: tf.Tensor } {
  const xs = random(7).normal([rows, 5]);
  const ys = tf.tidy(() => tf.oneHot(tf.argMax(tf.slice(xs, [0, 0], [rows, 3]), 1), 3).toFloat());
  return { xs, ys };
}

const valuesOf = (model: tf.LayersModel): number[][] => model.getWeights().map((w) => [...w.dataSync()]);

/** Linear regression whose loss draws noise: data position, optimizer and randomness all matter. */
function noisy(): FunctionModel<TrainingBatch> & { variables: { w: tf.Variable; b: tf.Variable }; dispose(): void } {
  const make = (value: tf.Tensor): tf.Variable => tf.tidy(() => tf.variable(value.clone()));
  const [zeros, zero] = [tf.zeros([4, 1]), tf.scalar(0)];
  const variables = { w: make(zeros), b: make(zero) };
  tf.dispose([zeros, zero]);
  return {
    variables,
    loss({ xs, ys }, context) {
      const x = xs as tf.Tensor2D;
      const noise = context.training ? tf.mul(context.random.normal(x.shape), 0.1) : tf.zeros(x.shape);
      const prediction = tf.add(
        tf.matMul(tf.add(x, noise) as tf.Tensor2D, variables.w as unknown as tf.Tensor2D),
        variables.b,
      );
      const loss = tf.mean(tf.square(tf.sub(prediction, ys as tf.Tensor))) as tf.Scalar;
      return { loss, metrics: { rmse: tf.sqrt(loss) as tf.Scalar } };
    },
    dispose: () => tf.dispose([variables.w, variables.b]),
  };
}

function regression(rows = 40): { xs: tf.Tensor; ys: tf.Tensor } {
  const xs = random(3).normal([rows, 4]);
  const ys = tf.tidy(() => tf.matMul(xs as tf.Tensor2D, tf.tensor2d([1, -2, 3, 0.5], [4, 1])));
  return { xs, ys };
}

describe('training a layers model', () => {
  test('gives the parameters that model.fit gives, regulariser included', async () => {
    const data = classes();
    const [ours, theirs] = [classifier(), classifier()];
    const [optimizer, other] = [tf.train.adam(0.01), tf.train.adam(0.01)];
    const result = await train(ours, data, {
      optimizer,
      loss: 'categoricalCrossentropy',
      metrics: ['accuracy'],
      epochs: 3,
      batchSize: 16,
      shuffle: false,
    });
    theirs.compile({ optimizer: other, loss: 'categoricalCrossentropy', metrics: ['accuracy'] });
    const fit = await theirs.fit(data.xs, data.ys, { epochs: 3, batchSize: 16, shuffle: false, verbose: 0 });
    expect(valuesOf(ours)).toEqual(valuesOf(theirs));
    expect(result).toMatchObject({ step: 12, epochs: 3, reason: 'complete', aborted: false });
    for (const key of ['loss', 'acc']) {
      result.history[key].forEach((value, i) => {
        expect(value).toBeCloseTo(fit.history[key][i] as number, 5);
      });
    }
    tf.dispose([data.xs, data.ys]);
    ours.dispose();
    theirs.dispose();
    optimizer.dispose();
    other.dispose();
  });

  test('datasets, arrays, generators and epoch functions of batches train alike', async () => {
    const data = classes(48);
    const cut = (): TrainingBatch[] =>
      tf.split(data.xs, 6).map((xs, i) => ({ xs, ys: tf.slice(data.ys, [8 * i, 0], [8, 3]) }));
    const array = cut();
    const rows = { xs: data.xs.arraySync() as number[][], ys: data.ys.arraySync() as number[][] };
    const dataset = tf.data
      .zip({ xs: tf.data.array(rows.xs), ys: tf.data.array(rows.ys) })
      .batch(8) as tf.data.Dataset<tf.TensorContainer>;
    const forms: [string, TrainingOptions['batchSize'], Parameters<typeof train<TrainingBatch>>[1]][] = [
      ['tensors', 8, data],
      ['array', undefined, array],
      ['dataset', undefined, dataset],
      [
        'async epochs',
        undefined,
        async function* () {
          yield* cut();
        },
      ],
    ];
    const results: number[][][] = [];
    for (const [, batchSize, form] of forms) {
      const model = classifier();
      await train(model, form, {
        optimizer: sgd({ learningRate: 0.1, momentum: 0.9 }),
        loss: 'categoricalCrossentropy',
        epochs: 2,
        shuffle: false,
        ...(batchSize && { batchSize }),
      });
      results.push(valuesOf(model));
      model.dispose();
    }
    for (const other of results.slice(1)) expect(other).toEqual(results[0]);
    for (const { xs, ys } of array) tf.dispose([xs as tf.Tensor, ys as tf.Tensor]);
    tf.dispose([data.xs, data.ys]);
  });

  test('evaluation agrees with model.evaluate, early stop waits its patience, callbacks are called as by fit', async () => {
    const data = classes();
    const held = classes(30);
    const model = classifier();
    const calls: string[] = [];
    const result = await train(model, data, {
      optimizer: sgd({ learningRate: 0 }),
      loss: 'categoricalCrossentropy',
      metrics: ['accuracy'],
      epochs: 20,
      batchSize: 25,
      evaluate: { data: held, batchSize: 7 },
      earlyStop: { metric: 'val_loss', patience: 2 },
      callbacks: {
        onTrainBegin: () => void calls.push('begin'),
        onEpochBegin: (epoch: number) => void calls.push(`epoch ${epoch}`),
        onBatchEnd: (batch: number, logs?: tf.Logs) =>
          void calls.push(`batch ${batch} ${logs?.size} ${typeof logs?.acc}`),
        onEpochEnd: (_: number, logs?: tf.Logs) => void calls.push(Object.keys(logs ?? {}).join(' ')),
        onTrainEnd: () => void calls.push('end'),
      },
    });
    expect(result).toMatchObject({ reason: 'early-stop', epochs: 3, step: 6 });
    const epoch = ['batch 0 25 number', 'batch 1 25 number', 'loss acc val_loss val_acc'];
    expect(calls).toEqual(['begin', 'epoch 0', ...epoch, 'epoch 1', ...epoch, 'epoch 2', ...epoch, 'end']);
    const scalars = model.evaluate(held.xs, held.ys, { batchSize: 30 }) as tf.Scalar[];
    const evaluation = await evaluateModel(model, held, { batchSize: 11 });
    expect(evaluation).toEqual({ loss: expect.any(Number), acc: expect.any(Number) });
    expect(evaluation.loss).toBeCloseTo(scalars[0].dataSync()[0], 5);
    expect(evaluation.acc).toBeCloseTo(scalars[1].dataSync()[0], 5);
    expect(result.evaluation?.loss).toBeCloseTo(evaluation.loss, 5);
    tf.dispose([data.xs, data.ys, held.xs, held.ys, ...scalars]);
    model.dispose();
  });

  test("tfjs's own early-stopping callback ends the run", async () => {
    const data = classes();
    const model = classifier();
    const result = await train(model, data, {
      optimizer: sgd({ learningRate: 0 }),
      loss: 'categoricalCrossentropy',
      epochs: 9,
      shuffle: false,
      callbacks: tf.callbacks.earlyStopping({ monitor: 'loss', patience: 1 }),
    });
    expect(result).toMatchObject({ reason: 'callback', epochs: 2 });
    tf.dispose([data.xs, data.ys]);
    model.dispose();
  });

  test('gradient hooks and onGradients see every update; a gradient set to null freezes its variable', async () => {
    const data = classes();
    const model = classifier();
    const start = valuesOf(model);
    const frozen = (model.weights[0].read() as tf.Variable).name;
    const seen: string[] = [];
    const remove = addGradientHook(model, (gradients, { step, totalSteps }) => {
      seen.push(`hook ${step}/${totalSteps} ${Object.keys(gradients).length}`);
      gradients[frozen] = null;
      return () => seen.push('after');
    });
    await train(model, data, {
      optimizer: tf.train.sgd(0.1),
      loss: 'categoricalCrossentropy',
      steps: 2,
      onGradients: (gradients, step) => void seen.push(`option ${step} ${gradients[frozen]}`),
    });
    expect(seen).toEqual(['hook 1/2 4', 'option 1 null', 'after', 'hook 2/2 4', 'option 2 null', 'after']);
    const end = valuesOf(model);
    expect(end[0]).toEqual(start[0]);
    expect(end[2]).not.toEqual(start[2]);
    remove();
    tf.dispose([data.xs, data.ys]);
    (model.optimizer as tf.SGDOptimizer).dispose();
    model.dispose();
  });
});

describe('steps', () => {
  test('accumulated batches make the update of one large batch, a ragged rest included', async () => {
    const data = regression(40);
    const results: number[][] = [];
    for (const options of [{ batchSize: 20 }, { batchSize: 6, accumulate: 4, steps: 1 }]) {
      const model = noisy();
      const plain: FunctionModel<TrainingBatch> = {
        ...model,
        loss: (batch, c) => model.loss(batch, { ...c, training: false }),
      };
      const source = options.accumulate ? { xs: tf.slice(data.xs, 0, 20), ys: tf.slice(data.ys, 0, 20) } : data;
      await train(plain, source, { optimizer: sgd({ learningRate: 0.1 }), shuffle: false, steps: 1, ...options });
      results.push([...model.variables.w.dataSync()]);
      if (source !== data) tf.dispose([source.xs, source.ys]);
      model.dispose();
    }
    results[1].forEach((value, i) => {
      expect(value).toBeCloseTo(results[0][i], 5);
    });
    tf.dispose([data.xs, data.ys]);
  });

  test('progress tells steps, rates and norms; clipping bounds the update', async () => {
    const data = regression();
    const model = noisy();
    const events: TrainingProgress[] = [];
    const schedule = schedules.warmupCosine({ peak: 0.1, warmup: 2, steps: 8 });
    let clipped = 0;
    const result = await train(model, data, {
      optimizer: sgd({ learningRate: 1 }),
      schedule,
      epochs: 2,
      batchSize: 10,
      clipNorm: 0.5,
      evaluate: { data, every: 3 },
      onGradients: (gradients) => {
        const squares = Object.values(gradients).map((g) =>
          tf.tidy(() => tf.sum(tf.square(g as tf.Tensor)).dataSync()[0]),
        );
        clipped = Math.sqrt(squares.reduce((a, b) => a + b));
      },
      onProgress: (progress) => {
        expect(clipped).toBeCloseTo(Math.min(0.5, progress.gradientNorm), 5);
        events.push(progress);
      },
    });
    expect(events.map(({ step, totalSteps, epoch }) => [step, totalSteps, epoch])).toEqual(
      [1, 2, 3, 4, 5, 6, 7, 8].map((step) => [step, 8, step > 4 ? 1 : 0]),
    );
    events.forEach(({ learningRate, samplesPerSecond, metrics, loss, evaluation }, i) => {
      expect(learningRate).toBe(schedule(i));
      expect(samplesPerSecond).toBeGreaterThan(0);
      expect(metrics.rmse).toBeCloseTo(Math.sqrt(loss), 4);
      expect(evaluation !== undefined).toBe((i + 1) % 3 === 0);
    });
    expect(result.evaluation?.loss).toBeLessThan(events[0].loss);
    model.dispose();
    tf.dispose([data.xs, data.ys]);
  });

  test.each(['sgd', 'momentum', 'adam', 'rmsprop', 'adagrad'] as const)('the schedule drives tfjs %s', async (name) => {
    const data = regression();
    const model = noisy();
    const optimizer = name === 'momentum' ? tf.train.momentum(1, 0.9) : tf.train[name](1);
    await train(model, data, { optimizer, schedule: () => 0, steps: 2 });
    expect([...model.variables.w.dataSync()].map(Math.abs)).toEqual([0, 0, 0, 0]);
    optimizer.dispose();
    tf.dispose(Object.values(optimizer).filter((v) => v instanceof tf.Tensor && !v.isDisposed));
    model.dispose();
    tf.dispose([data.xs, data.ys]);
  });
});

describe('interruption and resume', () => {
  const optimizers: [string, () => tf.Optimizer | GradientTransformation][] = [
    ['adamw', () => chain(clipByGlobalNorm(3), adamw({ learningRate: 0.05 }))],
    ['adam of tfjs', () => tf.train.adam(0.05)],
    ['momentum of tfjs', () => tf.train.momentum(0.01, 0.9)],
  ];
  const disposeOptimizer = (optimizer: tf.Optimizer | GradientTransformation): void => {
    if (!('applyGradients' in optimizer)) return;
    optimizer.dispose();
    tf.dispose(Object.values(optimizer).filter((v) => v instanceof tf.Tensor && !v.isDisposed));
  };

  test.each(optimizers)('a resumed run equals the uninterrupted one bit for bit: %s', async (_, make) => {
    const data = regression(37);
    const common = {
      epochs: 4,
      batchSize: 8,
      seed: 5,
      accumulate: 2,
      schedule: schedules.cosine({ peak: 0.1, steps: 12 }),
    };
    const run = async (stops: number[]): Promise<{ values: number[]; losses: number[]; history: unknown }> => {
      const storage = memoryStorage();
      const losses: number[] = [];
      for (const stop of [...stops, Number.POSITIVE_INFINITY]) {
        const model = noisy();
        const optimizer = make();
        const controller = new AbortController();
        const result = await train(model, data, {
          ...common,
          optimizer,
          evaluate: { data },
          checkpoint: { storage, resume: true },
          signal: controller.signal,
          onProgress: ({ step, loss }) => {
            losses.push(loss);
            if (step === stop) controller.abort();
          },
        });
        const values = [...model.variables.w.dataSync(), ...model.variables.b.dataSync()];
        model.dispose();
        disposeOptimizer(optimizer);
        expect(result.aborted).toBe(stop !== Number.POSITIVE_INFINITY);
        if (!result.aborted) return { values, losses, history: result.history };
      }
      throw new Error('unreachable');
    };
    const whole = await run([]);
    expect(whole.losses).toHaveLength(12);
    // Stops within an epoch, at the end of one, and at once after a resume.
    expect(await run([2])).toEqual(whole);
    expect(await run([3, 4, 7])).toEqual(whole);
    tf.dispose([data.xs, data.ys]);
  });

  test('a layers model goes on from a file in another process order, with the optimizer state under its new names', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'matforge-train-'));
    const data = classes();
    const options = {
      optimizer: adam({ learningRate: 0.02 }),
      loss: 'categoricalCrossentropy',
      batchSize: 16,
      seed: 2,
    };
    const [whole, first, second] = [classifier(), classifier(), classifier()];
    await train(whole, data, { ...options, steps: 9 });
    await train(first, data, { ...options, steps: 5, checkpoint: { directory, every: 2 } });
    expect(readdirSync(directory)).toEqual([CHECKPOINT_FILE]);
    await expect(train(second, data, { ...options, steps: 9, checkpoint: { directory } })).rejects.toThrow(
      /checkpoint: .* holds a checkpoint; continue it with resume: true/,
    );
    const result = await train(second, data, { ...options, steps: 9, checkpoint: { directory, resume: true } });
    expect(result.step).toBe(9);
    expect(valuesOf(second)).toEqual(valuesOf(whole));
    await expect(
      train(second, data, { ...options, batchSize: 8, steps: 9, checkpoint: { directory, resume: true } }),
    ).rejects.toThrow('batchSize: 8 given; the checkpoint was written with 16');
    writeFileSync(join(directory, CHECKPOINT_FILE), 'not a checkpoint at all');
    await expect(
      train(second, data, { ...options, steps: 9, checkpoint: { directory, resume: true } }),
    ).rejects.toThrow();
    const blocked = join(directory, CHECKPOINT_FILE, 'inside-a-file');
    await expect(train(second, data, { ...options, steps: 1, checkpoint: { directory: blocked } })).rejects.toThrow(
      /inside-a-file.*could not be/,
    );
    rmSync(directory, { recursive: true });
    tf.dispose([data.xs, data.ys]);
    for (const model of [whole, first, second]) model.dispose();
  });

  test('a loss that is not a number stops the run, names step and batch, and leaves parameters and checkpoint', async () => {
    const model = noisy();
    const storage = memoryStorage();
    const good = regression(8);
    const bad = { xs: tf.tidy(() => tf.mul(good.xs, Number.NaN)), ys: good.ys };
    const values: number[][] = [];
    const run = train(model, [good, good, good, bad, good], {
      optimizer: adam(),
      checkpoint: { storage, every: 2 },
      onProgress: () => void values.push([...model.variables.w.dataSync()]),
    });
    await expect(run).rejects.toThrow(
      "loss: is NaN at step 4 (epoch 0, batch 3); the batch's xs hold values that are not finite; the last checkpoint, of step 2, is kept",
    );
    expect([...model.variables.w.dataSync()]).toEqual(values[2]);
    expect(storage.files.size).toBe(1);
    model.dispose();
    tf.dispose([good.xs, good.ys, bad.xs]);
  });

  test('a gradient that is not finite under a finite loss stops the run as well', async () => {
    const w = tf.tidy(() => tf.variable(tf.zeros([1]), true, 'train_root'));
    const run = train({ variables: [w], loss: () => tf.sum(tf.sqrt(w)) as tf.Scalar }, [{}], { optimizer: adam() });
    await expect(run).rejects.toThrow('gradient: of train_root is not finite at step 1 (epoch 0, batch 0)');
    tf.dispose(w);
  });

  test('timers get their turn, so that a signal from outside ends an endless run', async () => {
    const model = noisy();
    const data = regression();
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 60);
    const result = await train(model, data, { optimizer: adam(), steps: 1e9, signal: controller.signal });
    expect(result.aborted).toBe(true);
    model.dispose();
    tf.dispose([data.xs, data.ys]);
  });
});

describe('bad input is refused', () => {
  const cases: [string, Partial<TrainingOptions>, string][] = [
    ['no optimizer', { optimizer: undefined }, 'optimizer: missing'],
    ['the name of an optimizer', { optimizer: 'adam' as never }, 'optimizer: adam given; accepted is a tf.Optimizer'],
    ['an option that is none', { epoch: 2 } as never, 'train.epoch: unknown option; did you mean "epochs"?'],
    ['epochs', { epochs: 0 }, 'epochs: 0 given; accepted is an integer >= 1'],
    ['batch size', { batchSize: 2.5 }, 'batchSize: 2.5 given'],
    ['clip norm', { clipNorm: -1 }, 'clipNorm: -1 given'],
    ['checkpoint without place', { checkpoint: { every: 2 } }, 'checkpoint: names no place'],
    ['early stop without evaluation', { earlyStop: { metric: 'val_loss' } }, 'earlyStop.metric: "val_loss" needs'],
    [
      'early stop on an unknown metric',
      { earlyStop: { metric: 'f1' } },
      'earlyStop.metric: "f1" is not measured; measured: loss, rmse',
    ],
    [
      'schedule against schedule',
      { optimizer: sgd({ learningRate: () => 1 }), schedule: () => 1 },
      'learningRate: the',
    ],
  ];
  test.each(cases)('%s', async (_, options, message) => {
    const model = noisy();
    const data = regression();
    await expect(train(model, data, { optimizer: adam(), ...options })).rejects.toThrow(message);
    model.dispose();
    tf.dispose([data.xs, data.ys]);
  });

  test('data', async () => {
    const model = noisy();
    const data = regression();
    const short = tf.slice(data.ys, 0, 3);
    const optimizer = adam();
    const attempt = (given: unknown, options = {}) => train(model, given as TrainingBatch, { optimizer, ...options });
    await expect(attempt({ xs: data.xs, ys: short })).rejects.toThrow('data.ys: 3 samples where xs has 40');
    await expect(attempt({ xs: [[1, 2]], ys: data.ys })).rejects.toThrow('data.xs: holds no tensor; make one of');
    await expect(attempt({ xs: data.xs })).rejects.toThrow('data.ys: holds no tensor');
    await expect(attempt(7)).rejects.toThrow('data: accepted are');
    await expect(attempt([])).rejects.toThrow('data: an empty array of batches');
    const once = (function* () {
      yield { xs: tf.clone(data.xs), ys: tf.clone(data.ys) };
    })();
    await expect(attempt(once, { epochs: 2 })).rejects.toThrow('data: epoch 1 has no batches');
    const layers = classifier();
    const loss = 'categoricalCrossentropy';
    await expect(train(layers, data, { optimizer })).rejects.toThrow('loss: missing: the model is not compiled');
    await expect(train(layers, data, { optimizer, loss })).rejects.toThrow(
      /data\.xs \(input "dense.*"\): shape \[32,4\] given; wanted is \[any,5\]/,
    );
    layers.trainable = false;
    await expect(train(layers, data, { optimizer, loss })).rejects.toThrow('model: has no trainable variables');
    layers.dispose();
    model.dispose();
    tf.dispose([data.xs, data.ys, short]);
  });
});
