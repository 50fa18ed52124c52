import { structuredFamily } from '@matforge/core';
import { lossAndGradients, type MethodSuites, type StructuredCase } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  BTTDense,
  type BttShape,
  btt,
  bttApply,
  bttNormalize,
  bttProject,
  bttToDense,
  factorize,
  structuredScaling,
} from '../src/index.ts';

export const family = structuredFamily(btt);

const coreNumbers = ({ inDim, outDim, options }: StructuredCase): number => {
  const { rank = 1, cores = 2 } = options as { rank?: number; cores?: number };
  const ms = (options.inFactors as number[]) ?? factorize(inDim, cores);
  const ns = (options.outFactors as number[]) ?? factorize(outDim, cores);
  if (ms.length === 2) return rank * ms[1] * ns[0] * (ms[0] + ns[1]);
  return ms.reduce((sum, m, t) => {
    const around = [...ns.slice(0, t), ...ms.slice(t + 1)].reduce((product, size) => product * size, 1);
    return sum + around * (t === 0 ? 1 : rank) * m * (t === ms.length - 1 ? 1 : rank) * ns[t];
  }, 0);
};

interface Config extends BttShape {
  inFactors: number[];
  outFactors: number[];
  normalize?: boolean;
}

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'btt',
  structured: [
    {
      method: btt,
      Layer: BTTDense,
      options: { rank: 2 },
      cases: [
        { inDim: 12, outDim: 20, options: { rank: 2 } },
        { inDim: 16, outDim: 16, options: {} },
        { inDim: 12, outDim: 10, options: { rank: 3, inFactors: [3, 4], outFactors: [5, 2] } },
        { inDim: 24, outDim: 18, options: { rank: 2, cores: 3 } },
        { inDim: 12, outDim: 30, options: { rank: 2, inFactors: [2, 3, 2], outFactors: [3, 5, 2] } },
        { inDim: 16, outDim: 24, options: { rank: 2, cores: 4 } },
      ],
      parameters: coreNumbers,
      flops: (size) => 2 * coreNumbers(size),
      atWidth: () => ({}),
      refused: [
        [{ rank: 0 }, /btt\.rank: must be a positive integer, got 0/],
        [{ cores: 1 }, /btt\.cores: must be an integer from 2 to 4, got 1/],
        [{ inFactors: [2, 4] }, /layer0\.inFactors: the product of \[2,4\] is 8, the width is 6/],
        [{ outFactors: [2, 2, 2], cores: 2 }, /layer0\.outFactors: has 3 factors for 2 cores/],
      ],
    },
  ],
  golden: {
    apply: (inputs, config: Config) =>
      tf.tidy(() => {
        const names = config.inFactors.map((_, t) => `core${t}`);
        const gamma = config.normalize ? inputs.tensor('gamma') : undefined;
        const effective = (cores: tf.Tensor[]) => (gamma ? bttNormalize(cores, gamma, config) : cores);
        const cores = names.map((name) => inputs.tensor(name));
        const { y, gradients } = lossAndGradients(
          ({ x, ...rest }) =>
            bttApply(x, effective(names.map((name) => (rest as Record<string, tf.Tensor>)[name])), config),
          { x: inputs.tensor('x'), ...Object.fromEntries(names.map((name, t) => [name, cores[t]])) } as Record<
            'x',
            tf.Tensor
          >,
          inputs.tensor('gradY'),
        );
        const bias = inputs.optional('bias');
        const all = gradients as Record<string, tf.Tensor>;
        const product = (sizes: number[]) => sizes.reduce((result, size) => result * size, 1);
        const size = { inDim: product(config.inFactors), outDim: product(config.outFactors), ...config };
        return {
          y: bias ? tf.add(y, bias) : y,
          dense: bttToDense(effective(cores), config),
          gradX: all.x,
          ...Object.fromEntries(names.map((name, t) => [`gradCore${t}`, all[name]])),
          paramCount: family.paramCount(size) + (bias?.size ?? 0),
          flops: family.flops(size),
        };
      }),
    project: (inputs, config: Config) =>
      tf.tidy(() => {
        const { cores, error, relError } = bttProject(inputs.matrix('W'), config);
        return { dense: bttToDense(cores, config), error, relError };
      }),
    scaling: (_, config) => ({ ...structuredScaling(config) }),
  },
};
