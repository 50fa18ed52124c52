import { refuse } from '@matforge/core';
import {
  type FixedType,
  fromRaw,
  type QfxGraph,
  type RawData,
  type SimulationInput,
  simulate,
  sizeOf,
  type Traced,
} from '@matforge/qfx';
import { driverSources, type Unit } from './driver.ts';
import { type Flavour, resolveOptions } from './options.ts';
import { plan } from './plan.ts';
import { type ProfileRow, profileOf, profileSvg } from './profile.ts';
import { type Project, readProject } from './project.ts';
import { flatten, macs, rawSamples } from './samples.ts';

/** Options of {@link compile}. */
export interface CompileOptions {
  /** Default `c`, or `hls` when the project has no C99 flavour. */
  flavour?: Flavour;
  /** Compiler to use; default the first of gcc, cc, clang (g++, c++, clang++) that answers. */
  compiler?: string;
  /** Instead of -O3 -march=native (C99) or -O1 (C++). */
  flags?: readonly string[];
}

/** Output of the compiled program for one batch. */
export interface CsimResult {
  /** Raw integers, [batch, ...shape of the output]. */
  raw: RawData;
  /** raw * 2^-F. */
  values: Float64Array;
  shape: readonly number[];
  type: FixedType;
}

/** Where two programs differ. */
export interface LayerComparison {
  layer: string;
  outputs: number;
  mismatches: number;
}

/** What {@link Csim.compare} found: the compiled program against the simulator, integer by integer. */
export interface ComparisonReport {
  flavour: Flavour;
  compiler: string;
  samples: number;
  /** Raw output integers compared. */
  outputs: number;
  mismatches: number;
  /** The first ten that differ. */
  first: { sample: number; output: number; got: string; expected: string }[];
  /** The same for the result of every layer, in order. */
  layers: LayerComparison[];
  /** True only when something was compared and nothing differs. */
  passed: boolean;
  /** Why nothing was compared. */
  skipped?: string;
}

/** A compiled project that Node can call. `skipped` says why it cannot: there is no compiler. */
export interface Csim {
  readonly flavour: Flavour;
  readonly compiler: string;
  readonly skipped?: string;
  /** Runs the top function on samples [batch, ...input shape]. */
  predict(x: SimulationInput, options?: { rawInput?: boolean }): Promise<CsimResult>;
  /** Results of every layer, by name. */
  trace(x: SimulationInput, options?: { rawInput?: boolean }): Promise<Record<string, Traced>>;
  /** Runs the compiled program and the simulator on the same samples and compares every raw integer of every layer. */
  compare(x: SimulationInput, options?: { rawInput?: boolean }): Promise<ComparisonReport>;
  /** Ranges and saturations on these samples, and their picture. */
  profile(x: SimulationInput, options?: { rawInput?: boolean }): { rows: ProfileRow[]; svg: string };
  /** Multiply-accumulates per second of one core, measured for about `seconds`. */
  benchmark(seconds?: number): Promise<{ nanoseconds: number; macs: number; macsPerSecond: number }>;
}

const COMPILERS: Record<Flavour, readonly string[]> = {
  c: ['gcc', 'cc', 'clang'],
  hls: ['g++', 'c++', 'clang++'],
};
const FLAGS: Record<Flavour, readonly string[]> = {
  c: ['-std=c99', '-pedantic', '-Wall', '-Wextra', '-Werror', '-Wno-unknown-pragmas'],
  hls: ['-std=c++14', '-Wall', '-Wextra', '-Wno-unknown-pragmas', '-DQFX_SIM_TYPES'],
};
const OPTIMIZE: Record<Flavour, readonly string[]> = { c: ['-O3', '-march=native'], hls: ['-O1'] };

/**
 * Compiles a project with the system's compiler, into its build/ folder.
 * @returns a simulation; without a compiler one whose `skipped` is set, which refuses to run and never passes.
 * @throws MatforgeError when there is no project, or the compiler refuses it (its message is part of the error).
 */
export async function compile(project: string | Project, options: CompileOptions = {}): Promise<Csim> {
  const path = await import('node:path');
  const directory = typeof project === 'string' ? project : project.directory;
  const { graph, name, flavours } = await readProject(directory);
  const flavour =
    options.flavour ?? flavours[0] ?? refuse('directory', `${directory} has no firmware/${name}.c or .cpp`);
  if (!flavours.includes(flavour)) {
    refuse(
      'flavour',
      `${directory} holds ${flavours.join(' and ')}, not ${flavour}; emit it with flavours: ['c', 'hls']`,
    );
  }
  const build = path.join(path.resolve(directory), 'build');
  // The driver lies two folders below the project.
  const source = `../../firmware/${name}.${flavour === 'c' ? 'c' : 'cpp'}`;
  const units = [{ plan: plan(graph, resolveOptions(graph, { name })), source }];
  const [sim] = await compileUnits(build, units, flavour, { include: '../firmware', ...options });
  return sim;
}

