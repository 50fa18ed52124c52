import { rmSync } from 'node:fs';
import * as fc from 'fast-check';
import { writeProject } from '../src/index.ts';
import { grow, randomGraph } from './graphs.ts';

test('dbg', async () => {
  const n = Number(process.env['N']);
  const d = fc.sample(randomGraph, { numRuns: n + 1, seed: Number(process.env['MATFORGE_FUZZ_SEED'] ?? 1) });
  const { graph, options } = grow(`vendor${n}`, d[n]);
  rmSync('/tmp/vp', { recursive: true, force: true });
  await writeProject('/tmp/vp', graph, { ...options, flavours: ['hls'], testbench: { random: 20, draws: 0 } });
});
