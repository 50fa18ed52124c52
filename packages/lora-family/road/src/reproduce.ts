import { attach, type Reproduction, ready, setActive } from '@matforge/core';
import { accuracy, adaptAndTest, blobTransfer, mean, type TransferTask, trainFullBatch } from '@matforge/core/tasks';
import { lora } from '@matforge/lora';
import * as tf from '@tensorflow/tfjs';
import { type RoadVariant, road } from './index.ts';

const LAYERS = ['layer0', 'layer1', 'layer2'];

/** Rotating pairs of outputs adapts better than moving the biases, and better than LoRA at the same size. */
export async function reproduce(): Promise<Reproduction> {
  await ready();
  const rows: { seed: number; road_1: number; biases: number; road_2: number; 'LoRA rank 1': number }[] = [];
  for (const seed of [0, 1, 2]) {
    const task = blobTransfer(seed);
    rows.push({
      seed,
      road_1: await adaptRoad(task, 'road_1'),
      biases: await adaptBiases(task),
      road_2: await adaptRoad(task, 'road_2'),
      'LoRA rank 1': await adaptAndTest(task, lora({ rank: 1, alpha: 2 }), { learningRate: 3e-2, seed }),
    });
    task.dispose();
  }
  const gain = mean(rows.map((row) => row.road_2)) - mean(rows.map((row) => row['LoRA rank 1']));
  return {
    claim:
      'road_1 (144 parameters) > 0.42 and > tuning the biases (144) + 0.15 on each seed; road_2 (288) > LoRA rank 1 (304) + 0.05 on the mean',
    rows,
    held: rows.every((row) => row.road_1 > 0.42 && row.road_1 > row.biases + 0.15) && gain > 0.05,
    details: `Blob transfer, group size = out, Adam 1e-1 (LoRA 3e-2), 300 full-batch steps. road_2 over LoRA rank 1: ${gain.toFixed(3)}.`,
  };
}

/** One group as wide as each layer's output. */
async function adaptRoad(task: TransferTask, variant: RoadVariant): Promise<number> {
  const model = task.model();
  for (const layer of LAYERS) {
    const groupSize = model.getLayer(layer).outputShape[1] as number;
    await attach(model, road({ variant, groupSize }), { targets: [layer], name: layer });
  }
  // Each layer has an adapter of its own size; all of them act and train together.
  setActive(model, LAYERS);
  trainFullBatch(model, task.train, { steps: 300, learningRate: 1e-1 });
  const result = accuracy(model, task.test);
  model.dispose();
  return result;
}

async function adaptBiases(task: TransferTask): Promise<number> {
  const model = task.model();
  const biases = model.layers.map((layer) => layer.weights[1].read() as tf.Variable);
  const optimizer = tf.train.adam(1e-1);
  const labels = tf.oneHot(task.train.y as tf.Tensor1D, 16);
  const loss = () => tf.losses.softmaxCrossEntropy(labels, model.apply(task.train.x) as tf.Tensor) as tf.Scalar;
  for (let step = 0; step < 300; step++) optimizer.minimize(loss, false, biases);
  const result = accuracy(model, task.test);
  labels.dispose();
  optimizer.dispose();
  model.dispose();
  return result;
}
