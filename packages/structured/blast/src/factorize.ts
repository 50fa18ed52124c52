import { ensure, ensureFactor, ensureKernel, linalg, type Matrix, projectionError, random } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** Factors of a BLAST kernel. */
export interface BlastFactors {
  /** V `[a, in/a, r]`. */
  readonly inBasis: tf.Tensor;
  /** S `[a, c, r]`. */
  readonly coupling: tf.Tensor;
  /** U `[c, r, out/c]`. */
  readonly outBasis: tf.Tensor;
}

/** One step of {@link blastSweep}. */
export interface SweepOptions {
  /** η. */
  readonly learningRate: number;
  /** δ: damping relative to the norm of the residual. */
  readonly delta: number;
  /** κ: 2 for the gradient of ‖E‖², 1 for that of ½‖E‖². */
  readonly gradScale: number;
  /** False for plain gradient steps. */
  readonly precondition: boolean;
}

/** The factors in float64: V by rows of blocks, U by columns, S flat. */
interface Blocks {
  readonly a: number;
  readonly c: number;
  readonly r: number;
  readonly V: Matrix[];
  readonly U: Matrix[];
  readonly S: Float64Array;
}

const { matmul } = linalg;

/**
 * One sweep of preconditioned alternating gradient steps (section 3.2, algorithm 2): outBasis, inBasis, then coupling, each
 * against a fresh residual E = V·S·U − W.
 *
 * @returns new factors and ‖E‖_F after the sweep.
 * @throws MatforgeError for a W that is not finite or factors that do not fit it.
 */
export function blastSweep(
  W: tf.Tensor2D,
  factors: BlastFactors,
  options: SweepOptions,
): BlastFactors & { error: number } {
  ensureKernel(W);
  ensureFactors(factors, W.shape[0], W.shape[1]);
  const blocks = toBlocks(factors);
  const target = columnBlocks(W.dataSync(), W.shape, blocks.c, 1);
  sweep(target, blocks, options);
  return { ...toTensors(blocks, 1), error: norm(residual(target, blocks)) };
}

/** Options of {@link blastFactorize}. */
export interface FactorizeOptions extends Partial<SweepOptions> {
  readonly inBlocks: number;
  readonly outBlocks: number;
  readonly rank: number;
  /** Sweeps T. Default 300. */
  readonly iterations?: number;
  /** Share of the learning rate that is left at the end of its linear decay. Default 0. */
  readonly endFactor?: number;
  /** Factors to start from, for the kernel divided by its standard deviation. Default small random ones. */
  readonly init?: BlastFactors;
  /** Root mean square of the bases' random start, times √rank. Default 0.001. */
  readonly startScale?: number;
  /** Seed of the start. Default 0. */
  readonly seed?: number;
}

/** What {@link blastFactorize} returns. */
export interface BlastFactorization {
  readonly factors: BlastFactors;
  /** ‖W − P‖_F. */
  readonly error: number;
  /** ‖W − P‖_F/‖W‖_F. */
  readonly relError: number;
  /** Relative error after each sweep. */
  readonly history: number[];
}

/**
 * A BLAST kernel near W `[in, out]`, by {@link blastSweep}s with a falling learning rate on W over its standard deviation. In
 * float64. A local optimum: other starts end elsewhere.
 *
 * @throws MatforgeError when W is not finite, the blocks do not divide it, or the rank is below 1.
 */
export function blastFactorize(W: tf.Tensor2D, options: FactorizeOptions): BlastFactorization {
  ensureKernel(W);
  const { inBlocks: a, outBlocks: c, rank: r, iterations = 300, learningRate = 1, endFactor = 0 } = options;
  const { delta = 0.1, gradScale = 2, precondition = true, startScale = 0.001, seed = 0 } = options;
  const [inDim, outDim] = W.shape;
  ensureBlocks('blast', inDim, outDim, a, c);
  ensure(Number.isInteger(r) && r >= 1, 'blast.rank', () => `must be a positive integer, got ${r}`);
  if (options.init) ensureFactors(options.init, inDim, outDim);
  const values = W.dataSync();
  const deviation = standardDeviation(values);
  const blocks = options.init ? toBlocks(options.init) : randomStart(a, c, r, inDim / a, outDim / c, startScale, seed);
  const history: number[] = [];
  if (deviation === 0) {
    constantKernel(blocks, values[0]);
    history.push(0);
  } else {
    const target = columnBlocks(values, W.shape, c, 1 / deviation);
    const size = norm(target);
    for (let t = 0; t < iterations; t++) {
      const rate = learningRate * (1 + ((endFactor - 1) * t) / iterations);
      const before = sweep(target, blocks, { learningRate: rate, delta, gradScale, precondition });
      if (t > 0) history.push(before / size);
    }
    history.push(norm(residual(target, blocks)) / size);
  }
  const scale = deviation === 0 ? 1 : deviation;
  const factors = toTensors(blocks, scale);
  const P = denseOf(blocks, scale, inDim, outDim);
  const errors = projectionError(W, P);
  P.dispose();
  return { factors, ...errors, history };
}

