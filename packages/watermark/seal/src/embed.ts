import {
  adapterTensors,
  attach,
  ensure,
  linalg,
  type Matrix,
  matrix,
  type Random,
  random,
  refuse,
  setActive,
  setAdapterTensors,
  sitesOf,
  toMatrix,
  toTensor,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { seal } from './seal.ts';

/** Options of {@link embed}. */
export interface EmbedOptions {
  /** Name of the marked adapter. */
  name: string;
  /** Rank of the marked adapter, at most min(in, out) at each layer. Twice that of the given update is best. */
  rank: number;
  /** Default the rank: scale 1. */
  alpha?: number;
  /** The owner's secret, seed of the passports. */
  secret: number;
  /** Seed of the start values. Default 0. */
  seed?: number;
  schedule?: 'random' | 'alternate';
  dropout?: number;
}

/**
 * Puts a marked adapter in the place of a finished one: attaches seal to the layers of the given kernel changes, with
 * start factors that make these changes, and makes it the only active adapter. Train it for a few hundred steps more to
 * entangle both passports.
 *
 * Where the rank is at least twice that of the change, the start is exact under both passports: the model is as good as
 * before, whichever passport is in force. Below that, the factors are the nearest ones for both passports together.
 *
 * @param deltas kernel change `[in, out]` by layer, as `deltas(model, adapter)` gives them; not disposed.
 * @throws MatforgeError for a change of another shape than the kernel, values that are not finite, or a layer with a
 *   single input or output.
 */
export async function embed<M extends tf.LayersModel>(
  model: M,
  deltas: Record<string, tf.Tensor2D>,
  { name, rank, alpha = rank, secret, seed = 0, ...options }: EmbedOptions,
): Promise<M> {
  const layers = Object.entries(deltas);
  ensure(layers.length > 0, 'deltas', () => 'holds no layer; give the kernel changes of the adapter to be marked');
  const sites = new Map(sitesOf(model).map((site) => [site.name, site]));
  for (const [layer, delta] of layers) {
    const site =
      sites.get(layer) ?? refuse(layer, `the model has no such layer; its layers are ${[...sites.keys()].join(', ')}`);
    ensure(
      String(delta.shape) === String([site.inDim, site.outDim]),
      layer,
      () => `the kernel change is [${delta.shape}], the kernel [${[site.inDim, site.outDim]}]`,
    );
    if (Math.min(...delta.shape) < 2)
      refuse(layer, `a passport needs rank 2, the kernel change is [${delta.shape}]; leave this layer out`);
    ensure(
      toMatrix(delta).data.every(Number.isFinite),
      layer,
      () => 'the kernel change has values that are not finite',
    );
  }
  const limits = Object.fromEntries(layers.map(([layer, { shape }]) => [layer, Math.min(rank, ...shape)]));
  const rankPattern = Object.values(limits).some((limit) => limit < rank) ? rankPatternOf(limits) : {};
  await attach(model, seal({ rank, alpha, secret, rankPattern, ...options }), {
    name,
    seed,
    targets: (site) => site.name in deltas,
  });
  const attached = adapterTensors(model, name);
  const stream = random(seed).fork('embed');
  const start = tf.tidy(() => {
    const made: Record<string, Record<'A' | 'B', tf.Tensor>> = {};
    for (const [layer, delta] of layers) {
      const { C, Cp } = attached[layer];
      const { A, B } = entangledFactors(
        toMatrix(delta),
        { C: toMatrix(C), Cp: toMatrix(Cp), scale: alpha / rank },
        stream.fork(layer),
      );
      made[layer] = { A: tf.keep(toTensor(A)), B: tf.keep(toTensor(B)) };
    }
    return made;
  });
  setAdapterTensors(model, name, start);
  tf.dispose(Object.values(start).flatMap((tensors) => Object.values(tensors)));
  return setActive(model, [name]);
}

/** Values by layer as a pattern option takes them: keys escaped, and longer names first, for suffixes match too. */
export function rankPatternOf(values: Record<string, number>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(values)
      .sort(([a], [b]) => b.length - a.length)
      .map(([layer, value]) => [layer.replace(/[^\w]/g, '\\$&'), value]),
  );
}

/** Singular values of a change below this share of its norm are rounding: the change comes as a difference of kernels. */
const NEGLIGIBLE = 1e-4;

/**
 * Factors with s·A·C·B = s·A·C'·B = delta.
 *
 * With delta = U·Σ·Vᵀ of rank k, A = U·L and B = R·Vᵀ/s this is L·C·R = L·C'·R = Σ in r dimensions. For r ≥ 2k it is
 * solved exactly: L = √Σ·P with random orthonormal rows P, R by the pseudo-inverse of [P·C; P·C'] `[2k, r]`. For smaller
 * r the ⌊r/2⌋ leading components are solved so, and all are then fitted in alternation by least squares. Directions that
 * neither C·R nor C'·R uses start as LoRA's do, with random A, so that every part of the passport is trained.
 */
