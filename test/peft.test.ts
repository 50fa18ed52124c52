import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type AnyConfiguredMethod,
  type AnyLinearMethod,
  type AttachOptions,
  adapterTensors,
  attach,
  deltas,
  detach,
  list,
  load,
  type RawTensor,
  random,
  readSafetensors,
  ready,
  save,
  writeSafetensors,
} from '@matforge/core';
import { dora } from '@matforge/dora';
import { lora } from '@matforge/lora';
import { pissa } from '@matforge/pissa';
import { road } from '@matforge/road';
import { vera, veraProjection } from '@matforge/vera';
import * as tf from '@tensorflow/tfjs';

const PREFIX = 'base_model.model.';
let directory: string;
let before: number;

beforeAll(async () => {
  await ready();
});
beforeEach(async () => {
  before = tf.memory().numTensors;
  directory = join(await mkdtemp(join(tmpdir(), 'matforge-')), 'adapter');
});
afterEach(async () => {
  await rm(join(directory, '..'), { recursive: true, force: true });
  expect(tf.memory().numTensors).toBe(before);
});

function fill<M extends tf.LayersModel>(model: M): M {
  const stream = random(5);
  const values = model.getWeights().map(({ shape }) => stream.normal(shape, 0, 0.5));
  model.setWeights(values);
  tf.dispose(values);
  return model;
}

/** words (7 → 4), layers.0.q_proj (4 → 6), layers.0.v_proj (6 → 4), conv (2×3, 4 → 5), head (→ 2). */
function model(): tf.LayersModel {
  const attention = tf.sequential({
    name: 'layers.0',
    layers: [
      tf.layers.dense({ name: 'q_proj', units: 6, inputShape: [6, 4] }),
      tf.layers.dense({ name: 'v_proj', units: 4, useBias: false }),
    ],
  });
  return fill(
    tf.sequential({
      layers: [
        tf.layers.embedding({ name: 'words', inputDim: 7, outputDim: 4, inputLength: 6 }),
        attention,
        tf.layers.reshape({ targetShape: [2, 3, 4] }),
        tf.layers.conv2d({ name: 'conv', filters: 5, kernelSize: [2, 3] }),
        tf.layers.flatten(),
        tf.layers.dense({ name: 'head', units: 2 }),
      ],
    }),
  );
}

/** 4 → 6 → 4, names fc1 and fc2. */
function dense(): tf.Sequential {
  const layers = [
    tf.layers.dense({ name: 'fc1', units: 6, inputShape: [4] }),
    tf.layers.dense({ name: 'fc2', units: 4 }),
  ];
  return fill(tf.sequential({ layers }));
}

/** Moves every trainable tensor away from its start. */
function train(one: tf.LayersModel): void {
  const stream = random(8);
  for (const weight of one.trainableWeights) {
    const value = tf.tidy(() => tf.add(weight.read(), stream.normal(weight.read().shape, 0, 0.3)));
    weight.write(value);
    value.dispose();
  }
}

function outputs(one: tf.LayersModel, x: tf.Tensor): number[] {
  return tf.tidy(() => Array.from((one.predict(x) as tf.Tensor).dataSync()));
}

function close(one: tf.LayersModel, ...tensors: tf.Tensor[]): void {
  detach(one);
  // tfjs's own dispose() leaves the layers of models within models.
  const variables = one.weights.map((weight) => weight.read());
  one.dispose();
  tf.dispose([variables, tensors]);
}

function expectClose(got: ArrayLike<number>, expected: ArrayLike<number>): void {
  expect(got.length).toBe(expected.length);
  for (let i = 0; i < got.length; i++) expect(Math.abs(got[i] - expected[i])).toBeLessThan(2e-5);
}

async function stored(): Promise<{ json: Record<string, unknown>; text: string; shapes: Record<string, number[]> }> {
  const text = await readFile(join(directory, 'adapter_config.json'), 'utf8');
  const { tensors } = await readSafetensors(join(directory, 'adapter_model.safetensors'));
  const shapes = Object.fromEntries(Object.entries(tensors).map(([key, { shape }]) => [key, shape]));
  tf.dispose(tensors);
  return { json: JSON.parse(text), text, shapes };
}

