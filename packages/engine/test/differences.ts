import * as tf from '@tensorflow/tfjs';

export type Op = (...xs: tf.Tensor[]) => tf.Tensor;

/** One input of an op: where its values lie. */
export interface Input {
  shape: number[];
  /** Default [-2, 2]. */
  range?: [low: number, high: number];
  /** Where the op has no derivative: values keep away from there. */
  kinks?: number[];
  /** Least distance between two values, in place of a range: 1/8 keeps a maximum where it is. */
  distinct?: number;
}

/** A value of an op's input and its shape. */
export interface Point {
  shape: number[];
  numbers: Float32Array;
}

/** Uniform numbers in [0, 1) from a seed. */
export function uniform(seed: number): () => number {
  let state = Math.imul(seed + 1, 0x9e3779b1) >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

// Values are multiples of 2⁻⁸ and moves of 2⁻¹⁰, both below 2⁶: every point that is evaluated is exact in float32.
const GRID = 2 ** -8;
const STEP = 2 ** -5;
const KINK = 2 * STEP;

/** A random value of an input. */
export function draw(
  { shape, range: [low, high] = [-2, 2], kinks = [], distinct }: Input,
  random: () => number,
): Point {
  const size = tf.util.sizeFromShape(shape);
  if (distinct) {
    const order = Array.from({ length: size }, (_, i) => [random(), i - (size >> 1)]).sort(([a], [b]) => a - b);
    return { shape, numbers: Float32Array.from(order, ([, rank]) => rank * distinct) };
  }
  const numbers = Float32Array.from({ length: size }, () => {
    for (;;) {
      const value = Math.round((low + (high - low) * random()) / GRID) * GRID;
      if (kinks.every((kink) => Math.abs(value - kink) > KINK)) return value;
    }
  });
  return { shape, numbers };
}

const tensors = (points: Point[]): tf.Tensor[] => points.map(({ numbers, shape }) => tf.tensor(numbers.slice(), shape));

/** Value of f and its gradients for an upstream gradient, on the current backend. */
export function evaluate(f: Op, points: Point[], upstream: Float32Array): Point[] {
  return tf.tidy(() => {
    const xs = tensors(points);
    const y = f(...xs);
    const outputs = [y, ...tf.grads(f)(xs, tf.tensor(upstream.subarray(0, y.size).slice(), y.shape))];
    return outputs.map((output) => ({ shape: output.shape, numbers: output.dataSync() as Float32Array }));
  });
}

const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
};
const sizes = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += Math.abs(a[i] * b[i]);
  return sum;
};

/**
 * Holds the gradients of Σ w∘f(xs) against central differences along directions d, each input by itself: one direction
 * along the signs of the gradient, where nothing cancels, and two random ones.
 *
 * With S = Σ|gᵢdᵢ|, what a gradient that is off by 1% moves along the signs is 0.01·S. The tolerance is below that:
 * - truncation: Richardson's combination (4D(h/2) − D(h))/3 of differences over h = 2⁻⁵ and h/2 leaves an error of h⁴/120
 *   times the fifth derivative, 8e-9·f⁽⁵⁾; the ranges of the table keep f⁽⁵⁾ below 10⁵ times the slope: 0.001·S;
 * - the gradient is float32 itself: below 0.001·S;
 * - rounding: f is computed in float32, each output y good to a few units of 2⁻²⁴|y|, say 4 (their sum, with weights w
 *   and in float64, adds nothing), and so the combination to (2·4/3 + 1/3)/h·4·2⁻²⁴·Σ|w∘y| = 2.3e-5·Σ|w∘y|.
 *   Along the signs this must stay below 0.004·S, or the check does not judge that input; only S = 0 passes, for an input
 *   that the function does not depend on: then rounding is all that differences may show.
 * Together at most 0.006·S.
 *
 * @returns whether every input could be judged.
 * @throws Error where gradient and differences are further apart.
 */
export function checkDirections(f: Op, points: Point[], random: () => number): boolean {
  const outputs = tf.tidy(() => f(...tensors(points)).size);
  const weights = Float32Array.from({ length: outputs }, () => (random() < 0.5 ? -1 : 1) * (0.5 + random()));
  const [y, ...gradients] = evaluate(f, points, weights);
  const rounding = ((3 / STEP) * 4 * sizes(weights, y.numbers)) / 2 ** 24;
  const value = (input: number, move: Float32Array, step: number): number =>
    tf.tidy(() => {
      const moved = points[input].numbers.map((x, i) => x + step * move[i]);
      const at = points.map((point, i) => (i === input ? { ...point, numbers: moved } : point));
      return dot(weights, f(...tensors(at)).dataSync<'float32'>());
    });
  let judged = true;
  gradients.forEach(({ numbers: gradient, shape }, input) => {
    if (!tf.util.arraysEqual(shape, points[input].shape)) {
      throw new Error(`the gradient of input ${input} has shape [${shape}], the input [${points[input].shape}]`);
    }
    for (let direction = 0; direction < 3; direction++) {
      const along = direction === 0;
      const move = gradient.map((g) => {
        const length = Math.ceil(4 + 12 * random()) / 16;
        const up = along ? g >= 0 : random() < 0.5;
        return up ? length : -length;
      });
      const difference = (step: number): number => (value(input, move, step) - value(input, move, -step)) / (2 * step);
      const numeric = (4 * difference(STEP / 2) - difference(STEP)) / 3;
      const scale = sizes(gradient, move);
      if (along && scale !== 0 && !(rounding <= 0.004 * scale)) {
        judged = false;
        return;
      }
      const slope = dot(gradient, move);
      if (Math.abs(slope - numeric) <= 0.002 * scale + rounding) continue;
      throw new Error(
        `input ${input}, direction ${direction}: the gradient says ${slope}, differences ${numeric} (of ${scale})`,
      );
    }
  });
  return judged;
}
