/** Fast Fourier transforms of any length on float64 arrays. */
export interface FftPlan {
  readonly n: number;
  /** Replaces z by Σ_j z_j·exp(-2πi·jk/n). Exchange the arguments for the unscaled inverse. */
  run(re: Float64Array, im: Float64Array): void;
}

const plans = new Map<number, FftPlan>();
const MAX_PLANS = 32;
/** Beyond this prime factor Bluestein's algorithm beats the direct butterfly. */
const LARGEST_RADIX = 31;

/** The (cached) plan of a length: mixed-radix Stockham, or Bluestein for large prime factors. */
export function fftPlan(n: number): FftPlan {
  let plan = plans.get(n);
  if (!plan) {
    const radices = factorize(n);
    plan = radices.some((p) => p > LARGEST_RADIX) ? bluestein(n) : stockham(n, radices);
    if (plans.size >= MAX_PLANS) plans.delete(plans.keys().next().value!);
    plans.set(n, plan);
  }
  return plan;
}

function factorize(n: number): number[] {
  const radices: number[] = [];
  let rest = n;
  for (const p of [4, 2]) while (rest % p === 0) rest = radices.push(p) && rest / p;
  for (let p = 3; p * p <= rest; p += 2) while (rest % p === 0) rest = radices.push(p) && rest / p;
  if (rest > 1) radices.push(rest);
  return radices;
}

/** Stockham's self-sorting transform: pass t reads blocks of n_t and writes them interleaved, no bit reversal. */
function stockham(n: number, radices: number[]): FftPlan {
  const cos = new Float64Array(n);
  const sin = new Float64Array(n);
  for (let k = 0; k < n; k++) {
    cos[k] = Math.cos((2 * Math.PI * k) / n);
    sin[k] = -Math.sin((2 * Math.PI * k) / n);
  }
  const workRe = new Float64Array(n);
  const workIm = new Float64Array(n);
  const widest = Math.max(1, ...radices);
  const legRe = new Float64Array(widest);
  const legIm = new Float64Array(widest);

  return {
    n,
    run(re, im) {
      let [xr, xi, yr, yi]: Float64Array[] = [re, im, workRe, workIm];
      let stride = 1;
      let length = n;
      for (const p of radices) {
        const m = length / p;
        if (p === 4) radix4(xr, xi, yr, yi, m, stride, cos, sin);
        else if (p === 2) radix2(xr, xi, yr, yi, m, stride, cos, sin);
        else if (p === 3) radix3(xr, xi, yr, yi, m, stride, cos, sin);
        else radixAny(p, xr, xi, yr, yi, m, stride);
        [xr, xi, yr, yi] = [yr, yi, xr, xi];
        stride *= p;
        length = m;
      }
      if (xr !== re) {
        re.set(xr);
        im.set(xi);
      }
    },
  };

  function radixAny(
    p: number,
    xr: Float64Array,
    xi: Float64Array,
    yr: Float64Array,
    yi: Float64Array,
    m: number,
    stride: number,
  ): void {
    const step = n / p;
    for (let q = 0; q < m; q++)
      for (let k = 0; k < stride; k++) {
        for (let r = 0; r < p; r++) {
          legRe[r] = xr[k + stride * (q + m * r)];
          legIm[r] = xi[k + stride * (q + m * r)];
        }
        for (let t = 0; t < p; t++) {
          let sumRe = 0;
          let sumIm = 0;
          for (let r = 0; r < p; r++) {
            const w = ((r * t) % p) * step;
            sumRe += legRe[r] * cos[w] - legIm[r] * sin[w];
            sumIm += legRe[r] * sin[w] + legIm[r] * cos[w];
          }
          const w = q * t * stride;
          const out = k + stride * (p * q + t);
          yr[out] = sumRe * cos[w] - sumIm * sin[w];
          yi[out] = sumRe * sin[w] + sumIm * cos[w];
        }
      }
  }
}

function radix2(
  xr: Float64Array,
  xi: Float64Array,
  yr: Float64Array,
  yi: Float64Array,
  m: number,
  stride: number,
  cos: Float64Array,
  sin: Float64Array,
): void {
  for (let q = 0; q < m; q++) {
    const wr = cos[q * stride];
    const wi = sin[q * stride];
    for (let k = 0; k < stride; k++) {
      const i = k + stride * q;
      const j = i + stride * m;
      const o = k + stride * 2 * q;
      const dr = xr[i] - xr[j];
      const di = xi[i] - xi[j];
      yr[o] = xr[i] + xr[j];
      yi[o] = xi[i] + xi[j];
      yr[o + stride] = dr * wr - di * wi;
      yi[o + stride] = dr * wi + di * wr;
    }
  }
}

