import * as tf from '@tensorflow/tfjs';
import { ensure, refuse } from '../errors.ts';
import type { Random } from '../tensors/random.ts';
import type { Tensors, TrainingBatch } from './data.ts';

/** What a loss function gets to know besides its batch. */
export interface LossContext {
  /** False during evaluation. */
  training: boolean;
  /** Number of updates made so far. */
  step: number;
  /** Randomness for dropout, noise and the like; its position is part of a checkpoint. */
  random: Random;
}

/** A model given by its variables and its loss. */
export interface FunctionModel<B = TrainingBatch> {
  /** The variables to train, in a fixed order; a function is asked anew at every step. */
  variables: tf.Variable[] | Record<string, tf.Variable> | (() => tf.Variable[]);
  /** The loss of a batch, a scalar, with metrics if wanted. */
  loss(batch: B, context: LossContext): tf.Scalar | { loss: tf.Scalar; metrics?: Record<string, tf.Scalar> };
}

/** A loss as `model.compile` takes it: by name or as a function, one or one for each output. */
export type LossOption = string | string[] | Record<string, string> | LossFunction | LossFunction[];
/** The loss of each sample, or their mean. */
export type LossFunction = (yTrue: tf.Tensor, yPred: tf.Tensor) => tf.Tensor;
/** A metric as `model.compile` takes it: by name or as a function. */
export type MetricOption = string | LossFunction;

/** Everything the loop wants from a model. */
export interface Trainee<B> {
  /** The object that gradient hooks are registered for. */
  readonly model: object;
  /** Every variable that a checkpoint holds, in a fixed order. */
  weights(): tf.Variable[];
  /** The variables to be trained now. */
  trainable(): tf.Variable[];
  /** Flags that say which of {@link weights} are trained, and the way to set them. */
  flags(): boolean[];
  setFlags(flags: boolean[]): void;
  compute(batch: B, context: LossContext): { loss: tf.Scalar; metrics: Record<string, tf.Scalar> };
}

// What tfjs's models hold after compile(), beyond their declared interface.
interface Compiled {
  lossFunctions?: LossFunction[];
  metricsTensors: [LossFunction, number][];
  metricsNames: string[];
  feedOutputShapes?: (number | null)[][];
  calculateLosses(): tf.Scalar[];
}

interface LayerWeight {
  readonly id: number;
  trainable: boolean;
  read(): tf.Variable;
}

export function traineeOf<B>(model: tf.LayersModel | FunctionModel<B>): Trainee<B> {
  if (model instanceof tf.LayersModel) return layersTrainee(model) as unknown as Trainee<B>;
  ensure(
    typeof model?.loss === 'function' && model.variables !== undefined,
    'model',
    () => 'accepted is a tf.LayersModel or an object { variables, loss(batch) }',
  );
  return functionTrainee(model);
}

function functionTrainee<B>(model: FunctionModel<B>): Trainee<B> {
  const variables = (): tf.Variable[] =>
    typeof model.variables === 'function' ? model.variables() : Object.values(model.variables);
  return {
    model,
    weights: variables,
    trainable: () => variables().filter((variable) => variable.trainable),
    flags: () => variables().map((variable) => variable.trainable),
    setFlags: (flags) => {
      variables().forEach((variable, i) => {
        variable.trainable = flags[i];
      });
    },
    compute(batch, context) {
      const result = model.loss(batch, context);
      const { loss, metrics = {} } = result instanceof tf.Tensor ? { loss: result } : result;
      ensure(
        loss instanceof tf.Tensor && loss.size === 1,
        'model.loss',
        () => `returned ${loss instanceof tf.Tensor ? `shape [${loss.shape}]` : typeof loss}; a scalar is wanted`,
      );
      return { loss: tf.reshape(loss, []) as tf.Scalar, metrics };
    },
  };
}

