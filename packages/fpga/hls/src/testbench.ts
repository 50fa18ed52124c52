import { type FixedType, fractionBits } from '@matforge/qfx';
import { container } from './casts.ts';
import type { Plan } from './plan.ts';
import { decimal, lines } from './text.ts';

/** Raw samples and the simulator's raw results, one flat row each. */
export interface Vectors {
  readonly inputs: readonly (readonly (number | bigint)[])[];
  readonly outputs: readonly (readonly (number | bigint)[])[];
}

/** The three files of tb_data/. */
export function vectorFiles(plan: Plan, { inputs, outputs }: Vectors): Record<string, string> {
  const decimals = (rows: Vectors['inputs'], type: FixedType): string => {
    const memo = new Map<number | bigint, string>();
    const text = (raw: number | bigint): string => {
      let digits = memo.get(raw);
      if (digits === undefined) {
        digits = decimal(raw, fractionBits(type));
        if (memo.size < 1 << 16) memo.set(raw, digits);
      }
      return digits;
    };
    return rows.map((row) => `${row.map(text).join(' ')}\n`).join('');
  };
  return {
    'tb_data/tb_input_features.dat': decimals(inputs, plan.input.type),
    'tb_data/tb_output_predictions.dat': decimals(outputs, plan.output.type),
    'tb_data/golden_raw.dat': outputs.map((row) => `${row.join(' ')}\n`).join(''),
  };
}

const HEAD = (name: string): string =>
  lines(
    '/*',
    ` * Testbench of ${name}. Runs every sample of tb_data/tb_input_features.dat (decimals that the input type holds exactly)`,
    ' * and compares the raw integers of the result with tb_data/golden_raw.dat. Exit status 0: no bit differs.',
    ' */',
  );

const LOG = lines(
  '#ifdef RTL_SIM',
  '#define RESULTS_LOG "tb_data/rtl_cosim_results.log"',
  '#else',
  '#define RESULTS_LOG "tb_data/csim_results.log"',
  '#endif',
);

/** NAME_test.c */
export function testbenchC(plan: Plan): string {
  const { name } = plan.settings;
  const upper = name.toUpperCase();
  const { type: inType } = plan.input;
  const { type: outType } = plan.output;
  return `${lines(
    HEAD(name),
    '#include <stdio.h>',
    '#include <stdint.h>',
    `#include "firmware/${name}.h"`,
    '',
    LOG,
    '',
    `/* value = raw / scale; powers of two, so both ways are exact */`,
    `static const double input_scale = ${scale(inType)};`,
    `static const double result_scale = ${scale(outType)};`,
    `static ${container(inType.W, inType.signed)} in[${upper}_N_IN];`,
    `static ${container(outType.W, outType.signed)} out[${upper}_N_OUT];`,
    '',
    main({
      name,
      inSize: `${upper}_N_IN`,
      outSize: `${upper}_N_OUT`,
      store: `in[i] = (${container(inType.W, inType.signed)})(value * input_scale);`,
      raw: `const ${longType(outType)} raw = (${longType(outType)})out[i];`,
      value: '(double)raw / result_scale',
      result: outType,
    }),
  )}\n`;
}

/** NAME_test.cpp */
export function testbenchCpp(plan: Plan): string {
  const { name } = plan.settings;
  const { type: outType } = plan.output;
  const bits = `ap_${outType.signed ? '' : 'u'}int<${outType.W}>`;
  return `${lines(
    HEAD(name),
    '#include <cstdio>',
    `#include "firmware/${name}.hpp"`,
    '',
    LOG,
    '',
    'static input_t in[N_INPUT];',
    'static result_t out[N_RESULT];',
    '',
    main({
      name,
      inSize: 'N_INPUT',
      outSize: 'N_RESULT',
      store: 'in[i] = value;',
      raw: lines(
        `${bits} bits;`,
        `        bits(${outType.W - 1}, 0) = out[i](${outType.W - 1}, 0);`,
        `        const ${longType(outType)} raw = bits.to_${outType.signed ? '' : 'u'}int64();`,
      ),
      value: 'out[i].to_double()',
      result: outType,
    }),
  )}\n`;
}

const longType = ({ signed }: FixedType): string => (signed ? 'long long' : 'unsigned long long');

/** 2^F as a double constant that every C dialect reads exactly. */
function scale(type: FixedType): string {
  const F = fractionBits(type);
  return F >= 0 ? `${(1n << BigInt(F)).toString()}.0` : decimal(1n, -F);
}

function main(parts: {
  name: string;
  inSize: string;
  outSize: string;
  store: string;
  raw: string;
  value: string;
  result: FixedType;
}): string {
  const long = longType(parts.result);
  const format = parts.result.signed ? '%lld' : '%llu';
  return `/* Reads one sample; 1: read, 0: end of file, -1: a line is too short or is no number. */
static int read_sample(FILE *features)
{
    for (int i = 0; i < ${parts.inSize}; i++) {
        double value;
        if (fscanf(features, "%lf", &value) != 1) return i == 0 && feof(features) ? 0 : -1;
        ${parts.store}
    }
    return 1;
}

/* Compares and logs one result; returns the number of raw integers that differ, or -1 when the golden file ends early. */
static int check_sample(FILE *golden, FILE *log, long sample, long listed)
{
    int wrong = 0;
    for (int i = 0; i < ${parts.outSize}; i++) {
        ${long} expected;
        if (fscanf(golden, "${format}", &expected) != 1) return -1;
        ${parts.raw}
        fprintf(log, i > 0 ? " %.17g" : "%.17g", ${parts.value});
        if (raw == expected) continue;
        if (listed + wrong < 10) printf("sample %ld, output %d: got ${format}, expected ${format}\\n", sample, i, raw, expected);
        wrong++;
    }
    fprintf(log, "\\n");
    return wrong;
}

int main(void)
{
    FILE *features = fopen("tb_data/tb_input_features.dat", "r");
    FILE *golden = fopen("tb_data/golden_raw.dat", "r");
    FILE *log = fopen(RESULTS_LOG, "w");
    if (!features || !golden || !log) {
        printf("ERROR: cannot open the files of tb_data/; run this from the project directory\\n");
        return 1;
    }
    long samples = 0, mismatches = 0;
    int state;
    while ((state = read_sample(features)) == 1) {
        ${parts.name}(in, out);
        const int wrong = check_sample(golden, log, samples, mismatches);
        if (wrong < 0) {
            printf("ERROR: golden_raw.dat has no result for sample %ld\\n", samples);
            return 1;
        }
        mismatches += wrong;
        samples++;
        if (samples % 1000 == 0) printf("Processed %ld samples\\n", samples);
    }
    ${long} rest;
    if (state < 0 || samples == 0 || fscanf(golden, "${format}", &rest) == 1) {
        printf("ERROR: tb_input_features.dat ends after %ld samples, in the middle of one or before golden_raw.dat\\n", samples);
        return 1;
    }
    fclose(features);
    fclose(golden);
    if (fclose(log) != 0) {
        printf("ERROR: cannot write %s\\n", RESULTS_LOG);
        return 1;
    }
    printf("INFO: Saved inference results to file: %s\\n", RESULTS_LOG);
    printf("${parts.name}: %ld samples, %ld mismatches\\n", samples, mismatches);
    return mismatches == 0 ? 0 : 1;
}`;
}
