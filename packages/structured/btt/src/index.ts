import {
  defineStructuredLayer,
  defineStructuredMethod,
  ensure,
  ensureFactor,
  ensureInput,
  ensureKernel,
  factor,
  linalg,
  type Matrix,
  matrix,
  muPDeviation,
  ones,
  option,
  projectionError,
  structuredOptions,
  type TensorSpec,
  trainable,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { type BttShape, bttShape, coreSizes, product } from './factors.ts';

export { type BttShape, factorize } from './factors.ts';
export { fitPowerLaw, type PowerLaw, type Scaling, type ScalingOptions, structuredScaling } from './scaling.ts';

const factors = () => z.array(option.count()).optional();
const fromTwoToFour = 'must be an integer from 2 to 4';

/**
 * Block Tensor-Train kernels (Qiu et al. 2024, section 4): between Monarch (rank 1) and dense (rank √in) with one number.
 * Input and output width are cut into c factors, in = Π ms, out = Π ns; core t contracts the input factor ms_t with the rank
 * r left by the core before it and gives the output factor ns_t, with other weights for every value of the outputs made and
 * the inputs still to come. For c = 2 the block of W at rows j₁·ms₀…, columns i₀·ns₁… is
 * Σ_a core0[j₁, :, i₀·r + a] ⊗ core1[i₀, j₁·r + a, :].
 *
 * Attached, it takes the place of the dense kernel. Trains r·ms₁·ns₀·(ms₀ + ns₁) numbers per layer for c = 2.
 */
export const btt = defineStructuredMethod({
  info: {
    id: 'btt',
    title: 'Block Tensor-Train',
    family: 'structured',
    kind: 'structured',
    paper: {
      title: 'Compute Better Spent: Replacing Dense Layers with Structured Matrices',
      arxiv: '2406.06248',
      year: 2024,
    },
  },
  config: z.object({
    ...structuredOptions,
    /** Number c of cores. Default as many as there are factors given, else 2. */
    cores: z.number(fromTwoToFour).int(fromTwoToFour).min(2, fromTwoToFour).max(4, fromTwoToFour).optional(),
    /** Rank r between the cores; min(ms₀, ns₁) makes two cores dense. */
    rank: option.rank().default(1),
    /** ms, the first the fastest part of the input index. Default {@link factorize}. */
    inFactors: factors(),
    /** ns, the first the slowest part of the output index. Default {@link factorize}. */
    outFactors: factors(),
    /** Caps the root mean square of every core at its start and gives it a trained gain, for transformers. */
    normalize: z.boolean().default(false),
  }),
  validate({ name, inDim, outDim }, config) {
    bttShape(name, inDim, outDim, config);
  },
  tensors({ inDim, outDim, config }): Record<string, TensorSpec> {
    const sizes = coreSizes(bttShape('btt', inDim, outDim, config));
    return {
      ...Object.fromEntries(sizes.map(({ shape, in: d, out: e }, t) => [`core${t}`, factor(shape, { in: d, out: e })])),
      ...(config.normalize && { gamma: trainable([sizes.length], ones) }),
    };
  },
  apply(x, tensors, { inDim, outDim, config }) {
    const shape = bttShape('btt', inDim, outDim, config);
    const cores = shape.inFactors.map((_, t) => tensors[`core${t}`]);
    return bttApply(x, config.normalize ? bttNormalize(cores, tensors.gamma, shape) : cores, shape);
  },
  project(W, { inDim, outDim, config }) {
    const shape = bttShape('btt', inDim, outDim, config);
    const cores = splitIntoCores(W, shape);
    return {
      ...Object.fromEntries(cores.map((core, t) => [`core${t}`, core])),
      // What the cap would take off goes into the gains, so that the map is the projection.
      ...(config.normalize && { gamma: tf.stack(excess(cores, shape)) }),
    };
  },
  exact: ({ cores, inFactors, outFactors }) => (cores ?? inFactors?.length ?? outFactors?.length ?? 2) === 2,
  ladder: function* ({ inDim, outDim, config }) {
    const { inFactors, outFactors } = bttShape('btt', inDim, outDim, config);
    const full = inFactors.map((_, t) =>
      Math.min(product(inFactors.slice(0, t + 1)), product(outFactors.slice(t + 1))),
    );
    for (let rank = 1; rank <= Math.max(...full); rank++) yield { rank };
  },
});

/** A dense layer with a BTT kernel: `{ units, cores, rank, normalize, zeroInit, useBias, activation, … }`. */
export const BTTDense = defineStructuredLayer(btt, 'BTTDense');

/**
 * x·W for a BTT W, without forming it.
 *
 * @param x `[..., in]`
 * @param cores `[ns_0 … ns_{t−1}, ms_{t+1} … ms_{c−1}, rs_t·ms_t, rs_{t+1}·ns_t]` each, the rank index the fast one of both.
 * @returns `[..., out]`
 * @throws MatforgeError when x or a core does not fit, or there are fewer than two cores.
 */
export function bttApply(x: tf.Tensor, cores: readonly tf.Tensor[], shape: BttShape): tf.Tensor {
  const { inFactors, outFactors } = shape;
  const sizes = coreSizes(shape);
  ensureInput(x, product(inFactors));
  ensureCores(cores, shape);
  return tf.tidy(() => {
    const lead = x.shape.slice(0, -1);
    const rows = tf.util.sizeFromShape(lead);
    const last = inFactors.length - 1;
    // x has ms_{c−1} first and ms_0 last; the cores want ms_1 … ms_{c−1}, then ms_0, and the rows of x last of all.
    const order = [...inFactors.keys()].slice(1).map((t) => 1 + last - t);
    let state = tf.transpose(tf.reshape(x, [rows, ...inFactors.toReversed()]), [...order, 1 + last, 0]);
    for (const [t, { done, left, in: d, out: e, rank }] of sizes.entries()) {
      const core = tf.reshape(cores[t], [done * left, d, e]);
      state = tf.matMul(core, tf.reshape(state, [done * left, d, rows]), true, false);
      if (t === last) break;
      const next = inFactors[t + 1];
      // The output factor joins those made, the next input factor joins the rank to be contracted.
      state = tf.transpose(tf.reshape(state, [done, next, left / next, outFactors[t], rank * rows]), [0, 3, 2, 1, 4]);
    }
    return tf.reshape(tf.transpose(tf.reshape(state, [product(outFactors), rows])), [...lead, product(outFactors)]);
  });
}

/** W `[in, out]` of BTT cores; see {@link bttApply}. */
export function bttToDense(cores: readonly tf.Tensor[], shape: BttShape): tf.Tensor2D {
  return tf.tidy(() => bttApply(tf.eye(product(shape.inFactors)), cores, shape) as tf.Tensor2D);
}

function ensureCores(cores: readonly tf.Tensor[], shape: BttShape): void {
  const { inFactors, outFactors } = shape;
  ensure(inFactors.length >= 2, 'cores', () => `at least 2 are needed, got ${inFactors.length}`);
  ensure(
    outFactors.length === inFactors.length && cores.length === inFactors.length,
    'cores',
    () =>
      `${cores.length} cores, ${inFactors.length} input and ${outFactors.length} output factors; their numbers must agree`,
  );
  for (const [t, size] of coreSizes(shape).entries()) ensureFactor(`core${t}`, cores[t], size.shape);
}

/**
 * The cores that act with `normalize` (section 4.2): γ_t·core_t/max(1, rms_t/std_t), std_t the deviation of the start.
 *
 * @param gamma `[c]`
 */
export function bttNormalize(cores: readonly tf.Tensor[], gamma: tf.Tensor, shape: BttShape): tf.Tensor[] {
  return tf.tidy(() => {
    const over = excess(cores, shape);
    return cores.map((core, t) => tf.mul(core, tf.div(tf.slice(gamma, [t], [1]), over[t])));
  });
}

/** max(1, rms_t/std_t) of every core. */
function excess(cores: readonly tf.Tensor[], shape: BttShape): tf.Scalar[] {
  return coreSizes(shape).map((widths, t) => {
    const rms = tf.sqrt(tf.add(tf.mean(tf.square(cores[t])), 1e-8));
    return tf.maximum(1, tf.div(rms, muPDeviation(widths))) as tf.Scalar;
  });
}

/** What {@link bttProject} returns. */
export interface BttProjection {
  cores: tf.Tensor[];
  /** ‖W − P‖_F. */
  error: number;
  /** ‖W − P‖_F/‖W‖_F. */
  relError: number;
}

/**
 * A BTT kernel near W `[in, out]`. For two cores it is the nearest: each block [ms₀, ns₁] of W has its own pair of factors,
 * and gets its truncated SVD. For more cores the same split is repeated on what the right factors form (as TT-SVD does): at
 * most √(c − 1) times as far as the nearest.
 *
 * @throws MatforgeError for a W that is not finite or whose widths are not the products of the factors.
 */
export function bttProject(W: tf.Tensor2D, { inFactors, outFactors, rank }: BttShape): BttProjection {
  ensureKernel(W);
  const shape = bttShape('btt', W.shape[0], W.shape[1], { inFactors, outFactors, rank });
  const cores = splitIntoCores(W, shape);
  const P = bttToDense(cores, shape);
  const errors = projectionError(W, P);
  P.dispose();
  return { cores, ...errors };
}

function splitIntoCores(W: tf.Tensor2D, shape: BttShape): tf.Tensor[] {
  const { inFactors, outFactors } = shape;
  const sizes = coreSizes(shape);
  const last = sizes.length - 1;
  const [inDim, outDim] = W.shape;
  // One matrix per value of the outputs made: rows (j_{c−1} … j_t, a), columns (i_t … i_{c−1}).
  let rest: Matrix[] = [{ rows: inDim, cols: outDim, data: Float64Array.from(W.dataSync()) }];
  const cores = sizes.map(({ shape: size, in: d, out: e, left, rank }, t) => {
    const core = new Float64Array(product(size));
    if (t === last) {
      for (const [made, { data }] of rest.entries()) core.set(data, made * d * e);
      return core;
    }
    const [n, cols] = [outFactors[t], rest[0].cols / outFactors[t]];
    const next: Matrix[] = [];
    for (const [made, { data, cols: width }] of rest.entries()) {
      for (let i = 0; i < n; i++) {
        const right = { rows: left * rank, cols, data: new Float64Array(left * rank * cols) };
        next.push(right);
        for (let q = 0; q < left; q++) {
          const { u, s, v } = linalg.svd(matrix(d, cols, (row, col) => data[(q * d + row) * width + i * cols + col]));
          const page = (made * left + coreOrder(q, inFactors.slice(t + 1))) * d;
          for (let a = 0; a < Math.min(rank, s.length); a++) {
            // Orthonormal left factors keep the later truncations undistorted; the last two cores share the rest.
            const weight = t === last - 1 ? Math.sqrt(s[a]) : 1;
            for (let row = 0; row < d; row++) core[(page + row) * e + i * rank + a] = weight * u.data[row * u.cols + a];
            for (let col = 0; col < cols; col++) {
              right.data[(q * rank + a) * cols + col] = weight === 0 ? 0 : (s[a] / weight) * v.data[col * v.cols + a];
            }
          }
        }
      }
    }
    rest = next;
    return core;
  });
  const norms = cores.map((core) => Math.sqrt(core.reduce((sum, value) => sum + value * value, 0)));
  const mean = norms.reduce((root, norm) => root * norm ** (1 / norms.length), 1);
  return cores.map((core, t) => {
    const scale = mean === 0 ? 1 : mean / norms[t];
    return tf.tensor(
      Float32Array.from(core, (value) => value * scale),
      sizes[t].shape,
    );
  });
}

/** Place in a core, whose axes are ms_{t+1} … ms_{c−1}, of a row index in which ms_{t+1} is the fastest. */
function coreOrder(index: number, factors: readonly number[]): number {
  let [rest, place] = [index, 0];
  for (const m of factors) {
    place = place * m + (rest % m);
    rest = Math.floor(rest / m);
  }
  return place;
}
