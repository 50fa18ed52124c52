import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { adapterTensors, attach, deltas, detach, list, random, ready } from '@matforge/core';
import { accuracy, blobTransfer, trainFullBatch } from '@matforge/core/tasks';
import { lora } from '@matforge/lora';
import { denseModel } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  adoptClaim,
  attackReport,
  attacks,
  type Claim,
  claimDigest,
  claimOf,
  claimTensors,
  disposeClaim,
  embed,
  forge,
  judge,
  loadClaim,
  makePassport,
  release,
  saveClaim,
  saveRelease,
  seal,
  setPassport,
  setPassports,
  verifyOwnership,
  wrongKey,
} from '../src/index.ts';

beforeAll(async () => {
  await ready();
});

let before: number;
beforeEach(() => {
  before = tf.memory().numTensors;
});
afterEach(() => {
  expect(tf.memory().numTensors).toBe(before);
});

const relative = (a: tf.Tensor, b: tf.Tensor) => tf.tidy(() => tf.div(tf.norm(tf.sub(a, b)), tf.norm(b)).dataSync()[0]);

/** A claim on two layers, with factors that no training made. */
function madeClaim(rank = 6): Claim {
  const stream = random(3);
  return {
    scale: 0.5,
    layers: ['first', 'second'].map((name, i) => ({
      name,
      A: stream.normal([12 + i, rank]) as tf.Tensor2D,
      B: stream.normal([rank, 10]) as tf.Tensor2D,
      C: makePassport(rank, 40 + i),
      Cp: makePassport(rank, 40 + i, { which: 1 }),
    })),
  };
}

function updatesOf({ scale, layers }: Claim): Record<string, tf.Tensor2D> {
  return Object.fromEntries(
    layers.map(({ name, A, B, C }) => [
      name,
      tf.tidy(() => tf.mul(tf.matMul(tf.matMul(A, C), B), scale) as tf.Tensor2D),
    ]),
  );
}

