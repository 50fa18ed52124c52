import { testTransformation } from '@matforge/testkit';
import { dctAdamW, trion } from '../src/index.ts';

testTransformation({
  method: dctAdamW,
  options: { rank: 2, rotateSubspace: true, learningRate: 0.1 },
  refused: [
    [{ rank: 0 }, /dct-projection\.rank: must be a positive integer, got 0/],
    [{ basis: 'dct4' }, /dct-projection\.basis: must be one of .*got "dct4"/],
    [{ updateProjGap: 0 }, /dct-projection\.updateProjGap: .*got 0/],
  ],
});

testTransformation({
  method: trion,
  options: { rank: 2, learningRate: 0.1 },
  refused: [[{ momentum: 1 }, /trion\.momentum: .*got 1/]],
});
