import { mendGradients } from '@matforge/engine';
import * as tf from '@tensorflow/tfjs';
import { convolutionGradients } from './convolution-gradients.ts';
import { einsum, parseEinsum } from './einsum.ts';
import { insertZeros, sizeOf } from './shapes.ts';

let repaired = false;

/**
 * Registers the gradients that TensorFlow.js lacks or has wrong, on every backend, so that plain `tf` ops train: Einsum,
 * GatherNd, ScatterNd, StridedSlice, MirrorPad, DepthToSpace, Cumprod, TopK, comparisons and logical ops (zero), GatherV2
 * with indices on the path, Unpack and SplitV into one piece, convolutions with dilation, and what `mendGradients` of the
 * engine mends. With them come gradients of gradients: through results (exp, tanh, sigmoid, softmax), of convolutions,
 * pooling in two dimensions, average pooling in three, and elu. Calling it again changes nothing.
 */
export function repairGradients(): void {
  if (repaired) return;
  repaired = true;
  mendGradients();
  for (const config of [...missing(), ...convolutionGradients()]) tf.registerGradient(config);
  wrap('GatherV2', constantIndices);
  wrap('Unpack', listOfOne);
  wrap('SplitV', listOfOne);
}

type GradFunc = tf.GradConfig['gradFunc'];
interface WrappedConfig extends tf.GradConfig {
  matforgeOriginal?: tf.GradConfig;
}

/** Replaces a gradient by one that may fall back on the original; wrapping twice wraps the original once. */
function wrap(kernelName: string, make: (original: GradFunc) => GradFunc): void {
  const present = tf.getGradient(kernelName) as WrappedConfig | undefined;
  if (!present) return;
  const original = present.matforgeOriginal ?? present;
  const config: WrappedConfig = { ...original, gradFunc: make(original.gradFunc), matforgeOriginal: original };
  tf.registerGradient(config);
}

// tfjs hands the int32 indices back as their own gradient, which its tape then refuses.
const constantIndices =
  (original: GradFunc): GradFunc =>
  (dy, saved, attrs) => ({ ...original(dy, saved, attrs), indices: () => tf.zeros(saved[1].shape) });

// An op with a list of outputs is handed a bare tensor when the list has one entry, which its gradient does not expect.
const listOfOne =
  (original: GradFunc): GradFunc =>
  (dy, saved, attrs) =>
    original(Array.isArray(dy) ? dy : [dy], saved, attrs);

function missing(): tf.GradConfig[] {
  const zero = (kernelName: string, inputs: string[]): tf.GradConfig => ({
    kernelName,
    inputsToSave: inputs,
    gradFunc: (_, saved) => Object.fromEntries(inputs.map((name, i) => [name, () => tf.zeros(saved[i].shape)])),
  });
  return [
    ...['Greater', 'GreaterEqual', 'Less', 'LessEqual', 'Equal', 'NotEqual', 'LogicalAnd', 'LogicalOr'].map((name) =>
      zero(name, ['a', 'b']),
    ),
    ...['LogicalNot', 'Any', 'All'].map((name) => zero(name, ['x'])),
    {
      kernelName: 'Einsum',
      saveAllInputs: true,
      gradFunc: (dy, operands, attrs) => einsumGradient(dy as tf.Tensor, operands, attrs['equation'] as string),
    },
    {
      kernelName: 'GatherNd',
      inputsToSave: ['params', 'indices'],
      gradFunc: (dy, [params, indices]) => ({
        params: () => tf.scatterND(indices as tf.Tensor2D, dy as tf.Tensor, params.shape),
        indices: () => tf.zeros(indices.shape),
      }),
    },
    {
      kernelName: 'ScatterNd',
      inputsToSave: ['indices'],
      gradFunc: (dy, [indices]) => ({
        updates: () => tf.gatherND(dy as tf.Tensor, indices),
        indices: () => tf.zeros(indices.shape),
      }),
    },
    {
      kernelName: 'StridedSlice',
      inputsToSave: ['x'],
      gradFunc: (dy, [x], attrs) => ({ x: () => stridedSliceGradient(dy as tf.Tensor, x.shape, attrs) }),
    },
    {
      kernelName: 'MirrorPad',
      inputsToSave: ['x'],
      gradFunc: (dy, [x], attrs) => ({ x: () => mirrorPadGradient(dy as tf.Tensor, x.shape, attrs) }),
    },
    {
      kernelName: 'DepthToSpace',
      inputsToSave: ['x'],
      gradFunc: (dy, [x], attrs) => ({ x: () => spaceToDepth(dy as tf.Tensor, x.shape, attrs) }),
    },
    {
      kernelName: 'Cumprod',
      inputsToSave: ['x'],
      gradFunc: (dy, [x], attrs) => ({ x: () => cumprodGradient(dy as tf.Tensor, x, attrs) }),
    },
    {
      kernelName: 'TopK',
      inputsToSave: ['x'],
      outputsToSave: [false, true],
      gradFunc: (dys, [x, indices]) => ({
        x: () => {
          const n = x.shape[x.rank - 1];
          const k = indices.shape[indices.rank - 1];
          const starts = tf.range(0, x.size, n, 'int32');
          const flat = tf.add(tf.reshape(indices, [x.size / n, k]), tf.reshape(starts, [x.size / n, 1]));
          const places = tf.reshape(flat, [indices.size, 1]) as tf.Tensor2D;
          return tf.reshape(
            tf.scatterND(places, tf.reshape((dys as tf.Tensor[])[0], [indices.size]), [x.size]),
            x.shape,
          );
        },
      }),
    },
  ];
}

