import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { loadModel, pipeline, type RunEvent, run, type Stage, stages } from '../src/index.ts';
import { examples, importFromSource, runsDirectory } from './setup.ts';

const { adapt, compare, data, emit, evaluate, merge, model, plot, quantize, save, train, verify, watermark } = stages;

beforeAll(importFromSource);

let runs: string;
beforeEach(() => {
  runs = runsDirectory();
});
afterEach(() => {
  rmSync(runs, { recursive: true, force: true });
});

const small = [
  data({ name: 'digits', dataset: 'mnist', train: 256, test: 128 }),
  model({ kind: 'mlp', options: { hidden: [16] } }),
  train({ data: 'digits', epochs: 3, batchSize: 32, optimizer: { name: 'adam', learningRate: 0.01 } }),
];
const build = (...more: Stage[]) => pipeline({ name: 'small', seed: 3 }, ...small, ...more);
const json = (...path: string[]) => JSON.parse(readFileSync(join(runs, ...path), 'utf8'));

test('a run leaves configuration, seed, versions, metrics and a report', async () => {
  const { report, finished, directory } = await run(build(evaluate({ data: 'digits' })), {
    directory: join(runs, 'a'),
    from: examples,
  });
  expect(finished).toBe(true);
  expect(directory).toBe(join(runs, 'a'));
  expect((report.evaluation as { accuracy: number }[])[0].accuracy).toBeGreaterThan(0.5);
  const { seed, versions, pipeline: stagesRun } = json('a', 'run.json');
  expect(seed).toBe(3);
  expect(versions['@matforge/lora']).toMatch(/^\d+\.\d+\.\d+$/);
  expect(stagesRun.map((stage: object) => Object.keys(stage)[0])).toEqual(['data', 'model', 'train', 'evaluate']);
  const metrics = readFileSync(join(runs, 'a', 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  expect(metrics.at(-1)).toMatchObject({ stage: 'train on digits', step: 24 });
});

test('the same seed gives the same numbers', async () => {
  const [a, b] = [
    await run(build(), { directory: join(runs, 'a'), from: examples }),
    await run(build(), { directory: join(runs, 'b'), from: examples }),
  ];
  const curve = ({ report }: typeof a) => (report.curves as Record<string, number[]>)['train on digits'];
  expect(curve(a).length).toBe(24);
  expect(curve(a)).toEqual(curve(b));
});

test('a stopped run goes on where it was and ends with the same model', async () => {
  const whole = build(
    adapt({
      data: 'digits',
      method: 'lora',
      options: { rank: 2 },
      steps: 20,
      batchSize: 32,
      optimizer: { name: 'adam' },
    }),
    merge({}),
    save({ as: 'model' }),
  );
  await run(whole, { directory: join(runs, 'a'), from: examples });

  const resumed: RunEvent[] = [];
  for (const [stage, step] of [
    ['train', 10],
    ['adapt', 7],
  ] as const) {
    const controller = new AbortController();
    let inside = '';
    const stopped = await run(whole, {
      directory: join(runs, 'b'),
      resume: stage === 'adapt',
      from: examples,
      signal: controller.signal,
      onEvent: (event) => {
        if (event.type === 'stage') inside = event.name;
        if (event.type === 'progress' && inside === stage && event.step >= step) controller.abort();
        if (event.type === 'stage' && inside === 'merge') throw new Error('not stopped');
      },
    });
    expect(stopped.finished).toBe(false);
  }
  const done = await run(whole, {
    directory: join(runs, 'b'),
    resume: true,
    from: examples,
    onEvent: (event) => resumed.push(event),
  });
  expect(done.finished).toBe(true);
  const restored = resumed.flatMap((event) => (event.type === 'stage' && event.restored ? [event.name] : []));
  expect(restored).toEqual(['data', 'model', 'train']);
  expect(
    readFileSync(join(runs, 'b', 'model', 'weights.bin')).equals(readFileSync(join(runs, 'a', 'model', 'weights.bin'))),
  ).toBe(true);
}, 120_000);

test('the whole way from images to firmware, in small', async () => {
  const optimizer = { name: 'adam', learningRate: 0.01 };
  const whole = pipeline(
    { name: 'whole', seed: 1 },
    data({ name: 'digits', dataset: 'mnist', train: 600, test: 200 }),
    model({ kind: 'mlp', options: { hidden: [24] } }),
    train({ data: 'digits', epochs: 2, batchSize: 32, optimizer }),
    compare({
      data: 'digits',
      targets: ['layers.0', 'head'],
      steps: 40,
      batchSize: 32,
      optimizer,
      arms: {
        frozen: { train: 'none' },
        full: { train: 'all' },
        PiSSA: { method: 'pissa', options: { rank: 4 }, optimizer: { name: 'galore', rank: 2, learningRate: 0.01 } },
      },
      keep: 'PiSSA',
    }),
    watermark({ data: 'digits', secret: 5, rank: 8, steps: 150, batchSize: 32, optimizer }),
    verify({ data: 'digits' }),
    merge({}),
    save({ as: 'model' }),
    quantize({ data: 'digits', bits: 8, steps: 20, batchSize: 32, optimizer: { name: 'adam', learningRate: 0.001 } }),
    emit({ data: 'digits', samples: 20 }),
    plot({}),
  );
  const { report } = await run(whole, { directory: join(runs, 'a'), from: examples });
  const { rows } = report.comparison as { rows: Record<string, number | string>[] };
  expect(rows.map(({ way }) => way)).toEqual(['frozen', 'full', 'PiSSA']);
  expect(rows[0]['trainable parameters']).toBe(0);
  expect(rows[2]['trainable parameters']).toBe(4 * (784 + 24) + 4 * (24 + 10));
  expect((report.verification as { verdict: string }[]).map(({ verdict }) => verdict)).toEqual([
    'accepted',
    'rejected',
    'rejected',
  ]);
  expect((report.firmware as { passed: boolean | null }).passed).not.toBe(false);
  for (const file of [
    'loss.svg',
    'spectra.svg',
    'adapters/adapter/adapter_config.json',
    'adapters/released/adapter_model.safetensors',
    'firmware/Makefile',
  ]) {
    expect({ file, exists: existsSync(join(runs, 'a', file)) }).toEqual({ file, exists: true });
  }
  const released = json('a', 'adapters', 'released', 'adapter_config.json');
  expect(released.peft_type).toBe('LORA');
  expect(JSON.stringify(released)).not.toMatch(/secret|passport|seal/i);
  const merged = await loadModel(join(runs, 'a', 'model'));
  expect(merged.countParams()).toBe(784 * 24 + 24 + 24 * 10 + 10);
  merged.dispose();
}, 180_000);

describe('refusals', () => {
  const attempt = (given: Parameters<typeof run>[0], directory = 'a') =>
    run(given, { directory: join(runs, directory), from: examples });

  test('a run directory that exists is left alone', async () => {
    mkdirSync(join(runs, 'a'));
    writeFileSync(join(runs, 'a', 'precious'), 'x');
    await expect(attempt(build())).rejects.toThrow(/exists already; resume it \(--resume\), replace it/);
    expect(readFileSync(join(runs, 'a', 'precious'), 'utf8')).toBe('x');
  });

  test('only a run directory is replaced', async () => {
    mkdirSync(join(runs, 'a'));
    writeFileSync(join(runs, 'a', 'precious'), 'x');
    const replace = () => run(build(), { directory: join(runs, 'a'), overwrite: true, from: examples });
    await expect(replace()).rejects.toThrow(/is not a run directory \(it has no run\.json\), so it is not replaced/);
    expect(readFileSync(join(runs, 'a', 'precious'), 'utf8')).toBe('x');
  });

  test('a directory without a run cannot be resumed, and another pipeline does not go on in it', async () => {
    await expect(run(build(), { directory: join(runs, 'none'), resume: true, from: examples })).rejects.toThrow(
      /holds no run to resume/,
    );
    await run(pipeline({ name: 'small', seed: 3 }, small[0]), { directory: join(runs, 'a'), from: examples });
    await expect(run(build(), { directory: join(runs, 'a'), resume: true, from: examples })).rejects.toThrow(
      /run of another pipeline or seed/,
    );
  });

  test('a directory that cannot be written is named', async () => {
    writeFileSync(join(runs, 'file'), '');
    await expect(attempt(build(), 'file/run')).rejects.toThrow(/file\/run: cannot be created/);
  });

  test('stages in the wrong order', async () => {
    await expect(attempt(pipeline({ name: 'x' }, small[0], small[2]))).rejects.toThrow(
      /stage 2: "train" needs a model from a stage before it/,
    );
    expect(existsSync(join(runs, 'a'))).toBe(false);
  });

  test('a method that is not installed, before anything runs', async () => {
    const options = { data: 'digits', steps: 1 };
    await expect(attempt(build(adapt({ ...options, method: 'lorra' })))).rejects.toThrow(
      /@matforge\/lorra: is not installed; did you mean "lora"\? Install it: npm i @matforge\/lorra/,
    );
    expect(existsSync(join(runs, 'a'))).toBe(false);
  });

  test("a method's options, before anything runs", async () => {
    const adapting = adapt({ data: 'digits', method: 'lora', options: { rank: 0 }, steps: 1 });
    await expect(attempt(build(adapting))).rejects.toThrow(/lora\.rank: must be a positive integer, got 0/);
  });

  test('data of another name', async () => {
    await expect(attempt(build(evaluate({ data: 'digit' })))).rejects.toThrow(
      /no data is named "digit"; did you mean "digits"\?/,
    );
  });

  test('options of a stage', () => {
    expect(() => train({ data: 'x', epochs: 0 })).toThrow(/train\.epochs: must be a positive integer, got 0/);
    expect(() => train({ data: 'x', epoch: 1 } as never)).toThrow(
      /train\.epoch: unknown option; did you mean "epochs"\?/,
    );
  });

  test('a model directory that holds none, and truncated weights', async () => {
    await expect(loadModel(runs)).rejects.toThrow(/holds no model/);
    await run(build(save({ as: 'model' })), { directory: join(runs, 'a'), from: examples });
    const file = join(runs, 'a', 'model', 'weights.bin');
    writeFileSync(file, readFileSync(file).subarray(0, 100));
    await expect(loadModel(join(runs, 'a', 'model'))).rejects.toThrow(/weights\.bin is truncated: 100 bytes of/);
  });
});

test('runs leave no tensors behind', async () => {
  const before = tf.memory().numTensors;
  await run(build(), { directory: join(runs, 'a'), from: examples });
  expect(tf.memory().numTensors).toBe(before);
});
