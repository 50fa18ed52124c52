import * as tf from '@tensorflow/tfjs';
import { ensure, ensureKnown, MatforgeError, refuse } from '../errors.ts';
import { type CheckpointStorage, directoryStorage } from '../files/storage.ts';
import { gradientHooks, suspendGradientHooks } from '../host/hooks.ts';
import { findHost } from '../host/host.ts';
import { TransformationOptimizer } from '../optim/optimizer.ts';
import type { ScalarSchedule } from '../optim/schedules.ts';
import type { GradientTransformation } from '../optim/transformation.ts';
import { globalNorm } from '../optim/transformations.ts';
import { disposeTree, type NamedTensors } from '../optim/tree.ts';
import { type Random, random } from '../tensors/random.ts';
import { CHECKPOINT_FILE, optimizerTree, readTree, restoreOptimizer, writeTree } from './checkpoint.ts';
import {
  type BatchOptions,
  type BatchSource,
  disposeBatch,
  listTensors,
  type OpenEpoch,
  openData,
  rowsOf,
  type TrainingBatch,
  type TrainingData,
} from './data.ts';
import {
  type FunctionModel,
  type LossContext,
  type LossOption,
  type MetricOption,
  prepareLayersModel,
  type Trainee,
  traineeOf,
} from './trainee.ts';

/** Told after every update. */
export interface TrainingProgress {
  /** Number of updates made, from 1. */
  step: number;
  totalSteps?: number;
  /** 0-based. */
  epoch: number;
  /** Loss of the step's samples before the update, with penalties. */
  loss: number;
  metrics: Record<string, number>;
  /** Euclidean norm of the gradient before clipping. */
  gradientNorm: number;
  learningRate?: number;
  samplesPerSecond: number;
  /** Loss and metrics on the evaluation data, at the steps that evaluated. */
  evaluation?: Record<string, number>;
}

/** tfjs's callbacks: an object of functions, or an instance of `tf.Callback`. */
export type TrainingCallback = tf.CustomCallbackArgs | tf.Callback;

/** Options of {@link train}. */
export interface TrainingOptions<B = TrainingBatch> extends BatchOptions {
  /** Default: the optimizer that the model was compiled with. A transformation's state ends with the run. */
  optimizer?: tf.Optimizer | GradientTransformation;
  /** Compiles a layers model; default: the loss it was compiled with. A function model brings its own. */
  loss?: LossOption;
  metrics?: MetricOption[];
  /** Passes over the data. Default 1, or without limit when `steps` is given. */
  epochs?: number;
  /** Updates. */
  steps?: number;
  /** The learning rate of each update (see `schedules`); 0 is the first update. */
  schedule?: ScalarSchedule;
  /** Scales the gradient down to this Euclidean norm over all variables. */
  clipNorm?: number;
  /** Batches whose gradients are averaged, by number of samples, into one update. Default 1. */
  accumulate?: number;
  /** Evaluates after every `every` updates (default: after each epoch) and after the last. */
  evaluate?: { data: TrainingData<B>; every?: number; batchSize?: number };
  /**
   * Stops when `metric` (`loss`, `val_loss`, `val_acc`, …; default `val_loss`, without evaluation `loss` of the epoch)
   * has not improved by more than `minDelta` (default 0) for `patience` evaluations in a row (default 3). Metrics with
   * "acc" in their name are to rise, others to fall, unless `mode` says otherwise.
   */
  earlyStop?: { metric?: string; patience?: number; minDelta?: number; mode?: 'min' | 'max' };
  /**
   * Writes everything that an exact resume needs, after every `every` updates, on abort and at the end. A checkpoint
   * that is found is continued with `resume: true` and refused otherwise.
   */
  checkpoint?: { directory?: string; storage?: CheckpointStorage; every?: number; resume?: boolean };
  /** Ends the run after the update at hand, with a checkpoint where one is asked for. */
  signal?: AbortSignal;
  onProgress?: (progress: TrainingProgress) => void | Promise<void>;
  /** Sees the gradients of an update, by variable name, clipped, before the optimizer does. */
  onGradients?: (gradients: Record<string, tf.Tensor | null>, step: number, totalSteps?: number) => void;
  callbacks?: TrainingCallback | TrainingCallback[];
}

