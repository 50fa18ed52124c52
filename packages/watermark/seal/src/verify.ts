import { ensure, linalg, refuse, toMatrix } from '@matforge/core';
import type * as tf from '@tensorflow/tfjs';
import { type Claim, checkClaim } from './claim.ts';
import { cosine } from './passport.ts';
import { extraction } from './release.ts';
import { binomialLog10Tail, statsOf, type WatermarkStats } from './statistics.ts';

/** The thresholds of a verification, to be agreed on before it. */
export interface Thresholds {
  /** Largest probability of a chance agreement of bits, in (0, 0.1]. Default 1e-6. */
  alphaLevel?: number;
  /** Number of claims that are tried; the significance level is divided by it (Bonferroni). Default 1. */
  claims?: number;
  /** Largest |M(C) − M(C')|, in units of the metric. Default 0.05. */
  maxFidelityGap?: number;
  /** Largest |cosine(C, C')| of a layer, so that C' is no copy of C. Default 0.5. */
  maxPassportCosine?: number;
}

/** Options of {@link verifyOwnership}. */
export interface VerifyOptions extends Thresholds {
  /**
   * Task metric of the model with the claimant's factors and the passport C (0) or C' (1) in the adapter's place.
   * Without it nothing tells a forger from the owner, and no claim is accepted.
   */
  metric?: (passport: 0 | 1) => number | Promise<number>;
  /** Largest relative distance of the claimed s·A·C·B from the suspect. Default 1e-3. */
  maxReconstructionError?: number;
  /** The suspect is said to be an altered copy: the distance is then reported, not judged. Default false. */
  attackAlleged?: boolean;
}

/** The outcome of {@link verifyOwnership}. */
export interface Verification {
  /** True when all four tests pass. */
  readonly accepted: boolean;
  readonly bits: Pick<WatermarkStats, 'matched' | 'total' | 'bitErrorRate' | 'log10p' | 'z'> & {
    readonly pass: boolean;
    /** Largest condition number of a factor: how much noise the extraction amplified. */
    readonly condition: number;
  };
  /** M(C), M(C') and their distance; NaN without a metric. */
  readonly fidelity: { readonly c: number; readonly cp: number; readonly gap: number; readonly pass: boolean };
  /** The largest |cosine(C, C')| of a layer. */
  readonly distance: { readonly cosine: number; readonly pass: boolean };
  readonly reconstruction: { readonly error: number; readonly pass: boolean };
}

/** The numbers that {@link judge} decides on. */
export interface Evidence {
  readonly matched: number;
  readonly total: number;
  readonly fidelityC: number;
  readonly fidelityCp: number;
  readonly passportCosine: number;
}

/**
 * Applies the thresholds to the evidence for one claim.
 *
 * @throws MatforgeError for a level outside (0, 0.1] or too few bits to reach it.
 */
export function judge(
  { matched, total, fidelityC, fidelityCp, passportCosine }: Evidence,
  { alphaLevel = 1e-6, claims = 1, maxFidelityGap = 0.05, maxPassportCosine = 0.5 }: Thresholds = {},
): { log10p: number; z: number; bitsPass: boolean; fidelityPass: boolean; distancePass: boolean; accepted: boolean } {
  if (!(alphaLevel > 0 && alphaLevel <= 0.1)) refuse('alphaLevel', `must be in (0, 0.1], got ${alphaLevel}`);
  ensure(Number.isInteger(claims) && claims >= 1, 'claims', () => `must be a positive integer, got ${claims}`);
  const level = Math.log10(alphaLevel / claims);
  if (total < 64 || total * Math.log10(2) < -level)
    refuse(
      'claim',
      `too few bits for the requested significance: ${total}, at least ${Math.max(64, Math.ceil(-level / Math.log10(2)))} are needed`,
    );
  const log10p = binomialLog10Tail(matched, total);
  const bitsPass = log10p <= level;
  // Comparisons with NaN are false: a metric that is missing does not pass.
  const fidelityPass = Math.abs(fidelityC - fidelityCp) <= maxFidelityGap;
  const distancePass = Math.abs(passportCosine) <= maxPassportCosine;
  return {
    log10p,
    z: (2 * matched - total) / Math.sqrt(total),
    bitsPass,
    fidelityPass,
    distancePass,
    accepted: bitsPass && fidelityPass && distancePass,
  };
}

