import { type FixedType, formatType, fractionBits, type QfxNode, sizeOf } from '@matforge/qfx';
import { arrayFiles } from './arrays.ts';
import { c99, checkC, cTypedefs } from './c99.ts';
import { container } from './casts.ts';
import { checkHls, cpp, cppTypedefs } from './cpp.ts';
import { cloneFunction, type Dialect, layerConstants, layerFunction, partition, sizeName, typeName } from './layers.ts';
import type { Flavour } from './options.ts';
import { describe, type Plan } from './plan.ts';
import { QFX_AP_HEADER } from './qfx-ap.ts';
import { comment, indent, lines } from './text.ts';

/** Local arrays beyond this many bytes are static: a stack may be too small for them. */
const STACK_LIMIT = 1 << 20;

/** Everything below firmware/. */
export function firmware(plan: Plan, flavours: readonly Flavour[]): Record<string, string> {
  if (flavours.includes('c')) checkC(plan);
  if (flavours.includes('hls')) checkHls(plan);
  const { name } = plan.settings;
  const arrays = arrayFiles(plan, flavours);
  const files: Record<string, string> = {
    'firmware/defines.h': defines(plan, flavours),
    'firmware/parameters.h': parametersHeader(plan),
  };
  for (const { path, text } of arrays) files[`firmware/${path}`] = text;
  const includes = arrays.map(({ path }) => `#include "${path}"`);
  if (flavours.includes('c')) {
    files[`firmware/${name}.h`] = publicHeader(plan);
    files[`firmware/${name}.c`] = source(plan, includes, c99, 'c');
  }
  if (flavours.includes('hls')) {
    files[`firmware/${name}.hpp`] = cppHeader(plan);
    files[`firmware/${name}.cpp`] = source(plan, includes, cpp, 'hls');
    files['firmware/qfx_ap.h'] = QFX_AP_HEADER;
  }
  return files;
}

const guardOf = (plan: Plan, file: string): string => `${plan.settings.name}_${file}`.toUpperCase();

function guarded(guard: string, purpose: string, ...body: (string | false | undefined)[]): string {
  return `${lines(comment(purpose), `#ifndef ${guard}`, `#define ${guard}`, '', ...body, '', '#endif')}\n`;
}

function enumeration(entries: readonly [string, number | string][]): string {
  return `enum {\n${entries
    .map(([key, value]) => `    ${key} = ${value},`)
    .join('\n')
    .replace(/,$/, '')}\n};`;
}

/** Names of the types and sizes of the arrays. The same names in both languages. */
function defines(plan: Plan, flavours: readonly Flavour[]): string {
  const cppPart = (): string =>
    lines(
      '#ifdef QFX_SIM_TYPES',
      '#include "qfx_ap.h"',
      '#else',
      '#include "ap_fixed.h"',
      '#include "ap_int.h"',
      '#endif',
      '',
      cppTypedefs(plan),
    );
  const cPart = (): string => lines('#include <stdint.h>', '', cTypedefs(plan));
  const sizes = enumeration([
    ['N_INPUT', sizeOf(plan.input.shape)],
    ...plan.layers.map((layer): [string, number] => [sizeName(layer.node), layer.size]),
    ['N_RESULT', sizeOf(plan.output.shape)],
  ]);
  return guarded(
    guardOf(plan, 'DEFINES_H'),
    'Types and sizes of the arrays between the layers.',
    flavours.length === 2
      ? lines('#ifdef __cplusplus', cppPart(), '#else', cPart(), '#endif')
      : flavours[0] === 'c'
        ? cPart()
        : cppPart(),
    '',
    sizes,
  );
}

function parametersHeader(plan: Plan): string {
  const layers = plan.layers
    .map((layer) => ({ layer, constants: layerConstants(layer) }))
    .filter(({ constants }) => constants.length > 0);
  return guarded(
    guardOf(plan, 'PARAMETERS_H'),
    'Constants of the layers.',
    enumeration([
      ['STRATEGY_LATENCY', 0],
      ['STRATEGY_RESOURCE', 1],
    ]),
    ...layers.flatMap(({ layer, constants }) => [
      '',
      comment(`${layer.node.name} (${layer.node.op})`),
      enumeration(constants.map(([key, value]) => [`LAYER${layer.id}_${key}`, value])),
    ]),
  );
}

function signature(plan: Plan, flavour: Flavour): string {
  const { name } = plan.settings;
  return flavour === 'c'
    ? `void ${name}(const input_t in[N_INPUT], result_t out[N_RESULT])`
    : `void ${name}(input_t in[N_INPUT], result_t out[N_RESULT])`;
}

