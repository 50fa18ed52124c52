import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildGraph, type NodeSpec, type QfxGraph, simulate } from '@matforge/qfx';
import {
  compile,
  type EmitOptions,
  emitC,
  emitHls,
  emitProject,
  profile,
  testbenchSamples,
  writeProject,
} from '../src/index.ts';
import { random } from './graphs.ts';
import { removeTemporary, temporary } from './units.ts';

const has = (command: string): boolean => spawnSync(command, ['--version']).status === 0;
const withGcc = has('gcc') ? test : test.skip;
const withBoth = has('gcc') && has('g++') && has('make') ? test : test.skip;
const note = (present: boolean, what: string): string => (present ? '' : ` (skipped: no ${what})`);

afterAll(removeTemporary);

function tensor(shape: number[], low: number, high: number, seed: number) {
  const next = random(seed);
  const size = shape.reduce((a, b) => a * b, 1);
  return { shape, data: Array.from({ length: size }, () => low + Math.floor(next() * (high - low + 1))) };
}

const INPUT = 'ap_fixed<8,1,AP_RND,AP_SAT>';
const WEIGHT = 'ap_fixed<6,1,AP_RND,AP_SAT>';
const BIAS = 'ap_fixed<12,3,AP_RND,AP_SAT>';
const RELU = 'ap_ufixed<8,3,AP_RND,AP_SAT>';

/** Two convolutions around a residual branch, pooling and a dense layer. */
function residual(extra: Partial<Record<string, object>> = {}): QfxGraph {
  const nodes: NodeSpec[] = [
    { op: 'input', name: 'image', shape: [6, 6, 2], type: INPUT },
    {
      op: 'conv2d',
      name: 'conv/1',
      weights: tensor([3, 3, 2, 4], -32, 31, 1),
      weightType: WEIGHT,
      bias: tensor([4], -2000, 2000, 2),
      biasType: BIAS,
      activation: 'relu',
      type: RELU,
      padding: 'same',
    },
    {
      op: 'conv2d',
      name: 'conv/2',
      weights: tensor([3, 3, 4, 4], -32, 31, 3),
      weightType: WEIGHT,
      type: 'ap_fixed<8,4,AP_RND,AP_SAT>',
      padding: 'same',
    },
    { op: 'add', name: 'skip', inputs: ['conv/1', 'conv/2'], activation: 'relu', type: RELU },
    { op: 'avgPool2d', name: 'pool', size: 3, strides: 2, padding: 'same', type: RELU },
    { op: 'flatten', name: 'flat' },
    {
      op: 'dense',
      name: 'out',
      weights: tensor([36, 5], -32, 31, 4),
      weightType: WEIGHT,
      bias: tensor([5], -2000, 2000, 5),
      biasType: BIAS,
      type: 'ap_fixed<10,5,AP_RND,AP_SAT>',
    },
  ];
  return buildGraph({
    nodes: nodes.map((node) => ({ ...node, ...extra[node.name ?? ''] }) as NodeSpec),
  });
}

const small = (): QfxGraph =>
  buildGraph({
    nodes: [
      { op: 'input', name: 'x', shape: [4], type: INPUT },
      {
        op: 'dense',
        name: 'fc',
        weights: tensor([4, 3], -32, 31, 9),
        weightType: WEIGHT,
        type: 'ap_fixed<8,3,AP_RND,AP_SAT>',
      },
    ],
  });