/** What {@link train} returns. */
export interface TrainingResult {
  /** Updates made, those of earlier runs of a resumed training included. */
  step: number;
  /** Epochs completed. */
  epochs: number;
  /** What ended the run. */
  reason: 'complete' | 'early-stop' | 'callback' | 'aborted';
  aborted: boolean;
  /** Loss of the last update. */
  loss: number;
  /** By epoch: means of loss and metrics over the epoch, evaluation under `val_…`. */
  history: Record<string, number[]>;
  /** Last evaluation, where there was one. */
  evaluation?: Record<string, number>;
}

/** Options of any batch type: where the data are not looked at. */
type AnyOptions = Omit<TrainingOptions<never>, 'evaluate'> & { evaluate?: { every?: number; batchSize?: number } };

/** What a checkpoint holds besides tensors. */
interface Position {
  step: number;
  epoch: number;
  /** Batches drawn from the epoch. */
  batch: number;
  loss: number;
  /** Sums over the epoch, weighted by samples. */
  totals: Record<string, number>;
  seen: number;
  history: Record<string, number[]>;
  evaluation: Record<string, number> | null;
  best: number | null;
  waited: number;
  reason: TrainingResult['reason'] | null;
}

/**
 * Trains a layers model, or a function model `{ variables, loss(batch) }`, with one loop for every kind of data,
 * optimizer and backend. The same data, seed and options give the same parameters bit for bit, also when the run was
 * interrupted and resumed from its checkpoint.
 *
 * @throws MatforgeError for options that cannot be met (before anything runs), and when loss or gradient is not finite
 *   (naming step and batch; the parameters are those of the last good update, and so is the last checkpoint).
 */
export async function train<B = TrainingBatch>(
  model: tf.LayersModel | FunctionModel<B>,
  data: TrainingData<B>,
  options: TrainingOptions<B> = {},
): Promise<TrainingResult> {
  const run = new Run(model, data, options);
  return run.run();
}

/** Mean loss and metrics of a model over data, weighted by samples; nothing is trained. */
export async function evaluateModel<B = TrainingBatch>(
  model: tf.LayersModel | FunctionModel<B>,
  data: TrainingData<B>,
  options: { batchSize?: number; seed?: number } = {},
): Promise<Record<string, number>> {
  const source = openData(data, { ...options, shuffle: false });
  const context = { training: false, step: 0, random: random(options.seed ?? 0).fork('evaluation') };
  return evaluateTrainee(traineeOf(model), source, context);
}

class Run<B> {
  private readonly options: TrainingOptions<B>;
  private readonly trainee: Trainee<B>;
  private readonly source: BatchSource<B>;
  private readonly evaluation?: BatchSource<B>;
  private readonly optimizer: tf.Optimizer;
  private readonly ownsOptimizer: boolean;
  private readonly storage?: CheckpointStorage;
  private readonly random: Random;
  private readonly callbacks: Callbacks;
  private readonly totalSteps?: number;
  private readonly epochs: number;
  /** Names in the order in which tfjs's own optimizers, which know variables by index, see them. */
  private order: string[] = [];
  private at: Position = {
    step: 0,
    epoch: 0,
    batch: 0,
    loss: Number.NaN,
    totals: {},
    seen: 0,
    history: {},
    evaluation: null,
    best: null,
    waited: 0,
    reason: null,
  };
  private speed = 0;
  private savedStep?: number;

