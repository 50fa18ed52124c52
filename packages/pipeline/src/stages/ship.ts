import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { linalg, mergeAndUnload, option, refuse, sitesOf, toMatrix, writeFileAtomic } from '@matforge/core';
import type * as Hls from '@matforge/hls';
import type * as Qfx from '@matforge/qfx';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { readJson } from '../context.ts';
import { cloneModel, saveModel } from '../model-files.ts';
import { trainingOptions } from '../optimizers.ts';
import { importPackage } from '../packages.ts';
import { lineChart } from '../plot.ts';
import { defineStage } from '../stage.ts';
import type { NamedData } from '../state.ts';
import { lossOf, score, trainOn } from '../training.ts';
import { dataOf, modelOf, round } from './train.ts';

/** Singular values of every kernel, by layer. */
export type Spectra = Record<string, number[]>;

/** Writes the active adapters into the kernels; the model is then an ordinary one. */
export const merge = defineStage({
  name: 'merge',
  about: 'writes the adapter into the kernels',
  needs: ['model', 'adapter'],
  options: z.object({}),
  async run(state, _, context) {
    const model = modelOf(state);
    const before = spectraOf(model);
    mergeAndUnload(model);
    const after = spectraOf(model);
    await context.report('spectra', { before, after });
    context.tell({ type: 'log', text: `merged into ${Object.keys(after).length} kernels` });
    return { ...state, adapter: undefined };
  },
});

function spectraOf(model: tf.LayersModel): Spectra {
  return Object.fromEntries(
    sitesOf(model).map(({ name, weight, inDim, outDim }) => {
      const kernel = tf.reshape(weight.read(), [inDim, outDim]) as tf.Tensor2D;
      const { s } = linalg.svd(toMatrix(kernel));
      kernel.dispose();
      return [name, Array.from(s, (value) => round(value))];
    }),
  );
}

/** Writes the model as model.json and weights.bin. */
export const save = defineStage({
  name: 'save',
  about: 'writes the model into the run directory',
  needs: ['model'],
  options: z.object({
    as: z
      .string()
      .regex(/^[\w.-]+$/, 'must be a plain folder name')
      .default('model'),
  }),
  async run(state, { as }, context) {
    await saveModel(modelOf(state), join(context.directory, as), { overwrite: true });
    context.tell({ type: 'log', text: `model written to ${as}/` });
    return state;
  },
  restore: async (state) => state,
});

/** Draws the loss curves and the spectra. */
export const plot = defineStage({
  name: 'plot',
  about: 'draws loss curves and kernel spectra as SVG',
  options: z.object({}),
  async run(state, _, context) {
    const curves = (context.reported.curves ?? {}) as Record<string, number[]>;
    if (Object.keys(curves).length > 0) {
      const svg = lineChart({ title: 'Training loss', x: 'training', y: 'loss', logY: true, series: curves });
      await writeFileAtomic(join(context.directory, 'loss.svg'), svg, { overwrite: true });
    }
    const spectra = context.reported.spectra as { before: Spectra; after: Spectra } | undefined;
    if (spectra) {
      const series = Object.fromEntries(
        Object.keys(spectra.after).flatMap((layer) => [
          [`${layer} before`, spectra.before[layer]],
          [`${layer} after`, spectra.after[layer]],
        ]),
      );
      const svg = lineChart({
        title: 'Singular values of the kernels',
        x: 'index',
        y: 'singular value',
        logY: true,
        pairs: true,
        series,
      });
      await writeFileAtomic(join(context.directory, 'spectra.svg'), svg, { overwrite: true });
    }
    return state;
  },
});