const common = {
  task_type: null,
  base_model_name_or_path: null,
  revision: null,
  inference_mode: true,
  modules_to_save: null,
  bias: 'none',
  peft_version: '0.17.0',
  auto_mapping: null,
};

const loraFields = {
  ...common,
  peft_type: 'LORA',
  r: 8,
  lora_alpha: 8,
  lora_dropout: 0,
  use_rslora: false,
  use_dora: false,
  init_lora_weights: true,
  rank_pattern: {},
  alpha_pattern: {},
  fan_in_fan_out: false,
  lora_bias: false,
  layers_to_transform: null,
  layers_pattern: null,
  exclude_modules: null,
};

interface Written {
  configured: AnyConfiguredMethod;
  options?: AttachOptions;
  make?: () => tf.LayersModel;
  /** Read back by these. Default the method. */
  readers?: AnyLinearMethod[];
  json: Record<string, unknown>;
  shapes: Record<string, number[]>;
}

const written: Record<string, Written> = {
  'lora on dense, convolution and embedding': {
    configured: lora({ rank: 3, alpha: 6, useRslora: true, dropout: 0.1 }),
    options: { targets: ['words', 'q_proj', 'conv'] },
    make: model,
    json: {
      ...loraFields,
      r: 3,
      lora_alpha: 6,
      use_rslora: true,
      lora_dropout: 0.1,
      target_modules: ['conv', 'layers.0.q_proj', 'words'],
    },
    shapes: {
      'words.lora_embedding_A': [3, 7],
      'words.lora_embedding_B': [4, 3],
      'layers.0.q_proj.lora_A.weight': [3, 4],
      'layers.0.q_proj.lora_B.weight': [6, 3],
      'conv.lora_A.weight': [3, 4, 2, 3],
      'conv.lora_B.weight': [5, 3, 1, 1],
    },
  },
  'lora with patterns, bias and module': {
    configured: lora({
      rank: 2,
      alpha: 4,
      loraBias: true,
      init: 'gaussian',
      rankPattern: { v_proj: 3, '.*_proj': 1 },
      alphaPattern: { 'layers\\.0\\.q_proj': 5 },
    }),
    options: { targets: ['q_proj', 'v_proj'], bias: 'adapterOnly', modulesToSave: ['head'] },
    make: model,
    json: {
      ...loraFields,
      r: 2,
      lora_alpha: 4,
      lora_bias: true,
      bias: 'lora_only',
      init_lora_weights: 'gaussian',
      rank_pattern: { v_proj: 3, '.*_proj': 1 },
      alpha_pattern: { 'layers\\.0\\.q_proj': 5 },
      target_modules: ['layers.0.q_proj', 'layers.0.v_proj'],
      modules_to_save: ['head'],
    },
    shapes: {
      'layers.0.q_proj.lora_A.weight': [1, 4],
      'layers.0.q_proj.lora_B.weight': [6, 1],
      'layers.0.q_proj.lora_B.bias': [6],
      'layers.0.q_proj.base_layer.bias': [6],
      'layers.0.v_proj.lora_A.weight': [3, 6],
      'layers.0.v_proj.lora_B.weight': [4, 3],
      'layers.0.v_proj.lora_B.bias': [4],
      'head.weight': [2, 5],
      'head.bias': [2],
    },
  },
  'lora with all biases': {
    configured: lora({ rank: 2 }),
    options: { targets: ['fc1'], bias: 'all' },
    json: { ...loraFields, r: 2, bias: 'all', target_modules: ['fc1'] },
    shapes: {
      'fc1.lora_A.weight': [2, 4],
      'fc1.lora_B.weight': [6, 2],
      'fc1.base_layer.bias': [6],
      'fc2.bias': [4],
    },
  },
  'dora on dense and convolution': {
    configured: dora({ rank: 2 }),
    options: { targets: ['v_proj', 'conv'] },
    make: model,
    json: { ...loraFields, r: 2, use_dora: true, target_modules: ['conv', 'layers.0.v_proj'] },
    shapes: {
      'layers.0.v_proj.lora_A.weight': [2, 6],
      'layers.0.v_proj.lora_B.weight': [4, 2],
      'layers.0.v_proj.lora_magnitude_vector': [4],
      'conv.lora_A.weight': [2, 4, 2, 3],
      'conv.lora_B.weight': [5, 2, 1, 1],
      'conv.lora_magnitude_vector': [1, 5, 1, 1],
    },
  },
  'pissa as plain lora of twice the rank': {
    configured: pissa({ rank: 2, rankPattern: { conv: 1 } }),
    options: { targets: ['words', 'q_proj', 'conv'] },
    make: model,
    readers: [lora],
    json: {
      ...loraFields,
      r: 4,
      lora_alpha: 4,
      rank_pattern: { conv: 2 },
      alpha_pattern: { conv: 2 },
      target_modules: ['conv', 'layers.0.q_proj', 'words'],
    },
    shapes: {
      'words.lora_embedding_A': [4, 7],
      'words.lora_embedding_B': [4, 4],
      'layers.0.q_proj.lora_A.weight': [4, 4],
      'layers.0.q_proj.lora_B.weight': [6, 4],
      'conv.lora_A.weight': [2, 4, 2, 3],
      'conv.lora_B.weight': [5, 2, 1, 1],
    },
  },
  vera: {
    configured: vera({ rank: 5, projectionPrngKey: 3, dropout: 0.2, dInitial: 0.5 }),
    options: { bias: 'adapterOnly' },
    json: {
      ...common,
      peft_type: 'VERA',
      bias: 'vera_only',
      r: 5,
      projection_prng_key: 3,
      save_projection: true,
      vera_dropout: 0.2,
      d_initial: 0.5,
      fan_in_fan_out: false,
      init_weights: true,
      layers_to_transform: null,
      layers_pattern: null,
      target_modules: ['fc1', 'fc2'],
    },
    shapes: {
      '^base_model.vera_A': [5, 6],
      '^base_model.vera_B': [6, 5],
      'fc1.vera_lambda_d': [5],
      'fc1.vera_lambda_b': [6],
      'fc2.vera_lambda_d': [5],
      'fc2.vera_lambda_b': [4],
      'fc1.base_layer.bias': [6],
      'fc2.base_layer.bias': [4],
    },
  },
  'vera without its projections': {
    configured: vera({ rank: 5, projectionPrngKey: 3, saveProjection: false }),
    json: {
      ...common,
      peft_type: 'VERA',
      r: 5,
      projection_prng_key: 3,
      save_projection: false,
      vera_dropout: 0,
      d_initial: 0.1,
      fan_in_fan_out: false,
      init_weights: true,
      layers_to_transform: null,
      layers_pattern: null,
      target_modules: ['fc1', 'fc2'],
    },
    shapes: {
      'fc1.vera_lambda_d': [5],
      'fc1.vera_lambda_b': [6],
      'fc2.vera_lambda_d': [5],
      'fc2.vera_lambda_b': [4],
    },
  },
  ...Object.fromEntries(
    (['road_1', 'road_2', 'road_4'] as const).map((variant, i) => [
      variant,
      {
        configured: road({ variant, groupSize: 2 }),
        json: {
          ...common,
          peft_type: 'ROAD',
          variant,
          group_size: 2,
          init_weights: true,
          target_modules: ['fc1', 'fc2'],
        },
        shapes: Object.fromEntries(
          ['theta', 'alpha'].flatMap((tensor) => [
            [`fc1.road_${tensor}`, [3 * 2 ** i]],
            [`fc2.road_${tensor}`, [2 * 2 ** i]],
          ]),
        ),
      },
    ]),
  ),
};