describe('embedding into a finished adapter', () => {
  const rankOf = (stream = random(1), shape = [16, 12], rank = 3) =>
    tf.tidy(() => tf.matMul(stream.normal([shape[0], rank]), stream.normal([rank, shape[1]])) as tf.Tensor2D);

  test.each([
    ['rank 3 into 8', 3, 8],
    ['rank 3 into 6', 3, 6],
    ['no change at all', 0, 6],
  ])('%s: the kernels stay, whichever passport is in force', async (_, changeRank, rank) => {
    const model = denseModel([16, 12, 9]);
    const given = {
      layer0: changeRank ? rankOf(random(1), [16, 12], changeRank) : (tf.zeros([16, 12]) as tf.Tensor2D),
      layer1: rankOf(random(2), [12, 9], 2),
    };
    await embed(model, given, { name: 'marked', rank, alpha: 4, secret: 6, seed: 1 });
    for (const passport of [0, 1] as const) {
      setPassport(model, 'marked', passport);
      const made = deltas(model, 'marked');
      for (const [layer, delta] of Object.entries(given))
        expect(tf.tidy(() => tf.max(tf.abs(tf.sub(made[layer], delta))).dataSync()[0])).toBeLessThan(1e-4);
      tf.dispose(Object.values(made));
    }
    detach(model);
    model.dispose();
    tf.dispose(Object.values(given));
  });

  test('a change of more than half the rank is fitted for both passports, better than by its leading part alone', async () => {
    const model = denseModel([16, 12]);
    const given = rankOf(random(1), [16, 12], 8);
    const leading = tf.tidy(() => {
      const { A, B } = attacks.truncate({ A: given, B: tf.eye(12), scale: 1 }, 4);
      return relative(tf.matMul(A, B), given);
    });
    await embed(model, { layer0: given }, { name: 'marked', rank: 8, secret: 6 });
    for (const passport of [0, 1] as const) {
      setPassport(model, 'marked', passport);
      const { layer0 } = deltas(model, 'marked');
      expect(relative(layer0, given)).toBeLessThan(0.75 * leading);
      layer0.dispose();
    }
    detach(model);
    model.dispose();
    given.dispose();
  });

  test('narrow layers take the rank that fits, at one scale; layers that share a suffix are told apart', async () => {
    const inner = tf.sequential({
      name: 'block',
      layers: [tf.layers.dense({ name: 'out', units: 3, inputShape: [9] })],
    });
    const model = tf.sequential({ layers: [tf.layers.dense({ name: 'out', units: 9, inputShape: [10] }), inner] });
    const given = { out: rankOf(random(1), [10, 9], 2), 'block.out': rankOf(random(2), [9, 3], 1) };
    await embed(model, given, { name: 'marked', rank: 6, alpha: 12, secret: 6 });
    const shapes = Object.entries(adapterTensors(model, 'marked')).map(([layer, { C }]) => [layer, C.shape[0]]);
    expect(Object.fromEntries(shapes)).toEqual({ out: 6, 'block.out': 3 });
    const claim = claimOf(model, 'marked');
    expect(claim.scale).toBe(2);
    const [made, claimed] = [deltas(model, 'marked'), updatesOf(claim)];
    for (const layer of Object.keys(given)) {
      expect(relative(made[layer], given[layer as keyof typeof given])).toBeLessThan(1e-5);
      expect(relative(claimed[layer], made[layer])).toBeLessThan(1e-5);
    }
    disposeClaim(claim);
    tf.dispose([...Object.values(made), ...Object.values(claimed), ...Object.values(given)]);
    detach(model);
    inner.dispose();
    model.dispose();
  });

  test.each<[string, Record<string, () => tf.Tensor2D>, RegExp]>([
    ['no layer', {}, /deltas: holds no layer/],
    [
      'a single output',
      { layer1: () => tf.ones([12, 1]) },
      /layer1: a passport needs rank 2, the kernel change is \[12,1\]/,
    ],
    [
      'NaN',
      { layer0: () => tf.fill([16, 12], Number.NaN) },
      /layer0: the kernel change has values that are not finite/,
    ],
    [
      'an unknown layer',
      { layer9: () => tf.ones([16, 12]) },
      /layer9: the model has no such layer; its layers are layer0, layer1/,
    ],
    [
      'another shape',
      { layer0: () => tf.ones([16, 11]) },
      /layer0: the kernel change is \[16,11\], the kernel \[16,12\]/,
    ],
  ])('%s is refused, and the model stays as it was', async (_, given, message) => {
    const model = denseModel([16, 12, 1]);
    const changes = Object.fromEntries(Object.entries(given).map(([layer, make]) => [layer, make()]));
    await expect(embed(model, changes, { name: 'marked', rank: 4, secret: 1 })).rejects.toThrow(message);
    expect(() => list(model)).toThrow(/has no adapters/);
    model.dispose();
    tf.dispose(Object.values(changes));
  });
});

