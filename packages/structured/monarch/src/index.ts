import {
  type AnyConfiguredMethod,
  type AttachOptions,
  attach,
  balancedFactors,
  defineStructuredLayer,
  defineStructuredMethod,
  ensure,
  ensureFactor,
  ensureInput,
  ensureKernel,
  factor,
  matrix,
  mergeAndUnload,
  option,
  projectionError,
  structuredFamily,
  structuredOptions,
  uniform,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';

/**
 * Monarch matrices (Dao et al. 2022): the kernel is block-diagonal · permutation · block-diagonal. With x cut into N blocks,
 * h[k] = x[k]·A[k] for `blkdiag1` A `[N, p, r]`; h, read as r rows of N, is cut by columns, and y[·, l] = h[·, l]·B[l]
 * for `blkdiag2` B `[N, r, s]` (section 3.1). p = ⌈in/N⌉, s = ⌈out/N⌉, r the smaller of the two.
 *
 * Attached, it takes the place of the dense kernel. Trains N·r·(p + s) numbers per layer.
 */
export const monarch = defineStructuredMethod({
  info: {
    id: 'monarch',
    title: 'Monarch',
    family: 'structured',
    kind: 'structured',
    paper: {
      title: 'Monarch: Expressive Structured Matrices for Efficient and Accurate Training',
      arxiv: '2204.00595',
      year: 2022,
    },
  },
  config: z.object({
    ...structuredOptions,
    /** Number N of diagonal blocks of both factors; √in is the paper's theory, 4 its code's default. */
    nblocks: option.count().default(4),
  }),
  validate({ name, inDim, outDim }, { nblocks }) {
    const limit = Math.max(inDim, outDim);
    ensure(
      nblocks <= limit,
      `${name}.nblocks`,
      () => `${nblocks} blocks do not fit the [${inDim}, ${outDim}] kernel; choose nblocks <= ${limit}`,
    );
  },
  tensors({ inDim, outDim, config: { nblocks } }) {
    const { p, r, s } = monarchBlocks(inDim, outDim, nblocks);
    return {
      blkdiag1: factor([nblocks, p, r], { in: p, out: r }, uniform(1 / Math.sqrt(p))),
      blkdiag2: factor([nblocks, r, s], { in: r, out: s }, uniform(1 / Math.sqrt(r))),
    };
  },
  // The official code takes the fan-in from the bias itself.
  officialBias: (shape, random) => uniform(1 / Math.sqrt(shape[0]))(shape, random),
  apply: (x, { blkdiag1, blkdiag2 }, size) => monarchApply(x, blkdiag1, blkdiag2, size),
  project: (W, { config: { nblocks } }) => blockFactors(W, nblocks),
  ladder: function* ({ inDim, outDim }) {
    for (let nblocks = 1; nblocks <= Math.max(inDim, outDim); nblocks++) yield { nblocks };
  },
});

/** A dense layer with a Monarch kernel: `{ units, nblocks, useBias, activation, kernelInitializer, seed }`. */
export const MonarchDense = defineStructuredLayer(monarch, 'MonarchDense');

const family = structuredFamily(monarch);

/** Width of a kernel. */
export interface MonarchSize {
  readonly inDim: number;
  readonly outDim: number;
}

/** Sizes of the blocks: p rows of the first, s columns of the second, r between them. */
export function monarchBlocks(inDim: number, outDim: number, nblocks: number): { p: number; r: number; s: number } {
  const [p, s] = [Math.ceil(inDim / nblocks), Math.ceil(outDim / nblocks)];
  return { p, s, r: Math.min(p, s) };
}

/**
 * x·W for a Monarch W, without forming it.
 *
 * @param x `[..., in]`
 * @param A `blkdiag1` `[N, p, r]`
 * @param B `blkdiag2` `[N, r, s]`
 * @returns `[..., out]`
 * @throws MatforgeError when x or a factor does not fit.
 */
export function monarchApply(x: tf.Tensor, A: tf.Tensor, B: tf.Tensor, { inDim, outDim }: MonarchSize): tf.Tensor {
  ensureInput(x, inDim);
  const N = A.shape[0];
  const { p, r, s } = monarchBlocks(inDim, outDim, N);
  ensureFactor('blkdiag1', A, [N, p, r]);
  ensureFactor('blkdiag2', B, [N, r, s]);
  return tf.tidy(() => {
    const lead = x.shape.slice(0, -1);
    const rows = tf.util.sizeFromShape(lead);
    // Features come first and the rows of x last, so that the permutation moves whole rows of numbers.
    const columns = tf.transpose(tf.reshape(x, [rows, inDim]));
    const padded =
      N * p > inDim
        ? tf.pad(columns, [
            [0, N * p - inDim],
            [0, 0],
          ])
        : columns;
    const h = tf.matMul(A, tf.reshape(padded, [N, p, rows]), true, false);
    const permuted = tf.transpose(tf.reshape(h, [r, N, rows]), [1, 0, 2]);
    const y = tf.transpose(tf.matMul(B, permuted, true, false), [2, 1, 0]);
    const flat = tf.reshape(y, [rows, N * s]);
    return tf.reshape(N * s > outDim ? tf.slice(flat, [0, 0], [rows, outDim]) : flat, [...lead, outDim]);
  });
}

/** W `[in, out]` of Monarch factors; see {@link monarchApply}. */
export function monarchToDense(A: tf.Tensor, B: tf.Tensor, size: MonarchSize): tf.Tensor2D {
  return tf.tidy(() => monarchApply(tf.eye(size.inDim), A, B, size) as tf.Tensor2D);
}

/** What {@link monarchProject} returns. */
export interface MonarchProjection {
  /** `[N, p, r]` */
  blkdiag1: tf.Tensor3D;
  /** `[N, r, s]` */
  blkdiag2: tf.Tensor3D;
  /** ‖W − P‖_F. */
  error: number;
  /** ‖W − P‖_F/‖W‖_F. */
  relError: number;
}

/**
 * The Monarch matrix nearest to W `[in, out]` in the Frobenius norm (section 3.3, here for any N and size): the rows of
 * block k and the columns congruent to l mod N make a piece of W whose rank the factors bound; the pieces are disjoint, so
 * the truncated SVD of each is the global optimum. Both factors get equal norms.
 *
 * @throws MatforgeError for a W that is not finite, or more blocks than rows and columns.
 */
export function monarchProject(W: tf.Tensor2D, nblocks: number): MonarchProjection {
  ensureKernel(W);
  const [inDim, outDim] = W.shape;
  family.paramCount({ inDim, outDim, nblocks });
  const { blkdiag1, blkdiag2 } = blockFactors(W, nblocks);
  const P = monarchToDense(blkdiag1, blkdiag2, { inDim, outDim });
  const errors = projectionError(W, P);
  P.dispose();
  return { blkdiag1, blkdiag2, ...errors };
}

function blockFactors(W: tf.Tensor2D, N: number): { blkdiag1: tf.Tensor3D; blkdiag2: tf.Tensor3D } {
  const [inDim, outDim] = W.shape;
  const { p, r, s } = monarchBlocks(inDim, outDim, N);
  const values = W.dataSync();
  const [A, B] = [new Float32Array(N * p * r), new Float32Array(N * r * s)];
  for (let k = 0; k < N; k++) {
    for (let l = 0; l < N; l++) {
      // The inner indices of block k that the permutation sends to block l.
      const inner = Array.from({ length: r }, (_, j) => j).filter((j) => (k * r + j) % N === l);
      if (inner.length === 0) continue;
      const piece = matrix(p, s, (i, o) => {
        const [row, column] = [k * p + i, o * N + l];
        return row < inDim && column < outDim ? values[row * outDim + column] : 0;
      });
      const { left, right } = balancedFactors(piece, inner.length);
      inner.forEach((j, t) => {
        const u = Math.floor((k * r + j) / N);
        for (let i = 0; i < p; i++) A[(k * p + i) * r + j] = left.data[i * left.cols + t];
        for (let o = 0; o < s; o++) B[(l * r + u) * s + o] = right.data[t * s + o];
      });
    }
  }
  return { blkdiag1: tf.tensor3d(A, [N, p, r]), blkdiag2: tf.tensor3d(B, [N, r, s]) };
}

/** Trained numbers N·r·(p + s), plus out for a bias. */
export function monarchParamCount(inDim: number, outDim: number, nblocks: number, useBias: boolean = false): number {
  return family.paramCount({ inDim, outDim, nblocks }) + (useBias ? outDim : 0);
}

/** Floating-point operations per row of x: 2·N·r·(p + s). */
export function monarchFlops(inDim: number, outDim: number, nblocks: number): number {
  return family.flops({ inDim, outDim, nblocks });
}

/** Options of {@link reverseSparsify}. */
export interface ReverseSparsifyOptions extends AttachOptions {
  /** Steps in all. */
  steps: number;
  /** Share of the steps in structured form. Default 0.9. */
  reverseFraction?: number;
  /** Trains the model for some steps. Called once in each form; make a new optimizer each time. */
  train: (model: tf.LayersModel, steps: number) => unknown;
}

/**
 * Reverse sparsification (section 4.3): trains in structured form for most of the steps, makes the kernels dense, and
 * trains on. Works with any structured method.
 *
 * @returns the model, dense again.
 */
export async function reverseSparsify<M extends tf.LayersModel>(
  model: M,
  method: AnyConfiguredMethod,
  { steps, reverseFraction = 0.9, train, ...options }: ReverseSparsifyOptions,
): Promise<M> {
  ensure(
    reverseFraction >= 0 && reverseFraction <= 1,
    'monarch.reverseFraction',
    () => `must be in [0, 1], got ${reverseFraction}`,
  );
  const structured = Math.round(reverseFraction * steps);
  await attach(model, method, options);
  await train(model, structured);
  mergeAndUnload(model);
  await train(model, steps - structured);
  return model;
}
