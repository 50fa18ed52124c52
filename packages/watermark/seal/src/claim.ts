import {
  adapterTensors,
  encodeSafetensors,
  ensure,
  fileError,
  type Random,
  readSafetensors,
  refuse,
  save,
  setAdapterTensors,
} from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { checkPassports, makePassport } from './passport.ts';
import { forgedFactors, release } from './release.ts';

/** A layer of a claim: the factors of training and both passports. */
export interface ClaimLayer {
  /** Dotted name of the layer in the model. */
  readonly name: string;
  /** `[in, r]` */
  readonly A: tf.Tensor2D;
  /** `[r, out]` */
  readonly B: tf.Tensor2D;
  /** `[r, r]` */
  readonly C: tf.Tensor2D;
  /** `[r, r]`, the second passport. */
  readonly Cp: tf.Tensor2D;
}

/** What an owner keeps to prove ownership: the published product is scale·A·C·B, and C' works as well as C. */
export interface Claim {
  /** s = alpha/rank, the same for all layers. */
  readonly scale: number;
  readonly layers: readonly ClaimLayer[];
}

const KEYS = ['A', 'B', 'C', 'Cp'] as const;
const FORMAT = 'matforge-seal-claim-1';

/**
 * The owner's claim from a trained adapter: copies of its factors and passports.
 *
 * @throws MatforgeError for an unknown adapter, or one of another method.
 */
export function claimOf(model: tf.LayersModel, name: string): Claim {
  const sites = sealTensors(model, name);
  return {
    scale: sites[0][1].scale.dataSync()[0],
    layers: sites.map(([site, tensors]) => layerOf(site, (key) => tf.clone(tensors[key]))),
  };
}

/** An adapter's tensors by layer, which must be seal's. */
function sealTensors(model: tf.LayersModel, name: string): [string, Record<string, tf.Tensor>][] {
  const sites = Object.entries(adapterTensors(model, name));
  ensure(
    sites.every(([, { C, Cp, passport }]) => C && Cp && passport),
    name,
    () => 'is not an adapter of seal, so it carries no passports',
  );
  return sites;
}

/** The tensors of a claim by layer, as `setAdapterTensors` takes them. They stay the claim's. */
export function claimTensors({ layers }: Claim): Record<string, Record<(typeof KEYS)[number], tf.Tensor2D>> {
  return Object.fromEntries(layers.map(({ name, A, B, C, Cp }) => [name, { A, B, C, Cp }]));
}

/**
 * Puts a claim's factors and passports into an adapter, to measure the model as the claimant says it is.
 *
 * @throws MatforgeError when the adapter has other layers or ranks.
 */
export function adoptClaim(model: tf.LayersModel, name: string, claim: Claim): void {
  setAdapterTensors(model, name, claimTensors(claim));
}

/** Frees the tensors of a claim. */
export function disposeClaim({ layers }: Claim): void {
  tf.dispose(layers.flatMap((layer) => KEYS.map((key) => layer[key])));
}

/** The same claim with passports of another secret: what someone has who guessed the factors but not the key. */
export function wrongKey({ scale, layers }: Claim, seed: number): Claim {
  return {
    scale,
    layers: layers.map(({ name, A, B }, i) => ({
      name,
      A: tf.clone(A),
      B: tf.clone(B),
      C: makePassport(A.shape[1], seed + i),
      Cp: makePassport(A.shape[1], seed + i, { which: 1 }),
    })),
  };
}

/**
 * The claim of someone who has the published adapter alone: with any invertible F, the factors A' and F⁻¹·B' and the
 * passport F make the same product, so every bit agrees. The second passport F₂ cannot be had this way; it is drawn.
 */
export function forge({ scale, layers }: Claim, random: Random): Claim {
  return {
    scale,
    layers: layers.map(({ name, A, B, C }) => {
      const released = release({ A, B, C, scale });
      const secret = random.integer(2 ** 31);
      const F = makePassport(A.shape[1], secret);
      const forged = forgedFactors(released, F);
      tf.dispose([released.A, released.B, F]);
      return {
        name,
        A: forged.A,
        B: forged.B,
        C: forged.C,
        Cp: makePassport(A.shape[1], secret, { which: 1 }),
      };
    }),
  };
}

/**
 * SHA-256 of a claim in hexadecimal: over the float32 numbers of A, B, C and C' (little-endian, row-major), layer after
 * layer. Published before the adapter, it shows later that the claim is not an afterthought.
 */
