import { testReproduction } from '@matforge/testkit';
import { reproduce } from '../src/reproduce.ts';

testReproduction('seal', async () => {
  const r = await reproduce();
  console.log(r.held, JSON.stringify(r.rows, null, 1));
  return r;
});
