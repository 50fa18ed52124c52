import { ensure, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import type { MultiplierFreeConfig } from './digits.ts';
import { type Heap, type HeapGrid, heap } from './heap.ts';
import { digitRounding, type Format, fixedRounding, levelsOf, type Rounding } from './rounding.ts';
import { checkType, type FixedType, fractionBits, hi, type OverflowMode, type QuantizationMode } from './types.ts';

// Looked up once: in an isolated context (jest, vm) every look-up of a global is slow.
const { floor, min, max } = Math;

/** Real numbers as kernels read and write them. */
export type Reals = Float32Array | Float64Array;

/** The exact values before a cast, and the way of their gradient back to the inputs. */
export interface Forward {
  /** In float64 where float32 is too short. */
  v: Reals;
  /** A bias per channel (last axis), added to v in float64. */
  offset?: Float32Array;
  pull(dv: Float32Array): Reals[];
}

/** The values of tensors that were computed here, so that nobody has to read them back from a backend. */
const fresh = new WeakMap<tf.Tensor, Float32Array>();

/** The values of a tensor. */
export function valuesOf(tensor: tf.Tensor): Float32Array {
  return fresh.get(tensor) ?? (tensor.dataSync() as Float32Array);
}

/** How the binary point of a tensor starts: see {@link initialPosition}. */
export type PositionInit = 'max' | 'mse' | number;

/** The format of a {@link FixedQuantizer}, and how its binary point starts and trains. */
export interface QuantizerConfig {
  /** Word length, 1..53. */
  W: number;
  /** Default true. */
  signed?: boolean;
  /** Default AP_RND. */
  Q?: QuantizationMode;
  /** Default AP_SAT. */
  O?: OverflowMode;
  /** The trainable position: a number per tensor, or one per channel (last axis). Default: unset until `init`. */
  theta?: number | readonly number[] | tf.Variable;
  /** Clip of theta. Defaults -24 and 24. */
  iMin?: number;
  iMax?: number;
  /** Default max. */
  init?: PositionInit;
  /** Scale of the position's gradient: 1 (default) or the 1/sqrt(n * hi) of LSQ. */
  positionGrad?: 'one' | 'lsq';
  /** False keeps theta where it is. Default true. */
  learn?: boolean;
}

/**
 * A fixed-point quantizer with a trainable binary point: y = cast(x, <W, I>) with I = round(clip(theta)). Rounding
 * is straight-through; saturation stops the gradient; theta gets g * ln2 * sum(dy * (y - x*m)).
 */
export class FixedQuantizer {
  readonly format: Format;
  readonly iMin: number;
  readonly iMax: number;
  /** How an unset position is found in the first data. */
  readonly start: PositionInit;
  readonly positionGrad: 'one' | 'lsq';
  /** False keeps theta where it is. */
  learn: boolean;
  protected rounding: Rounding;
  private variable: tf.Variable | undefined;

  /** @throws MatforgeError when the format is impossible or W > 53. */
  constructor(config: QuantizerConfig) {
    this.format = {
      W: config.W,
      signed: config.signed ?? true,
      Q: config.Q ?? 'AP_RND',
      O: config.O ?? 'AP_SAT',
    };
    checkType({ ...this.format, I: 0 }, 'quantizer');
    ensure(config.W <= 53, 'quantizer.W', () => `a trainable tensor holds at most 53 bits, got ${config.W}`);
    this.iMin = config.iMin ?? -24;
    this.iMax = config.iMax ?? 24;
    ensure(this.iMin <= this.iMax, 'quantizer.iMin', () => `${this.iMin} is above iMax = ${this.iMax}`);
    this.start = config.init ?? 'max';
    this.positionGrad = config.positionGrad ?? 'one';
    this.learn = config.learn ?? true;
    this.rounding = fixedRounding(this.format);
    if (config.theta !== undefined) {
      const { theta } = config;
      this.bind(theta instanceof tf.Variable ? theta : newVariable([theta].flat() as number[]));
    }
  }

  /** Takes a variable of shape [1] or [channels] as theta. NaN in it means: not initialised yet. */
  bind(theta: tf.Variable): void {
    this.variable = theta;
  }

  /** The variable behind the position. */
  get theta(): tf.Variable {
    return this.variable ?? refuse('quantizer.theta', 'has no value yet; call init(x) with data first');
  }

  /** True once a position is set. */
  get ready(): boolean {
    return this.variable !== undefined && !Number.isNaN(this.variable.dataSync()[0]);
  }

  /** I of every channel: floor(clip(theta, iMin, iMax) + 1/2). */
  positions(): number[] {
    ensure(this.ready, 'quantizer.theta', () => 'has no value yet; give calibration data or run one batch first');
    return Array.from(this.theta.dataSync(), (theta) => positionOf(theta, this.iMin, this.iMax));
  }

  /** The type now in force (of one channel). */
  type(channel = 0): FixedType {
    return { ...this.format, I: this.positions()[channel] };
  }

  /** Sets theta from data: `x` has its channels last when theta has one entry per channel. */
  init(x: tf.Tensor, channels = this.variable?.size ?? 1): void {
    this.initFrom(x.dataSync() as Float32Array, channels);
  }

  private initFrom(values: Reals, channels = this.variable?.size ?? 1): void {
    const positions = Array.from({ length: channels }, (_, c) => {
      const own = channels === 1 ? values : values.filter((_, i) => i % channels === c);
      return clip(this.startFor(own), this.iMin, this.iMax);
    });
    if (this.variable) {
      const value = tf.tensor1d(positions);
      this.variable.assign(value);
      value.dispose();
    } else this.variable = newVariable(positions);
  }

  private startFor(values: ArrayLike<number>): number {
    if (typeof this.start === 'number') return this.start;
    const I = maxPosition(values, this.format.signed);
    return this.start === 'max' ? I : msePosition(values, I, this.format.W, this.rounding).I;
  }

  /** Ends learning: theta is set to I and gets no gradient any more. */
  freeze(positions: readonly number[] = this.positions()): void {
    const value = tf.tensor1d([...positions]);
    this.theta.assign(value);
    value.dispose();
    this.learn = false;
  }

  /** y = cast(x), with the gradients of x and theta. The first data seen initialise an unset position. */
  apply<T extends tf.Tensor>(x: T): T {
    return this.roundSum(x) as T;
  }

  /** cast(relu(v + bias)) for values that float32 holds exactly; bias has one entry per channel (the last axis). */
  roundSum(v: tf.Tensor, bias?: tf.Tensor, relu = false): tf.Tensor {
    const kernels = heap();
    const { plain } = this.rounding;
    if (kernels && plain && v.dtype === 'float32' && this.ready && this.theta.size === 1 && v.size > 0) {
      return this.roundOnHeap(kernels, { ...plain, fraction: this.format.W - this.positions()[0], relu }, v, bias);
    }
    const forward = ([values, offset]: Float32Array[]): Forward => ({
      v: values,
      offset,
      pull: (dv) => (offset ? [dv, columnSums(dv, offset.length)] : [dv]),
    });
    return this.round(bias ? [v, bias] : [v], v.shape, forward, relu);
  }

  /** The same numbers without copying tensors out of the wasm backend and back. */
  private roundOnHeap(kernels: Heap, grid: HeapGrid, v: tf.Tensor, bias?: tf.Tensor): tf.Tensor {
    const g = this.scaleOfGradient(v.size);
    const { learn } = this;
    const operation = tf.customGrad((...args) => {
      const save = args[args.length - 1] as tf.GradSaveFunc;
      const y = kernels.round(v, bias, grid) ?? refuse('value', 'cannot represent NaN or infinity');
      save(bias ? [v, y, bias] : [v, y]);
      return {
        value: y,
        gradFunc: (dy: tf.Tensor, saved: tf.Tensor[]) => {
          const back = kernels.pull(dy, saved[0], saved[2], saved[1], grid);
          const gradients = [back.dv];
          if (bias) gradients.push(tf.sum(tf.reshape(back.dv, [-1, bias.size]), 0));
          if (learn) gradients.push(tf.tensor1d([g * Math.LN2 * back.sum]));
          return gradients;
        },
      };
    });
    const inputs = bias ? [v, bias] : [v];
    return learn ? operation(...inputs, this.theta) : operation(...inputs);
  }

  /**
   * The cast at the end of a layer. `forward` computes the exact real values before the cast and how their gradient
   * reaches the inputs; relu, the cast and theta's gradient are done here.
   */
  round(
    inputs: tf.Tensor[],
    shape: readonly number[],
    forward: (inputs: Float32Array[]) => Forward,
    relu = false,
  ): tf.Tensor {
    const { v, offset, pull } = forward(inputs.map((input) => input.dataSync() as Float32Array));
    if (!this.ready) {
      const least = relu ? 0 : -Infinity;
      this.initFrom(v.map((value, i) => max(value + (offset ? offset[i % offset.length] : 0), least)));
    }
    const grid: Grid = { ...this.grid(v.length), offset };
    const y = roundAll(v, relu, grid);
    const learn = this.learn;
    // Nothing is saved on the tape: the closure keeps plain arrays.
    const operation = tf.customGrad(() => ({
      value: tf.tensor(y, shape as number[], 'float32'),
      gradFunc: (dy: tf.Tensor) => {
        const back = pullAll(dy.dataSync() as Float32Array, v, y, relu, grid);
        const gradients = pull(back.dv).map((g, i) => tf.tensor(toFloat32(g), inputs[i].shape, 'float32'));
        if (learn) gradients.push(tf.tensor(back.dTheta, this.theta.shape, 'float32'));
        return gradients;
      },
    }));
    const result = learn ? operation(...inputs, this.theta) : operation(...inputs);
    fresh.set(result, y);
    return result;
  }

  private grid(n: number): Grid {
    const positions = this.positions();
    const g = this.scaleOfGradient(n / positions.length);
    return { rounding: this.rounding, fractions: positions.map((I) => this.format.W - I), g };
  }

  /** g of the position's gradient. */
  private scaleOfGradient(n: number): number {
    return this.positionGrad === 'lsq' ? 1 / Math.sqrt(n * hi({ ...this.format, I: 0 })) : 1;
  }
}

/** Configuration of a {@link MultiplierFreeQuantizer}: a format and the digits of its values. */
export interface MultiplierFreeQuantizerConfig extends QuantizerConfig, MultiplierFreeConfig {}

/** A quantizer whose values have at most k ones (or k signed powers of two): a product is k shifts and k-1 additions. */
export class MultiplierFreeQuantizer extends FixedQuantizer {
  readonly multiplierFree: MultiplierFreeConfig;

  constructor(config: MultiplierFreeQuantizerConfig) {
    super(config);
    this.multiplierFree = { k: config.k, digits: config.digits ?? 'unsigned' };
    this.rounding = digitRounding(this.format, this.multiplierFree);
  }

  /** Sorted magnitudes that k digits can write. */
  levels(): readonly number[] {
    return levelsOf(this.format, this.multiplierFree);
  }
}

/** floor(clip(theta) + 1/2). */
export function positionOf(theta: number, iMin: number, iMax: number): number {
  return floor(clip(theta, iMin, iMax) + 0.5);
}

function clip(x: number, low: number, high: number): number {
  return min(max(x, low), high);
}

/** Sums over all axes but the last. */
export function columnSums(values: ArrayLike<number>, channels: number): Float64Array {
  const sums = new Float64Array(channels);
  for (let i = 0, c = 0; i < values.length; i++) {
    sums[c] += values[i];
    if (++c === channels) c = 0;
  }
  return sums;
}

function newVariable(values: number[]): tf.Variable {
  return tf.tidy(() => tf.variable(tf.tensor1d(values)));
}

function toFloat32(values: Reals): Float32Array {
  return values instanceof Float32Array ? values : Float32Array.from(values);
}

interface Grid {
  rounding: Rounding;
  /** One, or one per channel (last axis). */
  fractions: number[];
  g: number;
  /** Added to v per channel (last axis) before the cast: a bias. */
  offset?: Float32Array;
}

/** Scale, step and offset of every channel; one channel when neither positions nor offsets differ. */
function perChannel({ fractions, offset }: Grid): { scale: Float64Array; step: Float64Array; shift: Float64Array } {
  const channels = max(fractions.length, offset?.length ?? 1);
  const of = (value: (c: number) => number): Float64Array =>
    Float64Array.from({ length: channels }, (_, c) => value(c));
  const fraction = (c: number): number => fractions[c % fractions.length];
  return { scale: of((c) => 2 ** fraction(c)), step: of((c) => 2 ** -fraction(c)), shift: of((c) => offset?.[c] ?? 0) };
}

function roundAll(v: Reals, relu: boolean, grid: Grid): Float32Array {
  const { scale, step, shift } = perChannel(grid);
  const { rounding } = grid;
  const y = new Float32Array(v.length);
  const channels = scale.length;
  const bottom = relu ? 0 : -Infinity;
  let broken = false;
  if (rounding.plain) {
    const { low, high } = rounding.plain;
    const least = max(low, bottom);
    const [a, b] = [scale[0], step[0]];
    if (channels === 1 && shift[0] === 0) {
      // Most weights: a loop of their own takes half the time.
      for (let i = 0; i < v.length; i++) {
        const u = v[i];
        if (u - u !== 0) broken = true;
        y[i] = min(max(floor(u * a + 0.5), least), high) * b;
      }
    } else {
      for (let i = 0, c = 0; i < v.length; i++) {
        const u = v[i] + shift[c];
        if (u - u !== 0) broken = true;
        // Exact, here and above: u * scale has at most 52 significant bits (see exactness.ts), so 1/2 does not round up.
        y[i] = min(max(floor(u * scale[c] + 0.5), least), high) * step[c];
        if (++c === channels) c = 0;
      }
    }
  } else {
    for (let i = 0, c = 0; i < v.length; i++) {
      const u = v[i] + shift[c];
      if (u - u !== 0) broken = true;
      y[i] = rounding.raw(max(u, bottom) * scale[c]) * step[c];
      if (++c === channels) c = 0;
    }
  }
  // u - u is NaN for NaN and infinity alone.
  ensure(!broken, 'value', () => `cannot represent ${v.some(Number.isNaN) ? 'NaN' : 'infinity'}`);
  return y;
}

function pullAll(
  dy: Float32Array,
  v: Reals,
  y: Float32Array,
  relu: boolean,
  grid: Grid,
): { dv: Float32Array; dTheta: Float32Array } {
  const { scale, step, shift } = perChannel(grid);
  const { rounding, fractions, g } = grid;
  const dv = new Float32Array(v.length);
  const channels = scale.length;
  const sums = new Float64Array(channels);
  if (rounding.plain) {
    const { low, high } = rounding.plain;
    // floor(u*scale + 1/2) is in [low, high] exactly when u is in [from, to).
    const from = step.map((s) => (low - 0.5) * s);
    const to = step.map((s) => (high + 0.5) * s);
    const [a, b] = [from[0], to[0]];
    if (channels === 1 && shift[0] === 0 && !relu) {
      let sum = 0;
      for (let i = 0; i < v.length; i++) {
        const u = v[i];
        const d = dy[i];
        if (u >= a && u < b) {
          dv[i] = d;
          sum += d * (y[i] - u);
        } else sum += d * y[i];
      }
      sums[0] = sum;
    } else {
      for (let i = 0, c = 0; i < v.length; i++) {
        const u = v[i] + shift[c];
        // Nothing passes a closed ReLU: its value is 0, exactly on the grid.
        if (!relu || u > 0) {
          const d = dy[i];
          if (u >= from[c] && u < to[c]) {
            dv[i] = d;
            sums[c] += d * (y[i] - u);
          } else sums[c] += d * y[i];
        }
        if (++c === channels) c = 0;
      }
    }
  } else {
    for (let i = 0, c = 0; i < v.length; i++) {
      const u = v[i] + shift[c];
      if (!relu || u > 0) {
        const d = dy[i];
        if (rounding.inside(u * scale[c])) {
          dv[i] = d;
          sums[c] += d * (y[i] - u);
        } else sums[c] += d * y[i];
      }
      if (++c === channels) c = 0;
    }
  }
  const dTheta = new Float32Array(fractions.length);
  const total = fractions.length === 1 ? [sums.reduce((a, b) => a + b)] : sums;
  for (let c = 0; c < dTheta.length; c++) dTheta[c] = g * Math.LN2 * total[c];
  return { dv, dTheta };
}

/**
 * The position that holds the largest value: I = ceil(log2 M), plus 1 if signed, where M = max|x| (signed) or max x
 * (unsigned); 0 in place of the logarithm when M <= 0. The least e with 2^e >= M is found by comparison.
 */
export function maxPosition(values: ArrayLike<number>, signed: boolean): number {
  let M = 0;
  for (let i = 0; i < values.length; i++) {
    const a = signed ? Math.abs(values[i]) : values[i];
    if (a > M) M = a;
  }
  ensure(Number.isFinite(M), 'x', () => `cannot represent ${M}`);
  let e = 0;
  if (M > 0) {
    while (2 ** e < M) e++;
    while (2 ** (e - 1) >= M) e--;
  }
  return e + (signed ? 1 : 0);
}

/** The I in [from-4, from+1] with the least mean squared cast error (ascending, the first wins), and that error. */
export function msePosition(
  values: ArrayLike<number>,
  from: number,
  W: number,
  rounding: Rounding,
): { I: number; error: number } {
  let best = { I: from, error: Infinity };
  for (let I = from - 4; I <= from + 1; I++) {
    const scale = 2 ** (W - I);
    let sum = 0;
    for (let i = 0; i < values.length; i++) sum += (rounding.raw(values[i] * scale) / scale - values[i]) ** 2;
    const error = values.length === 0 ? 0 : sum / values.length;
    if (error < best.error) best = { I, error };
  }
  return best;
}

/** The starting position of a tensor: `max`, `mse`, or the number given. */
export function initialPosition(values: ArrayLike<number>, format: Format, init: PositionInit): number {
  if (typeof init === 'number') return init;
  const I = maxPosition(values, format.signed);
  return init === 'max' ? I : msePosition(values, I, format.W, fixedRounding(format)).I;
}

/**
 * y = cast(x, type) as a tf op: float32 in, float32 out (exact for |raw| <= 2^24), with the straight-through gradient:
 * dy where the rounded value is in range (everywhere for the wrapping modes), 0 where it saturates.
 */
export function cast<T extends tf.Tensor>(x: T, type: FixedType): T {
  checkType(type);
  const { I, ...format } = type;
  const grid: Grid = { rounding: fixedRounding(format), fractions: [fractionBits(type)], g: 0 };
  ensure(Number.isInteger(I), 'type.I', () => `integer bits must be an integer, got ${I}`);
  return tf.customGrad((input) => {
    const v = (input as tf.Tensor).dataSync() as Float32Array;
    const y = roundAll(v, false, grid);
    return {
      value: tf.tensor(y, x.shape, 'float32'),
      gradFunc: (dy: tf.Tensor) => [tf.tensor(pullAll(dy.dataSync() as Float32Array, v, y, false, grid).dv, x.shape)],
    };
  })(x) as T;
}