test('after a few hundred steps the owner is believed and nobody else, and the watermark outlives attacks', async () => {
  const task = blobTransfer(0);
  const model = await attach(task.model(), lora({ rank: 4, alpha: 4 }), { targets: ['layer0', 'layer1', 'layer2'] });
  trainFullBatch(model, task.train, { steps: 100, learningRate: 1e-2 });
  const plain = accuracy(model, task.test);
  const given = deltas(model, 'default');
  await embed(model, given, { name: 'marked', rank: 8, secret: 4711, seed: 2 });
  expect(list(model).map(({ name, active }) => [name, active])).toEqual([
    ['default', false],
    ['marked', true],
  ]);
  trainFullBatch(model, task.train, { steps: 300, learningRate: 5e-3 });
  expect(accuracy(model, task.test)).toBeGreaterThan(plain - 0.02);

  const claim = claimOf(model, 'marked');
  const suspect = deltas(model, 'marked');
  const verdict = async (claimed: Claim, attackedBy = suspect, options = {}) => {
    const metric = (passport: 0 | 1) => {
      adoptClaim(model, 'marked', claimed);
      setPassport(model, 'marked', passport);
      const result = accuracy(model, task.test);
      setPassport(model, 'marked', 0);
      adoptClaim(model, 'marked', claim);
      return result;
    };
    return verifyOwnership(claimed, attackedBy, { metric, ...options });
  };
  const owner = await verdict(claim);
  expect(owner).toMatchObject({
    accepted: true,
    bits: { matched: 192, total: 192, pass: true },
    fidelity: { pass: true },
    distance: { pass: true },
    reconstruction: { pass: true },
  });
  expect(owner.fidelity.c).toBe(accuracy(model, task.test));

  const [other, forged] = [wrongKey(claim, 5), forge(claim, random(666))];
  const stranger = await verdict(other);
  expect(stranger).toMatchObject({ accepted: false, bits: { pass: false }, reconstruction: { pass: false } });
  expect(stranger.bits.log10p).toBeGreaterThan(-3);
  const forger = await verdict(forged);
  expect(forger).toMatchObject({
    accepted: false,
    bits: { matched: 192, pass: true },
    fidelity: { pass: false },
    reconstruction: { pass: true },
  });
  expect(forger.fidelity.gap).toBeGreaterThan(0.25);

  // What is alleged to be an altered copy: the bits are judged, the distance is not.
  const pruned = Object.fromEntries(Object.entries(suspect).map(([layer, D]) => [layer, attacks.prune(D, 0.4)]));
  expect(await verdict(claim, pruned)).toMatchObject({ accepted: false, reconstruction: { pass: false } });
  expect(await verdict(claim, pruned, { attackAlleged: true })).toMatchObject({ accepted: true, bits: { pass: true } });

  const published = Object.fromEntries(
    claim.layers.map((layer) => [layer.name, release({ ...layer, scale: claim.scale })]),
  );
  const train = (steps: number) => (attacked: tf.LayersModel) =>
    trainFullBatch(attacked, task.train, { steps, learningRate: 5e-3 });
  const untouched = await attacks.finetune(model, published, () => {});
  for (const [layer, delta] of Object.entries(untouched)) expect(relative(delta, suspect[layer])).toBeLessThan(1e-5);
  const finetuned = await attacks.finetune(model, published, train(100));
  const overwritten = await attacks.overwrite(model, suspect, { secret: 99, rank: 8, train: train(100) });
  for (const attacked of [finetuned, overwritten]) {
    expect(relative(attacked.layer1, suspect.layer1)).toBeGreaterThan(0.01);
    expect(attackReport(claim, attacked).log10p).toBeLessThan(-6);
  }
  expect(list(model).map(({ name, active }) => [name, active])).toEqual([
    ['default', false],
    ['marked', true],
  ]);

  for (const record of [given, suspect, pruned, untouched, finetuned, overwritten]) tf.dispose(Object.values(record));
  tf.dispose(Object.values(published).flatMap(({ A, B }) => [A, B]));
  for (const each of [claim, other, forged]) disposeClaim(each);
  detach(model);
  model.dispose();
  task.dispose();
}, 120_000);

