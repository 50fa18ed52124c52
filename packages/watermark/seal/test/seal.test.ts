import { testLinearMethod } from '@matforge/testkit';
import { seal } from '../src/index.ts';

testLinearMethod({
  configured: seal({ rank: 2 }),
  parameters: (inDim, outDim) => 2 * (inDim + outDim),
  refused: [[{ rank: 0 }, /seal\.rank: must be a positive integer, got 0/]],
});
