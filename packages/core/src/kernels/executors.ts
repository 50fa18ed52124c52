import { refuse } from '../errors.ts';
import type { KernelSource } from './source.ts';

/** Computes all results of `n` elements; the array it returns is the caller's own. */
export type Run = (inputs: readonly Float32Array[], n: number) => Float32Array;

/** The plain loop: typed arrays in JavaScript, present everywhere. */
export function compileLoop(source: KernelSource): Run {
  const { inputs, wide, constants, tables, channels, body } = source;
  const tableNames = Object.keys(tables);
  const wideOnes = inputs.filter((input) => wide.has(input));
  const narrow = inputs.filter((input) => !wide.has(input));
  const constantLines = Object.entries(constants).map(([key, value]) => `const ${key} = ${value};`);
  const text = `'use strict';
${constantLines.join('\n')}
const mf_compute = (${[...inputs, 'channel'].join(', ')}) => {
${body}
};
for (let mf_i = 0; mf_i < mf_n; mf_i++) {
  ${narrow.map((input) => `const ${input} = mf_${input}[mf_i];`).join(' ')}
  for (let channel = 0, mf_o = mf_i * ${channels}; channel < ${channels}; channel++, mf_o++) {
    ${wideOnes.map((input) => `const ${input} = mf_${input}[mf_o];`).join(' ')}
    mf_out[mf_o] = mf_compute(${[...inputs, 'channel'].join(', ')});
  }
}
return mf_out;`;
  let loop: (...values: unknown[]) => Float32Array;
  try {
    loop = new Function(
      ...inputs.map((input) => `mf_${input}`),
      ...tableNames,
      'mf_n',
      'mf_out',
      'Math',
      text,
    ) as typeof loop;
  } catch (error) {
    refuse(`${source.name}.body`, `does not compile: ${(error as Error).message}`, { cause: error });
  }
  const tableValues = Object.values(tables);
  // Math as an argument: looked up in the global object it can cost more than the arithmetic (sandboxed contexts).
  return (arrays, n) => loop(...arrays, ...tableValues, n, new Float32Array(n * channels), Math);
}

/** The part of gpu.js that we use; a later version with another interface is met here and nowhere else. */
interface GpuKernel {
  (...values: Float32Array[]): unknown;
  setOutput(output: number[]): GpuKernel;
  readonly kernel?: { readonly fallbackReason?: unknown };
}
interface Gpu {
  createKernel(body: unknown, settings: Record<string, unknown>): GpuKernel;
  destroy(): unknown;
}
type GpuConstructor = new (settings: { mode: string }) => Gpu;

/** Finds the constructor in whatever form the module system hands over gpu.js. */
export function gpuConstructor(module: unknown): GpuConstructor | undefined {
  const exported = module as { GPU?: unknown; default?: { GPU?: unknown } } | undefined;
  const candidates = [exported?.GPU, exported?.default?.GPU, exported?.default, exported];
  return candidates.find(
    (candidate): candidate is GpuConstructor =>
      typeof candidate === 'function' && typeof candidate.prototype?.createKernel === 'function',
  );
}

/** A kernel compiled by gpu.js for one of its modes; throws where the mode or the body is not supported. */
export function compileGpu(source: KernelSource, Gpu: GpuConstructor, mode: string): { run: Run; dispose(): void } {
  const { inputs, wide, constants, tables, channels, body } = source;
  const at = (input: string): string =>
    channels === 1 || wide.has(input) ? 'this.thread.x' : `Math.floor((this.thread.x + 0.5) / ${channels})`;
  const text = `
${Object.entries(constants)
  .map(([key, value]) => `const ${key} = ${value};`)
  .join('\n')}
${inputs.map((input) => `const ${input} = mf_${input}[${at(input)}];`).join('\n')}
${channels > 1 ? `const channel = this.thread.x - ${channels} * Math.floor((this.thread.x + 0.5) / ${channels});` : 'const channel = 0;'}
${body}`;
  const tableNames = Object.keys(tables);
  const gpu = new Gpu({ mode });
  const kernel = gpu.createKernel(new Function(...inputs.map((input) => `mf_${input}`), ...tableNames, text), {
    output: [channels],
    dynamicOutput: true,
    dynamicArguments: true,
    precision: 'single',
    // With the default tactic a change of size changes the shader's precision, and gpu.js then loses the new size.
    tactic: 'precision',
  });
  const tableValues = Object.values(tables);
  let length = channels;
  const run: Run = (arrays, n) => {
    if (n * channels !== length) {
      length = n * channels;
      kernel.setOutput([length]);
    }
    const result = kernel(...arrays, ...tableValues);
    const degraded = kernel.kernel?.fallbackReason;
    if (degraded) throw new Error(`gpu.js cannot run this body on ${mode}: ${degraded}`);
    if (!(result instanceof Float32Array) || result.length !== length)
      throw new Error(`gpu.js (${mode}) did not answer at once with ${length} numbers`);
    return result;
  };
  return { run, dispose: () => void gpu.destroy() };
}
