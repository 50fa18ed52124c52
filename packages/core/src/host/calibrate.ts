import * as tf from '@tensorflow/tfjs';
import { during } from '../blocking.ts';
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
 * @param statistic one batch of a site's inputs `[rows, inDim]` → `[inDim, inDim]`. The rows of a convolution are the
 *   patches that its kernel sees.
 * @throws MatforgeError when the data is empty, a loss is missing, or values are not finite (names the layer).
 */
export async function calibrate(
  host: Host,
  sites: readonly LayerSite[],
  needs: readonly ('activations' | 'gradients')[],
  { data, loss, maxBatches = Number.POSITIVE_INFINITY }: Calibration,
  statistic: (x: tf.Tensor2D, site: LayerSite) => tf.Tensor2D,
): Promise<Map<string, SiteStatistics>> {
  const bySite = new Map<string, SiteStatistics>(sites.map(({ name }) => [name, {}]));
  const gradientsWanted = needs.includes('gradients');
  if (gradientsWanted)
    ensure(loss, 'calibration.loss', () => 'is missing: this method needs gradients; pass (yTrue, yPred) => loss');
  const observe = (site: LayerSite, x: tf.Tensor) => {
    const statistics = bySite.get(site.name);
    if (statistics) accumulate(statistics, 'activations', () => statistic(inputRows(site, x), site));
  };
  let batches = 0;
  try {
    for await (const { xs, ys } of data) {
      if (needs.includes('activations')) host.observe = observe;
      tf.tidy(() => {
        if (!gradientsWanted) {
          host.model.apply(xs);
          return;
        }
        if (!ys) refuse('calibration.data', 'has batches without ys: gradients need targets');
        const gradients = kernelGradients(host.model, sites, xs, ys, loss as NonNullable<typeof loss>);
        for (const [name, gradient] of Object.entries(gradients))
          accumulate(bySite.get(name) as SiteStatistics, 'gradients', () => gradient);
      });
      host.observe = undefined;
      if (++batches >= maxBatches) break;
    }
    ensure(batches > 0, 'calibration.data', () => 'has no batches; the statistic of every layer is empty');
    for (const [name, statistics] of bySite) {
      if (needs.includes('activations')) {
        const sum = statistics.activations ?? refuse(name, 'saw no input during calibration');
        statistics.activations = tf.tidy(() => tf.div(sum, batches)) as tf.Tensor2D;
        sum.dispose();
      }
      for (const [what, value] of Object.entries(statistics)) {
        if (!during('calibration', () => tf.tidy(() => tf.all(tf.isFinite(value)).dataSync()[0])))
          refuse(name, `the ${what} of the calibration data are not finite; look for NaN or infinity in the data`);
      }
    }
  } catch (error) {
    tf.dispose([...bySite.values()].flatMap((statistics) => Object.values(statistics)));
    throw error;
  } finally {
    host.observe = undefined;
  }
  return bySite;
}

function accumulate(statistics: SiteStatistics, key: keyof SiteStatistics, term: () => tf.Tensor): void {
  const sum = statistics[key];
  // Kept, because layers run inside the model's own tidy.
  statistics[key] = tf.keep(tf.tidy(() => (sum ? tf.add(sum, term()) : tf.clone(term())))) as tf.Tensor2D;
  sum?.dispose();
}

/** What the kernel `[inDim, outDim]` of a site is multiplied with: its inputs, or the patches of a convolution. */
function inputRows(site: LayerSite, x: tf.Tensor): tf.Tensor2D {
  if (site.kind !== 'conv2d') return tf.reshape(x, [-1, site.inDim]) as tf.Tensor2D;
  const { layer, weight, inDim } = site;
  const [height, width, channels] = weight.read().shape;
  // Convolving with the identity lays every patch out as a row.
  const identity = tf.reshape(tf.eye(inDim), [height, width, channels as number, inDim]) as tf.Tensor4D;
  const first = layer.dataFormat === 'channelsFirst';
  const image = (first ? tf.transpose(x, [0, 2, 3, 1]) : x) as tf.Tensor4D;
  const { strides = [1, 1], padding = 'valid', dilationRate = [1, 1] } = layer;
  return tf.reshape(tf.conv2d(image, identity, strides, padding, 'NHWC', dilationRate), [-1, inDim]) as tf.Tensor2D;
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
