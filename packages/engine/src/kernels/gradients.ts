import * as tf from '@tensorflow/tfjs';

// Gradients that tfjs makes in many steps: a sum's is a tensor of ones from JavaScript times the upstream gradient, a tile's
// one slice for each copy. On other backends they stay as they are. And some that tfjs has for operands of one shape only.

const STOCK = Symbol.for('matforge.engine.stockGradients');

/** The gradients as tfjs brings them; remembered once per tfjs, whoever asks. */
function stockGradient(kernelName: string): tf.GradConfig {
  const home = tf.engine() as unknown as { [STOCK]?: Map<string, tf.GradConfig> };
  home[STOCK] ??= new Map();
  const stock = home[STOCK].get(kernelName) ?? tf.getGradient(kernelName);
  home[STOCK].set(kernelName, stock);
  return stock;
}

type Gradient = (dy: tf.Tensor, x: tf.Tensor, attrs: Record<string, unknown>) => tf.Tensor;

function onWasm(kernelName: string, gradient: Gradient): void {
  const stock = stockGradient(kernelName);
  tf.registerGradient({
    ...stock,
    gradFunc: (dy, saved, attrs) =>
      tf.getBackend() === 'wasm'
        ? { x: () => gradient(dy as tf.Tensor, (saved as tf.Tensor[])[0], attrs as unknown as Record<string, unknown>) }
        : stock.gradFunc(dy, saved, attrs),
  });
}

/** A reduced tensor repeated along the axes that went. */
function spread(y: tf.Tensor, { shape }: tf.Tensor, attrs: Record<string, unknown>): tf.Tensor {
  const axes = tf.util.parseAxisParam(attrs.axis as number | number[], shape);
  const kept = shape.map((length, axis) => (axes.includes(axis) ? 1 : length));
  return shape.includes(0) ? tf.zeros(shape) : tf.broadcastTo(tf.reshape(y, kept), shape);
}

/** Sum over the axes along which an operand was repeated. */
function reduceTo(x: tf.Tensor, { shape }: tf.Tensor): tf.Tensor {
  const axes = tf.broadcast_util.getReductionAxes(shape, x.shape);
  return tf.reshape(axes.length > 0 ? tf.sum(x, axes) : x, shape);
}

type Slope = (a: tf.Tensor, b: tf.Tensor) => tf.Tensor;

/** A function of two tensors whose gradients in tfjs are those of equal shapes. */
function ofTwo(kernelName: string, toA: Slope, toB: Slope): void {
  tf.registerGradient({
    kernelName,
    inputsToSave: ['a', 'b'],
    gradFunc: (dy, saved) => {
      const [a, b] = saved as tf.Tensor[];
      const along = (slope: Slope, to: tf.Tensor) => () =>
        reduceTo(tf.mul(dy as tf.Tensor, tf.cast(slope(a, b), 'float32')), to);
      return { a: along(toA, a), b: along(toB, b) };
    },
  });
}

/** Registers the gradients of tf.sum, tf.mean, tf.tile (tf.broadcastTo), tf.cumsum, tf.matMul, extremes of two, and squared differences. */
export function registerGradients(): void {
  ofTwo('Maximum', tf.greaterEqual, tf.less);
  ofTwo('Minimum', tf.lessEqual, tf.greater);
  const twice: Slope = (a, b) => tf.mul(tf.sub(a, b), 2);
  ofTwo('SquaredDifference', twice, (a, b) => twice(b, a));
  onWasm('Sum', spread);
  onWasm('Mean', (dy, x, attrs) => {
    const axes = tf.util.parseAxisParam(attrs.axis as number | number[], x.shape);
    const count = axes.reduce((product, axis) => product * x.shape[axis], 1);
    return spread(tf.div(dy, count), x, attrs);
  });
  // The stock one brings the axis to the end once more, the kernel has done so already.
  tf.registerGradient({
    ...stockGradient('Cumsum'),
    gradFunc: (dy, _, attrs) => {
      const { axis, exclusive, reverse } = attrs as unknown as { axis: number; exclusive: boolean; reverse: boolean };
      return { x: () => tf.cumsum(dy as tf.Tensor, axis, exclusive, !reverse) };
    },
  });
  // And the stock one of products knows no operand that serves several batches.
  const product = stockGradient('BatchMatMul');
  tf.registerGradient({
    ...product,
    gradFunc: (dy, saved, attrs) => {
      const operands = saved as tf.Tensor[];
      const to = product.gradFunc(dy, saved, attrs) as Record<'a' | 'b', () => tf.Tensor>;
      const summed = (slope: () => tf.Tensor, operand: tf.Tensor) => () => {
        const whole = slope();
        return tf.util.arraysEqual(whole.shape, operand.shape) ? whole : reduceTo(whole, operand);
      };
      return { a: summed(to.a, operands[0]), b: summed(to.b, operands[1]) };
    },
  });
  onWasm('Tile', (dy, x, attrs) => {
    const reps = attrs.reps as number[];
    const split = x.shape.flatMap((length, axis) => [reps[axis], length]);
    const copies = reps.map((_, axis) => 2 * axis);
    return tf.reshape(tf.sum(tf.reshape(dy, split), copies), x.shape);
  });
}