describe('the files of a project', () => {
  test('are those of the documented layout', () => {
    const files = Object.keys(emitProject(residual(), { name: 'net', testbench: { draws: 10 } })).sort();
    expect(files).toEqual(
      [
        ...['Makefile', 'README.md', 'build_opt.tcl', 'build_prj.tcl', 'model.json', 'project.tcl'],
        ...['net_test.c', 'net_test.cpp'],
        ...['defines.h', 'net.c', 'net.cpp', 'net.h', 'net.hpp', 'parameters.h', 'qfx_ap.h'].map(
          (f) => `firmware/${f}`,
        ),
        ...['w2', 'b2', 'w3', 'w7', 'b7'].map((f) => `firmware/weights/${f}.h`),
        'firmware/tables/recip5.h',
        ...['tb_input_features', 'tb_output_predictions', 'golden_raw'].map((f) => `tb_data/${f}.dat`),
        ...['estimate_layer_resources', 'estimate_layer_cycles', 'estimate_network_performance', 'types'].map(
          (f) => `report/${f}.json`,
        ),
      ].sort(),
    );
  });

  test('model.json is the graph, and emitting it again gives the same files', () => {
    const first = emitProject(residual(), { name: 'net', testbench: { draws: 10 } });
    const again = emitProject(JSON.parse(first['model.json']), { name: 'net', testbench: { draws: 10 } });
    expect(again).toEqual(first);
  });

  test('weights are printed with all digits and their statistics', () => {
    const { 'firmware/weights/w2.h': text } = emitHls(small());
    const decimals = text
      .slice(text.indexOf('{') + 1, text.indexOf('}'))
      .split(',')
      .map((v) => v.trim());
    const raw = tensor([4, 3], -32, 31, 9).data;
    expect(decimals.map(Number)).toEqual(raw.map((r) => r / 32));
    expect(text).toContain('shape [4, 3], row-major');
    expect(text).toContain(`min ${Math.min(...raw) / 32}, max ${Math.max(...raw) / 32}`);
  });

  test('the testbench samples are zero, lowest, highest, random and saturating ones', () => {
    const graph = residual();
    const rows = testbenchSamples(graph);
    expect(new Set(rows[0])).toEqual(new Set([0]));
    expect(new Set(rows[1])).toEqual(new Set([-128]));
    expect(new Set(rows[2])).toEqual(new Set([127]));
    expect(rows.length).toBeGreaterThanOrEqual(103);
    // conv/1 saturates somewhere: its largest sums round to more than 255.
    const run = simulate(graph, rows.flat() as number[], { rawInput: true, accumulators: true });
    const sums = run.accumulators['conv/1'] as Int32Array;
    const fraction = (graph.nodes[1] as unknown as { accFraction: number }).accFraction;
    expect(Math.max(...sums) / 2 ** (fraction - 5)).toBeGreaterThan(255.5);
  });

  test('estimates follow the folding', () => {
    const report = (options: EmitOptions) =>
      JSON.parse(emitC(residual(), options)['report/estimate_layer_resources.json']);
    const parallel = report({});
    // 3*3*2*4 = 72 products of 8 x 6 bits in LUTs: (2*ceil(14/6)-1)*14 each, and an adder as wide as the sums (20 bits).
    expect(parallel['conv/1']).toMatchObject({ multipliers: 72, DSP: 0, BRAM_18K: 0, II: 36 });
    expect(parallel['conv/1'].LUT).toBe(72 * 70 + 72 * 20);
    const folded = report({ layers: { 'conv/1': { reuseFactor: 18 } } });
    expect(folded['conv/1']).toMatchObject({ multipliers: 4, II: 36 * 18 });
    expect(folded.total.II).toBe(36 * 18);
    expect(folded.note).toMatch(/not synthesized/);
  });
});

describe('profile', () => {
  test('counts what the overflow mode changed, and moves the binary point to what was seen', () => {
    const graph = buildGraph({
      nodes: [
        { op: 'input', name: 'x', shape: [2, 3, 1], type: 'ap_int<8>' },
        { op: 'avgPool2d', name: 'mean', size: 2, padding: 'same', type: 'ap_fixed<3,3,AP_RND,AP_SAT>' },
        {
          op: 'dense',
          name: 'wrapped',
          weights: { shape: [1, 1], data: [5] },
          weightType: 'ap_int<4>',
          type: 'ap_fixed<4,4,AP_RND,AP_SAT>',
          accumulator: 'ap_fixed<5,5>',
        },
      ],
    });
    // Means 2.5 and 7.5: 2.5 rounds to 3 and fits [-4, 3], 7.5 does not. Then 5 * 3 = 15 wraps to 15 in 5 bits (7 is
    // the largest result: twice saturated).
    const rows = profile(graph, [1, 2, 7, 3, 4, 8], { rawInput: true });
    const find = (layer: string, tensor: string) => rows.find((r) => r.layer === layer && r.tensor === tensor);
    expect(find('mean', 'result')).toMatchObject({
      saturated: 1,
      min: 3,
      max: 3,
      suggested: 'ap_fixed<3,4,AP_RND,AP_SAT>',
    });
    expect(find('wrapped', 'result')).toMatchObject({ saturated: 2, max: 7 });
    expect(find('x', 'input')).toMatchObject({ min: 1, max: 8, suggested: 'ap_fixed<8,5>' });
  });
});