  constructor(model: tf.LayersModel | FunctionModel<B>, data: TrainingData<B>, options: TrainingOptions<B>) {
    checkOptions(options);
    this.options = options;
    this.trainee = traineeOf(model);
    this.source = openData(data, options);
    this.evaluation = options.evaluate && openData(options.evaluate.data, evaluationOptions(options), 'evaluate.data');
    const isLayers = model instanceof tf.LayersModel;
    const merged = (isLayers && findHost(model)?.merged) || [];
    ensure(
      merged.length === 0,
      'model',
      () =>
        `has merged adapters (${merged.join(', ')}), which do not train; unmerge(model) first, or mergeAndUnload(model) to train its kernels`,
    );
    const given = options.optimizer ?? (isLayers ? model.optimizer : undefined);
    if (given === undefined) refuse('optimizer', 'missing: give a tf.Optimizer or a gradient transformation');
    ensure(
      typeof given === 'object' && ('applyGradients' in given || typeof given.update === 'function'),
      'optimizer',
      () =>
        `${given} given; accepted is a tf.Optimizer, as tf.train.adam(0.001), or a gradient transformation, as adam({ learningRate: 0.001 })`,
    );
    this.ownsOptimizer = !('applyGradients' in given);
    this.optimizer = 'applyGradients' in given ? given : new TransformationOptimizer(given);
    if (isLayers) prepareLayersModel(model, this.optimizer, options.loss, options.metrics);
    const { checkpoint } = options;
    this.storage = checkpoint?.storage ?? (checkpoint?.directory ? directoryStorage(checkpoint.directory) : undefined);
    this.random = random(options.seed ?? 0).fork('loss');
    this.callbacks = new Callbacks(isLayers ? model : undefined, options);
    this.epochs = options.epochs ?? (options.steps === undefined ? 1 : Number.POSITIVE_INFINITY);
    const updates = this.source.length && Math.ceil(this.source.length / (options.accumulate ?? 1));
    const byEpochs = updates === undefined || !Number.isFinite(this.epochs) ? undefined : updates * this.epochs;
    this.totalSteps = byEpochs === undefined ? options.steps : Math.min(byEpochs, options.steps ?? byEpochs);
    ensure(this.trainee.trainable().length > 0, 'model', () => 'has no trainable variables; everything is frozen');
  }

  async run(): Promise<TrainingResult> {
    try {
      this.order = this.trainee.trainable().map(({ name }) => name);
      await this.resume();
      await this.callbacks.trainBegin();
      while (this.at.reason === null) {
        if (this.isComplete()) this.at.reason = 'complete';
        else await this.epoch();
      }
      if (this.evaluation && this.at.reason !== 'aborted' && this.at.evaluation === null) {
        this.at.evaluation = await this.evaluateNow();
      }
      await this.save();
      await this.callbacks.trainEnd();
      const { step, epoch, reason, loss, history, evaluation } = this.at;
      const aborted = reason === 'aborted';
      return { step, epochs: epoch, reason, aborted, loss, history, ...(evaluation && { evaluation }) };
    } finally {
      if (this.ownsOptimizer) this.optimizer.dispose();
    }
  }

  private isComplete(): boolean {
    return this.at.epoch >= this.epochs || this.at.step >= (this.options.steps ?? Number.POSITIVE_INFINITY);
  }

  /** Runs the rest of an epoch: up to its last batch, the last step, or whatever stops the run. */
  private async epoch(): Promise<void> {
    const { at } = this;
    const opened = await this.source.open(at.epoch, at.batch);
    try {
      if (at.batch === 0) await this.callbacks.epochBegin(at.epoch);
      while (at.reason === null && !this.isComplete()) {
        if (this.options.signal?.aborted) {
          at.reason = 'aborted';
          return;
        }
        const stepped = await this.step(opened);
        if (!stepped || at.batch === this.source.length) {
          await this.endEpoch();
          return;
        }
      }
    } finally {
      await opened.close();
    }
  }