/** Compiles several projects into one binary: what costs is starting the compiler. */
export async function compileUnits(
  build: string,
  units: readonly Unit[],
  flavour: Flavour,
  options: { compiler?: string; flags?: readonly string[]; include?: string } = {},
): Promise<Csim[]> {
  const fs = await import('node:fs/promises');
  const path = await import('node:path');
  const compiler = await findCompiler(flavour, options.compiler);
  if (!compiler) {
    const skipped = `no ${flavour === 'c' ? 'C' : 'C++'} compiler found`;
    return units.map(({ plan: { graph } }) => csim(graph, flavour, '', undefined, 0, skipped));
  }
  await fs.mkdir(build, { recursive: true });
  const sources = driverSources(units, flavour);
  const folder = await fs.mkdtemp(path.join(build, `${flavour}-`));
  for (const [file, text] of Object.entries(sources)) await fs.writeFile(path.join(folder, file), text);
  const program = path.join(folder, process.platform === 'win32' ? 'csim.exe' : 'csim');
  const include = path.resolve(build, options.include ?? '.');
  const args = [
    ...FLAGS[flavour],
    ...(options.flags ?? OPTIMIZE[flavour]),
    `-I${include}`,
    '-o',
    program,
    ...Object.keys(sources).map((file) => path.join(folder, file)),
  ];
  const { code, stderr } = await run(compiler, args);
  if (code !== 0) refuse('compiler', `${compiler} refuses the project:\n${stderr.slice(0, 4000)}`);
  return units.map(({ plan: { graph } }, index) => csim(graph, flavour, compiler, program, index));
}

/** The first compiler that answers, or undefined. A compiler asked for by name that does not answer counts as none. */
export async function findCompiler(flavour: Flavour, wanted?: string): Promise<string | undefined> {
  for (const candidate of wanted === undefined ? COMPILERS[flavour] : [wanted]) {
    const found = await run(candidate, ['--version']).catch(() => undefined);
    if (found?.code === 0) return candidate;
  }
  return undefined;
}

interface Finished {
  code: number | null;
  signal: string | null;
  stdout: Buffer;
  stderr: string;
}

async function run(command: string, args: readonly string[], stdin?: Uint8Array): Promise<Finished> {
  const { spawn } = await import('node:child_process');
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => err.push(chunk));
    child.on('error', reject);
    // A program that ends before it has read everything is reported by its exit status.
    child.stdin.on('error', () => {});
    child.on('close', (code, signal) =>
      resolve({ code, signal, stdout: Buffer.concat(out), stderr: Buffer.concat(err).toString() }),
    );
    child.stdin.end(stdin);
  });
}