function layersTrainee(model: tf.LayersModel): Trainee<TrainingBatch> {
  // A sequential model keeps what compile() made in an inner model, which is built late.
  const compiledModel = (): Compiled => ((model as { model?: tf.LayersModel }).model ?? model) as unknown as Compiled;
  // tfjs lists trainable weights first; the order of creation does not change when a weight is frozen.
  const ordered = () => (model.weights as unknown as LayerWeight[]).sort((a, b) => a.id - b.id);
  return {
    model,
    weights: () => ordered().map((weight) => weight.read()),
    trainable: () => model.trainableWeights.map((weight) => weight.read() as tf.Variable),
    flags: () => ordered().map((weight) => weight.trainable),
    setFlags: (flags) => {
      ordered().forEach((weight, i) => {
        weight.trainable = flags[i];
      });
    },
    compute(batch, { training }) {
      const compiled = compiledModel();
      const xs = byPosition(batch.xs, model.inputNames, 'data.xs');
      const ys = byPosition(batch.ys, model.outputNames, 'data.ys');
      xs.forEach((x, i) => {
        checkShape(x, model.inputs[i].shape, `data.xs (input "${model.inputNames[i]}")`);
      });
      ys.forEach((y, i) => {
        // tfjs's own losses take targets of the output's shape; what a function takes is its own affair.
        if (hasNamedLoss(model, i))
          checkShape(y, compiled.feedOutputShapes?.[i], `data.ys (output "${model.outputNames[i]}")`);
      });
      const applied = model.apply(xs.length === 1 ? xs[0] : xs, { training }) as tf.Tensor | tf.Tensor[];
      const outputs = Array.isArray(applied) ? applied : [applied];
      // As in tfjs's own train step, so that both loops train alike.
      const losses = (compiled.lossFunctions as LossFunction[]).map((f, i) => tf.mean(f(ys[i], outputs[i])));
      const penalties = training ? compiled.calculateLosses() : [];
      const metrics: Record<string, tf.Scalar> = {};
      compiled.metricsTensors.forEach(([metric, output], i) => {
        const isLoss = outputs.length > 1 && i < outputs.length;
        metrics[compiled.metricsNames[i + 1]] = isLoss
          ? (losses[i] as tf.Scalar)
          : (tf.mean(metric(ys[output], outputs[output])) as tf.Scalar);
      });
      return { loss: tf.addN([...losses, ...penalties]) as tf.Scalar, metrics };
    },
  };
}

function hasNamedLoss({ loss, outputNames }: tf.LayersModel, output: number): boolean {
  const own = Array.isArray(loss) ? loss[output] : typeof loss === 'object' ? loss[outputNames[output]] : loss;
  return typeof own === 'string';
}

/** Compiles a layers model when a loss is given, and makes sure that it has one. */
export function prepareLayersModel(
  model: tf.LayersModel,
  optimizer: tf.Optimizer,
  loss: LossOption | undefined,
  metrics: MetricOption[] | undefined,
): void {
  if (loss !== undefined) model.compile({ optimizer, loss, metrics: metrics as string[] });
  else if (metrics !== undefined) refuse('metrics', 'metrics need options.loss as well, or belong to model.compile');
  else if (model.loss === undefined) refuse('loss', 'missing: the model is not compiled; give options.loss');
}

function byPosition(part: Tensors, names: string[], field: string): tf.Tensor[] {
  if (part instanceof tf.Tensor) return checkCount([part], names, field);
  if (Array.isArray(part)) return checkCount(part, names, field);
  ensure(typeof part === 'object' && part !== null, field, () => 'missing from the batch; batches are { xs, ys }');
  return names.map(
    (name) => part[name] ?? refuse(field, `no tensor "${name}"; given: ${Object.keys(part).join(', ')}`),
  );
}

function checkCount(tensors: tf.Tensor[], names: string[], field: string): tf.Tensor[] {
  ensure(
    tensors.length === names.length,
    field,
    () => `${tensors.length} tensors given; the model wants ${names.length}: ${names.join(', ')}`,
  );
  return tensors;
}

function checkShape(tensor: tf.Tensor, wanted: (number | null)[] | undefined, field: string): void {
  if (!wanted) return;
  const fits = tensor.rank === wanted.length && tensor.shape.every((n, i) => wanted[i] === null || wanted[i] === n);
  ensure(fits, field, () => `shape [${tensor.shape}] given; wanted is [${wanted.map((n) => n ?? 'any')}]`);
}
