import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { heapModule, type OwnKernel } from '../backend.ts';
import { native } from '../native.ts';

/** What c/fft.c needs to transform one length. */
interface Plan {
  /** Length of the transform that is carried out: n itself, or a power of two where n has factors other than 2, 3, 5. */
  length: number;
  /** Radices of its stages, ended by 0. */
  radices: Int32Array;
  /** Powers of ω for each stage, then Bluestein's chirp and its transform. */
  factors: Float32Array;
  /** How many of the factors are powers. */
  powers: number;
}

/** Radices whose product is n, or null where it has factors other than 2, 3 and 5. */
function radicesOf(n: number): number[] | null {
  const radices: number[] = [];
  let rest = n;
  // Fours first: where s is a multiple of four, all later stages work on whole vectors.
  for (const radix of [4, 5, 3, 2]) {
    for (; rest % radix === 0; rest /= radix) radices.push(radix);
  }
  return rest === 1 ? radices : null;
}

/** Real and imaginary parts of numbers. */
type Parts = [re: Float64Array, im: Float64Array];

/** exp(-2πi·k/n) for k < n. Angles are taken from the nearest quarter of a turn, so that no digit is lost. */
function rootsOfUnity(n: number): Parts {
  const [re, im] = [new Float64Array(n), new Float64Array(n)];
  for (let k = 0; k < n; k++) {
    const quarter = Math.round((4 * k) / n);
    const angle = (Math.PI / 2) * ((4 * k - quarter * n) / n);
    const [c, s] = [Math.cos(angle), Math.sin(angle)];
    [re[k], im[k]] = [
      [c, -s],
      [-s, -c],
      [-c, s],
      [s, c],
    ][quarter % 4];
  }
  return [re, im];
}

/** Writes the powers of all stages in the order of c/fft.c. */
function writePowers([re, im]: Parts, radices: number[], to: Float32Array): void {
  const n = re.length;
  let [length, at] = [n, 0];
  for (const radix of radices) {
    const m = length / radix;
    for (let k = 1; k < radix; k++, at += 2 * m) {
      for (let p = 0; p < m; p++) {
        to[at + p] = re[p * k * (n / length)];
        to[at + m + p] = im[p * k * (n / length)];
      }
    }
    length = m;
  }
}

function countPowers(n: number, radices: number[]): number {
  let [length, count] = [n, 0];
  for (const radix of radices) {
    length /= radix;
    count += 2 * (radix - 1) * length;
  }
  return count;
}

/** Transform of a length that is a power of two, in double precision (Stockham's algorithm). */
function transform(x: Parts, [rootRe, rootIm]: Parts): Parts {
  const n = rootRe.length;
  let [[xr, xi], [yr, yi]] = [x, [new Float64Array(n), new Float64Array(n)] as Parts];
  for (let m = n / 2, s = 1; m >= 1; m /= 2, s *= 2) {
    for (let p = 0; p < m; p++) {
      const [c, d] = [rootRe[p * s], rootIm[p * s]];
      for (let q = 0; q < s; q++) {
        const [i, j, to] = [q + s * p, q + s * (p + m), q + 2 * s * p];
        const dr = xr[i] - xr[j];
        const di = xi[i] - xi[j];
        yr[to] = xr[i] + xr[j];
        yi[to] = xi[i] + xi[j];
        yr[to + s] = dr * c - di * d;
        yi[to + s] = dr * d + di * c;
      }
    }
    [xr, yr] = [yr, xr];
    [xi, yi] = [yi, xi];
  }
  return [xr, xi];
}

function makePlan(n: number): Plan {
  const own = radicesOf(n);
  if (own) {
    const factors = new Float32Array(countPowers(n, own));
    writePowers(rootsOfUnity(n), own, factors);
    return { length: n, radices: Int32Array.from([...own, 0]), factors, powers: factors.length };
  }
  const length = 2 ** Math.ceil(Math.log2(2 * n - 1));
  const radices = radicesOf(length) as number[];
  const powers = countPowers(length, radices);
  const factors = new Float32Array(powers + 2 * n + 2 * length);
  const roots = rootsOfUnity(length);
  writePowers(roots, radices, factors);
  // c_j = exp(-πi·j²/n): the exponent modulo 2n grows by 2j + 1.
  const [re, im] = rootsOfUnity(2 * n);
  const conjugate: Parts = [new Float64Array(length), new Float64Array(length)];
  for (let j = 0, square = 0; j < n; square = (square + 2 * j + 1) % (2 * n), j++) {
    factors[powers + j] = re[square];
    factors[powers + n + j] = im[square];
    for (const at of [j, (length - j) % length]) {
      conjugate[0][at] = re[square] / length;
      conjugate[1][at] = -im[square] / length;
    }
  }
  const kernel = transform(conjugate, roots);
  factors.set(kernel[0], powers + 2 * n);
  factors.set(kernel[1], powers + 2 * n + length);
  return { length, radices: Int32Array.from([...radices, 0]), factors, powers };
}

const KEPT = 32;
const plans = new Map<number, Plan>();

function planOf(n: number): Plan {
  const plan = plans.get(n) ?? makePlan(n);
  // The plan in use is the youngest; the oldest one goes.
  plans.delete(n);
  plans.set(n, plan);
  if (plans.size > KEPT) plans.delete(plans.keys().next().value as number);
  return plan;
}

/** Copies a plan into the work area; returns the addresses of its parts and of the rest. */
function place(backend: BackendWasm, plan: Plan): [radices: number, factors: number, work: number] {
  const engine = native(backend)!;
  const radicesBytes = 16 * Math.ceil(plan.radices.length / 4);
  const factorBytes = 16 * Math.ceil(plan.factors.length / 4);
  const radices = engine.work(radicesBytes + factorBytes + 16 * plan.length);
  const { buffer } = heapModule(backend).HEAPU8;
  new Int32Array(buffer, radices, plan.radices.length).set(plan.radices);
  new Float32Array(buffer, radices + radicesBytes, plan.factors.length).set(plan.factors);
  return [radices, radices + radicesBytes, radices + radicesBytes + factorBytes];
}

function fourier(inverse: boolean): OwnKernel {
  return ({ inputs: { input }, backend }) => {
    const engine = native(backend);
    if (!engine || input.dtype !== 'complex64' || input.shape.length === 0) return null;
    const out = backend.makeOutput(input.shape, 'complex64');
    const count = tf.util.sizeFromShape(input.shape);
    if (count === 0) return out;
    const n = input.shape.at(-1)!;
    const plan = planOf(n);
    const [radices, factors, work] = place(backend, plan);
    engine.kernels.mf_fft(
      ...[count / n, n, plan.length, Number(inverse), radices, factors, plan.powers],
      ...[engine.at(input), engine.at(out), work],
    );
    return out;
  };
}

/** Discrete Fourier transform over the last axis. */
export const fft: OwnKernel = fourier(false);
/** Its inverse. */
export const ifft: OwnKernel = fourier(true);
