import { testTransformation } from '@matforge/testkit';
import { galore } from '../src/index.ts';

testTransformation({
  method: galore,
  options: { rank: 2, updateProjGap: 3, learningRate: 0.1, scale: 1 },
  refused: [
    [{ rank: 0 }, /galore\.rank: must be a positive integer, got 0/],
    [{ updateProjGap: 0 }, /galore\.updateProjGap: .*got 0/],
    [{ projType: 'middle' }, /galore\.projType: must be one of .*got "middle"/],
    [{ rnk: 2 }, /galore\.rnk: unknown option/],
  ],
});

testTransformation({
  method: galore,
  options: { rank: 2, updateProjGap: 3, learningRate: 0.1, scale: 1, states: 'int8' },
  refused: [[{ states: 'int4' }, /galore\.states: must be one of .*got "int4"/]],
});