function csim(
  graph: QfxGraph,
  flavour: Flavour,
  compiler: string,
  program: string | undefined,
  index: number,
  skipped?: string,
): Csim {
  const input = graph.nodes[graph.input - 1];
  const output = graph.nodes[graph.output - 1];
  const flat = (x: SimulationInput, rawInput = false): number[] | bigint[] => flatten(rawSamples(graph, x, rawInput));
  const call = async (mode: string[], raw: ArrayLike<number | bigint>): Promise<BigInt64Array> => {
    if (!program) return refuse('compiler', `${skipped}; install gcc or clang, or name one with { compiler }`);
    const words = new BigInt64Array(raw.length);
    for (let i = 0; i < raw.length; i++) words[i] = BigInt(raw[i]);
    const { code, signal, stdout, stderr } = await run(program, [String(index), ...mode], new Uint8Array(words.buffer));
    if (code !== 0)
      refuse('csim', `the compiled program ended with ${signal ?? `status ${code}`}: ${stderr.slice(0, 4000)}`);
    const bytes = new Uint8Array(stdout.length);
    bytes.set(stdout);
    return new BigInt64Array(bytes.buffer, 0, Math.floor(bytes.length / 8));
  };
  const traced = (): { name: string; size: number; id: number }[] =>
    plan(graph, resolveOptions(graph)).layers.map(({ node, size, id }) => ({ name: node.name, size, id }));

  const predictRaw = async (raw: number[] | bigint[]): Promise<CsimResult> => {
    const result = typed(await call(['predict'], raw), output.type);
    const batch = raw.length / sizeOf(input.shape);
    return { raw: result, values: fromRaw(result, output.type), shape: [batch, ...output.shape], type: output.type };
  };
  const traceRaw = async (raw: number[] | bigint[]): Promise<Record<string, Traced>> => {
    const words = await call(['trace'], raw);
    const batch = raw.length / sizeOf(input.shape);
    const layers = traced();
    const stride = layers.reduce((sum, { size }) => sum + size, 0);
    if (words.length !== stride * batch)
      refuse('csim', `expected ${stride * batch} traced integers, got ${words.length}`);
    const byId = new Map<number, RawData>([[graph.input, typed(toWords(raw), input.type)]]);
    let offset = 0;
    for (const { id, size } of layers) {
      const all = new BigInt64Array(size * batch);
      for (let b = 0; b < batch; b++) {
        all.set(words.subarray(b * stride + offset, b * stride + offset + size), b * size);
      }
      byId.set(id, typed(all, graph.nodes[id - 1].type));
      offset += size;
    }
    const out: Record<string, Traced> = {};
    for (const node of graph.nodes) {
      const own = byId.get(node.id) ?? byId.get(node.inputs[0])!;
      byId.set(node.id, own);
      out[node.name] = { shape: [batch, ...node.shape], type: node.type, raw: own };
    }
    return out;
  };

  return {
    flavour,
    compiler,
    ...(skipped ? { skipped } : {}),
    predict: async (x, options = {}) => predictRaw(flat(x, options.rawInput)),
    trace: async (x, options = {}) => traceRaw(flat(x, options.rawInput)),
    compare: async (x, options = {}) => {
      const empty = { flavour, compiler, samples: 0, outputs: 0, mismatches: 0, first: [], layers: [] };
      if (skipped) return { ...empty, passed: false, skipped };
      const raw = flat(x, options.rawInput);
      const got = await predictRaw(raw);
      const inner = await traceRaw(raw);
      const expected = simulate(graph, raw, { rawInput: true, trace: true });
      const size = sizeOf(output.shape);
      const first: ComparisonReport['first'] = [];
      const mismatches = differences(got.raw, expected.raw, (i) => {
        if (first.length === 10) return;
        first.push({
          sample: Math.floor(i / size),
          output: i % size,
          got: `${got.raw[i]}`,
          expected: `${expected.raw[i]}`,
        });
      });
      const layers = graph.nodes
        .filter(({ id }) => id !== graph.input)
        .map(({ name, shape }) => ({
          layer: name,
          outputs: got.shape[0] * sizeOf(shape),
          mismatches: differences(inner[name].raw, expected.trace[name].raw),
        }));
      const outputs = expected.raw.length;
      const passed = outputs > 0 && mismatches === 0 && layers.every((layer) => layer.mismatches === 0);
      return { flavour, compiler, samples: got.shape[0], outputs, mismatches, first, layers, passed };
    },
    profile: (x, options = {}) => {
      const raw = flat(x, options.rawInput);
      const rows = profileOf(graph, simulate(graph, raw, { rawInput: true, trace: true, accumulators: true }));
      return { rows, svg: profileSvg(rows) };
    },
    benchmark: async (seconds = 1) => {
      const [nanoseconds] = await call(['bench', String(seconds)], new Array(sizeOf(input.shape)).fill(1));
      const count = macs(graph);
      return { nanoseconds: Number(nanoseconds), macs: count, macsPerSecond: count / (Number(nanoseconds) * 1e-9) };
    },
  };
}

function toWords(raw: ArrayLike<number | bigint>): BigInt64Array {
  const words = new BigInt64Array(raw.length);
  for (let i = 0; i < raw.length; i++) words[i] = BigInt(raw[i]);
  return words;
}

/** 64-bit words as the simulator keeps raw integers of a type. */
function typed(words: BigInt64Array, type: FixedType): RawData {
  if (type.W <= (type.signed ? 32 : 31)) return Int32Array.from(words, Number);
  if (type.W <= 53) return Float64Array.from(words, Number);
  return Array.from(words, (v) => (type.signed ? v : BigInt.asUintN(64, v)));
}

function differences(got: RawData, expected: RawData, report?: (index: number) => void): number {
  let count = Math.abs(got.length - expected.length);
  for (let i = 0; i < Math.min(got.length, expected.length); i++) {
    if (BigInt(got[i]) === BigInt(expected[i])) continue;
    count++;
    report?.(i);
  }
  return count;
}
