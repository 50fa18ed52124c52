import * as tf from '@tensorflow/tfjs';
import { ensure } from '../errors.ts';
import { defineOp, type Op } from './define-op.ts';
import { fftPlan } from './fft-plan.ts';
import { broadcastShape, sameShape, sizeOf } from './shapes.ts';

/** A complex tensor as two real ones of the same shape: complex64 has neither gradients nor a place on every backend. */
export type ComplexPair = {
  real: tf.Tensor;
  imag: tf.Tensor;
};

/** Where reading back stalls the device, a product with the Fourier matrix pays up to this length. */
const MATRIX_LENGTH = 4096;

/** On the CPU backends our float64 transform beats the matrix at every length from 8 on, by 3 to 100 times. */
const onCpu = (): boolean => tf.backend() && ['cpu', 'wasm', 'tensorflow'].includes(tf.getBackend());
const prefersMatrix = (n: number): boolean => !onCpu() && n <= MATRIX_LENGTH;

/**
 * Discrete Fourier transform along the last axis, X_k = Σ_j x_j·exp(-2πi·jk/n), any n.
 *
 * @param x real and imaginary part, both `[..., n]`
 * @throws MatforgeError when the parts differ in shape.
 */
export function fft(x: ComplexPair): ComplexPair {
  return complexTransform(x, false);
}

/** Inverse of {@link fft}, scaled by 1/n. */
export function ifft(x: ComplexPair): ComplexPair {
  return complexTransform(x, true);
}

function complexTransform({ real, imag }: ComplexPair, inverse: boolean): ComplexPair {
  ensure(
    real.rank >= 1 && sameShape(real.shape, imag.shape),
    'imag',
    () => `has shape [${imag.shape}]; it must be that of real, [${real.shape}], with at least one axis`,
  );
  const n = real.shape[real.rank - 1];
  if (prefersMatrix(n)) return byMatrix.complex({ real, imag }, inverse);
  const [re, im] = complexFourier({ real, imag }, { inverse, scale: inverse ? 1 / n : 1 });
  return { real: re, imag: im };
}

/**
 * Fourier transform of a real tensor along the last axis: the n/2+1 (rounded down) non-redundant coefficients.
 *
 * @param x `[..., n]`
 * @returns two tensors `[..., ⌊n/2⌋+1]`
 */
export function rfft(x: tf.Tensor): ComplexPair {
  ensure(
    x.rank >= 1 && x.shape[x.rank - 1] > 0,
    'x',
    () => `has shape [${x.shape}]; a last axis to transform is needed`,
  );
  const n = x.shape[x.rank - 1];
  if (prefersMatrix(n)) return byMatrix.real(x);
  const [real, imag] = realFourier({ x }, {});
  return { real, imag };
}

/**
 * Inverse of {@link rfft}. As in NumPy, the imaginary parts of the constant and (even n) of the last coefficient are
 * ignored.
 *
 * @param x two tensors `[..., ⌊n/2⌋+1]`
 * @param n length of the result; default: the even one, 2(h-1).
 * @returns `[..., n]`
 * @throws MatforgeError when the parts differ in shape or do not belong to `n`.
 */
export function irfft({ real, imag }: ComplexPair, n: number = 2 * ((real.shape.at(-1) ?? 1) - 1)): tf.Tensor {
  ensure(
    real.rank >= 1 && sameShape(real.shape, imag.shape),
    'imag',
    () => `has shape [${imag.shape}]; it must be that of real, [${real.shape}], with at least one axis`,
  );
  ensure(
    Number.isInteger(n) && n > 0 && real.shape[real.rank - 1] === halfLength(n),
    'n',
    () => `is ${n}, whose spectrum has ${halfLength(n)} coefficients; given were ${real.shape[real.rank - 1]}`,
  );
  if (prefersMatrix(n)) return byMatrix.inverseReal({ real, imag }, n);
  return inverseRealFourier({ real, imag }, { n })[0];
}

/**
 * Circular convolution along the last axis, y_i = Σ_j c_{(i-j) mod n}·x_j: the product of x (as a row) with the
 * circulant matrix C[j,i] = c_{(i-j) mod n}.
 *
 * @param x `[..., n]`
 * @param c `[n]`, or any shape that broadcasts against x in the leading axes
 * @throws MatforgeError when the lengths differ or the leading axes do not broadcast.
 */
export function circularConvolve(x: tf.Tensor, c: tf.Tensor): tf.Tensor {
  return circular(x, c, false);
}