describe('verification', () => {
  const check = async (
    change: (claim: Claim) => Claim,
    options: Parameters<typeof verifyOwnership>[2] = { metric: () => 0.9 },
    alter: (suspect: Record<string, tf.Tensor2D>) => Record<string, tf.Tensor2D> = (suspect) => suspect,
  ) => {
    const made = tf.engine();
    made.startScope();
    try {
      const claim = madeClaim();
      return await verifyOwnership(change(claim), alter(updatesOf(claim)), options);
    } finally {
      made.endScope();
    }
  };
  const same = (claim: Claim) => claim;

  test('accepts what fulfils all tests', async () => {
    const verdict = await check(same, { metric: (passport) => 0.9 - 0.04 * passport });
    expect(verdict.accepted).toBe(true);
    expect(verdict.bits).toMatchObject({ matched: 72, total: 72, bitErrorRate: 0 });
    expect(verdict.bits.z).toBeCloseTo(Math.sqrt(72), 10);
    expect(verdict.bits.log10p).toBeCloseTo(-72 * Math.log10(2), 10);
    expect(verdict.fidelity.gap).toBeCloseTo(0.04, 10);
    expect(verdict.reconstruction.error).toBeLessThan(1e-6);
  });

  test('a second passport that is a multiple of the first fails by its cosine', async () => {
    const verdict = await check(({ scale, layers: [first, second] }) => ({
      scale,
      layers: [first, { ...second, Cp: tf.mul(second.C, -2) as tf.Tensor2D }],
    }));
    expect(verdict.distance.cosine).toBeCloseTo(-1, 5);
    expect(verdict).toMatchObject({ accepted: false, bits: { pass: true }, distance: { pass: false } });
  });

  test('without a metric nothing is accepted', async () => {
    expect(await check(same, {})).toMatchObject({
      accepted: false,
      bits: { pass: true },
      fidelity: { gap: NaN, pass: false },
    });
  });

  test('many claims ask for more significance', () => {
    const evidence = { matched: 52, total: 64, fidelityC: 1, fidelityCp: 1, passportCosine: 0 };
    expect(judge(evidence)).toMatchObject({ bitsPass: true });
    expect(judge(evidence, { claims: 100 })).toMatchObject({ bitsPass: false });
  });

  test.each<[string, Parameters<typeof check>, RegExp]>([
    ['a level of 0.2', [same, { alphaLevel: 0.2 }], /alphaLevel: must be in \(0, 0\.1\], got 0\.2/],
    ['a level of 0', [same, { alphaLevel: 0 }], /alphaLevel: must be in \(0, 0\.1\], got 0/],
    [
      'a level beyond the bits',
      [same, { alphaLevel: 1e-30 }],
      /too few bits for the requested significance: 72, at least 100/,
    ],
    [
      'one layer of 36 bits',
      [({ scale, layers }) => ({ scale, layers: layers.slice(1) })],
      /too few bits for the requested significance: 36, at least 64/,
    ],
    ['no layers', [({ scale }) => ({ scale, layers: [] })], /claim: has no layers/],
    ['a scale of 0', [({ layers }) => ({ scale: 0, layers })], /claim\.scale: must be a finite number > 0, got 0/],
    ['a metric of NaN', [same, { metric: () => Number.NaN }], /metric: returned NaN/],
    [
      'a suspect without a layer',
      [same, {}, ({ first }) => ({ first })],
      /second: the suspect lacks this layer; it has first/,
    ],
    [
      'a suspect of another shape',
      [same, {}, ({ first }) => ({ first, second: first })],
      /second\.delta: has shape \[12,10\], the factors make \[13, 10\]/,
    ],
    [
      'the base model',
      [same, {}, ({ first, second }) => ({ first: tf.zerosLike(first), second: tf.zerosLike(second) })],
      /suspect: has zero norm/,
    ],
    [
      'a suspect with NaN',
      [same, {}, ({ first, second }) => ({ first, second: tf.fill(second.shape, Number.NaN) as tf.Tensor2D })],
      /second\.delta: has values that are not finite/,
    ],
    [
      'one passport twice',
      [({ scale, layers: [first, second] }) => ({ scale, layers: [{ ...first, Cp: first.C }, second] })],
      /claim\.first\.Cp: is identical to C/,
    ],
    [
      'a passport of another size',
      [({ scale, layers: [first, second] }) => ({ scale, layers: [first, { ...second, C: tf.eye(5) }] })],
      /claim\.second\.C: passport must be \[r, r\] with r = 6, got \[5,5\]/,
    ],
    [
      'a singular passport',
      [({ scale, layers: [first, second] }) => ({ scale, layers: [first, { ...second, C: tf.ones([6, 6]) }] })],
      /claim\.second\.C: passport is not invertible/,
    ],
    [
      'A without full rank',
      [({ scale, layers: [first, second] }) => ({ scale, layers: [{ ...first, A: tf.ones([12, 6]) }, second] })],
      /first\.A: A has numerical rank 1 < 6/,
    ],
  ])('%s is refused', async (_, given, message) => {
    await expect(check(...given)).rejects.toThrow(message);
  });
});

