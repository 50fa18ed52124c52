import { join } from 'node:path';
import { attach, didYouMean, hash, load, refuse, save, type Targets, writeFileAtomic } from '@matforge/core';
import { generate } from '@matforge/models';
import type * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { type RunContext, readJson } from '../context.ts';
import { cloneModel, restoreWeights, storeWeights } from '../model-files.ts';
import { optimizerUse, trainingOptions } from '../optimizers.ts';
import { configuredMethod, isLinear, loadMethod } from '../packages.ts';
import { defineStage, type MethodUse } from '../stage.ts';
import type { NamedData, State } from '../state.ts';
import { lossOf, score, trainableCount, trainOn } from '../training.ts';

const dataOption = z.string().min(1);
const methodOptions = {
  /** Name of an installed method package, e.g. `pissa`. */
  method: z.string('must be the name of a method, e.g. pissa; its options go beside it, under options').min(1),
  /** The method's own options. */
  options: z.record(z.string(), z.unknown()).default({}),
};
const targetsOption = z.union([z.array(z.string()).min(1), z.literal('all-linear')]).default('all-linear');

/** Data by name. */
export function dataOf(state: State, name: string): NamedData {
  const near = didYouMean(name, Object.keys(state.data));
  return (
    state.data[name] ??
    refuse(
      'data',
      `no data is named "${name}"${near ? `; did you mean "${near}"?` : ''} Named so far: ${Object.keys(state.data).join(', ')}`,
    )
  );
}

export function modelOf(state: State): tf.LayersModel {
  return state.model ?? refuse('model', 'there is none yet; put a "model" stage before');
}

/** Trains all that is trainable in the model. */
export const train = defineStage({
  name: 'train',
  about: 'trains the model',
  needs: ['data', 'model'],
  options: z.object({ data: dataOption, ...trainingOptions }),
  methods: ({ optimizer }) => optimizerUse(optimizer),
  async run(state, options, context) {
    const [model, data] = [modelOf(state), dataOf(state, options.data)];
    const outcome = await trainOn(model, data, options, context, { label: `train on ${options.data}`, key: 'train' });
    const { metric, value } = await score(model, data, context.signal);
    await context.report(`train on ${options.data}`, { [metric]: value, ...outcome, losses: undefined });
    await storeCurve(context, `train on ${options.data}`, outcome.losses);
    await storeWeights(model, weightsFile(context));
    context.tell({
      type: 'log',
      text: `${options.data}: ${metric} ${show(metric, value)} after ${outcome.steps} steps, ${outcome.seconds.toFixed(1)} s`,
    });
    return state;
  },
  async restore(state, _, context) {
    await restoreWeights(modelOf(state), weightsFile(context));
    return state;
  },
});

/** Attaches a method to the model and trains it. */
export const adapt = defineStage({
  name: 'adapt',
  about: 'attaches a method and trains it',
  needs: ['data', 'model'],
  gives: ['adapter'],
  options: z.object({
    data: dataOption,
    ...methodOptions,
    targets: targetsOption,
    name: z.string().default('adapter'),
    ...trainingOptions,
  }),
  methods: ({ method, options, optimizer }) => [
    { name: method, options, path: ['options'] },
    ...optimizerUse(optimizer),
  ],
  async run(state, options, context) {
    const [model, data] = [modelOf(state), dataOf(state, options.data)];
    const configured = await configuredMethod(options.method, options.options, context.from);
    await attach(model, configured, attachOptions(options, data, context));
    const label = `${options.method} on ${options.data}`;
    const outcome = await trainOn(model, data, options, context, { label, key: 'adapt' });
    const { metric, value } = await score(model, data, context.signal);
    await context.report(label, { [metric]: value, ...outcome, losses: undefined });
    await storeCurve(context, label, outcome.losses);
    await save(model, adapterDirectory(context, options.name), { name: options.name, overwrite: true });
    context.tell({
      type: 'log',
      text: `${label}: ${metric} ${show(metric, value)}, ${outcome.trainable} trainable, ${outcome.seconds.toFixed(1)} s`,
    });
    return { ...state, adapter: options.name };
  },
  async restore(state, { name, method }, context) {
    await loadAdapter(modelOf(state), name, method, context);
    return { ...state, adapter: name };
  },
});

