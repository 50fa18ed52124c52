import { ensure, option, parseConfig } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';

/** Options of {@link languageModelLoss}. */
export interface LanguageModelLossOptions {
  /** Label of positions that do not count. Default -100. */
  ignoreIndex?: number;
  /** Labels are the inputs themselves: the label of position t is compared with the scores of t - 1. Default false. */
  shift?: boolean;
}

/**
 * Mean cross-entropy of next-token scores, in nats per counted token: -log softmax(scores)[label]. For `model.compile`
 * (with `fitDataset`, or `fit` on a model compiled by {@link compileLanguageModel}) and for training loops.
 *
 * @param labels [batch, positions] (or [batch, positions, 1]) token ids: the token that follows each position
 * @param logits [batch, positions, vocabulary]
 * @returns scalar; 0 when no label counts
 */
export function languageModelLoss(
  labels: tf.Tensor,
  logits: tf.Tensor,
  { ignoreIndex = -100, shift = false }: LanguageModelLossOptions = {},
): tf.Scalar {
  return tf.tidy(() => {
    const [batch, positions, vocabulary] = logits.shape as number[];
    ensure(
      labels.size === batch * positions,
      'languageModelLoss.labels',
      () => `shape [${labels.shape}] does not fit logits [${logits.shape}]: one label per position is needed`,
    );
    let ids = tf.cast(tf.reshape(labels, [batch, positions]), 'int32');
    let scores = logits;
    if (shift) {
      ids = tf.slice(ids, [0, 1], [batch, positions - 1]);
      scores = tf.slice(logits, [0, 0, 0], [batch, positions - 1, vocabulary]);
    }
    const { sum, count } = crossEntropy(tf.reshape(scores, [-1, vocabulary]), tf.reshape(ids, [-1]), ignoreIndex);
    return tf.div(sum, tf.maximum(count, 1)) as tf.Scalar;
  });
}

/** Sum of -log softmax(logits)[label] over the rows whose label counts, and how many those are. */
function crossEntropy(logits: tf.Tensor, labels: tf.Tensor, ignoreIndex: number): { sum: tf.Tensor; count: tf.Tensor } {
  const counted = tf.cast(tf.notEqual(labels, tf.scalar(ignoreIndex, 'int32')), 'float32');
  const known = tf.mul(labels, tf.cast(counted, 'int32')) as tf.Tensor1D;
  const weight = tf.expandDims(counted, 1);
  const target = tf.mul(tf.oneHot(known, logits.shape[1] as number), weight);
  const negative = tf.customGrad((x, save) => {
    const logProbabilities = tf.logSoftmax(x as tf.Tensor);
    (save as (tensors: tf.Tensor[]) => void)([logProbabilities, target, weight]);
    const value = tf.sub(0, tf.sum(tf.mul(logProbabilities, target)));
    // d/dx of the sum is softmax(x) - target on counted rows.
    const gradFunc = (dy: tf.Tensor, saved: tf.Tensor[]) =>
      tf.mul(dy, tf.sub(tf.mul(tf.exp(saved[0]), saved[2]), saved[1]));
    return { value, gradFunc };
  });
  return { sum: negative(logits), count: tf.sum(counted) };
}

/**
 * Cross-entropy from logits for classifiers, as `model.compile` wants it; tfjs's own loss of that name takes
 * probabilities.
 *
 * @param labels one-hot [batch, classes], or class numbers [batch] or [batch, 1]
 * @param logits [batch, classes]
 */
export function classificationLoss(labels: tf.Tensor, logits: tf.Tensor): tf.Scalar {
  return tf.tidy(() => {
    const classes = logits.shape[1] as number;
    const ids = labels.size === logits.size && classes > 1 ? tf.argMax(labels, 1) : tf.cast(labels, 'int32');
    const { sum, count } = crossEntropy(logits, tf.reshape(ids, [-1]), -100);
    return tf.div(sum, tf.maximum(count, 1)) as tf.Scalar;
  });
}

/**
 * Compiles a language model with {@link languageModelLoss} so that `fit`, `evaluate` and `trainOnBatch` take labels
 * [batch, positions]; plain `compile` makes tfjs ask for labels of the logits' shape there (`fitDataset` does not).
 */
export function compileLanguageModel(
  model: tf.LayersModel,
  optimizer: string | tf.Optimizer,
  options: LanguageModelLossOptions = {},
): void {
  model.compile({ optimizer, loss: (labels, logits) => languageModelLoss(labels, logits, options) });
  (model as unknown as { feedOutputShapes: tf.Shape[] }).feedOutputShapes = [[null, null]];
}

const perplexityOptions = z.object({
  window: option.count().default(128),
  batchSize: option.count().default(8),
});

/** Options of {@link perplexity}. */
export interface PerplexityOptions {
  /** Positions per window; each predicted token sees what comes before it in its window. Default 128. */
  window?: number;
  /** Windows that run together. Default 8. */
  batchSize?: number;
  /** Stops between batches. */
  signal?: AbortSignal;
}

/**
 * exp(mean negative log-likelihood per token) of a text under a language model. The text is cut into windows that do
 * not overlap; every token but the first is predicted exactly once.
 *
 * @param model input_ids [batch, positions] to logits [batch, positions, vocabulary]
 * @param tokens token ids of the text, at least 2
 * @throws MatforgeError for too few tokens or a wrong option; the signal's reason when aborted.
 */
export async function perplexity(
  model: tf.LayersModel,
  tokens: ArrayLike<number>,
  { signal, ...options }: PerplexityOptions = {},
): Promise<number> {
  const { window, batchSize } = parseConfig('perplexity', perplexityOptions, options);
  ensure(tokens.length >= 2, 'perplexity.tokens', () => `needs at least 2 tokens, got ${tokens.length}`);
  const ids = Int32Array.from(tokens);
  const predicted = ids.length - 1;
  let total = 0;
  const measure = async (start: number, rows: number, width: number): Promise<void> => {
    signal?.throwIfAborted();
    const sum = tf.tidy(() => {
      const end = start + rows * width;
      const inputs = tf.tensor2d(ids.slice(start, end), [rows, width], 'int32');
      const labels = tf.tensor1d(ids.slice(start + 1, end + 1), 'int32');
      const logits = model.apply(inputs) as tf.Tensor;
      return crossEntropy(tf.reshape(logits, [rows * width, -1]), labels, -100).sum;
    });
    total += (await sum.data())[0];
    sum.dispose();
  };
  const windows = Math.floor(predicted / window);
  for (let i = 0; i < windows; i += batchSize) await measure(i * window, Math.min(batchSize, windows - i), window);
  if (predicted % window) await measure(windows * window, 1, predicted % window);
  return Math.exp(total / predicted);
}