  private async endEpoch(): Promise<void> {
    const { at } = this;
    ensure(
      at.batch > 0,
      'data',
      () => `epoch ${at.epoch} has no batches; an iterator can be read once, give something that can be opened again`,
    );
    const { every } = this.options.evaluate ?? {};
    if (this.evaluation && every === undefined) {
      at.evaluation = await this.evaluateNow();
    }
    const logs = Object.fromEntries(Object.entries(at.totals).map(([key, total]) => [key, total / at.seen]));
    for (const [key, value] of Object.entries(at.evaluation ?? {})) logs[`val_${key}`] = value;
    for (const [key, value] of Object.entries(logs)) {
      at.history[key] ??= [];
      at.history[key].push(value);
    }
    await this.callbacks.epochEnd(at.epoch, logs);
    at.epoch++;
    at.batch = 0;
    at.totals = {};
    at.seen = 0;
    if (every === undefined) this.checkEarlyStop(logs);
    if (at.reason === null && this.callbacks.stopped()) at.reason = 'callback';
    await this.saveWhenDue();
  }

  /** One update from up to `accumulate` batches; false when the epoch has no batch left. */
  private async step(opened: OpenEpoch<B>): Promise<boolean> {
    const { at, options } = this;
    const started = performance.now();
    const wanted = options.accumulate ?? 1;
    const parts: { gradients: Record<string, tf.Tensor | null>; weight: number }[] = [];
    const logs: Record<string, number> = {};
    let samples = 0;
    let gradients: Record<string, tf.Tensor | null> = {};
    try {
      while (parts.length < wanted) {
        const batch = await opened.next();
        if (batch === undefined) break;
        try {
          await this.callbacks.batchBegin(at.batch, rowsOf(batch));
          const { values, gradients: found } = await this.backward(batch);
          const weight = rowsOf((batch as Partial<TrainingBatch>).xs ?? batch) ?? 1;
          parts.push({ gradients: found, weight });
          samples += weight;
          for (const [key, value] of Object.entries(values)) {
            logs[key] = (logs[key] ?? 0) + value * weight;
            at.totals[key] = (at.totals[key] ?? 0) + value * weight;
          }
          at.seen += weight;
          await this.callbacks.batchEnd(at.batch, weight, values);
          at.batch++;
        } finally {
          if (this.source.owned) disposeBatch(batch);
        }
      }
      if (parts.length === 0) return false;
      for (const key of Object.keys(logs)) logs[key] /= samples;
      gradients = parts.length === 1 ? { ...parts[0].gradients } : average(parts, samples);
      const norm = await this.clip(gradients);
      this.apply(gradients);
      const seconds = (performance.now() - started) / 1000;
      this.speed = this.speed === 0 ? samples / seconds : 0.9 * this.speed + 0.1 * (samples / seconds);
      const { loss, ...metrics } = logs;
      at.step++;
      at.loss = loss;
      at.evaluation = null;
      await this.afterStep(metrics, norm);
    } finally {
      for (const part of parts) tf.dispose(Object.values(part.gradients).filter((g) => g !== null));
      tf.dispose(Object.values(gradients).filter((g) => g !== null));
    }
    return true;
  }

  /** Loss, metrics and gradients of one batch; refuses what is not finite before anything changes. */
  private async backward(batch: B): Promise<{
    values: Record<string, number>;
    gradients: Record<string, tf.Tensor | null>;
  }> {
    const kept: Record<string, tf.Scalar> = {};
    const context = { training: true, step: this.at.step, random: this.random };
    const forward = (): tf.Scalar => {
      const { loss, metrics } = this.trainee.compute(batch, context);
      for (const [key, metric] of Object.entries(metrics)) kept[key] = tf.keep(metric.clone());
      return loss;
    };
    const { value, grads } = tf.variableGrads(forward, this.trainee.trainable());
    const values: Record<string, number> = { loss: (await value.data())[0] };
    for (const [key, metric] of Object.entries(kept)) values[key] = (await metric.data())[0];
    tf.dispose([value, Object.values(kept)]);
    if (!Number.isFinite(values.loss)) {
      tf.dispose(grads);
      refuse('loss', await this.describeFailure(`is ${values.loss}`, batch));
    }
    return { values, gradients: grads };
  }

