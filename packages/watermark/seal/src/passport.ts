import { ensure, linalg, type Matrix, matrix, random, refuse, toMatrix, toTensor } from '@matforge/core';
import type * as tf from '@tensorflow/tfjs';

/** Beyond this condition number a passport cannot be told from noise after extraction. */
const MAX_CONDITION = 1e4;
/** Drawn passports stay well below {@link verifyOwnership}'s limit, also when their rank is small. */
const MAX_DRAWN_COSINE = 0.4;

/** How a passport is scaled: ‖C‖_F = √r, or as it comes. */
export type Normalization = 'fro' | 'none';

/** Options of {@link makePassport}. */
export interface PassportOptions {
  /** Default `'fro'`. */
  normalize?: Normalization;
  /** 0 (default): the passport C of the released adapter; 1: the second passport C' of the same secret. */
  which?: 0 | 1;
}

/**
 * Draws a secret passport: Gaussian, `[rank, rank]`, the same for the same secret.
 *
 * Ill-conditioned draws are passed over (condition above 30·rank), and so is a second passport that resembles the first
 * (|cosine| above 0.4). A layer's passport is that of secret + index of the layer.
 *
 * @throws MatforgeError for a rank below 2 or a secret that is not an integer.
 */
export function makePassport(rank: number, secret: number, options: PassportOptions = {}): tf.Tensor2D {
  return toTensor(drawPassports(rank, secret, options.normalize)[options.which ?? 0]);
}

/** Both passports of a secret, C and C'. */
export function drawPassports(rank: number, secret: number, normalize: Normalization = 'fro'): [Matrix, Matrix] {
  ensure(
    Number.isInteger(rank) && rank >= 2,
    'rank',
    () => `must be an integer >= 2, got ${rank}; one number is no passport`,
  );
  ensure(Number.isInteger(secret), 'secret', () => `must be an integer, got ${secret}`);
  const stream = random(secret).fork('passport');
  const draw = (accept: (candidate: Matrix) => boolean): Matrix => {
    for (;;) {
      const candidate = matrix(rank, rank, () => stream.gaussian());
      if (linalg.conditionNumber(candidate) <= 30 * rank && accept(candidate)) return normalized(candidate, normalize);
    }
  };
  const first = draw(() => true);
  return [first, draw((candidate) => Math.abs(cosine(first.data, candidate.data)) <= MAX_DRAWN_COSINE)];
}

/**
 * A passport from an image, as in the paper: `[rank, rank]` grey values in [-1, 1], or `[frames, rank, rank]`, of which
 * `frame` modulo their number is taken (one frame per layer).
 *
 * @throws MatforgeError for another shape, values outside [-1, 1], or an image that is not invertible as a matrix.
 */
export function imagePassport(
  pixels: tf.Tensor,
  rank: number,
  { frame = 0, normalize = 'fro' }: { frame?: number; normalize?: Normalization } = {},
): tf.Tensor2D {
  const [height, width] = pixels.shape.slice(-2);
  ensure(
    (pixels.rank === 2 || pixels.rank === 3) && height === rank && width === rank,
    'passport',
    () => `must be [r, r] with r = ${rank}, or a list of such frames; got [${pixels.shape}]`,
  );
  const values = pixels.dataSync();
  const frames = values.length / rank ** 2;
  const start = (((frame % frames) + frames) % frames) * rank ** 2;
  const image = matrix(rank, rank, values.slice(start, start + rank ** 2) as ArrayLike<number>);
  // Written so that NaN is refused.
  if (!(linalg.maxNorm(image) <= 1 && image.data.every(Number.isFinite)))
    refuse('passport', 'pixels must be in [-1, 1]; for 8-bit grey use pixel / 127.5 - 1');
  ensureInvertible(image, 'passport');
  return toTensor(normalized(image, normalize));
}

/**
 * Refuses passports that cannot serve: of another size than the adapter's rank, not invertible, or one and the same.
 *
 * @param name of the layer, for the error.
 */
export function checkPassports(name: string, rank: number, C: tf.Tensor, Cp?: tf.Tensor): void {
  for (const [key, passport] of Object.entries({ C, Cp })) {
    if (!passport) continue;
    ensure(
      String(passport.shape) === String([rank, rank]),
      `${name}.${key}`,
      () => `passport must be [r, r] with r = ${rank}, got [${passport.shape}]`,
    );
    ensureInvertible(toMatrix(passport), `${name}.${key}`);
  }
  if (!Cp) return;
  const [first, second] = [C.dataSync(), Cp.dataSync()];
  ensure(
    first.some((value, i) => value !== second[i]),
    `${name}.Cp`,
    () => 'is identical to C; the second passport must be an independent one',
  );
}

function ensureInvertible(passport: Matrix, field: string): void {
  ensure(passport.data.every(Number.isFinite), field, () => 'has values that are not finite');
  const condition = linalg.conditionNumber(passport);
  // Written so that NaN is refused.
  if (!(condition <= MAX_CONDITION))
    refuse(field, `passport is not invertible: condition number ${condition.toPrecision(3)}, at most 1e4 is accepted`);
}

function normalized(passport: Matrix, normalize: Normalization): Matrix {
  return normalize === 'none'
    ? passport
    : linalg.scale(passport, Math.sqrt(passport.rows) / linalg.frobeniusNorm(passport));
}

/** Cosine of the angle between two lists of numbers. */
export function cosine(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [dot, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return dot / Math.sqrt(aa * bb);
}
