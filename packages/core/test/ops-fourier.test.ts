import * as tf from '@tensorflow/tfjs';
import { byMatrix, convolveBySpectrum } from '../src/ops/fourier.ts';
import { circularConvolve, circularCorrelate, fft, ifft, irfft, rfft } from '../src/ops/index.ts';
import { backends, deviation, gradientError, leaked, useBackend, values } from './backends.ts';

/** Σ_j x_j·exp(-2πi·jk/n) of each row, from the definition. */
function dft(real: tf.Tensor, imag?: tf.Tensor): { real: number[]; imag: number[] } {
  const n = real.shape[real.rank - 1];
  const [xr, xi] = [real.dataSync(), imag?.dataSync()];
  const out = { real: [] as number[], imag: [] as number[] };
  for (let row = 0; row < xr.length; row += n)
    for (let k = 0; k < n; k++) {
      let [re, im] = [0, 0];
      for (let j = 0; j < n; j++) {
        const angle = (-2 * Math.PI * ((j * k) % n)) / n;
        const [a, b] = [xr[row + j], xi?.[row + j] ?? 0];
        re += a * Math.cos(angle) - b * Math.sin(angle);
        im += a * Math.sin(angle) + b * Math.cos(angle);
      }
      out.real.push(re);
      out.imag.push(im);
    }
  return out;
}

const half = (full: number[], n: number): number[] => full.filter((_, i) => i % n <= n / 2);

// Radix 4, 2, 3, 5, 7 and their products, Bluestein (37, 2·53, 127), odd and even.
const LENGTHS = [1, 2, 3, 8, 15, 16, 17, 64, 72, 105, 106, 127, 128, 160];

describe.each(backends)('Fourier ops on %s', (backend) => {
  beforeAll(() => useBackend(backend));
  beforeEach(() => tf.engine().startScope());
  afterEach(() => tf.engine().endScope());

  test.each(LENGTHS)('fft, rfft and their inverses at length %i', (n) => {
    const x = values([3, n]);
    const z = { real: x, imag: values([3, n], 2) };
    const full = dft(z.real, z.imag);
    const got = fft(z);
    expect(deviation(got.real, full.real)).toBeLessThan(1e-5);
    expect(deviation(got.imag, full.imag)).toBeLessThan(1e-5);
    const back = ifft(got);
    expect(deviation(back.real, z.real)).toBeLessThan(1e-5);
    expect(deviation(back.imag, z.imag)).toBeLessThan(1e-5);

    const real = dft(x);
    const spectrum = rfft(x);
    expect(spectrum.real.shape).toEqual([3, Math.floor(n / 2) + 1]);
    expect(deviation(spectrum.real, half(real.real, n))).toBeLessThan(1e-5);
    expect(deviation(spectrum.imag, half(real.imag, n))).toBeLessThan(1e-5);
    expect(deviation(irfft(spectrum, n), x)).toBeLessThan(1e-5);
  });

  test.each([1, 2, 6, 7, 36, 37, 74])('gradients at length %i', (n) => {
    const [a, b] = [values([3, n]), values([3, n], 2)];
    const join = (z: { real: tf.Tensor; imag: tf.Tensor }): tf.Tensor => tf.concat([z.real, z.imag], -1);
    const parts = (f: (z: { real: tf.Tensor; imag: tf.Tensor }) => tf.Tensor, xs: tf.Tensor[]): number =>
      gradientError((real, imag) => f({ real, imag }), xs, 0.1);
    expect(parts((z) => join(fft(z)), [a, b])).toBeLessThan(1e-3);
    expect(parts((z) => join(ifft(z)), [a, b])).toBeLessThan(1e-3);
    expect(gradientError((x) => join(rfft(x)), [a], 0.1)).toBeLessThan(1e-3);
    const h = Math.floor(n / 2) + 1;
    const spectrum = [values([3, h], 3), values([3, h], 4)];
    expect(parts((z) => irfft(z, n), spectrum)).toBeLessThan(1e-3);
    // Only one half of the pair on the path.
    expect(gradientError((x) => fft({ real: x, imag: b }).imag, [a], 0.1)).toBeLessThan(1e-3);
    expect(leaked((x) => Object.values(rfft(x)), [a])).toBe(0);
    expect(leaked((real, imag) => Object.values(fft({ real, imag })), [a, b])).toBe(0);
    expect(leaked((real, imag) => irfft({ real, imag }, n), spectrum)).toBe(0);
  });

  test.each([5, 24, 37])('circularConvolve is the product with the circulant matrix, length %i', (n) => {
    const [x, c] = [values([3, n]), values([n], 2)];
    const [xs, cs] = [x.dataSync(), c.dataSync()];
    const expected = (correlate: boolean): number[] =>
      Array.from(xs, (_, flat) => {
        const [row, i] = [Math.floor(flat / n), flat % n];
        let y = 0;
        for (let j = 0; j < n; j++) y += cs[(((correlate ? j - i : i - j) % n) + n) % n] * xs[row * n + j];
        return y;
      });
    expect(deviation(circularConvolve(x, c), expected(false))).toBeLessThan(1e-5);
    expect(deviation(circularCorrelate(x, c), expected(true))).toBeLessThan(1e-5);
    for (const f of [circularConvolve, circularCorrelate]) {
      expect(gradientError(f, [x, c], 0.1)).toBeLessThan(1e-3);
      expect(gradientError(f, [values([n]), c], 0.1)).toBeLessThan(1e-3);
      expect(gradientError(f, [values([1, n]), c], 0.1)).toBeLessThan(1e-3);
      expect(gradientError(f, [values([2, 1, n]), values([3, n], 5)], 0.1)).toBeLessThan(1e-3);
      expect(leaked(f, [x, c])).toBe(0);
    }
  });

  test.each([1, 2, 9, 12])('the Fourier matrix, for devices that should not read back, agrees at length %i', (n) => {
    const [x, y, c] = [values([3, n]), values([3, n], 2), values([n], 3)];
    const [fast, slow] = [fft({ real: x, imag: y }), byMatrix.complex({ real: x, imag: y }, false)];
    expect(deviation(tf.stack([slow.real, slow.imag]), tf.stack([fast.real, fast.imag]))).toBeLessThan(1e-5);
    const back = byMatrix.complex(slow, true);
    expect(deviation(tf.stack([back.real, back.imag]), tf.stack([x, y]))).toBeLessThan(1e-5);
    const [fastReal, slowReal] = [rfft(x), byMatrix.real(x)];
    expect(deviation(tf.stack(Object.values(slowReal)), tf.stack(Object.values(fastReal)))).toBeLessThan(1e-5);
    expect(deviation(byMatrix.inverseReal(slowReal, n), x)).toBeLessThan(1e-5);
    for (const correlate of [false, true])
      expect(
        deviation(convolveBySpectrum(x, c, correlate), (correlate ? circularCorrelate : circularConvolve)(x, c)),
      ).toBeLessThan(1e-5);
    expect(gradientError((t) => byMatrix.inverseReal(byMatrix.real(tf.square(t)), n), [x])).toBeLessThan(2e-3);
  });

  test('the misfit is named', () => {
    expect(() => fft({ real: values([4]), imag: values([5]) })).toThrow('imag: has shape [5]; it must be that of real');
    expect(() => irfft({ real: values([4]), imag: values([4]) }, 9)).toThrow('n: is 9, whose spectrum has 5');
    expect(() => circularConvolve(values([2, 4]), values([5]))).toThrow('c: has shape [5]; its last axis must be that');
    expect(() => circularConvolve(values([2, 4]), values([3, 4]))).toThrow('does not broadcast');
  });
});