/** Circular correlation, y_i = Σ_j c_{(j-i) mod n}·x_j: the product with the transposed circulant matrix. */
export function circularCorrelate(x: tf.Tensor, c: tf.Tensor): tf.Tensor {
  return circular(x, c, true);
}

function circular(x: tf.Tensor, c: tf.Tensor, correlate: boolean): tf.Tensor {
  const n = x.shape.at(-1);
  ensure(n !== undefined && n > 0, 'x', () => `has shape [${x.shape}]; a last axis to convolve is needed`);
  ensure(c.shape.at(-1) === n, 'c', () => `has shape [${c.shape}]; its last axis must be that of x, ${n}`);
  const shape = broadcastShape(x.shape, c.shape);
  ensure(shape, 'c', () => `shape [${c.shape}] does not broadcast against [${x.shape}] of x`);
  return tf.tidy(() => {
    if (!onCpu()) return convolveBySpectrum(x, c, correlate);
    const lift = (t: tf.Tensor): tf.Tensor => (sameShape(t.shape, shape) ? t : tf.mul(t, tf.ones(shape)));
    const filter = c.size === n && shape.length > 1 ? tf.reshape(c, [n]) : lift(c);
    return circularProduct({ x: lift(x), c: filter }, { correlate })[0];
  });
}

/** The convolution theorem in tfjs ops, for devices whose tensors are better left there. */
export function convolveBySpectrum(x: tf.Tensor, c: tf.Tensor, correlate: boolean): tf.Tensor {
  const [a, b] = [rfft(x), rfft(c)];
  const imag = correlate ? tf.neg(b.imag) : b.imag;
  return irfft(
    {
      real: tf.sub(tf.mul(a.real, b.real), tf.mul(a.imag, imag)),
      imag: tf.add(tf.mul(a.real, imag), tf.mul(a.imag, b.real)),
    },
    x.shape[x.rank - 1],
  );
}

/** The transforms as products with the Fourier matrix. */
export const byMatrix = {
  complex: ({ real, imag }: ComplexPair, inverse: boolean): ComplexPair =>
    tf.tidy(() => {
      const n = real.shape[real.rank - 1];
      const sign = inverse ? 1 : -1;
      const scale = inverse ? 1 / n : 1;
      const matrix = fourierMatrix(n, n, (angle) => [scale * Math.cos(angle), scale * sign * Math.sin(angle)]);
      const [rr, ri] = tf.split(mapRows(real, matrix), 2, -1);
      const [ir, ii] = tf.split(mapRows(imag, matrix), 2, -1);
      return { real: tf.sub(rr, ii), imag: tf.add(ri, ir) };
    }),
  real: (x: tf.Tensor): ComplexPair =>
    tf.tidy(() => {
      const n = x.shape[x.rank - 1];
      const matrix = fourierMatrix(n, halfLength(n), (angle) => [Math.cos(angle), -Math.sin(angle)]);
      const [real, imag] = tf.split(mapRows(x, matrix), 2, -1);
      return { real, imag };
    }),
  inverseReal: ({ real, imag }: ComplexPair, n: number): tf.Tensor =>
    tf.tidy(() => {
      const h = halfLength(n);
      const cos = new Float32Array(h * n);
      const sin = new Float32Array(h * n);
      for (let k = 0; k < h; k++)
        for (let j = 0; j < n; j++) {
          const angle = (2 * Math.PI * ((j * k) % n)) / n;
          cos[k * n + j] = (weight(k, n) * Math.cos(angle)) / n;
          sin[k * n + j] = (-weight(k, n) * Math.sin(angle)) / n;
        }
      return tf.add(mapRows(real, tf.tensor2d(cos, [h, n])), mapRows(imag, tf.tensor2d(sin, [h, n])));
    }),
};

const halfLength = (n: number): number => Math.floor(n / 2) + 1;
/** How often coefficient k of a half spectrum occurs in the full one. */
const weight = (k: number, n: number): number => (k === 0 || 2 * k === n ? 1 : 2);

function mapRows(x: tf.Tensor, matrix: tf.Tensor2D): tf.Tensor {
  const lead = x.shape.slice(0, -1);
  const rows = tf.reshape(x, [sizeOf(lead), matrix.shape[0]]);
  return tf.reshape(tf.matMul(rows, matrix), [...lead, matrix.shape[1]]);
}