/** Each operand's gradient is the sum of products of dy and the other operands, spread along axes it alone has. */
function einsumGradient(dy: tf.Tensor, operands: tf.Tensor[], equation: string): Record<string, () => tf.Tensor> {
  const { inputs, output } = parseEinsum(
    equation,
    operands.map((operand) => operand.shape),
  );
  const gradient = (i: number): tf.Tensor => {
    const others = operands.filter((_, j) => j !== i);
    const terms = [output, ...inputs.filter((_, j) => j !== i)];
    const reachable = inputs[i].filter((label) => terms.some((term) => term.includes(label)));
    const product = einsum(`${terms.map((t) => t.join('')).join(',')}->${reachable.join('')}`, dy, ...others);
    if (reachable.length === inputs[i].length) return product;
    const lifted = tf.reshape(
      product,
      inputs[i].map((label, axis) => (reachable.includes(label) ? operands[i].shape[axis] : 1)),
    );
    return tf.mul(lifted, tf.ones(operands[i].shape));
  };
  return Object.fromEntries(operands.map((_, i) => [String(i), () => gradient(i)]));
}

/** Puts dy back between the skipped entries, axis by axis, each seen as [outer, axis, inner]. */
function stridedSliceGradient(dy: tf.Tensor, shape: number[], attrs: tf.NamedAttrMap): tf.Tensor {
  const a = attrs as unknown as Record<'begin' | 'end' | 'strides', number[]> & Record<string, number>;
  const { begin, end, strides } = tf.slice_util.sliceInfo(
    shape,
    a.begin,
    a.end,
    a.strides,
    a['beginMask'],
    a['endMask'],
    a['ellipsisMask'],
    a['newAxisMask'],
    a['shrinkAxisMask'],
  );
  if (dy.size === 0) return tf.zeros(shape);
  const current = shape.map((_, i) => Math.ceil((end[i] - begin[i]) / strides[i]));
  let g = dy;
  for (let axis = 0; axis < shape.length; axis++) {
    const [n, m, step] = [shape[axis], current[axis], Math.abs(strides[axis])];
    if (m === n && strides[axis] === 1) continue;
    const [outer, inner] = [sizeOf(current.slice(0, axis)), sizeOf(current.slice(axis + 1))];
    g = tf.reshape(g, [outer, m, inner]);
    if (strides[axis] < 0) g = tf.reverse(g, 1);
    g = insertZeros(g, step);
    const low = Math.min(begin[axis], begin[axis] + strides[axis] * (m - 1));
    g = tf.pad(g, [
      [0, 0],
      [low, n - low - g.shape[1]!],
      [0, 0],
    ]);
    current[axis] = n;
  }
  return tf.reshape(g, shape);
}

