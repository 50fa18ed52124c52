/** True when R multiplications per multiplier divide an nIn x nOut matrix into equal shares (hls4ml's rule). */
export function isValidReuse(nIn: number, nOut: number, reuse: number): boolean {
  if ((nIn * nOut) % reuse !== 0) return false;
  const limit = Math.ceil((nIn * nOut) / Math.min(nIn, reuse));
  return reuse < nIn ? limit % nOut === 0 : reuse % nIn === 0;
}

/** The valid reuse factor nearest to the wanted one, the smaller on ties. */
export function nearestReuseFactor(nIn: number, nOut: number, wanted: number): number {
  for (let distance = 0; ; distance++) {
    if (wanted - distance >= 1 && isValidReuse(nIn, nOut, wanted - distance)) return wanted - distance;
    if (wanted + distance <= nIn * nOut && isValidReuse(nIn, nOut, wanted + distance)) return wanted + distance;
    if (distance > Math.max(wanted, nIn * nOut)) return 1;
  }
}

export interface MatrixEstimateInput {
  nIn: number;
  nOut: number;
  reuseFactor: number;
  Wx: number;
  Ww: number;
  Wacc: number;
  k?: number;
  pixels?: number;
  lutMaxBits?: number;
  dspPorts?: readonly [number, number];
}

export function resourceEstimate(given: MatrixEstimateInput): {
  multipliers: number;
  dsp: number;
  lut: number;
  bram18: number;
  ii: number;
} {
  const { nIn, nOut, reuseFactor: R, Wx, Ww, Wacc, k = 0, pixels = 1, lutMaxBits = 8, dspPorts = [27, 18] } = given;
  const M = Math.ceil((nIn * nOut) / R);
  const [small, big] = [Math.min(Wx, Ww), Math.max(Wx, Ww)];
  let dsp = 0;
  let lut = M * Wacc;
  if (k > 0) lut += M * (k - 1) * (Wx + Ww) + (R > 1 ? M * k * Wx * Math.ceil(Math.log2(Ww)) : 0);
  else if (small <= lutMaxBits) lut += M * (2 * Math.ceil((Wx + Ww) / 6) - 1) * (Wx + Ww);
  else dsp = M * Math.ceil(big / dspPorts[0]) * Math.ceil(small / dspPorts[1]);
  if (R > 1 && R <= 64) lut += M * Ww;
  return { multipliers: M, dsp, lut, bram18: R > 64 ? bram18(M * Ww, R) : 0, ii: R * pixels };
}

function bram18(width: number, depth: number): number {
  if (width === 1) return Math.ceil(depth / 16384);
  if (width === 2) return Math.ceil(depth / 8192);
  if (width <= 4) return Math.ceil(depth / 4096);
  if (width <= 9) return Math.ceil(depth / 2048);
  if (width <= 18 || depth > 512) return Math.ceil(depth / 1024) * Math.ceil(width / 18);
  return Math.ceil(depth / 512) * Math.ceil(width / 36);
}