const armOptions = z.object({
  /** What trains: nothing, everything, or a method's tensors. */
  train: z.enum(['none', 'all']).optional(),
  method: methodOptions.method.optional(),
  options: methodOptions.options,
  optimizer: trainingOptions.optimizer.optional(),
});

type Arm = z.output<typeof armOptions>;

/** Trains the same model in several ways on the same data, and keeps one of them. */
export const compare = defineStage({
  name: 'compare',
  about: 'trains copies of the model in several ways, tabulates them and keeps one',
  needs: ['data', 'model'],
  gives: ['adapter'],
  options: z.object({
    data: dataOption,
    targets: targetsOption,
    /** One entry per way: `{ train: none | all }` or `{ method, options }`, with an optimizer of its own if it needs one. */
    arms: z.record(z.string(), armOptions),
    /** The arm that goes on. It must use a method. */
    keep: z.string(),
    name: z.string().default('adapter'),
    ...trainingOptions,
  }),
  methods: ({ arms, optimizer }) => [
    ...optimizerUse(optimizer),
    ...Object.entries(arms).flatMap(([name, arm]): MethodUse[] => [
      ...(arm.method ? [{ name: arm.method, options: arm.options, path: ['arms', name, 'options'] }] : []),
      ...(arm.optimizer ? optimizerUse(arm.optimizer, ['arms', name, 'optimizer']) : []),
    ]),
  ],
  async run(state, options, context) {
    const base = modelOf(state);
    const data = dataOf(state, options.data);
    if (!options.arms[options.keep]?.method) {
      refuse(
        'compare.keep',
        `"${options.keep}" is no arm with a method; arms: ${Object.keys(options.arms).join(', ')}`,
      );
    }
    const rows: Record<string, string | number>[] = [];
    for (const [name, arm] of Object.entries(options.arms)) {
      const key = hash(name).toString(16);
      const done = await readJson(join(context.checkpoint, `${key}.json`));
      if (done && context.resuming) {
        rows.push(done as Record<string, string | number>);
        continue;
      }
      rows.push(await runArm(base, name, arm, key, data, options, context));
    }
    context.tell({ type: 'table', title: `Adapting to ${options.data}`, rows });
    await context.report('comparison', { data: options.data, rows });
    await loadKept(base, options, context);
    return { ...state, adapter: options.name };
  },
  async restore(state, options, context) {
    await loadKept(modelOf(state), options, context);
    return { ...state, adapter: options.name };
  },
});

type CompareOptions = z.output<typeof compare.options>;

async function runArm(
  base: tf.LayersModel,
  name: string,
  arm: Arm,
  key: string,
  data: NamedData,
  options: CompareOptions,
  context: RunContext,
): Promise<Record<string, string | number>> {
  const model = await cloneModel(base);
  try {
    const settings = { ...options, optimizer: arm.optimizer ?? options.optimizer };
    const adapter = name === options.keep ? options.name : 'arm';
    if (arm.method) {
      const configured = await configuredMethod(arm.method, arm.options, context.from);
      await attach(model, configured, { ...attachOptions(options, data, context), name: adapter });
    }
    const outcome =
      arm.train === 'none' ? undefined : await trainOn(model, data, settings, context, { label: name, key });
    const { metric, value } = await score(model, data, context.signal);
    const row = {
      way: name,
      [metric]: round(value),
      'trainable parameters': outcome ? trainableCount(model) : 0,
      seconds: outcome ? round(outcome.seconds, 1) : 0,
    };
    if (outcome) await storeCurve(context, name, outcome.losses);
    if (name === options.keep)
      await save(model, adapterDirectory(context, options.name), { name: adapter, overwrite: true });
    await writeFileAtomic(join(context.checkpoint, `${key}.json`), JSON.stringify(row), { overwrite: true });
    return row;
  } finally {
    model.dispose();
  }
}

