import { type Reproduction, ready } from '@matforge/core';
import { adaptAndTest, blobTransfer } from '@matforge/core/tasks';
import { seal } from './index.ts';

/** The paper's claim at small scale. */
export async function reproduce(): Promise<Reproduction> {
  await ready();
  const task = blobTransfer(0);
  const accuracy = await adaptAndTest(task, seal({ rank: 4, alpha: 8, secret: 1 }));
  task.dispose();
  return {
    claim: 'accuracy after transfer above 0.8',
    rows: [{ seed: 0, accuracy }],
    held: accuracy > 0.8,
    details: 'Blob transfer, rank 4, Adam 1e-2, 300 full-batch steps.',
  };
}