  /** Norm of the gradients, which are replaced by clipped ones where asked for. */
  private async clip(gradients: Record<string, tf.Tensor | null>): Promise<number> {
    const present = Object.fromEntries(Object.entries(gradients).filter(([, g]) => g !== null)) as NamedTensors;
    const normTensor = tf.tidy(() => globalNorm(present));
    const norm = (await normTensor.data())[0];
    normTensor.dispose();
    if (!Number.isFinite(norm)) {
      const names: string[] = [];
      for (const [name, gradient] of Object.entries(present)) if (!(await allFinite(gradient))) names.push(name);
      refuse('gradient', await this.describeFailure(`of ${names.slice(0, 5).join(', ')} is not finite`));
    }
    const { clipNorm } = this.options;
    if (clipNorm !== undefined && norm > clipNorm) {
      for (const [name, gradient] of Object.entries(present)) {
        gradients[name] = tf.tidy(() => tf.mul(gradient, clipNorm / norm));
        gradient.dispose();
      }
    }
    return norm;
  }

  private async describeFailure(what: string, batch?: B): Promise<string> {
    const { step, epoch } = this.at;
    const parts: string[] = [`${what} at step ${step + 1} (epoch ${epoch}, batch ${this.at.batch - (batch ? 0 : 1)})`];
    for (const part of batch ? (['xs', 'ys'] as const) : []) {
      for (const tensor of listTensors((batch as Partial<TrainingBatch>)[part])) {
        if (!(await allFinite(tensor))) parts.push(`the batch's ${part} hold values that are not finite`);
      }
    }
    if (parts.length === 1) parts.push('a lower learning rate or clipNorm may help');
    if (this.savedStep !== undefined) parts.push(`the last checkpoint, of step ${this.savedStep}, is kept`);
    return parts.join('; ');
  }

  private apply(gradients: Record<string, tf.Tensor | null>): void {
    const { at, options, optimizer, totalSteps } = this;
    const own = { ...gradients };
    const info = { step: at.step + 1, ...(totalSteps !== undefined && { totalSteps }) };
    const after = gradientHooks(this.trainee.model).map((hook) => hook(own, info));
    options.onGradients?.(own, info.step, totalSteps);
    for (const name of Object.keys(own)) if (!this.order.includes(name)) this.order.push(name);
    if (options.schedule) setLearningRate(optimizer, options.schedule(at.step));
    const registered = tf.engine().registeredVariables;
    const list = this.order
      .filter((name) => name in registered)
      .map((name) => ({ name, tensor: (own[name] ?? null) as tf.Tensor }));
    suspendGradientHooks(this.trainee.model, () => optimizer.applyGradients(list));
    for (const finish of after) finish?.();
  }

  private async afterStep(metrics: Record<string, number>, gradientNorm: number): Promise<void> {
    const { at, options, totalSteps } = this;
    const { every } = options.evaluate ?? {};
    if (this.evaluation && every !== undefined && at.step % every === 0) {
      at.evaluation = await this.evaluateNow();
    }
    const learningRate = learningRateOf(this.optimizer, options.schedule, at.step - 1);
    await options.onProgress?.({
      step: at.step,
      ...(totalSteps !== undefined && { totalSteps }),
      epoch: at.epoch,
      loss: at.loss,
      metrics,
      gradientNorm,
      ...(learningRate !== undefined && { learningRate }),
      samplesPerSecond: this.speed,
      ...(at.evaluation && { evaluation: at.evaluation }),
    });
    if (every !== undefined && at.evaluation) {
      const measured = Object.entries(at.evaluation).map(([key, value]) => [`val_${key}`, value]);
      this.checkEarlyStop({ loss: at.loss, ...metrics, ...Object.fromEntries(measured) });
    }
    if (at.reason === null && this.callbacks.stopped()) at.reason = 'callback';
    await this.saveWhenDue();
    await breathe();
  }

  private evaluateNow(): Promise<Record<string, number>> {
    const context = { training: false, step: this.at.step, random: this.random.fork('evaluation') };
    return evaluateTrainee(this.trainee, this.evaluation as BatchSource<B>, context);
  }