/** What a program that uses the C99 flavour includes: plain containers, no other header of the project. */
function publicHeader(plan: Plan): string {
  const { name } = plan.settings;
  const upper = name.toUpperCase();
  const side = (node: QfxNode): string =>
    `[${node.shape.join(', ')}], ${describe(node.type)}: value = raw * 2^${-fractionBits(node.type)}`;
  return guarded(
    `${upper}_H`,
    `${name}: a fixed-point network on plain integers.`,
    '#include <stdint.h>',
    '',
    enumeration([
      [`${upper}_N_IN`, sizeOf(plan.input.shape)],
      [`${upper}_N_OUT`, sizeOf(plan.output.shape)],
    ]),
    '',
    '#ifdef __cplusplus',
    'extern "C"',
    '#endif',
    '/*',
    ` * in:  ${side(plan.input)}`,
    ` * out: ${side(plan.output)}`,
    ' * Raw integers, flattened row-major, channels last. The caller casts the inputs.',
    ' */',
    `void ${name}(const ${containerOf(plan.input.type)} in[${upper}_N_IN], ${containerOf(plan.output.type)} out[${upper}_N_OUT]);`,
  );
}

const containerOf = (type: FixedType): string => container(type.W, type.signed);

function cppHeader(plan: Plan): string {
  const { name } = plan.settings;
  const side = (node: QfxNode): string => `[${node.shape.join(', ')}], ${formatType(node.type)}`;
  return guarded(
    `${name.toUpperCase()}_HPP`,
    `${name}: a fixed-point network for HLS.`,
    '#include "defines.h"',
    '',
    `/* in: ${side(plan.input)}; out: ${side(plan.output)}; flattened row-major, channels last */`,
    `${signature(plan, 'hls')};`,
  );
}

/** NAME.c or NAME.cpp: one static function per layer, the top function last. */
function source(plan: Plan, includes: readonly string[], dialect: Dialect, flavour: Flavour): string {
  const { name } = plan.settings;
  const nodes = new Map(plan.graph.nodes.map((node) => [node.id, node]));
  const c = flavour === 'c';
  const functions = plan.steps.map((step) =>
    step.kind === 'layer'
      ? layerFunction(step.layer, dialect)
      : cloneFunction(step.clone, nodes.get(step.clone.from.layer)!),
  );
  const text = lines(
    `/* ${name}: ${c ? 'C99 on plain integers' : 'C++ on ap_fixed types'}, one function per layer. */`,
    `#include "${name}.${c ? 'h' : 'hpp'}"`,
    c && '#include "defines.h"',
    '#include "parameters.h"',
    ...includes,
    '',
    ...(c
      ? [
          '/* Rounding shifts negative numbers to the right: the compiler must keep their sign. */',
          'typedef char right_shift_is_arithmetic[(-1 >> 1) == -1 ? 1 : -1];',
          '',
        ]
      : []),
    '/* A simulation may look at the result of every layer here. */',
    '#ifndef QFX_TRACE',
    '#define QFX_TRACE(layer, array, count)',
    '#endif',
    '',
    ...functions.flatMap((text) => [text, '']),
    topFunction(plan, flavour),
  );
  return `${text}\n`;
}

function topFunction(plan: Plan, flavour: Flavour): string {
  const { ioType } = plan.settings;
  const nodes = new Map(plan.graph.nodes.map((node) => [node.id, node]));
  const pragmas: string[] = [];
  if (ioType === 'io_parallel') {
    pragmas.push(partition('in', plan.input), partition('out', plan.outputRoot));
    for (const port of ['in', 'out']) pragmas.push(`#pragma HLS INTERFACE ap_vld port=${port}`);
  } else if (ioType === 'axis') {
    for (const port of ['in', 'out']) pragmas.push(`#pragma HLS INTERFACE axis port=${port}`);
  } else {
    const depth = { in: sizeOf(plan.input.shape), out: sizeOf(plan.output.shape) };
    for (const port of ['in', 'out'] as const) {
      pragmas.push(`#pragma HLS INTERFACE m_axi port=${port} offset=slave bundle=gmem_${port} depth=${depth[port]}`);
    }
    pragmas.push('#pragma HLS INTERFACE s_axilite port=return');
  }
  if (plan.steps.length > 1) pragmas.push('#pragma HLS DATAFLOW');

  const locals = plan.steps
    .flatMap((step) => (step.kind === 'layer' ? [step.layer.writes] : step.clone.to))
    .filter(({ name }) => name !== 'out');
  const bytes = locals.reduce((sum, { layer, size }) => sum + (size * nodes.get(layer)!.type.W) / 8, 0);
  const storage = flavour === 'c' && bytes > STACK_LIMIT ? 'static ' : '';
  const parallel = ioType === 'io_parallel';
  const declarations = locals.flatMap(({ name, layer }) => {
    const node = nodes.get(layer)!;
    return [`${storage}${typeName(node)} ${name}[${sizeName(node)}];`, ...(parallel ? [partition(name, node)] : [])];
  });
  const calls = plan.steps.flatMap((step) => {
    if (step.kind === 'clone') {
      const { from, to } = step.clone;
      return [`clone_${from.layer}(${[from, ...to].map(({ name }) => name).join(', ')});`];
    }
    const { fn, reads, writes, id, node } = step.layer;
    return [
      `${fn}(${[...reads, writes].map(({ name }) => name).join(', ')});`,
      `QFX_TRACE(${id}, ${writes.name}, ${sizeName(node)});`,
    ];
  });
  return lines(
    signature(plan, flavour),
    '{',
    ...pragmas,
    indent(lines(...declarations, declarations.length > 0 && '', ...calls)),
    '}',
  );
}