/** Refuses blocks that do not divide the kernel. */
export function ensureBlocks(name: string, inDim: number, outDim: number, inBlocks: number, outBlocks: number): void {
  ensure(inDim % inBlocks === 0, `${name}.inBlocks`, () => `${inBlocks} does not divide in = ${inDim}`);
  ensure(outDim % outBlocks === 0, `${name}.outBlocks`, () => `${outBlocks} does not divide out = ${outDim}`);
}

/** Refuses factors that do not fit each other or the kernel. */
export function ensureFactors({ inBasis, coupling, outBasis }: BlastFactors, inDim: number, outDim: number): void {
  ensure(coupling.rank === 3, 'coupling', () => `has shape [${coupling.shape}]; expected [inBlocks, outBlocks, rank]`);
  const [a, c, r] = coupling.shape;
  ensureBlocks('coupling', inDim, outDim, a, c);
  ensureFactor('inBasis', inBasis, [a, inDim / a, r]);
  ensureFactor('outBasis', outBasis, [c, r, outDim / c]);
}

/** Changes the factors in place. Returns ‖E‖_F from before. */
function sweep(
  target: Matrix[],
  blocks: Blocks,
  { learningRate, delta, gradScale, precondition }: SweepOptions,
): number {
  const { a, c, r, V, U, S } = blocks;
  const step = learningRate * gradScale;
  const solve = (gram: Matrix, gradient: Matrix, damping: number): Matrix => {
    if (!precondition) return gradient;
    for (let k = 0; k < gram.rows; k++) gram.data[k * gram.cols + k] += damping;
    const l = linalg.tryCholesky(gram);
    // Without damping the Gram matrix of dependent columns is singular; the shortest solution is wanted then.
    if (!l) return matmul(linalg.pinv(gram), gradient);
    return linalg.solveTriangular(l, linalg.solveTriangular(l, gradient), { transposed: true });
  };

  let E = residual(target, blocks);
  const before = norm(E);
  if (before === 0) return 0;
  let damping = delta * before;
  for (let i = 0; i < c; i++) {
    const M = coupledIn(blocks, i);
    const change = solve(matmul(M, M, { transposeA: true }), matmul(M, E[i], { transposeA: true }), damping);
    subtract(U[i].data, change.data, step);
  }

  E = residual(target, blocks);
  damping = delta * norm(E);
  const q = V[0].rows;
  for (let j = 0; j < a; j++) {
    const gram = { rows: r, cols: r, data: new Float64Array(r * r) };
    const gradient = { rows: r, cols: q, data: new Float64Array(r * q) };
    for (let i = 0; i < c; i++) {
      const N = linalg.scaleRows(U[i], S.subarray((j * c + i) * r, (j * c + i + 1) * r));
      subtract(gram.data, matmul(N, N, { transposeB: true }).data, -1);
      subtract(gradient.data, matmul(N, linalg.rows(E[i], j * q, (j + 1) * q), { transposeB: true }).data, -1);
    }
    subtract(V[j].data, linalg.transpose(solve(gram, gradient, damping)).data, step);
  }

  E = residual(target, blocks);
  damping = delta * norm(E);
  const gramsV = V.map((basis) => matmul(basis, basis, { transposeA: true }));
  const gramsU = U.map((basis) => matmul(basis, basis, { transposeB: true }));
  for (let i = 0; i < c; i++) {
    const EU = matmul(E[i], U[i], { transposeB: true });
    for (let j = 0; j < a; j++) {
      const gradient = { rows: r, cols: 1, data: new Float64Array(r) };
      for (let row = 0; row < q; row++) {
        for (let k = 0; k < r; k++) gradient.data[k] += V[j].data[row * r + k] * EU.data[(j * q + row) * r + k];
      }
      const gram = { rows: r, cols: r, data: gramsV[j].data.map((value, at) => value * gramsU[i].data[at]) };
      subtract(S.subarray((j * c + i) * r, (j * c + i + 1) * r), solve(gram, gradient, damping).data, step);
    }
  }
  return before;
}

function subtract(from: Float64Array, what: Float64Array, factor: number): void {
  for (let k = 0; k < from.length; k++) from[k] -= factor * what[k];
}

