export { type AttackReport, attackReport, attacks, type Train } from './attacks.ts';
export {
  adoptClaim,
  type Claim,
  type ClaimLayer,
  claimDigest,
  claimOf,
  claimTensors,
  disposeClaim,
  forge,
  loadClaim,
  saveClaim,
  saveRelease,
  setPassport,
  setPassports,
  wrongKey,
} from './claim.ts';
export { type EmbedOptions, embed } from './embed.ts';
export { imagePassport, makePassport, type Normalization, type PassportOptions } from './passport.ts';
export { extract, factorConditions, type MarkedAdapter, type ReleasedAdapter, release } from './release.ts';
export { seal, trainStepPassport } from './seal.ts';
export { binomialLog10Tail, type WatermarkStats, watermarkStats } from './statistics.ts';
export {
  type Evidence,
  evidence,
  judge,
  type Thresholds,
  type Verification,
  type VerifyOptions,
  verifyOwnership,
} from './verify.ts';
