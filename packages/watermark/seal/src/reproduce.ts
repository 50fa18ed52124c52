import {
  type AnyConfiguredMethod,
  attach,
  deltas,
  type Random,
  type Reproduction,
  random,
  ready,
} from '@matforge/core';
import { accuracy, reluMlp, type Samples, trainFullBatch } from '@matforge/core/tasks';
import { lora } from '@matforge/lora';
import * as tf from '@tensorflow/tfjs';
import {
  adoptClaim,
  attackReport,
  attacks,
  type Claim,
  claimOf,
  disposeClaim,
  forge,
  type ReleasedAdapter,
  release,
  seal,
  setPassport,
  verifyOwnership,
  wrongKey,
} from './index.ts';

const TARGETS = ['layer0', 'layer1'];

/**
 * SEAL costs little accuracy, both passports work, a forger's second one does not, and the watermark survives
 * fine-tuning, pruning and quantisation of the published adapter.
 */
export async function reproduce(): Promise<Reproduction> {
  await ready();
  const rows = [];
  for (const seed of [0, 1, 2]) rows.push({ seed, ...(await experiment(seed)) });
  const held = rows.every(
    (row) =>
      row.LoRA - row.SEAL <= 0.06 &&
      Math.abs(row.SEAL - row["SEAL, C'"]) <= 0.05 &&
      row.SEAL - row.forged >= 0.25 &&
      row['log10 p, other key'] > -3 &&
      [row['log10 p, fine-tuned'], row['log10 p, 60 % pruned'], row['log10 p, 4 bits']].every((p) => p <= -6) &&
      row.verdicts === 'owner only',
  );
  return {
    claim:
      "accuracy within 0.06 of LoRA; with C' within 0.05 of C; at least 0.25 lower with a forged second passport; log10 p of the watermark <= -6 after fine-tuning, 60 % pruning and 4-bit quantisation, > -3 for another key; only the owner's claim is accepted",
    rows,
    held,
    details:
      'MLP 32-64-64-6 pretrained on a teacher and adapted to a shifted one, rank 8 on two kernels (128 bits), Adam 3e-3, 1,000 steps of 64 rows; fine-tuning is 800 more steps of plain LoRA.',
  };
}

async function experiment(seed: number) {
  const stream = random(seed).fork('seal');
  const { model, train, test } = task(stream);
  const adapt = (adapted: tf.LayersModel, steps: number) =>
    trainFullBatch(adapted, train, { steps, learningRate: 3e-3, batchSize: 64, seed });
  const adapted = async (method: AnyConfiguredMethod) => {
    const copy = model();
    await attach(copy, method, { targets: TARGETS, seed });
    adapt(copy, 1000);
    return copy;
  };
  const plain = await adapted(lora({ rank: 8, alpha: 8 }));
  const loraAccuracy = accuracy(plain, test);
  plain.dispose();

  const marked = await adapted(seal({ rank: 8, alpha: 8, secret: 1000 + seed }));
  const claim = claimOf(marked, 'default');
  const suspect = deltas(marked, 'default');
  const metricOf = (claimant: Claim) => (passport: 0 | 1) => {
    adoptClaim(marked, 'default', claimant);
    setPassport(marked, 'default', passport);
    const result = accuracy(marked, test);
    setPassport(marked, 'default', 0);
    adoptClaim(marked, 'default', claim);
    return result;
  };
  const other = wrongKey(claim, 5000 + seed);
  const forged = forge(claim, stream);
  const [owner, stranger, forger] = [
    await verifyOwnership(claim, suspect, { metric: metricOf(claim) }),
    await verifyOwnership(other, suspect, { metric: metricOf(other) }),
    await verifyOwnership(forged, suspect, { metric: metricOf(forged) }),
  ];
  const log10p = (attacked: Record<string, tf.Tensor2D>) => {
    const { log10p } = attackReport(claim, attacked);
    tf.dispose(Object.values(attacked));
    return log10p;
  };
  const published = Object.fromEntries(
    claim.layers.map((layer) => [layer.name, release({ ...layer, scale: claim.scale })]),
  );
  const base = model();
  const result = {
    LoRA: loraAccuracy,
    SEAL: owner.fidelity.c,
    "SEAL, C'": owner.fidelity.cp,
    forged: forger.fidelity.cp,
    'log10 p, other key': stranger.bits.log10p,
    'log10 p, fine-tuned': log10p(await attacks.finetune(base, published, (attacked) => adapt(attacked, 800))),
    'log10 p, 60 % pruned': log10p(mapValues(suspect, (delta) => attacks.prune(delta, 0.6))),
    'log10 p, 4 bits': log10p(mapValues(published, quantized)),
    verdicts: owner.accepted && !stranger.accepted && !forger.accepted ? 'owner only' : 'wrong',
  };
  for (const each of [claim, other, forged]) disposeClaim(each);
  tf.dispose([...Object.values(suspect), ...Object.values(published).flatMap(({ A, B }) => [A, B])]);
  tf.dispose([train.x, train.y, test.x, test.y]);
  base.dispose();
  marked.dispose();
  model.dispose();
  return result;
}

/** The product of the published factors, each in 4 bits. */
function quantized({ A, B, scale }: ReleasedAdapter): tf.Tensor2D {
  return tf.tidy(() => tf.mul(tf.matMul(attacks.quantize(A, 4), attacks.quantize(B, 4)), scale));
}

/** A classifier pretrained on one teacher, argmax of tanh(x·T)·V, and samples of a shifted one. */
function task(stream: Random): { model: (() => tf.Sequential) & { dispose(): void }; train: Samples; test: Samples } {
  const T = stream.normal([32, 48], 0, 0.4);
  const shifted = tf.tidy(() => tf.add(T, stream.normal([32, 48], 0, 0.4)));
  const [V, V2] = [stream.normal([48, 6]), stream.normal([48, 6])];
  const draw = (rows: number, hidden: tf.Tensor, out: tf.Tensor): Samples => {
    const x = stream.normal([rows, 32]) as tf.Tensor2D;
    const y = tf.tidy(() => {
      const logits = tf.matMul(tf.tanh(tf.matMul(x, hidden as tf.Tensor2D)) as tf.Tensor2D, out as tf.Tensor2D);
      return tf.cast(tf.argMax(logits, 1), 'int32');
    });
    return { x, y };
  };
  const source = draw(6000, T, V);
  const [train, test] = [draw(4000, shifted, V2), draw(2000, shifted, V2)];
  const pretrained = reluMlp([32, 64, 64, 6], stream);
  trainFullBatch(pretrained, source, { steps: 400, learningRate: 2e-3, batchSize: 64 });
  const weights = pretrained.getWeights().map((weight) => weight.clone());
  pretrained.dispose();
  tf.dispose([T, shifted, V, V2, source.x, source.y]);
  const model = () => {
    const copy = reluMlp([32, 64, 64, 6], random(0));
    copy.setWeights(weights);
    return copy;
  };
  return { model: Object.assign(model, { dispose: () => tf.dispose(weights) }), train, test };
}

function mapValues<T, U>(record: Record<string, T>, f: (value: T) => U): Record<string, U> {
  return Object.fromEntries(Object.entries(record).map(([key, value]) => [key, f(value)]));
}
