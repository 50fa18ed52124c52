import { readdir, rm } from 'node:fs/promises';
import { ensure, openCheckpoint, ready } from '@matforge/core';
import type * as Hls from '@matforge/hls';
import { importPackage, loadModel } from '@matforge/pipeline';
import type * as Qfx from '@matforge/qfx';
import type * as tf from '@tensorflow/tfjs';
import { EXIT, type Session } from '../program.ts';

interface EmitOptions {
  bits: number;
  samples?: string;
  overwrite?: boolean;
}

/** `matforge emit <model> <to>` */
export async function emit(
  { output, from }: Session,
  model: string,
  to: string,
  { bits, samples, overwrite }: EmitOptions,
): Promise<number> {
  await ready();
  const [qfx, hls] = [await importPackage<typeof Qfx>('qfx', from), await importPackage<typeof Hls>('hls', from)];
  const float = await loadModel(model);
  const x = samples ? await readSamples(samples) : undefined;
  const quantized = qfx.quantizeModel(float, { bits, ...(x && { calibration: x }) });
  const graph = qfx.freeze(quantized);
  if (overwrite) await removeProject(to);
  const project = await hls.writeProject(to, graph, x ? { samples: { values: x } } : {});
  const csim = await hls.compile(project);
  const report = csim.skipped || !x ? undefined : await csim.compare(x);
  const verdict = csim.skipped
    ? `not compiled: ${csim.skipped}`
    : report
      ? `${report.mismatches} of ${report.outputs} raw outputs differ from the simulation (${report.compiler})`
      : `compiled with ${csim.compiler}; give --samples to compare outputs`;
  output.result({ directory: to, files: project.files.length, bits, skipped: csim.skipped, report }, () => {
    output.line(`${project.files.length} files written to ${to}`);
    output.line(verdict);
    for (const warning of project.warnings) output.note(warning);
  });
  quantized.dispose();
  float.dispose();
  x?.dispose();
  return report && !report.passed ? EXIT.fault : EXIT.done;
}

/** Removes an emitted project; refuses to remove anything else. */
async function removeProject(directory: string): Promise<void> {
  const entries = await readdir(directory).catch((): string[] => []);
  const isProject = entries.length === 0 || entries.includes('project.tcl');
  ensure(
    isProject,
    directory,
    () => 'is not an emitted project (it has no project.tcl), so it is not replaced; choose another directory',
  );
  await rm(directory, { recursive: true, force: true });
}

async function readSamples(path: string): Promise<tf.Tensor> {
  const file = await openCheckpoint(path);
  try {
    return await file.read('x');
  } finally {
    await file.close();
  }
}
