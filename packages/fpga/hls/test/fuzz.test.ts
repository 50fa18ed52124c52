import { spawnSync } from 'node:child_process';
import { MatforgeError } from '@matforge/core';
import * as fc from 'fast-check';
import { emitC, emitHls, type Flavour } from '../src/index.ts';
import { grow, type RandomGraph, randomGraph } from './graphs.ts';
import { compileAll, removeTemporary, SANITIZE } from './units.ts';

const COUNT = Number(process.env['MATFORGE_FUZZ'] ?? 20);
const SEED = Number(process.env['MATFORGE_FUZZ_SEED'] ?? 1);
const BATCH = 50;

const compiler = { c: 'gcc', hls: 'g++' } as const;
const missing = (flavour: Flavour): boolean => spawnSync(compiler[flavour], ['--version']).status !== 0;

afterAll(removeTemporary);

const descriptions = fc.sample(randomGraph, { numRuns: COUNT, seed: SEED });
const graphs = descriptions.map((description, i) => grow(`fuzz${i}`, description));

/** Undefined when the graph is emitted, else the refusal. */
function refusal({ graph, options }: RandomGraph, emit: typeof emitC): string | undefined {
  try {
    emit(graph, options);
    return undefined;
  } catch (error) {
    expect(error).toBeInstanceOf(MatforgeError);
    return (error as Error).message;
  }
}

describe.each([
  ['c', emitC],
  ['hls', emitHls],
] as const)('random graphs in the %s flavour', (flavour, emit) => {
  const run = missing(flavour) ? test.skip : test;
  const suffix = missing(flavour) ? ` (skipped: no ${compiler[flavour]})` : '';

  run(
    `${COUNT} graphs agree with the simulator in every bit of every layer, or are refused${suffix}`,
    async () => {
      const reasons = graphs.map((graph) => refusal(graph, emit));
      for (const reason of reasons) {
        if (reason !== undefined) expect(reason).toMatch(/needs \d+ bits|AP_WRAP_SM/);
      }
      const emitted = graphs.filter((_, i) => reasons[i] === undefined);
      // Refusals are the exception: the types are mostly ordinary.
      expect(emitted.length).toBeGreaterThan(COUNT * 0.6);
      for (let at = 0; at < emitted.length; at += BATCH) {
        const batch = emitted.slice(at, at + BATCH);
        const sims = await compileAll(batch, flavour, flavour === 'c' ? SANITIZE : ['-O0']);
        for (const [i, { graph, inputs }] of batch.entries()) {
          const report = await sims[i].compare(inputs, { rawInput: true });
          if (!report.passed)
            throw new Error(`${graph.name} differs: ${JSON.stringify(report)}\n${JSON.stringify(graph)}`);
        }
      }
    },
    1_200_000,
  );
});