export async function claimDigest(claim: Claim): Promise<string> {
  const tensors = claim.layers.flatMap((layer) => KEYS.map((key) => layer[key]));
  const bytes = new DataView(new ArrayBuffer(4 * tensors.reduce((sum, { size }) => sum + size, 0)));
  let at = 0;
  for (const tensor of tensors) {
    for (const value of tensor.dataSync()) {
      bytes.setFloat32(at, value, true);
      at += 4;
    }
  }
  const digest = await globalThis.crypto.subtle.digest('SHA-256', bytes.buffer);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * Stores a claim as a safetensors file that only its owner may read (mode 0600), whole or not at all. Missing folders
 * are made. It holds the passports: keep it apart from what is published.
 */
export async function saveClaim(
  claim: Claim,
  file: string,
  { overwrite = true }: { overwrite?: boolean } = {},
): Promise<void> {
  const [fs, { dirname }] = [await import('node:fs/promises'), await import('node:path')];
  const tensors = Object.fromEntries(
    claim.layers.flatMap((layer, i) => KEYS.map((key) => [`layers.${i}.${key}`, layer[key]])),
  );
  const bytes = await encodeSafetensors(tensors, {
    metadata: {
      format: FORMAT,
      scale: String(claim.scale),
      layers: JSON.stringify(claim.layers.map(({ name }) => name)),
    },
  });
  const temporary = `${file}.${process.pid}.tmp`;
  try {
    await fs.mkdir(dirname(file), { recursive: true });
    if (!overwrite && (await fs.stat(file).catch(() => null)))
      refuse(file, 'exists; choose another name or set overwrite: true');
    await fs.rm(temporary, { force: true });
    // Made for the owner alone from the start: a later chmod would leave a moment in which others could open it.
    const handle = await fs.open(temporary, 'wx', 0o600);
    try {
      await handle.writeFile(bytes);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await fs.rename(temporary, file);
  } catch (cause) {
    await fs.rm(temporary, { force: true }).catch(() => {});
    throw fileError(cause, file, 'written');
  }
}

/**
 * Reads what {@link saveClaim} wrote. The caller disposes the claim.
 *
 * @throws MatforgeError when the file is missing, damaged or no claim.
 */
export async function loadClaim(file: string): Promise<Claim> {
  const { metadata, tensors } = await readSafetensors(file);
  try {
    ensure(metadata?.format === FORMAT, file, () => `is not a claim file (format ${FORMAT})`);
    const names = JSON.parse(metadata.layers) as string[];
    const scale = Number(metadata.scale);
    ensure(Number.isFinite(scale) && scale > 0, file, () => `has the scale ${metadata.scale}, which is no number > 0`);
    const claim = {
      scale,
      layers: names.map((name, i) =>
        layerOf(
          name,
          (key) =>
            (tensors[`layers.${i}.${key}`] as tf.Tensor2D | undefined) ??
            refuse(file, `holds no tensor ${key} of layer ${name}`),
        ),
      ),
    };
    checkClaim(claim);
    return claim;
  } catch (error) {
    tf.dispose(Object.values(tensors));
    throw error;
  }
}

/** Refuses a claim whose factors and passports do not fit together. */
export function checkClaim({ scale, layers }: Claim): void {
  ensure(layers.length > 0, 'claim', () => 'has no layers');
  ensure(Number.isFinite(scale) && scale > 0, 'claim.scale', () => `must be a finite number > 0, got ${scale}`);
  for (const { name, A, B, C, Cp } of layers) {
    ensure(
      A.rank === 2 && B.rank === 2 && A.shape[1] === B.shape[0],
      `claim.${name}`,
      () => `A [${A.shape}] and B [${B.shape}] are not factors of one product`,
    );
    checkPassports(`claim.${name}`, A.shape[1], C, Cp);
  }
}

function layerOf(name: string, tensor: (key: (typeof KEYS)[number]) => tf.Tensor): ClaimLayer {
  const [A, B, C, Cp] = KEYS.map((key) => tensor(key) as tf.Tensor2D);
  return { name, A, B, C, Cp };
}

/**
 * Chooses the passport that evaluation, merging and `deltas` use: 0 for C (as after training), 1 for C'. Releases always
 * hold C.
 *
 * @throws MatforgeError for an unknown adapter, or one of another method.
 */
export function setPassport(model: tf.LayersModel, name: string, passport: 0 | 1): void {
  ensure(passport === 0 || passport === 1, 'passport', () => `must be 0 (C) or 1 (C'), got ${passport}`);
  // The switch is shared: through one layer it is set for all.
  const [[site]] = sealTensors(model, name);
  const value = tf.scalar(passport);
  setAdapterTensors(model, name, { [site]: { passport: value } });
  value.dispose();
}

/**
 * Replaces the passports of an adapter, e.g. by {@link imagePassport}s, before it is trained.
 *
 * @throws MatforgeError for passports of another size than the rank, not invertible or identical ones.
 */
export function setPassports(
  model: tf.LayersModel,
  name: string,
  passports: Record<string, { C: tf.Tensor2D; Cp: tf.Tensor2D }>,
): void {
  const adapter = Object.fromEntries(sealTensors(model, name));
  for (const [site, { C, Cp }] of Object.entries(passports)) {
    const { A } = adapter[site] ?? refuse(site, `adapter "${name}" is not on that layer`);
    checkPassports(site, A.shape[1] as number, C, Cp);
  }
  setAdapterTensors(model, name, passports);
}

/**
 * Writes the adapter for publication: a plain LoRA directory in PEFT's format, C absorbed into the factors, without
 * passports and secret.
 *
 * @throws MatforgeError when the directory exists and `overwrite` is not set.
 */
export async function saveRelease(
  model: tf.LayersModel,
  name: string,
  directory: string,
  { overwrite = false }: { overwrite?: boolean } = {},
): Promise<void> {
  await save(model, directory, { name, overwrite });
}
