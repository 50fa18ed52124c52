import {
  type AnyConfiguredMethod,
  attach,
  linalg,
  matrix,
  type Random,
  type Reproduction,
  random,
  ready,
  toTensor,
} from '@matforge/core';
import { linearModel, mean, trainFullBatch } from '@matforge/core/tasks';
import { lora } from '@matforge/lora';
import { pissa } from '@matforge/pissa';
import * as tf from '@tensorflow/tfjs';
import { CovarianceCollector, corda, cordaTruncate } from './index.ts';

const N = 48;

/** Components ordered by data lose less when cut, learn faster when trained first, disturb less when trained last. */
export async function reproduce(): Promise<Reproduction> {
  await ready();
  const rows = [];
  for (const seed of [0, 1, 2, 3]) {
    const world = makeWorld(random(seed).fork('corda'));
    const [ipm, kpm] = (['ipm', 'kpm'] as const).map((mode) => corda({ rank: 8, mode }));
    const [forgettingKpm, lossKpm] = await adapt(world, kpm, seed, world.knowledge);
    const [forgettingLora, lossLora] = await adapt(world, lora({ rank: 8, alpha: 8 }), seed);
    const [, lossIpm] = await adapt(world, ipm, seed, world.task);
    const [, lossPissa] = await adapt(world, pissa({ rank: 8 }), seed);
    rows.push({
      seed,
      'cut, CorDA': cutError(world, world.knowledge),
      'cut, SVD': cutError(world),
      'forgetting, KPM': forgettingKpm,
      'forgetting, LoRA': forgettingLora,
      'loss, KPM': lossKpm,
      'loss, LoRA': lossLora,
      'loss, IPM': lossIpm,
      'loss, PiSSA': lossPissa,
    });
    tf.dispose(Object.values(world));
  }
  const forgetting = mean(rows.map((row) => row['forgetting, KPM'])) / mean(rows.map((row) => row['forgetting, LoRA']));
  const loss = mean(rows.map((row) => row['loss, IPM'])) / mean(rows.map((row) => row['loss, PiSSA']));
  return {
    claim:
      'without 16 of 48 components CorDA is off by <= 0.9 of the plain SVD on each seed; on the mean KPM forgets <= 0.85 of what LoRA does and IPM ends at <= 0.93 of the loss of PiSSA',
    rows,
    held: rows.every((row) => row['cut, CorDA'] <= 0.9 * row['cut, SVD']) && forgetting <= 0.85 && loss <= 0.93,
    details: `One 48x48 layer; knowledge inputs with variances 1/i, task inputs mostly the reverse; 512 rows each, calibrated row by row; rank 8, Adam 3e-3, 100 full-batch steps; forgetting and cuts on fresh knowledge rows. Forgetting KPM/LoRA ${forgetting.toFixed(2)}, loss IPM/PiSSA ${loss.toFixed(2)}.`,
  };
}

interface World {
  /** The kernel that holds the knowledge, `[48, 48]`. */
  W: tf.Tensor2D;
  /** Inputs where the kernel has to stay as it is, and fresh ones to see whether it did. */
  knowledge: tf.Tensor2D;
  freshKnowledge: tf.Tensor2D;
  /** Inputs and outputs of the new task. */
  task: tf.Tensor2D;
  targets: tf.Tensor2D;
}

function makeWorld(stream: Random): World {
  return tf.tidy(() => {
    const { q } = linalg.qr(matrix(N, N, () => stream.gaussian()));
    const basis = toTensor(q);
    const draw = (rows: number, variances: tf.Tensor) =>
      tf.matMul(tf.mul(stream.normal([rows, N]), tf.sqrt(variances)) as tf.Tensor2D, basis, false, true) as tf.Tensor2D;
    const falling = tf.div(1, tf.range(1, N + 1));
    const mixed = tf.add(tf.mul(0.7, tf.reverse(falling)), tf.mul(0.3, falling));
    const W = stream.normal([N, N], 0, 1 / Math.sqrt(N)) as tf.Tensor2D;
    const target = tf.add(W, stream.normal([N, N], 0, 0.5 / Math.sqrt(N))) as tf.Tensor2D;
    const task = draw(512, mixed);
    return {
      W,
      knowledge: draw(512, falling),
      freshKnowledge: draw(4000, falling),
      task,
      targets: tf.matMul(task, target) as tf.Tensor2D,
    };
  });
}

/** ‖X·(W − W₃₂)‖/‖X·W‖ of the kernel cut to 32 components, ordered by the data or, without, by the plain SVD. */
function cutError({ W, freshKnowledge: X }: World, data?: tf.Tensor2D): number {
  const collector = new CovarianceCollector();
  if (data) collector.add(data);
  return tf.tidy(() => {
    const cut = cordaTruncate(W, data ? collector.covariance() : tf.eye(N), { drop: 16 });
    collector.dispose();
    return tf.div(tf.norm(tf.matMul(X, tf.sub(W, cut) as tf.Tensor2D)), tf.norm(tf.matMul(X, W))).dataSync()[0];
  });
}

/** Trains on the task; ‖X·(W' − W)‖²/‖X·W‖² on fresh knowledge rows, and the last loss. */
async function adapt(
  { W, freshKnowledge: X, task, targets }: World,
  method: AnyConfiguredMethod,
  seed: number,
  samples?: tf.Tensor2D,
): Promise<[forgetting: number, loss: number]> {
  // One row per batch, as a sample: C is then the mean of x̂ᵀx̂, and A and B are of like size.
  const batches = samples ? tf.split(samples, samples.shape[0]) : [];
  const calibration = { data: batches.map((xs) => ({ xs })) };
  const model = await attach(linearModel(W), method, { targets: ['layer0'], seed, calibration });
  tf.dispose(batches);
  const loss = trainFullBatch(model, { x: task, y: targets }, { steps: 100, learningRate: 3e-3 });
  const forgetting = tf.tidy(() => {
    const known = tf.matMul(X, W);
    return tf.div(tf.sum(tf.squaredDifference(model.apply(X) as tf.Tensor, known)), tf.sum(tf.square(known)));
  });
  const [value] = forgetting.dataSync();
  forgetting.dispose();
  model.dispose();
  return [value, loss];
}
