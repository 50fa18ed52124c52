import { isMac } from '@matforge/qfx';
import type { Flavour } from './options.ts';
import { describe, type Plan } from './plan.ts';
import type { EstimateReport } from './report.ts';
import { lines } from './text.ts';

/** README.md of an emitted project. */
export function projectReadme(plan: Plan, flavours: readonly Flavour[], report: EstimateReport): string {
  const { name, part, clockPeriod, clockUncertainty, ioType } = plan.settings;
  const c = flavours.includes('c');
  const hls = flavours.includes('hls');
  const types = [
    `| 1 | ${cellText(plan.input.name)} | input | ${plan.input.shape.join(' x ')} | | | | \`${describe(plan.input.type)}\` |`,
    ...plan.layers.map(({ node, id }) => {
      const [w, b, a] = isMac(node)
        ? [node.weightType, node.biasType, node.accumulator]
        : [undefined, undefined, 'accumulator' in node ? node.accumulator : undefined];
      const cell = (type: typeof w): string => (type ? `\`${describe(type)}\`` : '');
      const free = isMac(node) && node.multiplierFree ? `, ${node.multiplierFree.k}-hot` : '';
      return `| ${id} | ${cellText(node.name)} | ${node.op}${free} | ${node.shape.join(' x ')} | ${cell(w)} | ${cell(b)} | ${cell(a)} | ${cell(node.type)} |`;
    }),
  ];
  const folding = new Map(plan.layers.map((layer) => [layer.node.name, layer]));
  const rows = [...Object.entries(report.layers), ['total', report.total] as const].map(([layer, e]) => {
    const own = folding.get(layer);
    const how = own && isMac(own.node) ? `${own.strategy}, R = ${own.reuse}` : '';
    return `| ${cellText(layer)} | ${how} | ${e.multipliers} | ${e.DSP} | ${e.LUT} | ${e.BRAM_18K} | ${e.II} | ${e.cycles} |`;
  });
  return `${lines(
    `# ${name}`,
    '',
    'A fixed-point network, frozen and emitted as source. Every flavour computes the same raw integers as the simulator that',
    'wrote `tb_data/golden_raw.dat`; the testbench fails when one bit differs.',
    '',
    '## C simulation',
    '',
    '```sh',
    ...[
      c && 'make csim       # C99, gcc',
      hls && 'make csim-cpp   # C++ with ap_fixed types, g++ and firmware/qfx_ap.h',
    ].filter((text): text is string => typeof text === 'string'),
    'make asan       # the same under the address and undefined-behaviour sanitizers',
    '```',
    '',
    `The last line reads \`${name}: N samples, 0 mismatches\`, and the exit status is 0 only then.`,
    '',
    '## Vitis HLS',
    '',
    '```sh',
    'vitis_hls -f build_prj.tcl                      # csim, synthesis, co-simulation',
    'vitis_hls -f build_prj.tcl "cosim=0 export=1"   # steps by name, see build_opt.tcl',
    '```',
    '',
    `Part ${part}, clock ${clockPeriod} ns, uncertainty ${clockUncertainty} %, interface ${ioType} (project.tcl).`,
    hls
      ? "Without `-DQFX_SIM_TYPES` the vendor's `ap_fixed.h` is used."
      : 'The C99 flavour is synthesized; it needs no vendor headers.',
    '',
    c &&
      lines(
        '## Using the C99 program',
        '',
        `\`firmware/${name}.h\` declares \`${name}(in, out)\` on arrays of raw integers: value = raw * 2^-F. Cast the inputs first,`,
        'as the input type says. It needs `<stdint.h>` and nothing else: no floating point, no heap.',
        '',
      ),
    '## Types',
    '',
    '| N | layer | op | shape | weight | bias | accum | result |',
    '|---|---|---|---|---|---|---|---|',
    ...types,
    '',
    'Sums are exact; every layer casts once, to its result type. Types without modes never round or overflow.',
    '',
    '## Estimate',
    '',
    'Analytic, not synthesized: HLS folds constant weights at R = 1 (fewer LUTs), flip-flops and routing are not counted.',
    '',
    '| layer | folding | multipliers | DSP | LUT | BRAM_18K | II | cycles |',
    '|---|---|---|---|---|---|---|---|',
    ...rows,
    '',
    plan.warnings.length > 0 && lines('## Warnings', '', ...plan.warnings.map((warning) => `- ${warning}`), ''),
    '## If you come from hls4ml',
    '',
    '1. Sums are exact and a result is cast once; hls4ml casts after each layer and again after a separate activation.',
    '2. Unless a type says otherwise, values round to nearest and saturate; each costs about an adder and a comparator per output.',
    '3. Average pooling multiplies by a rounded reciprocal; hls4ml divides.',
    '4. The softmax tables differ in size and type.',
    '5. Channels are last.',
    '',
    '## Files',
    '',
    '`model.json` is the frozen graph, the single source of everything else. `firmware/` is the design, `tb_data/` the test',
    'vectors, `report/` the estimates and the ranges seen.',
  )}\n`;
}

/** A layer's name must not end a cell of a table. */
const cellText = (name: string): string => name.replace(/[|\s]+/g, ' ');
