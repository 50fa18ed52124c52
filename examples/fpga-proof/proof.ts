import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Dataset } from '@matforge/datasets';
import { type Csim, compile, writeProject } from '@matforge/hls';
import {
  estimate,
  freeze,
  isMac,
  matrixSize,
  type QfxGraph,
  type QuantizeConfig,
  quantizeModel,
  simulate,
} from '@matforge/qfx';
import * as tf from '@tensorflow/tfjs';

const { layers } = tf;
const start = (seed: number) => ({ kernelInitializer: tf.initializers.heNormal({ seed }) });

/** The networks of the proof, all of tfjs's own layers. */
export const networks = {
  /** Dense layers with ReLU. */
  mlp(shape: number[], hidden: number[]): tf.LayersModel {
    return tf.sequential({
      layers: [
        layers.flatten({ inputShape: shape }),
        ...hidden.map((units, i) => layers.dense({ units, activation: 'relu', ...start(i + 1) })),
        layers.dense({ units: 10, ...start(hidden.length + 1) }),
      ],
    });
  },
  /** Convolutions, each with batch norm, ReLU and max pooling, and a dense head. */
  cnn(shape: number[], filters: number[]): tf.LayersModel {
    const model = tf.sequential({ layers: [layers.inputLayer({ inputShape: shape })] });
    filters.forEach((count, i) => {
      model.add(layers.conv2d({ filters: count, kernelSize: 3, useBias: false, ...start(i + 1) }));
      model.add(layers.batchNormalization());
      model.add(layers.reLU());
      model.add(layers.maxPooling2d({ poolSize: 2 }));
    });
    model.add(layers.flatten());
    model.add(layers.dense({ units: 10, ...start(filters.length + 1) }));
    return model;
  },
  /** For each width a convolution of stride 2 and a residual block of two convolutions; global average, dense head. */
  residual(shape: number[], widths: number[]): tf.LayersModel {
    let seed = 0;
    const to = (layer: tf.layers.Layer, x: tf.SymbolicTensor | tf.SymbolicTensor[]) =>
      layer.apply(x) as tf.SymbolicTensor;
    const convolution = (filters: number, strides: number, x: tf.SymbolicTensor) => {
      const options = { filters, strides, kernelSize: 3, padding: 'same' as const, useBias: false };
      return to(layers.batchNormalization(), to(layers.conv2d({ ...options, ...start(++seed) }), x));
    };
    const input = tf.input({ shape });
    let x = input;
    for (const width of widths) {
      x = to(layers.reLU(), convolution(width, 2, x));
      const branch = convolution(width, 1, to(layers.reLU(), convolution(width, 1, x)));
      x = to(layers.reLU(), to(layers.add(), [branch, x]));
    }
    const pooled = to(layers.globalAveragePooling2d({}), x);
    return tf.model({ inputs: input, outputs: to(layers.dense({ units: 10, ...start(++seed) }), pooled) });
  },
};

export interface Setting {
  bits: number;
  /** Signed powers of two a weight; absent: any weight. */
  k?: number;
}

export const settings: readonly Setting[] = [
  ...[8, 6, 4, 3].map((bits) => ({ bits })),
  ...[8, 6, 4, 3].flatMap((bits) => [2, 1].map((k) => ({ bits, k }))),
];

export interface Experiment {
  name: string;
  make: () => tf.LayersModel;
  train: Dataset;
  test: Dataset;
  /** Training steps of the float model and of each quantized one. */
  floatSteps: number;
  steps: number;
  /** Of the float training; everything after it has a quarter. */
  learningRate: number;
  /** Test images that the four programs must agree on. */
  samples: number;
  settings: readonly Setting[];
  /** For compilers; default those of `compile`. */
  flags?: readonly string[];
}

export interface Agreement {
  samples: number;
  /** Output numbers compared per program. */
  outputs: number;
  /** Different classes predicted: a model with one answer would agree with anything. */
  classes: number;
  /** Outputs whose bits differ from the training forward pass. */
  differing: { simulator: number; c: number; cpp: number };
  /** Raw integers inside the network that differ from the simulator, and how many were compared. */
  layers: { compared: number; c: number; cpp: number };
}

export interface Row extends Setting {
  postTrainingMax: number;
  postTrainingMse: number;
  /** Trained with binary points that stay where `max` puts them; only without k. */
  fixed?: number;
  /** Trained with learned binary points. */
  trained: number;
  agreement: Agreement;
  /** All products in DSP blocks. */
  dsp: number;
  lutWithDsp: number;
  /** All products in LUTs. */
  lut: number;
}

export interface Speed {
  /** Millions of multiply-accumulates a second, one core. */
  simulator: number;
  c: number;
  /** Processor time of a quantized training step in float steps: as trained here, and with batch statistics. */
  step: number;
  stepWithBatchStatistics?: number;
}