describe('pragmas', () => {
  const body = (text: string, layer: string): string => {
    const from = text.indexOf(`static void ${layer}(`);
    return text.slice(from, text.indexOf('\n}\n', from));
  };

  test('of the two strategies', () => {
    const text = emitHls(residual(), { layers: { out: { strategy: 'resource', reuseFactor: 36 } } })[
      'firmware/myproject.cpp'
    ];
    const conv = body(text, 'layer2_conv_1');
    expect(conv).toContain('#pragma HLS PIPELINE II=1');
    expect(conv).toContain('#pragma HLS ALLOCATION operation instances=mul limit=72');
    expect(conv).toContain('#pragma HLS ARRAY_PARTITION variable=window complete');
    const out = body(text, 'layer7_out');
    expect(out).toContain('#pragma HLS ARRAY_RESHAPE variable=w7 block factor=5');
    expect(out).toContain('#pragma HLS BIND_STORAGE variable=w7 type=rom_1p impl=lutram');
    expect(out).toContain('for (int r = 0; r < LAYER7_REUSE_FACTOR; r++)');
  });

  test('of the interfaces, and DATAFLOW with one reader for each array', () => {
    for (const emit of [emitC, emitHls]) {
      const extension = emit === emitC ? 'c' : 'cpp';
      const text = emit(residual())[`firmware/myproject.${extension}`];
      const top = text.slice(text.indexOf('void myproject('));
      expect(top).toContain('#pragma HLS DATAFLOW');
      expect(top).toContain('#pragma HLS INTERFACE ap_vld port=in');
      expect(top).toContain('clone_2(layer2_out, layer2_copy1, layer2_copy2);');
      // Every array but the ports is written once and read once.
      const calls = [...top.matchAll(/^ {4}(?:layer|clone)\w+\((.*)\);$/gm)].map(([, args]) => args.split(', '));
      const uses = calls.flat().filter((name) => name !== 'in' && name !== 'out');
      for (const name of new Set(uses)) expect([name, uses.filter((u) => u === name).length]).toEqual([name, 2]);
      const axi = emit(residual(), { ioType: 'm_axi' })[`firmware/myproject.${extension}`];
      expect(axi).toContain('#pragma HLS INTERFACE m_axi port=in offset=slave bundle=gmem_in depth=72');
      expect(axi).toContain('#pragma HLS INTERFACE s_axilite port=return');
      const axis = emit(residual(), { ioType: 'axis' })[`firmware/myproject.${extension}`];
      expect(axis).toContain('#pragma HLS INTERFACE axis port=out');
    }
  });

  test('multiplier-free layers have no product of data', () => {
    const graph = buildGraph({
      nodes: [
        { op: 'input', shape: [4], type: INPUT },
        {
          op: 'dense',
          name: 'fc',
          weights: { shape: [4, 2], data: [1, -2, 4, 0, 12, -24, 16, 8] },
          weightType: WEIGHT,
          type: RELU,
          multiplierFree: { k: 2 },
        },
      ],
    });
    for (const text of [emitC(graph)['firmware/myproject.c'], emitHls(graph)['firmware/myproject.cpp']]) {
      const layer = text.slice(text.search(/layer2_(add_)?term/), text.indexOf('void myproject('));
      expect(layer).toContain('#pragma HLS BIND_OP');
      const code = layer.replace(/\/\*[\s\S]*?\*\//g, '').replace(/\[[^\]]*\]/g, '');
      expect(code).not.toMatch(/\*/);
    }
  });

  test('C99 firmware has no floating point and includes stdint.h alone', () => {
    const files = emitC(residual());
    for (const [path, text] of Object.entries(files)) {
      if (!path.startsWith('firmware/')) continue;
      const code = text.replace(/\/\*[\s\S]*?\*\//g, '');
      expect(code).not.toMatch(/\b(double|float|malloc|goto)\b/);
      for (const [, system] of code.matchAll(/#include <(.*)>/g)) expect(system).toBe('stdint.h');
    }
  });
});

describe('options', () => {
  test('hls4ml spellings mean the same', () => {
    const ours = emitHls(residual(), {
      name: 'a',
      reuseFactor: 4,
      strategy: 'resource',
      ioType: 'axis',
      clockPeriod: 4,
    });
    const theirs = emitHls(residual(), {
      ProjectName: 'a',
      ReuseFactor: 4,
      Strategy: 'Resource',
      IOType: 'axis',
      ClockPeriod: 4,
    });
    expect(theirs).toEqual(ours);
  });

  test('an invalid reuse factor moves to the nearest valid one, with a warning', async () => {
    const directory = join(temporary(), 'p');
    // 4 x 3: valid are 1, 2, 4 and 12 (4 divides them or lim is a multiple of 3).
    const project = await writeProject(directory, small(), { reuseFactor: 3, testbench: { draws: 0 } });
    expect(project.warnings.join()).toMatch(/fc: reuse factor 3 .* 2 is used/);
    expect(readFileSync(join(directory, 'firmware/parameters.h'), 'utf8')).toContain('LAYER2_REUSE_FACTOR = 2');
  });

  test.each([
    [{ name: '2fast' }, /name.*2fast.*cannot name a C function/],
    [{ name: 'int' }, /name/],
    [{ name: 'exp' }, /name/],
    [{ name: 'w2' }, /name/],
    [{ reuseFactor: 0 }, /reuseFactor: must be an integer >= 1, got 0/],
    [{ strategy: 'fast' }, /unknown strategy "fast"; accepted are latency, resource/],
    [{ ioType: 'io_stream' }, /unknown io type "io_stream"/],
    [{ layers: { 'conv/3': {} } }, /no layer "conv\/3"; did you mean "conv\/[12]"/],
    [{ layers: { out: { reuse: 3 } } }, /unknown option "reuse"/],
    [{ layers: { 'conv/1': { parallelizationFactor: 5 } } }, /does not divide the 36 output positions/],
    [{ clockPeriod: -1 }, /clockPeriod/],
    [{ part: 'a b"c' }, /part/],
    [{ flavours: ['rtl'] }, /flavours/],
  ])('%j is refused', (options, message) => {
    expect(() => emitProject(residual(), options as never)).toThrow(message);
  });

  test('graphs that cannot be emitted are refused with what to do', () => {
    const wide = residual({ 'conv/1': { weightType: 'ap_fixed<50,1,AP_RND,AP_SAT>' } });
    expect(() => emitC(wide)).toThrow(/conv\/1: the accumulator needs \d+ bits, C99 has 63/);
    const wrap = residual({ 'conv/2': { type: 'ap_fixed<8,4,AP_RND,AP_WRAP_SM>' } });
    expect(() => emitHls(wrap)).toThrow(/conv\/2\.type.*AP_WRAP_SM/);
    expect(() => emitC(wrap)).not.toThrow();
    const alien = { ...residual(), nodes: residual().nodes.map((n) => (n.id === 4 ? { ...n, op: 'lstm' } : n)) };
    expect(() => emitC(alien as never)).toThrow(/layer skip of class lstm cannot be emitted; supported: /);
    const precise = residual({ image: { type: 'ap_fixed<60,1,AP_RND,AP_SAT>' } });
    expect(() => emitProject(precise, { flavours: ['hls'] })).toThrow(/at most 53 bits|needs \d+ bits/);
  });

  test('samples that the input type cannot hold are refused', () => {
    expect(() => emitProject(small(), { samples: { raw: [1, 2, 3, 200] } })).toThrow(/200/);
    expect(() => emitProject(small(), { samples: { values: [0.5, Number.NaN, 0, 0] } })).toThrow(/NaN/);
    expect(() => emitProject(small(), { samples: { raw: [1, 2, 3] } })).toThrow(/3/);
  });
});

describe('writeProject', () => {
  test('never overwrites, and leaves nothing behind when it fails', async () => {
    const parent = temporary();
    const directory = join(parent, 'p');
    mkdirSync(directory);
    writeFileSync(join(directory, 'notes.txt'), 'mine');
    await expect(writeProject(directory, small())).rejects.toThrow(/exists and is not empty/);
    expect(readdirSync(directory)).toEqual(['notes.txt']);
    await expect(writeProject(join(parent, 'q'), small(), { name: 'no good' })).rejects.toThrow(/cannot name/);
    expect(readdirSync(parent)).toEqual(['p']);
  });

  test('fills an empty directory', async () => {
    const directory = temporary();
    await writeProject(directory, small(), { testbench: { draws: 0 } });
    expect(existsSync(join(directory, 'firmware/myproject.c'))).toBe(true);
  });
});

describe('csim', () => {
  withBoth(
    `make runs both testbenches, clean and under the sanitizers${note(has('make'), 'gcc, g++ or make')}`,
    async () => {
      const directory = join(temporary(), 'p');
      await writeProject(directory, residual(), { name: 'net' });
      const plain = spawnSync('make', [], { cwd: directory, encoding: 'utf8' });
      expect(plain.stderr).toBe('');
      expect(plain.status).toBe(0);
      expect(plain.stdout.match(/^net: (\d+) samples, 0 mismatches$/gm)).toHaveLength(2);
      expect(plain.stdout).toContain('INFO: Saved inference results to file: tb_data/csim_results.log');
      const logged = readFileSync(join(directory, 'tb_data/csim_results.log'), 'utf8').trim().split('\n');
      const predicted = readFileSync(join(directory, 'tb_data/tb_output_predictions.dat'), 'utf8').trim().split('\n');
      const numbers = (row: string): number[] => row.split(' ').map(Number);
      expect(logged.map(numbers)).toEqual(predicted.map(numbers));
      const asan = spawnSync('make', ['asan'], { cwd: directory, encoding: 'utf8' });
      expect([asan.stderr, asan.status]).toEqual(['', 0]);
      expect(asan.stdout.match(/0 mismatches/g)).toHaveLength(2);

      // One wrong bit in the expectation must fail both.
      const golden = join(directory, 'tb_data/golden_raw.dat');
      const rows = readFileSync(golden, 'utf8').split('\n');
      const words = rows[7].split(' ');
      words[2] = String(Number(words[2]) ^ 1);
      rows[7] = words.join(' ');
      writeFileSync(golden, rows.join('\n'));
      for (const goal of ['csim', 'csim-cpp']) {
        const broken = spawnSync('make', [goal], { cwd: directory, encoding: 'utf8' });
        expect(broken.status).not.toBe(0);
        expect(broken.stdout).toMatch(/sample 7, output 2: got -?\d+, expected -?\d+/);
        expect(broken.stdout).toMatch(/samples, 1 mismatches/);
      }
      // So must a result too few.
      writeFileSync(golden, rows.slice(0, 5).join('\n'));
      expect(spawnSync('make', ['csim'], { cwd: directory }).status).not.toBe(0);
    },
    120_000,
  );

  withGcc(
    `predict, trace, compare and profile${note(has('gcc'), 'gcc')}`,
    async () => {
      const graph = residual();
      const directory = join(temporary(), 'p');
      const values = Float64Array.from(tensor([7, 72], -128, 127, 11).data, (v) => v / 128);
      await writeProject(directory, graph, { flavours: ['c'], samples: { values }, testbench: { draws: 0 } });
      const sim = await compile(directory);
      const expected = simulate(graph, values, { trace: true });
      const got = await sim.predict(values);
      expect(got.shape).toEqual([7, 5]);
      expect(Array.from(got.raw as Int32Array)).toEqual(Array.from(expected.raw as Int32Array));
      expect(got.values).toEqual(expected.values);
      const trace = await sim.trace(values);
      expect(Object.keys(trace)).toEqual(graph.nodes.map(({ name }) => name));
      for (const { name } of graph.nodes) expect(trace[name]).toEqual(expected.trace[name]);
      const report = await sim.compare(values);
      expect(report).toMatchObject({ samples: 7, outputs: 35, mismatches: 0, passed: true, flavour: 'c' });
      const { rows, svg } = sim.profile(values);
      expect(rows.map(({ layer, tensor: role }) => `${layer} ${role}`)).toContain('conv/1 accum');
      const result = rows.find(({ layer, tensor: role }) => layer === 'conv/1' && role === 'result')!;
      const raw = expected.trace['conv/1'].raw as Int32Array;
      expect(result).toMatchObject({ min: Math.min(...raw), max: Math.max(...raw), elements: raw.length });
      expect(svg).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
      expect(svg).toContain('conv/1 weight');
    },
    60_000,
  );

  test('a missing compiler is reported as skipped, never as passed', async () => {
    const directory = join(temporary(), 'p');
    await writeProject(directory, small(), { testbench: { draws: 0 } });
    const sim = await compile(directory, { compiler: 'no-such-compiler' });
    expect(sim.skipped).toBe('no C compiler found');
    expect(await sim.compare([0, 0, 0, 0])).toMatchObject({ passed: false, skipped: 'no C compiler found' });
    await expect(sim.predict([0, 0, 0, 0])).rejects.toThrow(/no C compiler found/);
  });

  test('a directory without a project, or without the flavour, is refused', async () => {
    await expect(compile(temporary())).rejects.toThrow(/no project in/);
    const directory = join(temporary(), 'p');
    await writeProject(directory, small(), { flavours: ['c'], testbench: { draws: 0 } });
    await expect(compile(directory, { flavour: 'hls' })).rejects.toThrow(/holds c, not hls/);
  });

  withGcc(
    `folding, interface and parallelism change no bit${note(has('gcc'), 'gcc')}`,
    async () => {
      const graph = residual();
      const x = tensor([5, 72], -128, 127, 21).data;
      const expected = Array.from(simulate(graph, x, { rawInput: true }).raw as Int32Array);
      const variants: EmitOptions[] = [
        { strategy: 'resource', reuseFactor: 6, ioType: 'm_axi' },
        { strategy: 'latency', reuseFactor: 36, ioType: 'axis' },
        {
          layers: {
            'conv/1': { parallelizationFactor: 6 },
            'conv/2': { parallelizationFactor: 36, strategy: 'resource' },
          },
        },
      ];
      for (const options of variants) {
        const directory = join(temporary(), 'p');
        await writeProject(directory, graph, { ...options, flavours: ['c'], testbench: { draws: 0, random: 1 } });
        const sim = await compile(directory);
        expect(Array.from((await sim.predict(x, { rawInput: true })).raw as Int32Array)).toEqual(expected);
      }
    },
    60_000,
  );
});

const withTcl = spawnSync('tclsh', [], { input: 'exit 0' }).status === 0 ? test : test.skip;

withTcl('the Tcl scripts run the documented steps (needs tclsh)', () => {
  const directory = temporary();
  const files = emitHls(small(), { name: 'net', part: 'xc7z020clg400-1', clockPeriod: 8, clockUncertainty: 12.5 });
  for (const file of ['project.tcl', 'build_opt.tcl', 'build_prj.tcl']) {
    writeFileSync(join(directory, file), files[file]);
  }
  const commands = [
    ...['open_project', 'set_top', 'add_files', 'open_solution', 'set_part', 'create_clock', 'set_clock_uncertainty'],
    ...['csim_design', 'csynth_design', 'cosim_design', 'export_design'],
  ];
  const stubs = commands.map((c) => `proc ${c} {args} { puts [concat ${c} $args] }`).join('\n');
  writeFileSync(join(directory, 'run.tcl'), `${stubs}\nsource build_prj.tcl\n`);
  const { stdout, status } = spawnSync('tclsh', ['run.tcl', 'cosim=0 export=1'], { cwd: directory, encoding: 'utf8' });
  expect(status).toBe(0);
  expect(stdout.trim().split('\n')).toEqual([
    'open_project -reset net_prj',
    'set_top net',
    'add_files firmware/net.cpp -cflags -std=c++14',
    'add_files -tb net_test.cpp -cflags -std=c++14',
    'add_files -tb tb_data',
    'open_solution -reset solution1',
    'set_part xc7z020clg400-1',
    'create_clock -period 8 -name default',
    'set_clock_uncertainty 12.5% default',
    'csim_design',
    'csynth_design',
    'export_design -format ip_catalog',
  ]);
});
