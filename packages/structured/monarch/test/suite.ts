import { lossAndGradients, type MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  MonarchDense,
  monarch,
  monarchApply,
  monarchFlops,
  monarchParamCount,
  monarchProject,
  monarchToDense,
} from '../src/index.ts';

const blocksOf = ({ inDim, outDim, options }: { inDim: number; outDim: number; options: Record<string, unknown> }) => {
  const nblocks = (options.nblocks as number) ?? 4;
  const [p, s] = [Math.ceil(inDim / nblocks), Math.ceil(outDim / nblocks)];
  return nblocks * (nblocks * p < nblocks * s ? p : s) * (p + s);
};

interface Config {
  inDim: number;
  outDim: number;
  nblocks: number;
  useBias?: boolean;
}

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'monarch',
  structured: [
    {
      method: monarch,
      Layer: MonarchDense,
      options: { nblocks: 2 },
      cases: [
        { inDim: 16, outDim: 16, options: { nblocks: 4 } },
        { inDim: 12, outDim: 20, options: { nblocks: 2 } },
        { inDim: 10, outDim: 15, options: { nblocks: 4 } },
        { inDim: 15, outDim: 7, options: { nblocks: 3 } },
        { inDim: 6, outDim: 9, options: { nblocks: 1 } },
      ],
      parameters: blocksOf,
      flops: (size) => 2 * blocksOf(size),
      atWidth: (width) => ({ nblocks: Math.sqrt(width) }),
      refused: [
        [{ nblocks: 0 }, /monarch\.nblocks: must be a positive integer, got 0/],
        [{ nblocks: 1.5 }, /monarch\.nblocks: must be a positive integer, got 1\.5/],
        [{ nblocks: 9 }, /layer0\.nblocks: 9 blocks do not fit the \[6, 8\] kernel; choose nblocks <= 8/],
        [{ init: 'zero' }, /monarch\.init: must be one of "project", "official", "muP", "dense", got "zero"/],
        [{ init: 'project', zeroInit: true }, /layer0\.zeroInit/],
      ],
    },
  ],
  golden: {
    apply: (inputs, size: Config) =>
      tf.tidy(() => {
        const [A, B] = [inputs.tensor('blkdiag1'), inputs.tensor('blkdiag2')];
        const { y, gradients } = lossAndGradients(
          (t) => monarchApply(t.x, t.A, t.B, size),
          { x: inputs.tensor('x'), A, B },
          inputs.tensor('gradY'),
        );
        return {
          y: size.useBias ? tf.add(y, inputs.tensor('bias')) : y,
          dense: monarchToDense(A, B, size),
          gradX: gradients.x,
          gradBlkdiag1: gradients.A,
          gradBlkdiag2: gradients.B,
          paramCount: monarchParamCount(size.inDim, size.outDim, size.nblocks, size.useBias),
          flops: monarchFlops(size.inDim, size.outDim, size.nblocks),
        };
      }),
    project: (inputs, size: Config) =>
      tf.tidy(() => {
        const { blkdiag1, blkdiag2, error, relError } = monarchProject(inputs.matrix('W'), size.nblocks);
        return {
          dense: monarchToDense(blkdiag1, blkdiag2, size),
          error,
          relError,
          factorNorms: [blkdiag1, blkdiag2].map((factor) => tf.norm(factor).dataSync()[0]),
        };
      }),
  },
};