/** The borders, turned round, go back onto the entries that they repeat, axis by axis, each seen as [outer, axis, inner]. */
function mirrorPadGradient(dy: tf.Tensor, shape: number[], attrs: tf.NamedAttrMap): tf.Tensor {
  const { paddings, mode } = attrs as unknown as { paddings: [number, number][]; mode: 'reflect' | 'symmetric' };
  const offset = mode === 'reflect' ? 1 : 0;
  const current = dy.shape.slice();
  let g = dy;
  paddings.forEach(([left, right], axis) => {
    if (left + right === 0) return;
    const n = shape[axis];
    const [outer, inner] = [sizeOf(current.slice(0, axis)), sizeOf(current.slice(axis + 1))];
    g = tf.reshape(g, [outer, left + n + right, inner]);
    const part = (from: number, length: number): tf.Tensor => tf.slice(g, [0, from, 0], [outer, length, inner]);
    const border = (from: number, length: number, to: number): tf.Tensor =>
      tf.pad(tf.reverse(part(from, length), 1), [
        [0, 0],
        [to, n - to - length],
        [0, 0],
      ]);
    const parts = [part(left, n)];
    if (left > 0) parts.push(border(0, left, offset));
    if (right > 0) parts.push(border(left + n, right, n - offset - right));
    g = tf.addN(parts);
    current[axis] = n;
  });
  return tf.reshape(g, shape);
}

function spaceToDepth(dy: tf.Tensor, shape: number[], attrs: tf.NamedAttrMap): tf.Tensor {
  const s = attrs['blockSize'] as number;
  if (attrs['dataFormat'] === 'NCHW') {
    const [b, , h, w] = shape;
    const blocks = tf.reshape(dy, [b, dy.shape[1]!, h, s, w, s]);
    return tf.reshape(tf.transpose(blocks, [0, 3, 5, 1, 2, 4]), shape);
  }
  const [b, h, w] = shape;
  const blocks = tf.reshape(dy, [b, h, s, w, s, dy.shape[3]!]);
  return tf.reshape(tf.transpose(blocks, [0, 1, 3, 2, 4, 5]), shape);
}

/**
 * dx_k = (Π_{j<k} x_j)·r_k, where r_k = Σ_{i≥k} dy_i·Π_{k<j≤i} x_j follows r_k = dy_k + x_{k+1}·r_{k+1}. No division, so
 * zeros are exact; the recurrence is solved by recursive doubling in log₂ n steps.
 */
function cumprodGradient(dy: tf.Tensor, x: tf.Tensor, attrs: tf.NamedAttrMap): tf.Tensor {
  const { axis, exclusive, reverse } = attrs as unknown as { axis: number; exclusive: boolean; reverse: boolean };
  const n = x.shape[axis];
  const [outer, inner] = [sizeOf(x.shape.slice(0, axis)), sizeOf(x.shape.slice(axis + 1))];
  const canonical = (t: tf.Tensor): tf.Tensor => {
    const flat = tf.reshape(t, [outer, n, inner]);
    return reverse ? tf.reverse(flat, 1) : flat;
  };
  const shift = (t: tf.Tensor, by: number): tf.Tensor =>
    by >= n
      ? tf.zeros([outer, n, inner])
      : tf.pad(tf.slice(t, [0, by, 0], [outer, n - by, inner]), [
          [0, 0],
          [0, by],
          [0, 0],
        ]);
  const factors = canonical(x);
  let r = exclusive ? shift(canonical(dy), 1) : canonical(dy);
  let a = shift(factors, 1);
  for (let by = 1; by < n; by *= 2) {
    r = tf.add(r, tf.mul(a, shift(r, by)));
    a = tf.mul(a, shift(a, by));
  }
  const gradient = tf.mul(tf.cumprod(factors, 1, true, false), r);
  return tf.reshape(reverse ? tf.reverse(gradient, 1) : gradient, x.shape);
}
