import { adam, ensure, type GradientTransformation, partition } from '@matforge/core';

/** Options of {@link loraPlus}. */
export interface LoraPlusOptions {
  /** Learning rate of A. */
  learningRate: number;
  /** Learning rate of B and of every vector over that of A, ≥ 1. Default 16, which the paper finds good for hard tasks. */
  ratio?: number;
  /** Makes the transformation of one group. Default Adam. */
  transformation?: (learningRate: number) => GradientTransformation;
}

/**
 * LoRA+ (Hayou et al. 2024, arXiv 2402.12354): the up factor B and all vectors learn `ratio` times faster than the down
 * factor A, which is what feature learning in wide layers asks for. Ratio 1 is the plain optimizer.
 *
 * @throws MatforgeError for a ratio below 1.
 */
export function loraPlus({
  learningRate,
  ratio = 16,
  transformation = (rate) => adam({ learningRate: rate }),
}: LoraPlusOptions): GradientTransformation {
  ensure(ratio >= 1, 'loraPlus.ratio', () => `must be >= 1, got ${ratio}; 1 is the plain optimizer`);
  return partition(
    { down: transformation(learningRate), up: transformation(ratio * learningRate) },
    (name, parameter) => (parameter.rank === 1 || /\/B(_\d+)?$/.test(name) ? 'up' : 'down'),
  );
}