/** M_i: V_j·diag(S[j, i]) for every j, one below the other, `[in, r]`. */
function coupledIn({ a, c, r, V, S }: Blocks, i: number): Matrix {
  const q = V[0].rows;
  const M = { rows: a * q, cols: r, data: new Float64Array(a * q * r) };
  for (let j = 0; j < a; j++) {
    M.data.set(linalg.scaleColumns(V[j], S.subarray((j * c + i) * r, (j * c + i + 1) * r)).data, j * q * r);
  }
  return M;
}

/** E = dense kernel − W, by column blocks `[in, out/c]`. */
function residual(target: Matrix[], blocks: Blocks): Matrix[] {
  return target.map((W, i) => linalg.add(matmul(coupledIn(blocks, i), blocks.U[i]), W, -1));
}

function norm(parts: Matrix[]): number {
  return Math.hypot(...parts.map(linalg.frobeniusNorm));
}

function columnBlocks(values: ArrayLike<number>, [rows, cols]: number[], c: number, factor: number): Matrix[] {
  const p = cols / c;
  return Array.from({ length: c }, (_, i) => ({
    rows,
    cols: p,
    data: Float64Array.from({ length: rows * p }, (_, at) => {
      const row = Math.floor(at / p);
      return factor * values[row * cols + i * p + (at - row * p)];
    }),
  }));
}

/** Over all entries, with n − 1 in the denominator. */
function standardDeviation(values: ArrayLike<number>): number {
  let [sum, squares] = [0, 0];
  for (let k = 0; k < values.length; k++) sum += values[k];
  const mean = sum / values.length;
  for (let k = 0; k < values.length; k++) squares += (values[k] - mean) ** 2;
  return values.length < 2 ? 0 : Math.sqrt(squares / (values.length - 1));
}

function randomStart(a: number, c: number, r: number, q: number, p: number, scale: number, seed: number): Blocks {
  const stream = random(seed).fork('blast');
  const draw = (rows: number, cols: number, deviation: number): Matrix => ({
    rows,
    cols,
    data: Float64Array.from({ length: rows * cols }, () => deviation * stream.gaussian()),
  });
  const small = scale / Math.sqrt(r);
  return {
    ...{ a, c, r },
    V: Array.from({ length: a }, () => draw(q, r, small)),
    U: Array.from({ length: c }, () => draw(r, p, small)),
    S: draw(a * c, r, 1).data,
  };
}

/** A kernel of one number has no deviation to divide by; it is a product of rank 1. */
function constantKernel({ V, U, S, r }: Blocks, value: number): void {
  S.fill(0);
  for (let k = 0; k < S.length; k += r) S[k] = value;
  for (const basis of [...V, ...U]) basis.data.fill(0);
  for (const basis of V) for (let row = 0; row < basis.rows; row++) basis.data[row * r] = 1;
  for (const basis of U) basis.data.fill(1, 0, basis.cols);
}

function toBlocks({ inBasis, coupling, outBasis }: BlastFactors): Blocks {
  const [a, c, r] = coupling.shape;
  const slices = (tensor: tf.Tensor): Matrix[] => {
    const [count, rows, cols] = tensor.shape;
    const values = tensor.dataSync();
    const size = rows * cols;
    return Array.from({ length: count }, (_, k) => ({
      rows,
      cols,
      data: Float64Array.from(values.subarray(k * size, (k + 1) * size)),
    }));
  };
  return { a, c, r, V: slices(inBasis), U: slices(outBasis), S: Float64Array.from(coupling.dataSync()) };
}

/** The factors as float32 tensors, the coupling times `scale`. */
function toTensors({ a, c, r, V, U, S }: Blocks, scale: number): BlastFactors {
  const joined = (parts: Matrix[]) => {
    const { rows, cols } = parts[0];
    const data = new Float32Array(parts.length * rows * cols);
    parts.forEach((part, k) => {
      data.set(part.data, k * rows * cols);
    });
    return tf.tensor3d(data, [parts.length, rows, cols]);
  };
  return {
    inBasis: joined(V),
    coupling: tf.tensor3d(
      Float32Array.from(S, (value) => value * scale),
      [a, c, r],
    ),
    outBasis: joined(U),
  };
}

function denseOf(blocks: Blocks, scale: number, inDim: number, outDim: number): tf.Tensor2D {
  const parts = blocks.U.map((U, i) => matmul(coupledIn(blocks, i), U));
  const p = outDim / blocks.c;
  const data = new Float32Array(inDim * outDim);
  parts.forEach((part, i) => {
    for (let row = 0; row < inDim; row++) {
      for (let col = 0; col < p; col++) data[row * outDim + i * p + col] = scale * part.data[row * p + col];
    }
  });
  return tf.tensor2d(data, [inDim, outDim]);
}
