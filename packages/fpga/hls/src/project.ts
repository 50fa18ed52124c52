import { ensure, refuse } from '@matforge/core';
import {
  formatType,
  graphFromJson,
  graphToJson,
  type QfxGraph,
  type SimulationInput,
  simulate,
  sizeOf,
} from '@matforge/qfx';
import { firmware } from './firmware.ts';
import { type EmitOptions, type Flavour, type Hls4mlAliases, resolveOptions } from './options.ts';
import { type Plan, plan } from './plan.ts';
import { profileOf } from './profile.ts';
import { projectReadme } from './readme.ts';
import { estimateReport, reportFiles } from './report.ts';
import {
  flatten,
  legalRange,
  type RawSample,
  rawSamples,
  rowsOf,
  type SampleOptions,
  testbenchSamples,
} from './samples.ts';
import { makefile, tclFiles } from './scripts.ts';
import { testbenchC, testbenchCpp, vectorFiles } from './testbench.ts';

/** Options of {@link emitProject} and {@link writeProject}. */
export interface ProjectOptions extends EmitOptions, Hls4mlAliases {
  /** Default both. */
  flavours?: readonly Flavour[];
  /**
   * Samples to add to the testbench and to calibrate report/types.json: `{ raw }` holds integers of the input type,
   * `{ values }` real numbers or a tensor. Both [batch, ...input shape]. Default: the testbench's own samples alone.
   */
  samples?: { raw: SimulationInput } | { values: SimulationInput };
  /** The testbench's own samples. */
  testbench?: SampleOptions;
}

const FLAVOURS: readonly Flavour[] = ['c', 'hls'];

/** The C99 program of a graph: firmware, testbench, scripts and estimates, without test data. Pure. */
export function emitC(graph: QfxGraph, options: EmitOptions & Hls4mlAliases = {}): Record<string, string> {
  return staticFiles(plan(graph, resolveOptions(graph, options)), ['c']);
}

/** The HLS C++ program of a graph with ap_fixed types; otherwise as {@link emitC}. Pure. */
export function emitHls(graph: QfxGraph, options: EmitOptions & Hls4mlAliases = {}): Record<string, string> {
  return staticFiles(plan(graph, resolveOptions(graph, options)), ['hls']);
}

/**
 * Every file of a project, test data included: path to text. Pure, and as slow as the simulator on about 100 samples.
 * @throws MatforgeError for options or graphs that cannot be emitted.
 */
export function emitProject(graph: QfxGraph, options: ProjectOptions = {}): Record<string, string> {
  const { flavours = FLAVOURS, samples, testbench, ...emit } = options;
  ensure(
    flavours.length > 0 && flavours.every((flavour) => FLAVOURS.includes(flavour)),
    'flavours',
    () => `accepted are ${FLAVOURS.join(' and ')}, got [${flavours.join(', ')}]`,
  );
  const ordered = FLAVOURS.filter((flavour) => flavours.includes(flavour));
  const layout = plan(graph, resolveOptions(graph, emit));
  ensure(
    layout.input.type.W <= 53,
    'input.type',
    () => `the testbench reads decimals, which hold at most 53 bits exactly; the input has ${layout.input.type.W}`,
  );
  const files = staticFiles(layout, ordered);
  const own = testbenchSamples(graph, testbench);
  const given = samples ? givenSamples(graph, samples) : [];
  const inputs = [...own, ...given];
  const [least] = legalRange(layout.input.type);
  for (const v of given.flat()) {
    if (BigInt(v) < least) refuse('samples', `raw ${v} cannot come out of a cast to ${formatType(layout.input.type)}`);
  }
  const { raw } = simulate(graph, flatten(inputs), { rawInput: true });
  Object.assign(files, vectorFiles(layout, { inputs, outputs: rowsOf(raw, sizeOf(layout.output.shape)) }));
  const calibration = given.length > 0 ? given : own;
  const run = simulate(graph, flatten(calibration), { rawInput: true, trace: true, accumulators: true });
  const rows = profileOf(graph, run).map(({ layer, tensor, type, min, max, saturated }) => {
    return { layer, tensor, type, min, max, saturated };
  });
  files['report/types.json'] = json(rows);
  return files;
}

