import { lossAndGradients, type MethodSuites, type StructuredCase } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  BlastDense,
  type BlastFactors,
  blast,
  blastApply,
  blastFactorize,
  blastSweep,
  blastToDense,
} from '../src/index.ts';

const numbers = ({ inDim, outDim, options }: StructuredCase): number => {
  const { inBlocks: a, outBlocks: c, rank } = options as { inBlocks: number; outBlocks: number; rank: number };
  return rank * (inDim + outDim + a * c);
};

export const NAMES = ['inBasis', 'coupling', 'outBasis'] as const;

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'blast',
  structured: [
    {
      method: blast,
      Layer: BlastDense,
      options: { inBlocks: 2, outBlocks: 1, rank: 3, iterations: 20 },
      cases: [
        { inDim: 12, outDim: 12, options: { inBlocks: 3, outBlocks: 3, rank: 5 } },
        { inDim: 8, outDim: 15, options: { inBlocks: 2, outBlocks: 5, rank: 3 } },
        { inDim: 10, outDim: 6, options: { inBlocks: 1, outBlocks: 1, rank: 4 } },
      ],
      parameters: numbers,
      flops: (size) => 2 * numbers(size),
      atWidth: (width) => ({ rank: width / 8, iterations: 1 }),
      recovers: 0.15,
      refused: [
        [{ inBlocks: 4 }, /layer0\.inBlocks: 4 does not divide in = 6/],
        [{ outBlocks: 3 }, /layer0\.outBlocks: 3 does not divide out = 8/],
        [{ rank: 0 }, /blast\.rank: must be a positive integer, or a fraction of min\(in, out\) below 1, got 0/],
        [{ rank: 1.5 }, /blast\.rank: must be a positive integer, or a fraction/],
        [{ gradScale: 3 }, /blast\.gradScale: must be 1 or 2, got 3/],
        [{ endFactor: 2 }, /blast\.endFactor: must be in \[0, 1\], got 2/],
      ],
    },
  ],
  golden: {
    apply: (inputs, size) =>
      tf.tidy(() => {
        const factors = Object.fromEntries(NAMES.map((name) => [name, inputs.tensor(name)])) as unknown as BlastFactors;
        const { y, gradients } = lossAndGradients(
          ({ x, ...rest }) => blastApply(x, rest),
          { x: inputs.tensor('x'), ...factors },
          inputs.tensor('gradY'),
        );
        const bias = inputs.tensor('bias');
        const config = { inDim: size.inDim, outDim: size.outDim, options: size };
        return {
          y: tf.add(y, bias),
          dense: blastToDense(factors),
          gradX: gradients.x,
          gradInBasis: gradients.inBasis,
          gradCoupling: gradients.coupling,
          gradOutBasis: gradients.outBasis,
          paramCount: NAMES.reduce((sum, name) => sum + factors[name].size, bias.size),
          flops: 2 * numbers(config),
        };
      }),
    sweep: (inputs, config) => {
      const factors = Object.fromEntries(NAMES.map((name) => [name, inputs.tensor(name)])) as unknown as BlastFactors;
      return { ...blastSweep(inputs.matrix('W'), factors, config) };
    },
    factorize: (inputs, config) => {
      const init = Object.fromEntries(NAMES.map((name) => [name, inputs.tensor(name)])) as unknown as BlastFactors;
      const { factors, error, relError } = blastFactorize(inputs.matrix('W'), { ...config, init });
      const dense = blastToDense(factors);
      tf.dispose({ ...factors });
      return { dense, error, relError };
    },
  },
};
