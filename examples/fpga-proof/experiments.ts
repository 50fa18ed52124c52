import { fashionMnist } from '@matforge/datasets';
import { cifar10 } from './cifar10.ts';
import { type Experiment, networks, settings } from './proof.ts';

/** The three experiments, by name; data are read when one is asked for. */
export const experiments: Record<string, (cache: string) => Promise<Experiment>> = {
  mlp: async () => ({
    name: 'MLP',
    ...(await clothes()),
    make: () => networks.mlp([28, 28, 1], [48, 32]),
    floatSteps: 1500,
    ...common,
  }),
  cnn: async () => ({
    name: 'CNN with batch norm',
    ...(await clothes()),
    make: () => networks.cnn([28, 28, 1], [8, 16]),
    floatSteps: 1500,
    ...common,
  }),
  residual: async (cache) => {
    const { train, test } = cifar10(cache);
    return {
      name: 'residual CNN with batch norm',
      train,
      test: test.take(2000),
      make: () => networks.residual([32, 32, 3], [8, 16]),
      ...common,
      floatSteps: 1200,
      steps: 250,
    };
  },
};

const common = { steps: 400, learningRate: 2e-3, samples: 1000, settings };

async function clothes(): Promise<Pick<Experiment, 'train' | 'test'>> {
  const { train, test } = await fashionMnist({ seed: 1 });
  return { train: train.take(20_000), test: test.take(5000) };
}