describe('what is written', () => {
  test.each(Object.entries(written))('%s: keys, shapes and fields of PEFT; it loads again', async (_, given) => {
    const { configured, options = {}, make = dense, readers = [configured.method], json, shapes } = given;
    const [one, other] = [make(), make()];
    const x = make === model ? tf.tensor2d([0, 6, 3, 3, 1, 5, 2, 2, 0, 1, 6, 4], [2, 6]) : tf.ones([2, 4]);
    await attach(one, configured, { ...options, name: 'mine', seed: 2 });
    train(one);
    await save(one, directory);
    const found = await stored();
    const expected = Object.entries(shapes).map(([key, shape]) => [
      key.startsWith('^') ? key.slice(1) : PREFIX + key,
      shape,
    ]);
    expect(found.shapes).toEqual(Object.fromEntries(expected));
    expect(found.json).toEqual(json);
    expect(Object.keys(found.json)).toEqual(Object.keys(json).sort());
    expect(found.text).toBe(`${JSON.stringify(found.json, null, 2)}\n`);
    await load(other, directory, { methods: readers, name: 'theirs' });
    expectClose(outputs(other, x), outputs(one, x));
    close(one, x);
    close(other);
  });

  test('factors of a convolution are the convolutions that PEFT runs', async () => {
    const [height, width, channels, rank, filters] = [2, 3, 4, 2, 5];
    const layer = tf.layers.conv2d({
      name: 'conv',
      filters,
      kernelSize: [height, width],
      inputShape: [4, 5, channels],
    });
    const one = fill(tf.sequential({ layers: [layer] }));
    const x = random(1).normal([2, 4, 5, channels]) as tf.Tensor4D;
    const start = outputs(one, x);
    await attach(one, lora({ rank, alpha: 3 }), { targets: ['conv'] });
    train(one);
    await save(one, directory);
    const { tensors } = await readSafetensors(join(directory, 'adapter_model.safetensors'));
    const [A, B] = ['A', 'B'].map((factor) => tensors[`${PREFIX}conv.lora_${factor}.weight`]);
    // PyTorch's [out, in, h, w] to tfjs's [h, w, in, out], then one convolution after the other.
    const change = tf.tidy(() => {
      const [down, up] = [A, B].map((factor) => tf.transpose(factor, [2, 3, 1, 0]) as tf.Tensor4D);
      const hidden = tf.conv2d(x, down, 1, 'valid');
      return Array.from(tf.mul(tf.conv2d(hidden, up, 1, 'valid'), 3 / rank).dataSync());
    });
    expectClose(
      outputs(one, x),
      start.map((value, i) => value + change[i]),
    );
    tf.dispose(tensors);
    close(one, x);
  });
});