/** Trains the model as the fixed-point program that the FPGA will run, and freezes it to integers. */
export const quantize = defineStage({
  name: 'quantize',
  about: 'trains the model in fixed point with learned binary points, and freezes it to integers',
  needs: ['data', 'model'],
  gives: ['quantized'],
  options: z.object({
    data: z.string().min(1),
    bits: option.count().default(8),
    /** Options of `quantizeModel` of @matforge/qfx. */
    options: z.record(z.string(), z.unknown()).default({}),
    ...trainingOptions,
  }),
  methods: () => [{ name: 'qfx' }],
  async run(state, options, context) {
    const data = dataOf(state, options.data);
    const qfx = await importPackage<typeof Qfx>('qfx', context.from);
    const steps = options.steps ?? options.epochs * Math.ceil(data.train.size / options.batchSize);
    const calibration = await firstBatch(data, 256, context.seed);
    const model = await cloneModel(modelOf(state));
    const quantized = qfx.quantizeModel(model, {
      bits: options.bits,
      steps,
      calibration: calibration.xs,
      ...options.options,
    });
    const before = await score(quantized, data, context.signal);
    const { learningRate, name } = options.optimizer;
    if (name !== 'adam')
      refuse('quantize.optimizer', `"${name}" is not available here; binary points train beside Adam`);
    quantized.compile({ optimizer: tf.train.adam(learningRate), loss: lossOf(data) });
    const outcome = await trainOn(
      quantized,
      data,
      options,
      context,
      { label: `train in ${options.bits} bits`, key: 'quantize' },
      null,
    );
    quantized.freezePositions();
    const { metric, value } = await score(quantized, data, context.signal);
    const graph = qfx.freeze(quantized, { name: context.name.replace(/\W/g, '_'), head: 'none' });
    await writeFileAtomic(join(context.checkpoint, 'graph.json'), JSON.stringify(graph), { overwrite: true });
    await context.report('quantization', {
      bits: options.bits,
      [`${metric} after conversion`]: round(before.value),
      [`${metric} after training`]: round(value),
      steps: outcome.steps,
      seconds: round(outcome.seconds, 1),
    });
    context.tell({
      type: 'log',
      text: `${options.bits} bits: ${metric} ${(100 * before.value).toFixed(1)} % after conversion, ${(100 * value).toFixed(1)} % after training`,
    });
    tf.dispose([calibration.xs, calibration.ys]);
    quantized.dispose();
    model.dispose();
    return { ...state, graph };
  },
  async restore(state, _, context) {
    return { ...state, graph: await readJson(join(context.checkpoint, 'graph.json')) };
  },
});

/** Writes the HLS project, compiles it and compares it with the simulation bit by bit. */
export const emit = defineStage({
  name: 'emit',
  about: 'writes the C project, compiles it with the system compiler and compares every output bit',
  needs: ['data', 'quantized'],
  gives: ['project'],
  options: z.object({
    data: z.string().min(1),
    /** Test images to compare on. */
    samples: option.count().default(200),
    as: z
      .string()
      .regex(/^[\w.-]+$/, 'must be a plain folder name')
      .default('firmware'),
    /** Options of `writeProject` of @matforge/hls. */
    options: z.record(z.string(), z.unknown()).default({}),
  }),
  methods: () => [{ name: 'hls' }],
  async run(state, { data: name, samples, as, options }, context) {
    const data = dataOf(state, name);
    const graph = state.graph as Qfx.QfxGraph;
    const [qfx, hls] = [
      await importPackage<typeof Qfx>('qfx', context.from),
      await importPackage<typeof Hls>('hls', context.from),
    ];
    const { xs, ys } = await data.test.take(Math.min(samples, data.test.size)).toTensors();
    try {
      const directory = join(context.directory, as);
      await rm(directory, { recursive: true, force: true });
      await hls.writeProject(directory, graph, { samples: { values: xs as tf.Tensor }, ...options });
      const simulation = qfx.simulate(graph, xs as tf.Tensor);
      const labels = (ys as tf.Tensor).dataSync();
      const hits = rows(simulation.values, labels.length).filter(
        (scores, i) => scores.indexOf(Math.max(...scores)) === labels[i],
      ).length;
      const csim = await hls.compile(directory);
      const report = csim.skipped ? undefined : await csim.compare(xs as tf.Tensor);
      const result = {
        directory: as,
        samples: labels.length,
        accuracy: round(hits / labels.length),
        'C against simulation': report
          ? `${report.mismatches} of ${report.outputs} raw outputs differ`
          : `skipped: ${csim.skipped}`,
        compiler: report?.compiler ?? null,
        passed: report?.passed ?? null,
      };
      await context.report('firmware', result);
      context.tell({
        type: 'table',
        title: 'Firmware',
        rows: [
          Object.fromEntries(Object.entries(result).filter(([, value]) => value !== null)) as Record<
            string,
            string | number
          >,
        ],
      });
      if (report && !report.passed)
        refuse('emit', `the compiled C differs from the simulation in ${report.mismatches} outputs; see ${as}/`);
      return { ...state, project: directory };
    } finally {
      tf.dispose([xs, ys]);
    }
  },
});

function rows(values: Float64Array, count: number): number[][] {
  const width = values.length / count;
  return Array.from({ length: count }, (_, i) => Array.from(values.subarray(i * width, (i + 1) * width)));
}

async function firstBatch(data: NamedData, size: number, seed: number): Promise<{ xs: tf.Tensor; ys: tf.Tensor }> {
  for await (const { xs, ys } of data.train.batches(size, { seed, epoch: 0 }))
    return { xs: xs as tf.Tensor, ys: ys as tf.Tensor };
  return refuse('data', 'is empty');
}
