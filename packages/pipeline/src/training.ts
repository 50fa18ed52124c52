import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { train } from '@matforge/core';
import { classificationLoss, languageModelLoss, perplexity } from '@matforge/models';
import * as tf from '@tensorflow/tfjs';
import type { RunContext } from './context.ts';
import { makeOptimizer, makeSchedule, type TrainingStageOptions } from './optimizers.ts';
import type { NamedData } from './state.ts';

/** A run was stopped by its signal; it can be resumed. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted';
}

/** What a training stage reports. */
export interface TrainingOutcome {
  readonly steps: number;
  readonly seconds: number;
  readonly loss: number;
  readonly trainable: number;
  /** One entry per update. */
  readonly losses: number[];
}

/** How a training is labelled and checked in on. */
export interface TrainingLabel {
  readonly label: string;
  /** Folder name below the stage's checkpoint folder. */
  readonly key: string;
}

/**
 * Trains a model on named data: the shared part of every stage that trains. Resumes from the stage's checkpoint.
 *
 * @param compiled null to train with the optimizer and the loss that the model is compiled with.
 * @throws Interrupted when the run's signal stops it; MatforgeError when the loss is not finite.
 */
export async function trainOn(
  model: tf.LayersModel,
  data: NamedData,
  options: TrainingStageOptions,
  context: RunContext,
  { label, key }: TrainingLabel,
  compiled?: null,
): Promise<TrainingOutcome> {
  const batches = Math.ceil(data.train.size / options.batchSize);
  const steps = options.steps ?? options.epochs * batches;
  const optimizer = compiled === null ? undefined : await makeOptimizer(options.optimizer, context.from);
  const losses: number[] = [];
  const directory = join(context.checkpoint, key);
  const started = performance.now();
  let told = 0;
  const result = await train(
    model,
    ({ epoch }) =>
      data.train.batches(options.batchSize, { seed: context.seed, epoch }) as AsyncIterable<{
        xs: tf.Tensor;
        ys: tf.Tensor;
      }>,
    {
      ...(optimizer && { optimizer }),
      ...(compiled !== null && { loss: lossOf(data) }),
      steps,
      seed: context.seed,
      schedule: optimizer ? makeSchedule(options, steps) : undefined,
      clipNorm: options.clipNorm,
      signal: context.signal,
      checkpoint: { directory, every: Math.max(50, Math.round(steps / 4)), resume: context.resuming },
      onProgress: async ({ step, totalSteps, loss, samplesPerSecond, learningRate }) => {
        losses[step - 1] = loss;
        const now = performance.now();
        if (now - told > 100 || step === totalSteps) {
          told = now;
          const text = `loss ${loss.toFixed(3)}  ${Math.round(samplesPerSecond)}/s`;
          context.tell({ type: 'progress', label, step, total: totalSteps, text });
          await context.metric({
            stage: label,
            step,
            loss,
            learningRate,
            samplesPerSecond: Math.round(samplesPerSecond),
          });
        }
      },
    },
  );
  if (result.aborted) throw new Interrupted(`${label} was stopped after ${result.step} of ${steps} steps`);
  await rm(directory, { recursive: true, force: true });
  return {
    steps: result.step,
    seconds: (performance.now() - started) / 1000,
    loss: result.loss,
    trainable: trainableCount(model),
    losses,
  };
}

/** The loss that a task trains with. */
export function lossOf({ task }: NamedData): (yTrue: tf.Tensor, yPred: tf.Tensor) => tf.Scalar {
  return task === 'language' ? languageModelLoss : classificationLoss;
}

/** Numbers that training moves. */
export function trainableCount(model: tf.LayersModel): number {
  return model.trainableWeights.reduce(
    (sum, weight) => sum + weight.shape.reduce<number>((product, size) => product * (size ?? 1), 1),
    0,
  );
}

/** Accuracy on the test data, or perplexity of the test text. */
export async function score(
  model: tf.LayersModel,
  data: NamedData,
  signal?: AbortSignal,
): Promise<{ metric: string; value: number }> {
  if (data.task === 'language') {
    const window = data.train.features.xs.shape[0];
    return { metric: 'perplexity', value: await perplexity(model, data.testTokens as Int32Array, { window, signal }) };
  }
  let [hits, count] = [0, 0];
  for await (const { xs, ys } of data.test.batches(256)) {
    signal?.throwIfAborted();
    hits += tf.tidy(() => {
      const predicted = tf.argMax(model.apply(xs as tf.Tensor) as tf.Tensor, -1);
      return tf.sum(tf.cast(tf.equal(predicted, tf.cast(ys as tf.Tensor, 'int32')), 'int32')).dataSync()[0];
    });
    count += (ys as tf.Tensor).shape[0];
    tf.dispose([xs, ys]);
  }
  return { metric: 'accuracy', value: hits / count };
}