/** An adapter directory as Python leaves it. */
async function python(json: Record<string, unknown>, tensors: Record<string, RawTensor>): Promise<void> {
  await mkdir(directory, { recursive: true });
  await writeFile(join(directory, 'adapter_config.json'), JSON.stringify(json, null, 2));
  await writeSafetensors(join(directory, 'adapter_model.safetensors'), tensors, { metadata: { format: 'pt' } });
}

const f32 = (shape: number[], data: number[]): RawTensor => ({ dtype: 'F32', shape, data });

/** A PEFT configuration with the fields that today's versions write. */
const peftLora = {
  alora_invocation_tokens: null,
  alpha_pattern: {},
  auto_mapping: null,
  base_model_name_or_path: 'some/model',
  bias: 'none',
  corda_config: null,
  eva_config: null,
  exclude_modules: null,
  fan_in_fan_out: false,
  inference_mode: true,
  init_lora_weights: true,
  layer_replication: null,
  layers_pattern: null,
  layers_to_transform: null,
  loftq_config: {},
  lora_alpha: 4,
  lora_bias: false,
  lora_dropout: 0.05,
  modules_to_save: null,
  peft_type: 'LORA',
  peft_version: '0.17.1',
  qalora_group_size: 16,
  r: 2,
  rank_pattern: {},
  revision: null,
  target_modules: ['fc2', 'fc1'],
  task_type: 'CAUSAL_LM',
  trainable_token_indices: null,
  use_dora: false,
  use_qalora: false,
  use_rslora: false,
};