/** [n, 2h]: real and imaginary parts of entry(2π·jk/n) side by side. */
function fourierMatrix(n: number, h: number, entry: (angle: number) => [number, number]): tf.Tensor2D {
  const values = new Float32Array(n * 2 * h);
  for (let j = 0; j < n; j++)
    for (let k = 0; k < h; k++) {
      const [re, im] = entry((2 * Math.PI * ((j * k) % n)) / n);
      values[j * 2 * h + k] = re;
      values[j * 2 * h + h + k] = im;
    }
  return tf.tensor2d(values, [n, 2 * h]);
}

const float32 = (x: tf.Tensor): Float32Array => x.dataSync() as Float32Array;

// The adjoint of exp(-2πi·jk/n) is its conjugate: the unscaled transform of the other direction.
const complexFourier: Op<{ inverse: boolean; scale: number }> = defineOp<{ inverse: boolean; scale: number }>({
  name: 'MatforgeFourier',
  forward({ real, imag }, { inverse, scale }) {
    const n = real.shape[real.rank - 1];
    const plan = fftPlan(n);
    const [xr, xi] = [float32(real), float32(imag)];
    const [yr, yi] = [new Float32Array(xr.length), new Float32Array(xr.length)];
    const [re, im] = [new Float64Array(n), new Float64Array(n)];
    for (let row = 0; row < xr.length; row += n) {
      re.set(xr.subarray(row, row + n));
      im.set(xi.subarray(row, row + n));
      if (inverse) plan.run(im, re);
      else plan.run(re, im);
      for (let k = 0; k < n; k++) {
        yr[row + k] = re[k] * scale;
        yi[row + k] = im[k] * scale;
      }
    }
    return [tf.tensor(yr, real.shape), tf.tensor(yi, real.shape)];
  },
  pullback([gr, gi], _, { inverse, scale }) {
    const [real, imag] = complexFourier({ real: gr, imag: gi }, { inverse: !inverse, scale });
    return { real: () => real, imag: () => imag };
  },
});

// Two real rows make one complex row: z = x0 + i·x1, so that X0 and X1 are the even and odd parts of Z.
const realFourier: Op<Record<string, never>> = defineOp<Record<string, never>>({
  name: 'MatforgeRealFourier',
  saveInputs: ['x'],
  forward({ x }) {
    const n = x.shape[x.rank - 1];
    const h = halfLength(n);
    const rows = x.size / n;
    const values = float32(x);
    const [yr, yi] = [new Float32Array(rows * h), new Float32Array(rows * h)];
    const [re, im] = [new Float64Array(n), new Float64Array(n)];
    const plan = fftPlan(n);
    for (let row = 0; row < rows; row += 2) {
      const pair = row + 1 < rows;
      re.set(values.subarray(row * n, (row + 1) * n));
      if (pair) im.set(values.subarray((row + 1) * n, (row + 2) * n));
      else im.fill(0);
      plan.run(re, im);
      for (let k = 0; k < h; k++) {
        const l = k === 0 ? 0 : n - k;
        yr[row * h + k] = (re[k] + re[l]) / 2;
        yi[row * h + k] = (im[k] - im[l]) / 2;
        if (pair) {
          yr[(row + 1) * h + k] = (im[k] + im[l]) / 2;
          yi[(row + 1) * h + k] = (re[l] - re[k]) / 2;
        }
      }
    }
    const shape = [...x.shape.slice(0, -1), h];
    return [tf.tensor(yr, shape), tf.tensor(yi, shape)];
  },
  pullback: ([gr, gi], [x]) => ({
    x: () => {
      const n = x.shape[x.rank - 1];
      const share = tf.tensor1d(Array.from({ length: halfLength(n) }, (_, k) => n / weight(k, n)));
      return inverseRealFourier({ real: tf.mul(gr, share), imag: tf.mul(gi, share) }, { n })[0];
    },
  }),
});

const inverseRealFourier: Op<{ n: number }> = defineOp<{ n: number }>({
  name: 'MatforgeInverseRealFourier',
  forward({ real, imag }, { n }) {
    const h = halfLength(n);
    const rows = real.size / h;
    const [xr, xi] = [float32(real), float32(imag)];
    const y = new Float32Array(rows * n);
    const [re, im] = [new Float64Array(n), new Float64Array(n)];
    const plan = fftPlan(n);
    for (let row = 0; row < rows; row += 2) {
      const pair = row + 1 < rows;
      for (let k = 0; k < h; k++) {
        const real1 = weight(k, n) === 1;
        const ar = xr[row * h + k];
        const ai = real1 ? 0 : xi[row * h + k];
        const br = pair ? xr[(row + 1) * h + k] : 0;
        const bi = pair && !real1 ? xi[(row + 1) * h + k] : 0;
        re[k] = ar - bi;
        im[k] = ai + br;
        if (!real1) {
          re[n - k] = ar + bi;
          im[n - k] = br - ai;
        }
      }
      plan.run(im, re);
      for (let j = 0; j < n; j++) {
        y[row * n + j] = re[j] / n;
        if (pair) y[(row + 1) * n + j] = im[j] / n;
      }
    }
    return [tf.tensor(y, [...real.shape.slice(0, -1), n])];
  },
  pullback([g], _, { n }) {
    const share = tf.tensor1d(Array.from({ length: halfLength(n) }, (_, k) => weight(k, n) / n));
    const [real, imag] = realFourier({ x: g }, {});
    return { real: () => tf.mul(real, share), imag: () => tf.mul(imag, share) };
  },
});