  private checkEarlyStop(logs: Record<string, number>): void {
    const { at } = this;
    const { earlyStop } = this.options;
    if (!earlyStop || at.reason !== null) return;
    const metric = earlyStop.metric ?? (this.evaluation ? 'val_loss' : 'loss');
    const value =
      logs[metric] ??
      refuse('earlyStop.metric', `"${metric}" is not measured; measured: ${Object.keys(logs).join(', ')}`);
    const sign = (earlyStop.mode ?? (metric.includes('acc') ? 'max' : 'min')) === 'max' ? -1 : 1;
    if (at.best === null || sign * value < sign * at.best - (earlyStop.minDelta ?? 0)) {
      at.best = value;
      at.waited = 0;
    } else if (++at.waited >= (earlyStop.patience ?? 3)) at.reason = 'early-stop';
  }

  private async saveWhenDue(): Promise<void> {
    const every = this.options.checkpoint?.every;
    if (every !== undefined && this.at.step % every === 0 && this.savedStep !== this.at.step) await this.save();
  }

  private async save(): Promise<void> {
    if (!this.storage) return;
    const weights = this.trainee.weights();
    const optimizer = await optimizerTree(this.optimizer);
    const hooks = gradientHooks(this.trainee.model).map((hook) => hook.state?.() ?? null);
    try {
      await writeTree(this.storage, CHECKPOINT_FILE, {
        // An aborted run goes on when resumed; one that has ended for another reason stays ended.
        position: { ...this.at, reason: this.at.reason === 'aborted' ? null : this.at.reason },
        settings: settingsOf(this.options),
        random: this.random.state(),
        names: weights.map(({ name }) => name),
        weights: weights.map((variable) => variable as tf.Tensor),
        trainable: this.trainee.flags(),
        order: this.order,
        optimizer,
        hooks,
      });
      this.savedStep = this.at.step;
    } finally {
      disposeTree(optimizer);
      disposeTree(hooks);
    }
  }

  private async resume(): Promise<void> {
    const { storage } = this;
    if (!storage) return;
    const { resume = false, directory = 'the storage' } = this.options.checkpoint ?? {};
    if (!resume) {
      if (await storage.read(CHECKPOINT_FILE)) {
        refuse(
          'checkpoint',
          `${directory} holds a checkpoint; continue it with resume: true, or choose another directory`,
        );
      }
      return;
    }
    const tree = (await readTree(storage, CHECKPOINT_FILE)) as SavedRun | undefined;
    if (!tree) return;
    try {
      checkSettings(settingsOf(this.options), tree.settings);
      const weights = this.trainee.weights();
      ensure(
        weights.length === tree.weights.length,
        'checkpoint',
        () => `holds ${tree.weights.length} variables, the model has ${weights.length}`,
      );
      weights.forEach((variable, i) => {
        ensure(
          tf.util.arraysEqual(variable.shape, tree.weights[i].shape),
          'checkpoint',
          () => `"${tree.names[i]}" has shape [${tree.weights[i].shape}], "${variable.name}" [${variable.shape}]`,
        );
      });
      // The same model built twice in a process gets other names: what counts is the place.
      const current = new Map(tree.names.map((name, i) => [name, weights[i].name]));
      const rename = (name: string): string => current.get(name) ?? name;
      weights.forEach((variable, i) => {
        variable.assign(tree.weights[i]);
      });
      this.trainee.setFlags(tree.trainable);
      this.order = tree.order.map(rename);
      await restoreOptimizer(this.optimizer, tree.optimizer, rename);
      gradientHooks(this.trainee.model).forEach((hook, i) => {
        if (tree.hooks[i] != null) hook.restore?.(tree.hooks[i]);
      });
      this.random.restore(tree.random);
      // More epochs or steps than before continue a run that was complete.
      const reason = tree.position.reason === 'complete' ? null : tree.position.reason;
      Object.assign(this.at, tree.position, { reason });
      this.savedStep = this.at.step;
    } finally {
      disposeTree(tree);
    }
  }
}