const fc1 = {
  [`${PREFIX}fc1.lora_A.weight`]: f32([2, 4], [1, 2, 0, 0, 0, 0, 3, -1]),
  [`${PREFIX}fc1.lora_B.weight`]: f32([6, 2], [1, 0, 0, 1, 0, 0, 2, 0, 0, 2, 1, 1]),
};
const fc2 = {
  [`${PREFIX}fc2.lora_A.weight`]: f32([2, 6], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
  [`${PREFIX}fc2.lora_B.weight`]: f32([4, 2], [1, 0, 0, 1, 1, 1, 0, 0]),
};
/** Kernels [in, out] that fc1 and fc2 stand for: Aᵀ·Bᵀ by hand. */
const product1 = [
  [1, 0, 0, 2, 0, 1],
  [2, 0, 0, 4, 0, 2],
  [0, 3, 0, 0, 6, 3],
  [0, -1, 0, 0, -2, -1],
];
const product2 = [[1, 0, 1, 0], ...Array.from({ length: 4 }, () => [0, 0, 0, 0]), [0, 1, 1, 0]];
const scaled = (matrix: number[][], factor: number) => matrix.flat().map((value) => value * factor);

describe('what Python writes', () => {
  let warn: jest.SpyInstance;
  beforeEach(() => {
    warn = jest.spyOn(console, 'warn').mockImplementation(() => undefined);
  });
  afterEach(() => {
    warn.mockRestore();
  });

  test.each<[string, Record<string, unknown>, number, number]>([
    ['a list of names', {}, 2, 2],
    ['a regular expression', { target_modules: '.*fc[12]' }, 2, 2],
    ['all-linear', { target_modules: 'all-linear' }, 2, 2],
    ['rsLoRA', { use_rslora: true }, 4 / Math.SQRT2, 4 / Math.SQRT2],
    ['an alpha pattern', { alpha_pattern: { fc2: 1, 'fc.': 6 } }, 3, 0.5],
    ['a rank pattern', { r: 1, rank_pattern: { 'fc[0-9]': 2 } }, 2, 2],
  ])('LoRA with %s gives the kernels computed by hand', async (_, fields, first, second) => {
    await python({ ...peftLora, ...fields }, { ...fc1, ...fc2 });
    const one = dense();
    await load(one, directory, { methods: [dora, lora] });
    const added = deltas(one, 'default');
    expectClose(added.fc1.dataSync(), scaled(product1, first));
    expectClose(added.fc2.dataSync(), scaled(product2, second));
    expect(list(one)[0].method).toBe('lora');
    expect(warn.mock.calls.join()).toContain('lora does not know qalora_group_size');
    expect(warn).toHaveBeenCalledTimes(1);
    tf.dispose(added);
    close(one);
  });

  test('only the layers that the file holds are adapted', async () => {
    await python({ ...peftLora, target_modules: 'fc.*' }, fc1);
    const one = dense();
    await load(one, directory, { methods: [lora] });
    expect(list(one)[0].sites).toEqual(['fc1']);
    close(one);
  });

  test('half precision, a bias behind B, trained biases and a module', async () => {
    const json = { ...peftLora, target_modules: ['fc1'], lora_bias: true, bias: 'lora_only', modules_to_save: ['fc2'] };
    const half = (raw: RawTensor): RawTensor => ({ ...raw, dtype: 'F16' });
    await python(json, {
      ...Object.fromEntries(Object.entries(fc1).map(([key, raw]) => [key, half(raw)])),
      [`${PREFIX}fc1.lora_B.bias`]: f32([6], [1, 2, 3, 4, 5, 6]),
      [`${PREFIX}fc1.base_layer.bias`]: f32([6], [0, 0, 0, 0, 0, 1]),
      // A selection of features of fc1, as PyTorch stores it.
      [`${PREFIX}fc2.weight`]: f32(
        [4, 6],
        Array.from({ length: 24 }, (_, i) => (i % 7 === 0 ? 1 : 0)),
      ),
      [`${PREFIX}fc2.bias`]: f32([4], [0, 10, 0, 0]),
    });
    const one = dense();
    const kernel = one.layers[0].getWeights()[0].arraySync() as number[][];
    await load(one, directory, { methods: [lora] });
    const x = tf.tensor2d([[1, 0, -1, 2]]);
    const hidden = [0, 1, 2, 3].map((j) => {
      const own = kernel[0][j] - kernel[2][j] + 2 * kernel[3][j];
      const change = product1[0][j] - product1[2][j] + 2 * product1[3][j];
      return own + 2 * (change + (j + 1));
    });
    expectClose(outputs(one, x), [hidden[0], hidden[1] + 10, hidden[2], hidden[3]]);
    close(one, x);
  });

  test('a convolution and an embedding', async () => {
    const one = model();
    await python(
      { ...peftLora, r: 1, lora_alpha: 2, target_modules: ['conv', 'words'] },
      {
        // Channel 1 at row 1, column 2 of the patch goes to filter 3, with weight 5.
        [`${PREFIX}conv.lora_A.weight`]: f32(
          [1, 4, 2, 3],
          Array.from({ length: 24 }, (_, i) => (i === 1 * 6 + 1 * 3 + 2 ? 5 : 0)),
        ),
        [`${PREFIX}conv.lora_B.weight`]: f32([5, 1, 1, 1], [0, 0, 0, 1, 0]),
        [`${PREFIX}words.lora_embedding_A`]: f32([1, 7], [0, 0, 0, 0, 0, 1, 0]),
        [`${PREFIX}words.lora_embedding_B`]: f32([4, 1], [1, 2, 3, 4]),
      },
    );
    await load(one, directory, { methods: [lora] });
    const added = deltas(one, 'default');
    // Rows of the kernel [2·3·4, 5] are (row, column, channel).
    const conv = new Array(24 * 5).fill(0);
    conv[((1 * 3 + 2) * 4 + 1) * 5 + 3] = 10;
    expectClose(added.conv.dataSync(), conv);
    const words = new Array(7 * 4).fill(0);
    [2, 4, 6, 8].forEach((value, i) => {
      words[5 * 4 + i] = value;
    });
    expectClose(added.words.dataSync(), words);
    tf.dispose(added);
    close(one);
  });

  test('DoRA: magnitude over the norm of the sum', async () => {
    await python(
      { ...peftLora, use_dora: true, target_modules: ['fc1'] },
      { ...fc1, [`${PREFIX}fc1.lora_magnitude_vector`]: f32([6], [1, 2, 3, 4, 5, 6]) },
    );
    const one = dense();
    const kernel = one.layers[0].getWeights()[0].arraySync() as number[][];
    await load(one, directory, { methods: [lora, dora] });
    expect(list(one)[0].method).toBe('dora');
    const added = deltas(one, 'default');
    const expected = kernel.flatMap((row, i) =>
      row.map((value, j) => {
        const sum = (k: number) => kernel[k][j] + 2 * product1[k][j];
        const norm = Math.hypot(...[0, 1, 2, 3].map(sum));
        return ((j + 1) * sum(i)) / norm - value;
      }),
    );
    expectClose(added.fc1.dataSync(), expected);
    tf.dispose(added);
    close(one);
  });

  const peftVera = {
    ...{ peft_type: 'VERA', r: 2, d_initial: 0.1, vera_dropout: 0, bias: 'none', target_modules: ['fc1', 'fc2'] },
    ...{ projection_prng_key: 7, save_projection: true, modules_to_save: null, init_weights: true },
  };
  const lambdas = {
    [`${PREFIX}fc1.vera_lambda_d`]: f32([2], [1, -1]),
    [`${PREFIX}fc1.vera_lambda_b`]: f32([6], [1, 2, 3, 4, 5, 6]),
    [`${PREFIX}fc2.vera_lambda_d`]: f32([2], [0, 2]),
    [`${PREFIX}fc2.vera_lambda_b`]: f32([4], [1, 0, 0, -1]),
  };

  test.each([true, false])('VeRA: the shared matrices, cut to the layer (stored: %s)', async (save_projection) => {
    const drawn = veraProjection(6, 6, 2, 7);
    const [A, B] = [drawn.A.arraySync(), drawn.B.arraySync()];
    tf.dispose(Object.values(drawn));
    const transposed = (matrix: number[][]) => matrix[0].flatMap((_, j) => matrix.map((row) => row[j]));
    const shared = { 'base_model.vera_A': f32([2, 6], transposed(A)), 'base_model.vera_B': f32([6, 2], transposed(B)) };
    await python({ ...peftVera, save_projection }, { ...lambdas, ...(save_projection && shared) });
    const one = dense();
    await load(one, directory, { methods: [vera] });
    const added = deltas(one, 'default');
    const d1 = [1, -1];
    const first = [0, 1, 2, 3].flatMap((i) =>
      [0, 1, 2, 3, 4, 5].map((j) => (j + 1) * d1.reduce((sum, d, k) => sum + A[i][k] * d * B[k][j], 0)),
    );
    expectClose(added.fc1.dataSync(), first);
    const b2 = [1, 0, 0, -1];
    expectClose(
      added.fc2.dataSync(),
      [0, 1, 2, 3, 4, 5].flatMap((i) => b2.map((b, j) => A[i][1] * 2 * B[1][j] * b)),
    );
    const { A: held } = adapterTensors(one, 'default').fc1;
    expect(adapterTensors(one, 'default').fc2.A).toBe(held);
    tf.dispose(added);
    close(one);
  });

  test('RoAd: pairs are turned and scaled', async () => {
    await python(
      { peft_type: 'ROAD', variant: 'road_1', group_size: 2, init_weights: true, target_modules: ['fc2'] },
      {
        [`${PREFIX}fc2.road_theta`]: f32([2], [Math.PI / 2, 0]),
        [`${PREFIX}fc2.road_alpha`]: f32([2], [3, 2]),
      },
    );
    const one = dense();
    const x = tf.tensor2d([[1, -2, 3, 4]]);
    const [a, b, c, d] = outputs(one, x);
    await load(one, directory, { methods: [road] });
    expectClose(outputs(one, x), [-3 * b, 3 * a, 2 * c, 2 * d]);
    close(one, x);
  });

  test('fields that the method does not know are kept for the next file', async () => {
    await python(
      { ...peftLora, runtime_config: { ephemeral_gpu_offload: true }, megatron_core: 'core' },
      { ...fc1, ...fc2 },
    );
    const one = dense();
    await load(one, directory, { methods: [lora] });
    expect(warn.mock.calls.join()).toContain('lora does not know qalora_group_size, runtime_config, megatron_core');
    await save(one, directory, { overwrite: true });
    const { json } = await stored();
    expect(json.runtime_config).toEqual({ ephemeral_gpu_offload: true });
    expect(json.megatron_core).toBe('core');
    expect(json.lora_dropout).toBe(0.05);
    expect(json.peft_type).toBe('LORA');
    close(one);
  });

  test.each<[string, Record<string, unknown>, Record<string, RawTensor>, AnyLinearMethod[], RegExp]>([
    [
      'another type',
      { peft_type: 'HRA' },
      fc1,
      [lora, vera],
      /peft_type: "HRA" fits none of the given methods \(lora, vera\); pass the method of that type, e\.g\. \[hra\]/,
    ],
    [
      'another variant',
      { use_dora: true },
      fc1,
      [lora],
      /"LORA" with use_dora fits none of the given methods \(lora\)/,
    ],
    ['no type', { peft_type: undefined }, fc1, [lora], /peft_type: "undefined" fits none/],
    [
      'a changed base model',
      { init_lora_weights: 'pissa_niter_4' },
      fc1,
      [lora],
      /init_lora_weights: "pissa_niter_4" adapters belong to a base model that the start has changed/,
    ],
    ['a rank that is no rank', { r: 0 }, fc1, [lora], /lora\.rank: must be a positive integer, got 0/],
    ['another rank', { r: 3 }, { ...fc1, ...fc2 }, [lora], /fc1\.A: has shape \[4,2\], but \[4,3\] is needed/],
    ['a layer without its tensors', {}, fc1, [lora], /missing keys: base_model\.model\.fc2\.\*/],
    [
      'one tensor less',
      { target_modules: ['fc1'] },
      { [`${PREFIX}fc1.lora_A.weight`]: fc1[`${PREFIX}fc1.lora_A.weight`] },
      [lora],
      /missing keys: base_model\.model\.fc1\.lora_B\.weight/,
    ],
    [
      'tensors of a layer that is not a target',
      { target_modules: ['fc1'] },
      { ...fc1, ...fc2 },
      [lora],
      /unexpected keys: base_model\.model\.fc2\.lora_A\.weight, base_model\.model\.fc2\.lora_B\.weight/,
    ],
    [
      'another model',
      {},
      { [`${PREFIX}h.0.attn.lora_A.weight`]: f32([1, 1], [0]) },
      [lora],
      /holds no layer of this model\. Keys: base_model\.model\.h\.0\.attn/,
    ],
    [
      'a pattern that is none',
      { target_modules: '(fc' },
      fc1,
      [lora],
      /target_modules: "\(fc" is not a regular expression/,
    ],
    [
      'a module that the model lacks',
      { target_modules: ['fc1'], modules_to_save: ['score'] },
      fc1,
      [lora],
      /modulesToSave: no layer is named "score"/,
    ],
    [
      'NaN',
      { target_modules: ['fc1'] },
      { ...fc1, [`${PREFIX}fc1.lora_B.weight`]: f32([6, 2], new Array(12).fill(Number.NaN)) },
      [lora],
      /base_model\.model\.fc1\.lora_B\.weight: has values that are not finite/,
    ],
    [
      'a module of another shape',
      { target_modules: ['fc1'], modules_to_save: ['fc2'] },
      {
        ...fc1,
        [`${PREFIX}fc2.weight`]: f32([6, 4], new Array(24).fill(0)),
        [`${PREFIX}fc2.bias`]: f32([4], [0, 0, 0, 0]),
      },
      [lora],
      /base_model\.model\.fc2\.weight: has shape \[6,4\]/,
    ],
  ])('refused: %s; the model stays as it was', async (_, fields, tensors, methods, message) => {
    await python({ ...peftLora, ...fields }, tensors);
    const one = dense();
    const weights = one.getWeights().map((weight) => Array.from(weight.dataSync()));
    await expect(load(one, directory, { methods })).rejects.toThrow(message);
    expect(one.getWeights().map((weight) => Array.from(weight.dataSync()))).toEqual(weights);
    expect(() => list(one)).toThrow(/has no adapters/);
    one.dispose();
  });

  test('refused: a directory without its files, JSON that is none', async () => {
    const one = dense();
    await expect(load(one, directory, { methods: [lora] })).rejects.toThrow(/adapter_config\.json: cannot be read/);
    await mkdir(directory);
    await writeFile(join(directory, 'adapter_config.json'), '{"r": ');
    await expect(load(one, directory, { methods: [lora] })).rejects.toThrow(/is not valid JSON/);
    await writeFile(join(directory, 'adapter_config.json'), '[1]');
    await expect(load(one, directory, { methods: [lora] })).rejects.toThrow(/is not a JSON object/);
    await writeFile(join(directory, 'adapter_config.json'), JSON.stringify(peftLora));
    await expect(load(one, directory, { methods: [lora] })).rejects.toThrow(/adapter_model\.safetensors/);
    one.dispose();
  });
});
