import { adam, type Reproduction, ready } from '@matforge/core';
import { learnRegression } from '@matforge/core/tasks';
import { galore } from './index.ts';

/**
 * Over time GaLore's update covers the whole space, which neither one fixed subspace nor a factorization of the weights
 * does: all three keep rank 4, and the weights to be learned have rank 32.
 *
 * @param options.seeds default 0, 1, 2.
 */
export async function reproduce({ seeds = [0, 1, 2] }: { seeds?: number[] } = {}): Promise<Reproduction> {
  await ready();
  const rows = seeds.map((seed) => {
    const run = (updateProjGap: number, states: 'float32' | 'int8' = 'float32'): number =>
      learnRegression(galore({ rank: 4, updateProjGap, states }), { seed, learningRate: 0.012 });
    return {
      seed,
      'GaLore, gap 50': run(50),
      'GaLore, gap 50, 8-bit states': run(50, 'int8'),
      'GaLore, one subspace': run(1500),
      'factors A·B, Adam': learnRegression(adam(), { seed, learningRate: 3e-3, factors: 4 }),
      'full Adam': learnRegression(adam(), { seed, learningRate: 0.012 }),
    };
  });
  const ratio = (row: (typeof rows)[number], states: 'GaLore, gap 50' | 'GaLore, gap 50, 8-bit states'): number =>
    row[states] / Math.min(row['GaLore, one subspace'], row['factors A·B, Adam']);
  const worst = Math.max(...rows.map((row) => ratio(row, 'GaLore, gap 50')));
  const worst8 = Math.max(...rows.map((row) => ratio(row, 'GaLore, gap 50, 8-bit states')));
  return {
    claim:
      'at rank 4, GaLore with a new subspace every 50 steps ends below 0.1 of the loss of a factorization and of one fixed subspace, with 8-bit states as well',
    rows,
    held: worst < 0.1 && worst8 < 0.1,
    details: `Regression Y = X·W*, W* 48x32 of full rank, 2,048 samples, batches of 128, 1,500 steps, seeds ${seeds.join(', ')}; mean squared error at the end. Largest ratio ${worst.toFixed(3)}, with 8-bit states ${worst8.toFixed(3)}.`,
  };
}