export function entangledFactors(
  delta: Matrix,
  { C, Cp, scale }: { C: Matrix; Cp: Matrix; scale: number },
  stream: Random,
): { A: Matrix; B: Matrix } {
  const r = C.rows;
  const { u, s, v } = linalg.svd(delta);
  const k = Math.min(r, significant(s));
  const spectrum = s.subarray(0, k);
  const { L, R } = solveBoth(spectrum, C, Cp, stream);
  const used = orthonormalBasis(beside(linalg.matmul(C, R), linalg.matmul(Cp, R)));
  const limit = 1 / Math.sqrt(delta.rows);
  const noise = matrix(delta.rows, r, () => limit * (2 * stream.next() - 1));
  const free = linalg.add(noise, linalg.matmul(linalg.matmul(noise, used), used, { transposeB: true }), -1);
  const share = Math.sqrt(scale);
  return {
    A: linalg.add(free, linalg.matmul(linalg.columns(u, 0, k), L), 1 / share),
    B: linalg.scale(linalg.matmul(R, linalg.columns(v, 0, k), { transposeB: true }), 1 / share),
  };
}

/** Number of leading singular values that hold all but a negligible part of the norm. */
function significant(s: Float64Array): number {
  const total = Math.hypot(...s);
  let [k, rest] = [s.length, 0];
  while (k > 0) {
    rest = Math.hypot(rest, s[k - 1]);
    if (rest > NEGLIGIBLE * total) return k;
    k--;
  }
  return 0;
}

/** L `[k, r]` and R `[r, k]` with L·C·R and L·C'·R equal, or near, to diag(spectrum). */
function solveBoth(spectrum: Float64Array, C: Matrix, Cp: Matrix, stream: Random): { L: Matrix; R: Matrix } {
  const [k, r] = [spectrum.length, C.rows];
  const exact = Math.min(k, Math.floor(r / 2));
  const roots = linalg.diagonal(spectrum.subarray(0, exact).map(Math.sqrt));
  const P = bestConditioned(exact, C, Cp, stream);
  const both = above(linalg.matmul(P, C), linalg.matmul(P, Cp));
  const top = {
    L: linalg.matmul(roots, P),
    R: exact > 0 ? linalg.matmul(linalg.pinv(both), above(roots, roots)) : matrix(r, 0),
  };
  if (exact === k) return balanced(top.L, top.R);
  const small = 1e-2 * Math.sqrt(spectrum[exact] / r);
  const L = above(
    top.L,
    matrix(k - exact, r, () => small * stream.gaussian()),
  );
  const R = beside(top.R, matrix(r, k - exact));
  return alternate(linalg.diagonal(spectrum), C, Cp, L, R);
}

/** Orthonormal rows P `[k, r]`: of a few random draws, the one whose [P·C; P·C'] is best to invert. */
function bestConditioned(k: number, C: Matrix, Cp: Matrix, stream: Random): Matrix {
  if (k === 0) return matrix(0, C.rows);
  const draws = Array.from({ length: 16 }, () => {
    const P = linalg.transpose(linalg.qr(matrix(C.rows, k, () => stream.gaussian())).q);
    return { P, condition: linalg.conditionNumber(above(linalg.matmul(P, C), linalg.matmul(P, Cp))) };
  });
  return draws.reduce((best, draw) => (draw.condition < best.condition ? draw : best)).P;
}

/** Alternating least squares for L·C·R = L·C'·R = target; the step towards each minimum is damped. */
function alternate(target: Matrix, C: Matrix, Cp: Matrix, L: Matrix, R: Matrix): { L: Matrix; R: Matrix } {
  const twice = above(target, target);
  let current = balanced(L, R);
  for (let i = 0; i < 60; i++) {
    const down = above(linalg.matmul(current.L, C), linalg.matmul(current.L, Cp));
    const nextR = damped(down, twice, current.R);
    const across = above(linalg.transpose(linalg.matmul(C, nextR)), linalg.transpose(linalg.matmul(Cp, nextR)));
    const nextL = damped(across, twice, linalg.transpose(current.L));
    current = balanced(linalg.transpose(nextL), nextR);
  }
  return current;
}

/** The x near `from` that minimises ‖M·x − b‖² + λ‖x − from‖². */
function damped(M: Matrix, b: Matrix, from: Matrix): Matrix {
  const gram = linalg.matmul(M, M, { transposeA: true });
  const damping =
    1e-3 * (gram.data.reduce((sum, value, i) => sum + (i % (gram.cols + 1) === 0 ? value : 0), 0) / gram.rows);
  const rest = linalg.add(b, linalg.matmul(M, from), -1);
  const step = linalg.solvePositive(
    linalg.add(gram, linalg.identity(gram.rows), damping),
    linalg.matmul(M, rest, { transposeA: true }),
  );
  return linalg.add(from, step);
}

/** The same product from factors of equal norm. */
function balanced(L: Matrix, R: Matrix): { L: Matrix; R: Matrix } {
  const [left, right] = [linalg.frobeniusNorm(L), linalg.frobeniusNorm(R)];
  if (left === 0 || right === 0) return { L, R };
  const factor = Math.sqrt(right / left);
  return { L: linalg.scale(L, factor), R: linalg.scale(R, 1 / factor) };
}

/** Orthonormal columns that span those of M. */
function orthonormalBasis(M: Matrix): Matrix {
  if (M.cols === 0) return M;
  const { u, s } = linalg.svd(M);
  return linalg.columns(u, 0, s.filter((value) => value > 1e-9 * s[0]).length);
}

function above(a: Matrix, b: Matrix): Matrix {
  return matrix(a.rows + b.rows, a.cols, [...a.data, ...b.data]);
}

function beside(a: Matrix, b: Matrix): Matrix {
  return linalg.transpose(above(linalg.transpose(a), linalg.transpose(b)));
}