async function loadKept(model: tf.LayersModel, options: CompareOptions, context: RunContext): Promise<void> {
  await loadAdapter(model, options.name, options.arms[options.keep].method as string, context);
}

/** Reads an adapter back; methods that are stored as plain LoRA come back as LoRA. */
async function loadAdapter(model: tf.LayersModel, name: string, method: string, context: RunContext): Promise<void> {
  const names = [...new Set([method, 'lora'])];
  const methods = await Promise.all(names.map((each) => loadMethod(each, context.from)));
  await load(model, adapterDirectory(context, name), { name, methods: methods.filter(isLinear) });
}

function attachOptions(
  { targets, name }: { targets: Targets; name: string },
  data: NamedData,
  { seed }: RunContext,
): Parameters<typeof attach>[2] {
  return {
    targets,
    name,
    seed,
    calibration: {
      data: data.train.batches(64, { seed, epoch: 0 }) as AsyncIterable<{ xs: tf.Tensor; ys: tf.Tensor }>,
      maxBatches: 16,
      loss: lossOf(data),
    },
  };
}

/** Accuracy or perplexity on named data. */
export const evaluate = defineStage({
  name: 'evaluate',
  about: 'measures accuracy or perplexity',
  needs: ['data', 'model'],
  options: z.object({
    data: z.union([dataOption, z.array(dataOption).min(1)]),
    /** Title in the report. */
    title: z.string().default('evaluation'),
  }),
  async run(state, { data, title }, context) {
    const rows = [];
    for (const name of [data].flat()) {
      const { metric, value } = await score(modelOf(state), dataOf(state, name), context.signal);
      rows.push({ data: name, [metric]: round(value) });
    }
    context.tell({ type: 'table', title, rows });
    await context.report(title, rows);
    return state;
  },
  restore: async (state) => state,
});

/** Writes a text with the model. */
export const sample = defineStage({
  name: 'sample',
  about: 'writes a text with the model',
  needs: ['data', 'model'],
  options: z.object({
    prompt: z.string().min(1),
    tokens: z.number().int().min(1).default(100),
    temperature: z.number().min(0).default(0.8),
    topK: z.number().int().min(1).optional(),
    topP: z.number().gt(0).max(1).optional(),
    title: z.string().default('sample'),
  }),
  async run(state, { prompt, tokens, temperature, topK, topP, title }, context) {
    const tokenizer = state.tokenizer ?? refuse('sample', 'needs a text; put a "text" stage before');
    const ids = tokenizer.encode(prompt, { addSpecialTokens: false });
    const more = await generate(modelOf(state), ids, {
      maxNewTokens: tokens,
      temperature,
      topK,
      topP,
      seed: context.seed,
      signal: context.signal,
    });
    const written = tokenizer.decode(more as unknown as number[]);
    context.tell({ type: 'log', text: `${title}: ${written}` });
    await context.report(title, written);
    return state;
  },
  restore: async (state) => state,
});

export function adapterDirectory({ directory }: RunContext, name: string): string {
  return join(directory, 'adapters', name);
}

function weightsFile({ checkpoint }: RunContext): string {
  return join(checkpoint, 'weights.safetensors');
}

async function storeCurve(context: RunContext, label: string, losses: readonly number[]): Promise<void> {
  const curves = (context.reported.curves ?? {}) as Record<string, number[]>;
  await context.report('curves', { ...curves, [label]: thin(losses) });
}

/** At most 200 points, each the mean of its stretch. */
function thin(losses: readonly number[]): number[] {
  const known = losses.filter((loss) => loss !== undefined);
  const stretch = Math.max(1, Math.ceil(known.length / 200));
  return Array.from({ length: Math.ceil(known.length / stretch) }, (_, i) => {
    const part = known.slice(i * stretch, (i + 1) * stretch);
    return round(part.reduce((sum, loss) => sum + loss, 0) / part.length);
  });
}

export function round(value: number, digits = 4): number {
  return Number(value.toFixed(digits));
}

function show(metric: string, value: number): string {
  return metric === 'accuracy' ? `${(100 * value).toFixed(1)} %` : value.toFixed(2);
}