function givenSamples(graph: QfxGraph, samples: NonNullable<ProjectOptions['samples']>): RawSample[] {
  return 'raw' in samples ? rawSamples(graph, samples.raw, true) : rawSamples(graph, samples.values, false);
}

function staticFiles(layout: Plan, flavours: readonly Flavour[]): Record<string, string> {
  const { graph, settings } = layout;
  const { name } = settings;
  const report = estimateReport(layout);
  const files = firmware(layout, flavours);
  if (flavours.includes('c')) files[`${name}_test.c`] = testbenchC(layout);
  if (flavours.includes('hls')) files[`${name}_test.cpp`] = testbenchCpp(layout);
  return {
    'README.md': projectReadme(layout, flavours, report),
    'model.json': `${graphToJson({ ...graph, name })}\n`,
    Makefile: makefile(layout, flavours),
    ...tclFiles(layout, flavours),
    ...files,
    ...reportFiles(report),
  };
}

/** JSON text of a file: two blanks to a level, a newline at the end. */
export function json(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}

/** A project on disk. */
export interface Project {
  readonly directory: string;
  readonly name: string;
  readonly flavours: readonly Flavour[];
  /** Paths below the directory. */
  readonly files: readonly string[];
  /** Reuse factors that were moved, and what the graph itself warns of. */
  readonly warnings: readonly string[];
}

/**
 * Writes a project. All files are made before the first is written, they are written beside the directory and moved
 * there in one step: what exists is either absent or complete.
 * @throws MatforgeError when the directory exists and is not empty; nothing is ever overwritten.
 */
export async function writeProject(directory: string, graph: QfxGraph, options: ProjectOptions = {}): Promise<Project> {
  const fs = await import('node:fs/promises');
  const path = await import('node:path');
  const target = path.resolve(directory);
  await refuseOccupied(target, directory);
  const files = emitProject(graph, options);
  const { flavours = FLAVOURS, samples: _, testbench: __, ...emit } = options;
  const { settings, warnings } = plan(graph, resolveOptions(graph, emit));
  await fs.mkdir(path.dirname(target), { recursive: true });
  const temporary = await fs.mkdtemp(`${target}.partial-`);
  try {
    const folders = new Set(Object.keys(files).map((file) => path.dirname(path.join(temporary, file))));
    for (const folder of folders) await fs.mkdir(folder, { recursive: true });
    for (const [file, text] of Object.entries(files)) await fs.writeFile(path.join(temporary, file), text);
    await fs.chmod(temporary, 0o755);
    await refuseOccupied(target, directory);
    await fs.rename(temporary, target);
  } catch (error) {
    await fs.rm(temporary, { recursive: true, force: true });
    throw error;
  }
  return { directory: target, name: settings.name, flavours, files: Object.keys(files), warnings };
}

async function refuseOccupied(target: string, given: string): Promise<void> {
  const fs = await import('node:fs/promises');
  const entries = await fs.readdir(target).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    return refuse('directory', `cannot write a project to ${given}: ${error.message}`, { cause: error });
  });
  ensure(
    entries.length === 0,
    'directory',
    () => `${given} exists and is not empty; nothing is overwritten, give another directory or remove it`,
  );
}

/**
 * Reads back the graph of an emitted project.
 * @throws MatforgeError when the directory holds no project.
 */
export async function readProject(directory: string): Promise<{ graph: QfxGraph; name: string; flavours: Flavour[] }> {
  const fs = await import('node:fs/promises');
  const path = await import('node:path');
  const file = path.join(directory, 'model.json');
  const text = await fs.readFile(file, 'utf8').catch((error: Error) => {
    return refuse('directory', `no project in ${directory}: ${error.message}`, { cause: error });
  });
  const graph = graphFromJson(text);
  const present = await fs.readdir(path.join(directory, 'firmware')).catch(() => [] as string[]);
  const flavours: Flavour[] = [];
  if (present.includes(`${graph.name}.c`)) flavours.push('c');
  if (present.includes(`${graph.name}.cpp`)) flavours.push('hls');
  return { graph, name: graph.name, flavours };
}
