import { type Reproduction, ready } from '@matforge/core';
import { adaptAndTest, blobTransfer, mean } from '@matforge/core/tasks';
import { lora } from '@matforge/lora';
import { vera } from './index.ts';

const OURS = 'VeRA rank 128 (528 parameters)';
const RANK_1 = 'LoRA rank 1 (304 parameters)';
const RANK_2 = 'LoRA rank 2 (608 parameters)';

/** With fewer trainable numbers than LoRA of rank 2, VeRA adapts a classifier better. */
export async function reproduce(): Promise<Reproduction> {
  await ready();
  const rows: Record<'seed' | typeof OURS | typeof RANK_1 | typeof RANK_2, number>[] = [];
  for (const seed of [0, 1, 2]) {
    const task = blobTransfer(seed);
    rows.push({
      seed,
      [OURS]: await adaptAndTest(task, vera({ rank: 128, projectionPrngKey: seed }), {
        learningRate: 3e-2,
      }),
      [RANK_1]: await adaptAndTest(task, lora({ rank: 1, alpha: 2 }), {
        learningRate: 3e-2,
        seed,
      }),
      [RANK_2]: await adaptAndTest(task, lora({ rank: 2, alpha: 4 }), {
        learningRate: 1e-2,
        seed,
      }),
    });
    task.dispose();
  }
  const [ours, one, two] = [OURS, RANK_1, RANK_2].map((name) => rows.map((row) => row[name as typeof OURS]));
  return {
    claim: 'accuracy > 0.83 on each seed and > LoRA rank 1 + 0.12; on the mean > LoRA rank 2 + 0.01',
    rows,
    held: ours.every((value, i) => value > 0.83 && value > one[i] + 0.12) && mean(ours) > mean(two) + 0.01,
    details: `Blob transfer, Adam, 300 full-batch steps. Means: VeRA ${mean(ours).toFixed(3)}, LoRA rank 1 ${mean(one).toFixed(3)}, rank 2 ${mean(two).toFixed(3)}.`,
  };
}
