import { lowRankProduct, type Reproduction, ready } from '@matforge/core';
import { learnTeacher, linearTeacher, mean } from '@matforge/core/tasks';
import * as tf from '@tensorflow/tfjs';
import { lora, loraPlus } from './index.ts';

/**
 * LoRA learns a rank-4 change of a 48x48 kernel with rank 4 and cannot with rank 1; LoRA+ gets further in the same
 * number of steps; rsLoRA keeps high ranks learning.
 */
export async function reproduce(): Promise<Reproduction> {
  await ready();
  const rows = [];
  for (const seed of [0, 1, 2]) {
    const teacher = linearTeacher(seed, { top: 2, decay: 0.9 }, (W, stream) =>
      tf.add(W, lowRankProduct(stream.normal([48, 4]), stream.normal([4, 48]), 0.15)),
    );
    const run = (method: ReturnType<typeof lora>, steps: number, learningRate: number) =>
      learnTeacher(teacher, method, { seed, steps, learningRate });
    const plus = (ratio: number) =>
      learnTeacher(teacher, lora({ rank: 4, alpha: 8 }), {
        seed,
        steps: 60,
        optimizer: loraPlus({ learningRate: 5e-3, ratio }),
      });
    rows.push({
      seed,
      'rank 4': await run(lora({ rank: 4, alpha: 8 }), 200, 5e-3),
      'rank 1': await run(lora({ rank: 1, alpha: 2 }), 200, 5e-3),
      'LoRA+ ratio 1': await plus(1),
      'LoRA+ ratio 4': await plus(4),
      'rank 48': await run(lora({ rank: 48, alpha: 4 }), 60, 2e-3),
      'rank 48 rsLoRA': await run(lora({ rank: 48, alpha: 4, useRslora: true }), 60, 2e-3),
    });
    teacher.dispose();
  }
  const plusRatio = mean(rows.map((row) => row['LoRA+ ratio 4'] / row['LoRA+ ratio 1']));
  const held =
    rows.every((row) => row['rank 4'] < 0.03 && row['rank 1'] > 0.6 && row['rank 48 rsLoRA'] < 0.75 * row['rank 48']) &&
    plusRatio < 0.65;
  return {
    claim:
      'rank 4 learns a rank-4 change (error < 0.03), rank 1 does not (> 0.6); LoRA+ with ratio 4 reaches < 0.65 of the plain error; rsLoRA at rank 48 reaches < 0.75 of it',
    rows,
    held,
    details: `Linear teacher W + 0.15·P·Q, 48x48, 256 samples, Adam, full batch, seeds 0-2; error relative to the start. LoRA+ ratio of errors ${plusRatio.toFixed(2)}.`,
  };
}