/**
 * Verifies a claim of ownership of a suspect model. Accepted only if the passport is in the suspect (bits), the second
 * passport works as well as the first (fidelity), it is no copy of it (distance), and the claimed factors make the
 * suspect's update (reconstruction).
 *
 * @param suspect kernel change `[in, out]` of every layer in the claim: the published scale·A·B, or merged kernel minus
 *   base.
 * @throws MatforgeError for layers that are missing or of another shape, a suspect of zero norm, values that are not
 *   finite, unusable passports or factors, or too few bits for the significance asked for.
 */
export async function verifyOwnership(
  claim: Claim,
  suspect: Record<string, tf.Tensor2D>,
  options: VerifyOptions = {},
): Promise<Verification> {
  const { metric, maxReconstructionError = 1e-3, attackAlleged = false } = options;
  const { stats, condition, error } = evidence(claim, suspect);
  const passportCosine = claim.layers
    .map(({ C, Cp }) => cosine(C.dataSync(), Cp.dataSync()))
    .reduce((largest, value) => (Math.abs(value) > Math.abs(largest) ? value : largest), 0);
  const { matched, total, bitErrorRate } = stats;
  const judged = (fidelityC: number, fidelityCp: number) =>
    judge({ matched, total, fidelityC, fidelityCp, passportCosine }, options);
  // Thresholds are refused before the metric, which may take long, is measured.
  judged(0, 0);
  const c = metric ? finite(await metric(0)) : Number.NaN;
  const cp = metric ? finite(await metric(1)) : Number.NaN;
  const { log10p, z, bitsPass, fidelityPass, distancePass, accepted } = judged(c, cp);
  const reconstructed = attackAlleged || error <= maxReconstructionError;
  return {
    accepted: accepted && reconstructed,
    bits: { matched, total, bitErrorRate, log10p, z, condition, pass: bitsPass },
    fidelity: { c, cp, gap: Math.abs(c - cp), pass: fidelityPass },
    distance: { cosine: passportCosine, pass: distancePass },
    reconstruction: { error, pass: reconstructed },
  };
}

function finite(value: number): number {
  if (!Number.isFinite(value)) refuse('metric', `returned ${value}; a finite number is needed`);
  return value;
}

/**
 * Extracts a claim's passport from every layer of a suspect and compares it with C; also the relative distance of
 * s·A·C·B from the suspect.
 */
export function evidence(
  claim: Claim,
  suspect: Record<string, tf.Tensor2D>,
): { stats: WatermarkStats; condition: number; error: number } {
  checkClaim(claim);
  const { scale, layers } = claim;
  const [extracted, claimed]: [number[][], number[][]] = [[], []];
  let [condition, distance, norm] = [0, 0, 0];
  for (const { name, A, B, C } of layers) {
    const delta =
      suspect[name] ?? refuse(name, `the suspect lacks this layer; it has ${Object.keys(suspect).join(', ')}`);
    const D = toMatrix(delta);
    const size = linalg.frobeniusNorm(D);
    norm = Math.hypot(norm, size);
    const found = extraction({ A, B, scale }, delta, name);
    condition = Math.max(condition, found.condition);
    extracted.push(Array.from(found.X.data));
    claimed.push(Array.from(C.dataSync()));
    const product = linalg.matmul(linalg.matmul(toMatrix(A), toMatrix(C)), toMatrix(B));
    distance = Math.hypot(distance, linalg.frobeniusNorm(linalg.add(D, product, -scale)));
  }
  ensure(norm > 0, 'suspect', () => 'has zero norm: it is the base model itself');
  return { stats: statsOf(extracted.flat(), claimed.flat()), condition, error: distance / norm };
}
