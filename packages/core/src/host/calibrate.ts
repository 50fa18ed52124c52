import * as tf from '@tensorflow/tfjs';
import { ensure, refuse } from '../errors.ts';
import type { Host } from './host.ts';
import type { LayerSite } from './sites.ts';

/** A batch of data: inputs and, where a loss is needed, targets. */
export interface Batch {
  readonly xs: tf.Tensor | tf.Tensor[];
  readonly ys?: tf.Tensor;
}

/** Data for methods whose start depends on it. */
export interface Calibration {
  /** Batches; read once, one at a time, and not disposed. */
  readonly data: Iterable<Batch> | AsyncIterable<Batch>;
  /** Loss whose gradient is wanted, e.g. `(yTrue, yPred) => tf.losses.meanSquaredError(yTrue, yPred)`. */
  readonly loss?: (yTrue: tf.Tensor, yPred: tf.Tensor) => tf.Tensor;
  /** At most this many batches are read. Default: all. */
  readonly maxBatches?: number;
}

/** Statistics of one site. */
export interface SiteStatistics {
  /** Mean over batches of the statistic, `[inDim, inDim]`. */
  activations?: tf.Tensor2D;
  /** Sum over batches of dLoss/dKernel, `[inDim, outDim]`. */
  gradients?: tf.Tensor2D;
}

/**
 * Collects statistics of the given sites in one pass over the data, holding one batch at a time.
 *
 * @param statistic one batch of a site's inputs `[rows, inDim]` → `[inDim, inDim]`.
 * @throws MatforgeError when the data is empty, a loss is missing, or values are not finite (names the layer).
 */
export async function calibrate(
  host: Host,
  sites: readonly LayerSite[],
  needs: readonly ('activations' | 'gradients')[],
  { data, loss, maxBatches = Number.POSITIVE_INFINITY }: Calibration,
  statistic: (x: tf.Tensor2D) => tf.Tensor2D,
): Promise<Map<string, SiteStatistics>> {
  const byName = new Map<string, SiteStatistics>(sites.map(({ name }) => [name, {}]));
  const wanted = new Set(byName.keys());
  const gradientsWanted = needs.includes('gradients');
  if (gradientsWanted)
    ensure(loss, 'calibration.loss', () => 'is missing: this method needs gradients; pass (yTrue, yPred) => loss');
  let batches = 0;
  try {
    for await (const { xs, ys } of data) {
      if (batches >= maxBatches) break;
      const update = tf.tidy(() => {
        const sums: Record<string, tf.Tensor> = {};
        const seen: Record<string, tf.Tensor> = {};
        if (needs.includes('activations')) {
          host.observe = (site, x) => {
            if (!wanted.has(site.name)) return;
            const value = statistic(tf.reshape(x, [-1, site.inDim]) as tf.Tensor2D);
            seen[site.name] = tf.keep(seen[site.name] ? tf.add(seen[site.name], value) : value);
          };
        }
        if (gradientsWanted) {
          if (!ys) refuse('calibration.data', 'has batches without ys: gradients need targets');
          Object.assign(sums, kernelGradients(host.model, sites, xs, ys, loss as NonNullable<typeof loss>));
        } else {
          host.model.apply(xs);
        }
        host.observe = undefined;
        return { seen, sums };
      });
      for (const [name, value] of Object.entries(update.seen))
        add(byName.get(name) as SiteStatistics, 'activations', value);
      for (const [name, value] of Object.entries(update.sums))
        add(byName.get(name) as SiteStatistics, 'gradients', value);
      batches++;
    }
  } finally {
    host.observe = undefined;
  }
  ensure(batches > 0, 'calibration.data', () => 'has no batches; the statistic of every layer is empty');
  for (const [name, statistics] of byName) {
    if (needs.includes('activations')) {
      const sum = statistics.activations ?? refuse(name, 'saw no input during calibration');
      statistics.activations = tf.tidy(() => tf.div(sum, batches)) as tf.Tensor2D;
      sum.dispose();
    }
    for (const value of [statistics.activations, statistics.gradients]) {
      if (value && !tf.tidy(() => tf.all(tf.isFinite(value)).dataSync()[0]))
        refuse(name, 'calibration statistics are not finite');
    }
  }
  return byName;
}

function add(statistics: SiteStatistics, key: keyof SiteStatistics, value: tf.Tensor): void {
  const sum = statistics[key];
  statistics[key] = (sum ? tf.add(sum, value) : value) as tf.Tensor2D;
  if (sum) {
    sum.dispose();
    value.dispose();
  }
}

function kernelGradients(
  model: tf.LayersModel,
  sites: readonly LayerSite[],
  xs: tf.Tensor | tf.Tensor[],
  ys: tf.Tensor,
  loss: (yTrue: tf.Tensor, yPred: tf.Tensor) => tf.Tensor,
): Record<string, tf.Tensor> {
  const flags = sites.map(({ weight }) => weight.trainable);
  for (const { weight } of sites) weight.trainable = true;
  try {
    const variables = sites.map(({ weight }) => weight.read());
    const { grads } = tf.variableGrads(() => tf.mean(loss(ys, model.apply(xs) as tf.Tensor)) as tf.Scalar, variables);
    return Object.fromEntries(
      sites.map(({ name, inDim, outDim }, i) => [name, tf.reshape(grads[variables[i].name], [inDim, outDim])]),
    );
  } finally {
    sites.forEach(({ weight }, i) => {
      weight.trainable = flags[i];
    });
  }
}