interface SavedRun {
  position: Position;
  settings: Record<string, number | boolean>;
  random: number[];
  names: string[];
  weights: tf.Tensor[];
  trainable: boolean[];
  order: string[];
  optimizer: unknown;
  hooks: unknown[];
}

/** The options that decide which numbers a run computes; a resumed run must agree with them. */
function settingsOf(options: AnyOptions): Record<string, number | boolean> {
  const { batchSize = 32, shuffle = true, dropRemainder = false, seed = 0, accumulate = 1, clipNorm = 0 } = options;
  return { batchSize, shuffle, dropRemainder, seed, accumulate, clipNorm };
}

function checkSettings(now: Record<string, unknown>, then: Record<string, unknown>): void {
  for (const [key, value] of Object.entries(now)) {
    ensure(value === then[key], key, () => `${value} given; the checkpoint was written with ${then[key]}`);
  }
}

const OPTIONS = Object.keys({
  optimizer: true,
  loss: true,
  metrics: true,
  epochs: true,
  steps: true,
  schedule: true,
  clipNorm: true,
  accumulate: true,
  evaluate: true,
  earlyStop: true,
  checkpoint: true,
  signal: true,
  onProgress: true,
  onGradients: true,
  callbacks: true,
  batchSize: true,
  shuffle: true,
  dropRemainder: true,
  seed: true,
} satisfies Record<keyof TrainingOptions, true>);

function checkOptions(options: AnyOptions): void {
  ensureKnown('train', options, OPTIONS);
  const { epochs, steps, accumulate, clipNorm, evaluate, earlyStop, checkpoint } = options;
  const whole: [string, number | undefined][] = [
    ['epochs', epochs],
    ['steps', steps],
    ['accumulate', accumulate],
    ['evaluate.every', evaluate?.every],
    ['earlyStop.patience', earlyStop?.patience],
    ['checkpoint.every', checkpoint?.every],
  ];
  for (const [field, value] of whole) {
    ensure(
      value === undefined || (Number.isInteger(value) && value >= 1),
      field,
      () => `${value} given; accepted is an integer >= 1`,
    );
  }
  ensure(clipNorm === undefined || clipNorm > 0, 'clipNorm', () => `${clipNorm} given; accepted is a number > 0`);
  if (checkpoint && !checkpoint.directory && !checkpoint.storage) {
    refuse('checkpoint', 'names no place; give checkpoint.directory or checkpoint.storage');
  }
  if (earlyStop?.metric?.startsWith('val_') && !evaluate) {
    refuse('earlyStop.metric', `"${earlyStop.metric}" needs evaluation data; give evaluate: { data }`);
  }
}

function evaluationOptions(options: AnyOptions): BatchOptions {
  return { batchSize: options.evaluate?.batchSize ?? options.batchSize, seed: options.seed, shuffle: false };
}

async function evaluateTrainee<B>(
  trainee: Trainee<B>,
  source: BatchSource<B>,
  context: LossContext,
): Promise<Record<string, number>> {
  const totals: Record<string, number> = {};
  let seen = 0;
  const opened = await source.open(0, 0);
  try {
    for (let batch = await opened.next(); batch !== undefined; batch = await opened.next()) {
      const current = batch;
      try {
        const weight = rowsOf((current as Partial<TrainingBatch>).xs ?? current) ?? 1;
        const measured = tf.tidy(() => {
          const { loss, metrics } = trainee.compute(current, context);
          return { ...metrics, loss };
        });
        for (const [key, value] of Object.entries(measured)) {
          totals[key] = (totals[key] ?? 0) + (await value.data())[0] * weight;
          value.dispose();
        }
        seen += weight;
      } finally {
        if (source.owned) disposeBatch(current);
      }
      await breathe();
    }
  } finally {
    await opened.close();
  }
  ensure(seen > 0, 'evaluate.data', () => 'has no batches; give data that can be read more than once');
  const { loss, ...metrics } = totals;
  return Object.fromEntries(Object.entries({ loss, ...metrics }).map(([key, total]) => [key, total / seen]));
}