export interface Result {
  name: string;
  data: string;
  parameters: number;
  macs: number;
  trainImages: number;
  testImages: number;
  floatSteps: number;
  steps: number;
  float: number;
  /** The float model after as many further steps as a quantized one has. */
  floatContinued: number;
  rows: Row[];
  speed?: Speed;
}

/** Batches of 64 with Adam and cross-entropy on logits. */
export async function fit(
  model: tf.LayersModel,
  train: Dataset,
  steps: number,
  rate: number,
  seed: number,
): Promise<void> {
  prepare(model, rate);
  // Pieces of a training are one training: the positions are fixed after 80 % of all steps.
  (model.optimizer as { schedule?: (steps: number) => void }).schedule?.(steps);
  let step = 0;
  for (let epoch = 0; step < steps; epoch++) {
    for await (const { xs, ys } of train.batches(64, { seed, epoch, dropLast: true })) {
      const target = tf.tidy(() => tf.oneHot(ys as tf.Tensor1D, 10).toFloat());
      await model.trainOnBatch(xs, target);
      tf.dispose([xs, ys, target]);
      if (++step === steps) break;
    }
  }
}

function prepare(model: tf.LayersModel, rate: number): void {
  model.compile({ optimizer: tf.train.adam(rate), loss: (t, p) => tf.losses.softmaxCrossEntropy(t, p) });
}

/** tfjs leaves an optimizer that it was handed to whoever made it. */
function dispose(model: tf.LayersModel): void {
  model.optimizer?.dispose();
  model.dispose();
}

export function accuracy(model: tf.LayersModel, xs: tf.Tensor, labels: ArrayLike<number>): number {
  const predicted = tf.tidy(() =>
    Array.from(tf.argMax(model.predict(xs, { batchSize: 250 }) as tf.Tensor, 1).dataSync()),
  );
  return predicted.reduce((sum, p, i) => sum + (p === labels[i] ? 1 : 0), 0) / labels.length;
}

/** The forward pass that training differentiates, in pieces. */
function trainingForward(model: tf.LayersModel, xs: tf.Tensor): Float32Array {
  const pieces: number[] = [];
  const size = xs.shape[0];
  for (let at = 0; at < size; at += 100) {
    const own = tf.tidy(() =>
      (model.apply(xs.slice(at, Math.min(100, size - at)), { training: true }) as tf.Tensor).dataSync(),
    );
    for (const v of own) pieces.push(v);
  }
  return Float32Array.from(pieces);
}

/**
 * Runs the training forward pass, the simulator, the C99 and the C++ program on the same images.
 * @param flags for both compilers instead of the default ones, which are slow to compile
 */
export async function agree(
  model: tf.LayersModel,
  graph: QfxGraph,
  xs: tf.Tensor,
  { flags, benchmark = false }: { flags?: readonly string[]; benchmark?: boolean } = {},
): Promise<{ agreement: Agreement; macsPerSecond: number }> {
  const folder = mkdtempSync(join(tmpdir(), 'fpga-proof-'));
  const forward = trainingForward(model, xs);
  const differing = (values: ArrayLike<number>): number => {
    if (values.length !== forward.length) throw new Error(`expected ${forward.length} outputs, got ${values.length}`);
    return forward.reduce((sum, v, i) => sum + (v === values[i] ? 0 : 1), 0);
  };
  const few = xs.slice(0, Math.min(40, xs.shape[0]));
  try {
    const project = await writeProject(join(folder, 'project'), graph, { testbench: { draws: 0, random: 5 } });
    const c = await compile(project, { flavour: 'c', flags });
    const cpp = await compile(project, { flavour: 'hls', flags });
    const inside = async (program: Csim): Promise<number> => {
      const { samples, layers, skipped } = await program.compare(few);
      if (samples !== few.shape[0]) throw new Error(`${program.flavour}: ${skipped ?? `${samples} samples compared`}`);
      return layers.reduce((sum, { mismatches }) => sum + mismatches, 0);
    };
    const trace = Object.values(simulate(graph, few, { trace: true }).trace ?? {});
    const agreement: Agreement = {
      samples: xs.shape[0],
      outputs: forward.length,
      classes: new Set(tf.tidy(() => tf.argMax(tf.tensor(forward, [xs.shape[0], 10]), 1).dataSync())).size,
      differing: {
        simulator: differing(simulate(graph, xs).values),
        c: differing((await c.predict(xs)).values),
        cpp: differing((await cpp.predict(xs)).values),
      },
      layers: {
        compared: trace.reduce((sum, { raw }) => sum + raw.length, 0),
        c: await inside(c),
        cpp: await inside(cpp),
      },
    };
    return { agreement, macsPerSecond: benchmark ? (await c.benchmark(1)).macsPerSecond : 0 };
  } finally {
    few.dispose();
    rmSync(folder, { recursive: true, force: true });
  }
}

