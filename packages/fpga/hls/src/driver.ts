import type { Flavour } from './options.ts';
import type { Plan } from './plan.ts';
import { lines } from './text.ts';

/** A project inside a simulation binary. */
export interface Unit {
  readonly plan: Plan;
  /** Path of firmware/NAME.c or NAME.cpp as an #include of the driver sees it. */
  readonly source: string;
}

/**
 * Sources of a program that runs the firmware of one or more projects for Node. It is called as
 * `program INDEX predict|trace|bench [SECONDS]`, reads raw samples as 64-bit integers from stdin and writes raw results
 * (for `trace` those of every layer, in order) to stdout.
 */
export function driverSources(units: readonly Unit[], flavour: Flavour): Record<string, string> {
  if (flavour === 'hls') {
    return {
      'driver.cpp': lines(
        '#include <cstdint>',
        '#include <cstdio>',
        '#include <cstdlib>',
        '#include <cstring>',
        '#include <ctime>',
        '#include "qfx_ap.h"',
        '',
        SHARED,
        '',
        '#define QFX_TRACE(layer, array, count) if (tracing) for (int i = 0; i < count; i++) put(int64_t((array)[i].v))',
        '',
        ...units.map(({ source }, i) => `namespace unit${i} {\n#include "${source}"\n}`),
        '',
        ...units.map(({ plan }, i) => {
          const { name } = plan.settings;
          return lines(
            `static unit${i}::input_t in${i}[unit${i}::N_INPUT];`,
            `static unit${i}::result_t out${i}[unit${i}::N_RESULT];`,
            `static void load${i}(const int64_t *raw)`,
            `{\n    for (int i = 0; i < unit${i}::N_INPUT; i++) in${i}[i].v = raw[i];\n}`,
            `static void run${i}() { unit${i}::${name}(in${i}, out${i}); }`,
            `static void result${i}()`,
            `{\n    for (int i = 0; i < unit${i}::N_RESULT; i++) put(int64_t(out${i}[i].v));\n}`,
          );
        }),
        mainProgram(units, (i) => `unit${i}::N_INPUT`),
      ),
    };
  }
  const files: Record<string, string> = {
    'driver.c': lines(
      '#include <stdint.h>',
      '#include <stdio.h>',
      '#include <stdlib.h>',
      '#include <string.h>',
      '#include <time.h>',
      '',
      SHARED.replace('static int tracing', 'int tracing').replace('static void put', 'void put'),
      '',
      ...units.map(
        (_, i) =>
          `extern const int n_input${i};\nvoid load${i}(const int64_t *raw);\nvoid run${i}(void);\nvoid result${i}(void);`,
      ),
      mainProgram(units, (i) => `n_input${i}`),
    ),
  };
  for (const [i, { plan, source }] of units.entries()) {
    const { name } = plan.settings;
    files[`unit${i}.c`] = lines(
      '#include <stdint.h>',
      'extern int tracing;',
      'void put(int64_t raw);',
      '#define QFX_TRACE(layer, array, count) if (tracing) for (int i = 0; i < count; i++) put((int64_t)(array)[i])',
      `#include "${source}"`,
      '',
      `extern const int n_input${i};`,
      `void load${i}(const int64_t *raw);\nvoid run${i}(void);\nvoid result${i}(void);`,
      `const int n_input${i} = N_INPUT;`,
      'static input_t in[N_INPUT];',
      'static result_t out[N_RESULT];',
      `void load${i}(const int64_t *raw)\n{\n    for (int i = 0; i < N_INPUT; i++) in[i] = (input_t)raw[i];\n}`,
      `void run${i}(void) { ${name}(in, out); }`,
      `void result${i}(void)\n{\n    for (int i = 0; i < N_RESULT; i++) put((int64_t)out[i]);\n}`,
      '',
    );
  }
  return files;
}

const SHARED = `static int tracing;
static void put(int64_t raw) { fwrite(&raw, sizeof raw, 1, stdout); }`;

function mainProgram(units: readonly Unit[], inputs: (i: number) => string): string {
  const rows = units.map((_, i) => `    { load${i}, run${i}, result${i} }`).join(',\n');
  return `
struct unit {
    void (*load)(const int64_t *);
    void (*run)(void);
    void (*result)(void);
};
static const struct unit units[] = {
${rows}
};

int main(int argc, char **argv)
{
    const int sizes[] = { ${units.map((_, i) => inputs(i)).join(', ')} };
    if (argc < 3) return 2;
    const int index = atoi(argv[1]);
    const struct unit *unit = &units[index];
    const size_t size = (size_t)sizes[index];
    int64_t *raw = (int64_t *)malloc(size * sizeof *raw);
    if (!raw) return 3;
    tracing = strcmp(argv[2], "trace") == 0;
    if (strcmp(argv[2], "bench") == 0) {
        /* Repeats the first sample for about argv[3] seconds, writes the nanoseconds of one run. */
        if (fread(raw, sizeof *raw, size, stdin) != size) return 4;
        unit->load(raw);
        unit->run();
        const double limit = (argc > 3 ? atof(argv[3]) : 1) * CLOCKS_PER_SEC;
        const clock_t start = clock();
        long runs = 0;
        double spent = 0;
        while (spent < limit) {
            for (int i = 0; i < 4; i++) unit->run();
            runs += 4;
            spent = (double)(clock() - start);
        }
        put((int64_t)(spent / CLOCKS_PER_SEC / (double)runs * 1e9));
        free(raw);
        return 0;
    }
    while (fread(raw, sizeof *raw, size, stdin) == size) {
        unit->load(raw);
        unit->run();
        if (!tracing) unit->result();
    }
    free(raw);
    return fflush(stdout) == 0 ? 0 : 5;
}
`;
}