// x and c real: two rows of x ride through one complex transform where c is shared.
const circularProduct: Op<{ correlate: boolean }> = defineOp<{ correlate: boolean }>({
  name: 'MatforgeCircularProduct',
  saveInputs: ['x', 'c'],
  forward({ x, c }, { correlate }) {
    const n = x.shape[x.rank - 1];
    const values = float32(x);
    const filter = float32(c);
    const shared = filter.length === n;
    const y = new Float32Array(values.length);
    const plan = fftPlan(n);
    const [re, im] = [new Float64Array(n), new Float64Array(n)];
    const [cr, ci] = [new Float64Array(n), new Float64Array(n)];
    const loadFilter = (offset: number): void => {
      cr.set(filter.subarray(offset, offset + n));
      ci.fill(0);
      plan.run(cr, ci);
      for (let k = 0; k < n; k++) {
        cr[k] /= n;
        ci[k] *= (correlate ? -1 : 1) / n;
      }
    };
    if (shared) loadFilter(0);
    for (let row = 0; row < values.length; row += shared ? 2 * n : n) {
      if (!shared) loadFilter(row);
      const pair = shared && row + n < values.length;
      re.set(values.subarray(row, row + n));
      if (pair) im.set(values.subarray(row + n, row + 2 * n));
      else im.fill(0);
      plan.run(re, im);
      for (let k = 0; k < n; k++) {
        const r = re[k] * cr[k] - im[k] * ci[k];
        im[k] = re[k] * ci[k] + im[k] * cr[k];
        re[k] = r;
      }
      plan.run(im, re);
      for (let k = 0; k < n; k++) y[row + k] = re[k];
      if (pair) for (let k = 0; k < n; k++) y[row + n + k] = im[k];
    }
    return [tf.tensor(y, x.shape)];
  },
  pullback([g], [x, c], { correlate }) {
    return {
      x: () => circularProduct({ x: g, c }, { correlate: !correlate })[0],
      // y = Σ_j c_{±(i-j)}·x_j: convolving, ∂/∂c correlates g with x; correlating, it correlates x with g.
      c: () => {
        const [a, b] = correlate ? [x, g] : [g, x];
        return sameShape(c.shape, x.shape)
          ? circularProduct({ x: a, c: b }, { correlate: true })[0]
          : summedCorrelation(a, b);
      },
    };
  },
});

/** Σ over rows of the correlations Σ_j b_{j-i}·a_j, accumulated in the spectrum: one inverse transform in all. */
function summedCorrelation(a: tf.Tensor, b: tf.Tensor): tf.Tensor {
  const n = a.shape[a.rank - 1];
  const [va, vb] = [float32(a), float32(b)];
  const plan = fftPlan(n);
  const [ar, ai, br, bi] = [0, 0, 0, 0].map(() => new Float64Array(n));
  const [re, im] = [new Float64Array(n), new Float64Array(n)];
  for (let row = 0; row < va.length; row += 2 * n) {
    const pair = row + n < va.length;
    ar.set(va.subarray(row, row + n));
    br.set(vb.subarray(row, row + n));
    if (pair) {
      ai.set(va.subarray(row + n, row + 2 * n));
      bi.set(vb.subarray(row + n, row + 2 * n));
    } else {
      ai.fill(0);
      bi.fill(0);
    }
    plan.run(ar, ai);
    plan.run(br, bi);
    for (let k = 0; k < n; k++) {
      re[k] += ar[k] * br[k] + ai[k] * bi[k];
      im[k] += ai[k] * br[k] - ar[k] * bi[k];
    }
  }
  plan.run(im, re);
  const sum = new Float32Array(n);
  for (let k = 0; k < n; k++) sum[k] = re[k] / n;
  return tf.tensor1d(sum);
}