describe('claims', () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'seal-'));
  });
  afterEach(() => rm(directory, { recursive: true, force: true }));

  test('files bring them back bit for bit, are for the owner alone, and their folders are made', async () => {
    const claim = madeClaim();
    const file = join(directory, 'secret', 'deep', 'claim.safetensors');
    await saveClaim(claim, file);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    await saveClaim(claim, file);
    await expect(saveClaim(claim, file, { overwrite: false })).rejects.toThrow(/exists/);
    expect(await readdir(join(directory, 'secret', 'deep'))).toEqual(['claim.safetensors']);
    const read = await loadClaim(file);
    expect(read.scale).toBe(claim.scale);
    const values = ({ layers }: Claim) =>
      layers.map(({ name, A, B, C, Cp }) => [
        name,
        ...[A, B, C, Cp].map((tensor) => [tensor.shape, Array.from(tensor.dataSync())]),
      ]);
    expect(values(read)).toEqual(values(claim));
    expect(await claimDigest(read)).toBe(await claimDigest(claim));
    disposeClaim(read);
    disposeClaim(claim);
  });

  test('missing, foreign and damaged files are refused', async () => {
    await expect(loadClaim(join(directory, 'absent'))).rejects.toThrow(/absent/);
    const file = join(directory, 'claim');
    await writeFile(file, 'no claim');
    await expect(loadClaim(file)).rejects.toThrow(/claim/);
    const model = denseModel([12, 10]);
    await attach(model, seal({ rank: 4, secret: 1 }));
    await saveRelease(model, 'default', join(directory, 'released'));
    await expect(loadClaim(join(directory, 'released', 'adapter_model.safetensors'))).rejects.toThrow(
      /is not a claim file/,
    );
    await expect(saveRelease(model, 'default', join(directory, 'released'))).rejects.toThrow(/exist/);
    await saveRelease(model, 'default', join(directory, 'released'), { overwrite: true });
    detach(model);
    model.dispose();
    await mkdir(join(directory, 'folder'));
    const claim = madeClaim();
    await expect(saveClaim(claim, join(directory, 'folder'))).rejects.toThrow(/folder/);
    expect((await readdir(directory)).sort()).toEqual(['claim', 'folder', 'released']);
    disposeClaim(claim);
  });

  test('the digest is SHA-256 over the numbers of A, B, C and Cp, layer after layer', async () => {
    const claim = madeClaim();
    const hash = createHash('sha256');
    for (const { A, B, C, Cp } of claim.layers) {
      for (const tensor of [A, B, C, Cp]) {
        const bytes = Buffer.alloc(4 * tensor.size);
        for (const [i, value] of tensor.dataSync().entries()) bytes.writeFloatLE(value, 4 * i);
        hash.update(bytes);
      }
    }
    const digest = await claimDigest(claim);
    expect(digest).toBe(hash.digest('hex'));
    const { layers, scale } = claim;
    expect(await claimDigest({ scale, layers: [layers[1], layers[0]] })).not.toBe(digest);
    disposeClaim(claim);
  });

  test('are copies of the adapter, and can be put back', async () => {
    const model = denseModel([12, 10]);
    await attach(model, seal({ rank: 4, secret: 1 }));
    const claim = claimOf(model, 'default');
    expect(Object.keys(claimTensors(claim))).toEqual(['layer0']);
    const other = wrongKey(claim, 3);
    adoptClaim(model, 'default', other);
    expect(Array.from(adapterTensors(model, 'default').layer0.C.dataSync())).toEqual(
      Array.from(other.layers[0].C.dataSync()),
    );
    expect(Array.from(claim.layers[0].C.dataSync())).not.toEqual(Array.from(other.layers[0].C.dataSync()));
    disposeClaim(claim);
    disposeClaim(other);
    detach(model);
    model.dispose();
  });

  test("passports of the owner's choice are checked before they are used", async () => {
    const model = denseModel([12, 10]);
    await attach(model, seal({ rank: 4, secret: 1 }));
    const [C, Cp, wide] = [makePassport(4, 8), makePassport(4, 9), makePassport(5, 9)];
    setPassports(model, 'default', { layer0: { C, Cp } });
    expect(Array.from(adapterTensors(model, 'default').layer0.Cp.dataSync())).toEqual(Array.from(Cp.dataSync()));
    expect(() => setPassports(model, 'default', { layer0: { C, Cp: C } })).toThrow(/layer0\.Cp: is identical to C/);
    expect(() => setPassports(model, 'default', { layer0: { C: wide, Cp } })).toThrow(/layer0\.C: passport must be/);
    expect(() => setPassports(model, 'default', { layer7: { C, Cp } })).toThrow(/layer7: adapter "default" is not on/);
    expect(() => setPassport(model, 'default', 2 as 0)).toThrow(/passport: must be 0 \(C\) or 1 \(C'\), got 2/);
    tf.dispose([C, Cp, wide]);
    detach(model);
    model.dispose();
  });

  test('an adapter of another method is none', async () => {
    const model = denseModel([12, 10]);
    await attach(model, lora({ rank: 4 }));
    expect(() => claimOf(model, 'default')).toThrow(/default: is not an adapter of seal/);
    expect(() => setPassport(model, 'default', 1)).toThrow(/default: is not an adapter of seal/);
    detach(model);
    model.dispose();
  });
});
