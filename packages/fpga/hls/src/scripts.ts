import type { Flavour } from './options.ts';
import type { Plan } from './plan.ts';
import { lines } from './text.ts';

/** Makefile: csim with gcc, csim-cpp with g++ and the stand-in types, both again under the sanitizers. */
export function makefile(plan: Plan, flavours: readonly Flavour[]): string {
  const { name } = plan.settings;
  const c = flavours.includes('c');
  const hls = flavours.includes('hls');
  const goals = [c && 'csim', hls && 'csim-cpp'].filter(Boolean).join(' ');
  const asan = [c && 'build/csim_asan', hls && 'build/csim_cpp_asan'].filter((goal) => goal !== false);
  const headers = '$(wildcard firmware/*.h firmware/*.hpp firmware/weights/*.h firmware/tables/*.h)';
  const rule = (target: string, compiler: string, sources: string, flags: string): string =>
    `${target}: ${sources} $(HEADERS)\n\t@mkdir -p build\n\t${compiler} ${flags} -o $@ ${sources}`;
  return `${lines(
    `# csim of ${name} without Vitis HLS.`,
    'CC = gcc',
    'CXX = g++',
    'CFLAGS = -std=c99 -pedantic -Wall -Wextra -Werror -Wno-unknown-pragmas -O2',
    'CXXFLAGS = -std=c++14 -Wall -Wextra -Wno-unknown-pragmas -DQFX_SIM_TYPES -O1',
    'SANITIZE = -g -fsanitize=address,undefined -fno-sanitize-recover=all',
    `HEADERS = ${headers}`,
    '',
    `all: ${goals}`,
    '',
    ...(c ? ['csim: build/csim', '\t./build/csim', ''] : []),
    ...(hls ? ['csim-cpp: build/csim_cpp', '\t./build/csim_cpp', ''] : []),
    `asan: ${asan.join(' ')}`,
    ...asan.map((goal) => `\t./${goal}`),
    '',
    ...(c
      ? [
          rule('build/csim', '$(CC)', `${name}_test.c firmware/${name}.c`, '$(CFLAGS)'),
          '',
          rule('build/csim_asan', '$(CC)', `${name}_test.c firmware/${name}.c`, '$(CFLAGS) $(SANITIZE)'),
          '',
        ]
      : []),
    ...(hls
      ? [
          rule('build/csim_cpp', '$(CXX)', `${name}_test.cpp firmware/${name}.cpp`, '$(CXXFLAGS)'),
          '',
          rule('build/csim_cpp_asan', '$(CXX)', `${name}_test.cpp firmware/${name}.cpp`, '$(CXXFLAGS) $(SANITIZE)'),
          '',
        ]
      : []),
    'clean:',
    '\trm -rf build tb_data/csim_results.log tb_data/rtl_cosim_results.log',
    '',
    `.PHONY: all ${goals} asan clean`,
  )}\n`;
}

/** project.tcl, build_opt.tcl, build_prj.tcl: the Vitis HLS flow. */
export function tclFiles(plan: Plan, flavours: readonly Flavour[]): Record<string, string> {
  const { name, part, clockPeriod, clockUncertainty } = plan.settings;
  const [extension, flags] = flavours.includes('hls') ? ['cpp', '-std=c++14'] : ['c', '-std=c99'];
  return {
    'project.tcl': `${lines(
      '# What is built and for which device.',
      `set project_name "${name}"`,
      `set part "${part}"`,
      `set clock_period ${clockPeriod}`,
      `set clock_uncertainty ${clockUncertainty}%`,
    )}\n`,
    'build_opt.tcl': `${lines(
      '# Steps of build_prj.tcl; 1: run. The command line overrides: vitis_hls -f build_prj.tcl "cosim=0 export=1"',
      'array set opt {',
      '    reset  1',
      '    csim   1',
      '    synth  1',
      '    cosim  1',
      '    export 0',
      '}',
    )}\n`,
    'build_prj.tcl': `${lines(
      '# Vitis HLS: C simulation, synthesis, co-simulation and export of the IP core.',
      '#   vitis_hls -f build_prj.tcl',
      'source [file join [file dirname [info script]] project.tcl]',
      'source [file join [file dirname [info script]] build_opt.tcl]',
      '',
      'foreach word [join $argv] {',
      '    if {[regexp {^(reset|csim|synth|cosim|export)=([01])$} $word -> step value]} {',
      '        set opt($step) $value',
      '    }',
      '}',
      '',
      'if {$opt(reset)} {',
      `    open_project -reset "\${project_name}_prj"`,
      '} else {',
      `    open_project "\${project_name}_prj"`,
      '}',
      'set_top $project_name',
      `add_files "firmware/\${project_name}.${extension}" -cflags "${flags}"`,
      `add_files -tb "\${project_name}_test.${extension}" -cflags "${flags}"`,
      'add_files -tb "tb_data"',
      'if {$opt(reset)} {',
      '    open_solution -reset "solution1"',
      '} else {',
      '    open_solution "solution1"',
      '}',
      'set_part $part',
      'create_clock -period $clock_period -name default',
      'set_clock_uncertainty $clock_uncertainty default',
      '',
      'if {$opt(csim)} {',
      '    csim_design',
      '}',
      'if {$opt(synth)} {',
      '    csynth_design',
      '}',
      'if {$opt(cosim)} {',
      `    add_files -tb "\${project_name}_test.${extension}" -cflags "${flags} -DRTL_SIM"`,
      '    cosim_design',
      '}',
      'if {$opt(export)} {',
      '    export_design -format ip_catalog',
      '}',
      'exit',
    )}\n`,
  };
}