function radix3(
  xr: Float64Array,
  xi: Float64Array,
  yr: Float64Array,
  yi: Float64Array,
  m: number,
  stride: number,
  cos: Float64Array,
  sin: Float64Array,
): void {
  const jump = stride * m;
  const rise = -Math.sqrt(3) / 2;
  for (let q = 0; q < m; q++) {
    const w1r = cos[q * stride];
    const w1i = sin[q * stride];
    const w2r = cos[2 * q * stride];
    const w2i = sin[2 * q * stride];
    for (let k = 0; k < stride; k++) {
      const i = k + stride * q;
      const o = k + stride * 3 * q;
      const sr = xr[i + jump] + xr[i + 2 * jump];
      const si = xi[i + jump] + xi[i + 2 * jump];
      const dr = rise * (xr[i + jump] - xr[i + 2 * jump]);
      const di = rise * (xi[i + jump] - xi[i + 2 * jump]);
      const cr = xr[i] - sr / 2;
      const ci = xi[i] - si / 2;
      yr[o] = xr[i] + sr;
      yi[o] = xi[i] + si;
      let tr = cr - di;
      let ti = ci + dr;
      yr[o + stride] = tr * w1r - ti * w1i;
      yi[o + stride] = tr * w1i + ti * w1r;
      tr = cr + di;
      ti = ci - dr;
      yr[o + 2 * stride] = tr * w2r - ti * w2i;
      yi[o + 2 * stride] = tr * w2i + ti * w2r;
    }
  }
}

function radix4(
  xr: Float64Array,
  xi: Float64Array,
  yr: Float64Array,
  yi: Float64Array,
  m: number,
  stride: number,
  cos: Float64Array,
  sin: Float64Array,
): void {
  const jump = stride * m;
  for (let q = 0; q < m; q++) {
    const w1r = cos[q * stride];
    const w1i = sin[q * stride];
    const w2r = cos[2 * q * stride];
    const w2i = sin[2 * q * stride];
    const w3r = cos[3 * q * stride];
    const w3i = sin[3 * q * stride];
    for (let k = 0; k < stride; k++) {
      const i = k + stride * q;
      const o = k + stride * 4 * q;
      const acr = xr[i] + xr[i + 2 * jump];
      const aci = xi[i] + xi[i + 2 * jump];
      const amr = xr[i] - xr[i + 2 * jump];
      const ami = xi[i] - xi[i + 2 * jump];
      const bdr = xr[i + jump] + xr[i + 3 * jump];
      const bdi = xi[i + jump] + xi[i + 3 * jump];
      const bmr = xr[i + jump] - xr[i + 3 * jump];
      const bmi = xi[i + jump] - xi[i + 3 * jump];
      yr[o] = acr + bdr;
      yi[o] = aci + bdi;
      let tr = amr + bmi;
      let ti = ami - bmr;
      yr[o + stride] = tr * w1r - ti * w1i;
      yi[o + stride] = tr * w1i + ti * w1r;
      tr = acr - bdr;
      ti = aci - bdi;
      yr[o + 2 * stride] = tr * w2r - ti * w2i;
      yi[o + 2 * stride] = tr * w2i + ti * w2r;
      tr = amr - bmi;
      ti = ami + bmr;
      yr[o + 3 * stride] = tr * w3r - ti * w3i;
      yi[o + 3 * stride] = tr * w3i + ti * w3r;
    }
  }
}

/** Bluestein 1970: jk = (j² + k² - (k-j)²)/2 turns the transform into a convolution of a power-of-two length. */
function bluestein(n: number): FftPlan {
  let size = 1;
  while (size < 2 * n - 1) size *= 2;
  const inner = stockham(size, factorize(size));
  const chirpRe = new Float64Array(n);
  const chirpIm = new Float64Array(n);
  const filterRe = new Float64Array(size);
  const filterIm = new Float64Array(size);
  for (let k = 0; k < n; k++) {
    const angle = (Math.PI * ((k * k) % (2 * n))) / n;
    chirpRe[k] = Math.cos(angle);
    chirpIm[k] = -Math.sin(angle);
    filterRe[k] = filterRe[(size - k) % size] = chirpRe[k];
    filterIm[k] = filterIm[(size - k) % size] = -chirpIm[k];
  }
  inner.run(filterRe, filterIm);
  const workRe = new Float64Array(size);
  const workIm = new Float64Array(size);
  return {
    n,
    run(re, im) {
      workRe.fill(0);
      workIm.fill(0);
      for (let k = 0; k < n; k++) {
        workRe[k] = re[k] * chirpRe[k] - im[k] * chirpIm[k];
        workIm[k] = re[k] * chirpIm[k] + im[k] * chirpRe[k];
      }
      inner.run(workRe, workIm);
      for (let k = 0; k < size; k++) {
        const r = workRe[k] * filterRe[k] - workIm[k] * filterIm[k];
        workIm[k] = workRe[k] * filterIm[k] + workIm[k] * filterRe[k];
        workRe[k] = r;
      }
      inner.run(workIm, workRe);
      for (let k = 0; k < n; k++) {
        re[k] = (workRe[k] * chirpRe[k] - workIm[k] * chirpIm[k]) / size;
        im[k] = (workRe[k] * chirpIm[k] + workIm[k] * chirpRe[k]) / size;
      }
    },
  };
}
