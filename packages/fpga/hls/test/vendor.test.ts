import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { emitHls, writeProject } from '../src/index.ts';
import { grow, randomGraph } from './graphs.ts';
import { removeTemporary, temporary } from './units.ts';

/** Folder with the vendor's ap_fixed.h (github.com/Xilinx/HLS_arbitrary_Precision_Types, include/). */
const INCLUDE = process.env['MATFORGE_AP_INCLUDE'];
const COUNT = Number(process.env['MATFORGE_FUZZ'] ?? 20);
const SEED = Number(process.env['MATFORGE_FUZZ_SEED'] ?? 1);

afterAll(removeTemporary);

(INCLUDE ? test : test.skip)(
  `the C++ flavour agrees with the vendor's own ap_fixed headers${INCLUDE ? '' : ' (skipped: set MATFORGE_AP_INCLUDE)'}`,
  async () => {
    let ran = 0;
    for (const [i, description] of fc.sample(randomGraph, { numRuns: COUNT, seed: SEED }).entries()) {
      const { graph, options } = grow(`vendor${i}`, description);
      try {
        emitHls(graph, options);
      } catch {
        continue; // a refusal, which the other tests look at
      }
      const directory = join(temporary(), 'project');
      await writeProject(directory, graph, { ...options, flavours: ['hls'], testbench: { random: 20, draws: 0 } });
      const name = `vendor${i}`;
      const sources = [`${name}_test.cpp`, `firmware/${name}.cpp`];
      // NDEBUG: the headers read a bit beyond the word, and then ignore it, where a cast shifts everything out.
      const flags = ['-std=c++14', '-DNDEBUG', '-w', '-O0', `-I${INCLUDE}`, '-o', 'csim'];
      const built = spawnSync('g++', [...flags, ...sources], { cwd: directory, encoding: 'utf8' });
      expect([name, built.stderr.slice(0, 2000)]).toEqual([name, '']);
      const { stdout, status, signal } = spawnSync('./csim', [], { cwd: directory, encoding: 'utf8' });
      if (status !== 0) throw new Error(`${name}: ${signal ?? stdout}\n${JSON.stringify(graph)}`);
      ran++;
    }
    expect(ran).toBeGreaterThan(COUNT / 2);
  },
  3_600_000,
);