function average(
  parts: { gradients: Record<string, tf.Tensor | null>; weight: number }[],
  samples: number,
): Record<string, tf.Tensor | null> {
  const names = new Set(parts.flatMap(({ gradients }) => Object.keys(gradients)));
  return Object.fromEntries(
    [...names].map((name) => {
      const terms = parts.filter(({ gradients }) => gradients[name] != null);
      if (terms.length === 0) return [name, null];
      const mean = tf.tidy(() =>
        tf.addN(terms.map(({ gradients, weight }) => tf.mul(gradients[name] as tf.Tensor, weight / samples))),
      );
      return [name, mean];
    }),
  );
}

async function allFinite(tensor: tf.Tensor): Promise<boolean> {
  const values = await tensor.data();
  return values.every((value) => Number.isFinite(value));
}

/** Sets the rate of any optimizer; those of tfjs that have no setter read their field at every update. */
function setLearningRate(optimizer: tf.Optimizer, rate: number): void {
  const target = optimizer as unknown as { setLearningRate?(rate: number): void; learningRate?: number };
  if (target.setLearningRate) target.setLearningRate(rate);
  else if (typeof target.learningRate === 'number') target.learningRate = rate;
  else refuse('schedule', `the learning rate of ${optimizer.getClassName()} cannot be set`);
}

function learningRateOf(
  optimizer: tf.Optimizer,
  schedule: ScalarSchedule | undefined,
  step: number,
): number | undefined {
  if (schedule) return schedule(step);
  if (optimizer instanceof TransformationOptimizer) {
    const rate = optimizer.transformation.learningRate;
    return typeof rate === 'function' ? rate(step) : optimizer.learningRate;
  }
  return (optimizer as unknown as { learningRate?: number }).learningRate;
}

let lastBreath = 0;

/** Lets timers, signals and the page have their turn, at most every 20 ms: tfjs's promises alone never do. */
async function breathe(): Promise<void> {
  if (performance.now() - lastBreath < 20) return;
  await new Promise<void>((resolve) => {
    if (typeof setImmediate === 'function') setImmediate(resolve);
    else setTimeout(resolve, 0);
  });
  lastBreath = performance.now();
}

/** Calls tfjs's callbacks as `model.fit` does. */
class Callbacks {
  private readonly list: TrainingCallback[];
  private readonly model?: tf.LayersModel;

  constructor(model: tf.LayersModel | undefined, options: AnyOptions) {
    const given = options.callbacks ?? [];
    this.list = Array.isArray(given) ? given : [given];
    this.model = model;
    for (const callback of this.list) {
      if (!('setModel' in callback)) continue;
      if (!model) {
        throw new MatforgeError('callbacks', 'a tf.Callback needs a layers model; give an object of functions instead');
      }
      callback.setModel(model);
      callback.setParams({ epochs: options.epochs ?? 1, batchSize: options.batchSize ?? 32, verbose: 0 });
    }
  }

  /** True when a callback has asked for the end by `model.stopTraining`. */
  stopped(): boolean {
    return this.model?.stopTraining === true;
  }

  async trainBegin(): Promise<void> {
    if (this.model) this.model.stopTraining = false;
    for (const callback of this.list) await callback.onTrainBegin?.();
  }

  async trainEnd(): Promise<void> {
    for (const callback of this.list) await callback.onTrainEnd?.();
  }

  async epochBegin(epoch: number): Promise<void> {
    for (const callback of this.list) await callback.onEpochBegin?.(epoch);
  }

  async epochEnd(epoch: number, logs: Record<string, number>): Promise<void> {
    for (const callback of this.list) await callback.onEpochEnd?.(epoch, logs);
  }

  async batchBegin(batch: number, size: number | undefined): Promise<void> {
    for (const callback of this.list) await callback.onBatchBegin?.(batch, { batch, size: size ?? 1 });
  }

  async batchEnd(batch: number, size: number, values: Record<string, number>): Promise<void> {
    for (const callback of this.list) await callback.onBatchEnd?.(batch, { batch, size, ...values });
  }
}