export function macsOf(graph: QfxGraph): number {
  return graph.nodes.filter(isMac).reduce((sum, node) => {
    const { nIn, nOut, positions } = matrixSize(node);
    return sum + nIn * nOut * positions;
  }, 0);
}

/** Least processor time of several runs in milliseconds: what other programs do counts little. */
async function processorTime(run: () => unknown, repeats: number): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < repeats; i++) {
    const before = process.cpuUsage();
    await run();
    const { user, system } = process.cpuUsage(before);
    least = Math.min(least, (user + system) / 1000);
  }
  return least;
}

/** A float model, then every setting: after training, trained on with learned binary points, and frozen four ways. */
export async function prove(experiment: Experiment, log: (row: object) => void = () => {}): Promise<Result> {
  const { make, train, test, floatSteps, steps, learningRate, samples, flags } = experiment;
  const { xs, ys } = await test.toTensors();
  const labels = ys.dataSync();
  const first = await train.take(256).toTensors();
  const images = xs.slice(0, samples);
  const float = make();
  const result: Result = {
    name: experiment.name,
    data: train.name,
    parameters: float.countParams(),
    macs: 0,
    trainImages: train.size,
    testImages: labels.length,
    floatSteps,
    steps,
    float: 0,
    floatContinued: 0,
    rows: [],
  };
  await fit(float, train, floatSteps, learningRate, 1);
  result.float = accuracy(float, xs, labels);
  const again = async (model: tf.LayersModel): Promise<number> => {
    await fit(model, train, steps, learningRate / 4, 2);
    return accuracy(model, xs, labels);
  };
  const continued = make();
  continued.setWeights(float.getWeights());
  result.floatContinued = await again(continued);
  dispose(continued);
  log({ model: result.name, parameters: result.parameters, float: result.float, further: result.floatContinued });

  for (const setting of experiment.settings) {
    const { bits, k } = setting;
    const config = {
      bits,
      calibration: first.xs,
      ...(k && { multiplierFree: { k, digits: 'signed' as const } }),
    };
    const still = async (positionInit: 'max' | 'mse', measure: typeof again): Promise<number> => {
      const model = quantizeModel(float, { ...config, learnPosition: false, positionInit });
      const reached = await measure(model);
      dispose(model);
      return reached;
    };
    const untrained = async (model: tf.LayersModel): Promise<number> => accuracy(model, xs, labels);
    const model = quantizeModel(float, config);
    const trained = await again(model);
    const graph = freeze(model);
    result.macs = macsOf(graph);
    const measured = bits === 8 && !k && !flags;
    const { agreement, macsPerSecond } = await agree(model, graph, images, { flags, benchmark: measured });
    const inDsp = estimate(graph, { lutMaxBits: 0 }).total;
    result.rows.push({
      ...setting,
      postTrainingMax: await still('max', untrained),
      postTrainingMse: await still('mse', untrained),
      ...(!k && !flags && { fixed: await still('max', again) }),
      trained,
      agreement,
      dsp: inDsp.dsp,
      lutWithDsp: inDsp.lut,
      lut: estimate(graph, { lutMaxBits: 64 }).total.lut,
    });
    log(result.rows.at(-1) as Row);
    if (measured) {
      const time = await processorTime(() => simulate(graph, images), 3);
      result.speed = {
        simulator: (result.macs * samples) / time / 1000,
        c: macsPerSecond / 1e6,
        ...(await stepCost(make, config, train)),
      };
      log(result.speed);
    }
    dispose(model);
  }
  dispose(float);
  tf.dispose([xs, ys, images, first.xs, first.ys]);
  return result;
}

/** A quantized training step in float training steps of the same model, batch 64. */
async function stepCost(
  make: () => tf.LayersModel,
  config: QuantizeConfig,
  train: Dataset,
): Promise<Pick<Speed, 'step' | 'stepWithBatchStatistics'>> {
  const { xs, ys } = await train.take(64).toTensors();
  const target = tf.tidy(() => tf.oneHot(ys as tf.Tensor1D, 10).toFloat());
  const step = async (model: tf.LayersModel): Promise<number> => {
    prepare(model, 1e-3);
    const time = await processorTime(() => model.trainOnBatch(xs, target), 15);
    dispose(model);
    return time;
  };
  const normalized = make();
  const batchNorm = normalized.layers.some((layer) => layer.getClassName() === 'BatchNormalization');
  const asTrained = await step(quantizeModel(normalized, config));
  const statistics = batchNorm ? await step(quantizeModel(normalized, { ...config, batchNormFreezeAfter: 1e6 })) : 0;
  const float = await step(normalized);
  tf.dispose([xs, ys, target]);
  return { step: asTrained / float, ...(batchNorm && { stepWithBatchStatistics: statistics / float }) };
}
