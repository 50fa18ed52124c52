import { dirname, resolve } from 'node:path';
import { type RunEvent, readPipeline, run as runPipeline } from '@matforge/pipeline';
import type { Output } from '../output.ts';
import { EXIT, type Session } from '../program.ts';

interface RunOptions {
  out?: string;
  resume?: boolean;
  overwrite?: boolean;
  check?: boolean;
}

/** `matforge run pipeline.yaml` */
export async function run(
  { output, signal }: Session,
  file: string,
  { out, resume, overwrite, check }: RunOptions,
): Promise<number> {
  const from = dirname(resolve(file));
  const { pipeline, source } = await readPipeline(file, from);
  if (check) {
    const stages = pipeline.stages.map(({ definition }) => definition.name);
    output.result({ name: pipeline.name, seed: pipeline.seed, stages }, () =>
      output.line(`${pipeline.name}: ${stages.join(' -> ')}`),
    );
    return EXIT.done;
  }
  const started = performance.now();
  const result = await runPipeline(pipeline, {
    directory: out,
    resume,
    overwrite,
    signal,
    from,
    source,
    onEvent: (event) => show(output, event),
  });
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  output.result({ directory: result.directory, finished: result.finished, report: result.report }, () => {
    if (result.finished) output.line(`\ndone in ${seconds} s: ${result.directory}/ (report.json, metrics.jsonl)`);
    else output.line(`\nstopped; go on with: matforge run ${file} --resume${out ? ` --out ${out}` : ''}`);
  });
  return result.finished ? EXIT.done : EXIT.interrupted;
}

function show(output: Output, event: RunEvent): void {
  if (event.type === 'stage')
    output.heading(`[${event.index + 1}/${event.count}] ${event.name}${event.restored ? ' (restored)' : ''}`);
  else if (event.type === 'progress') output.progress(event.label, event.step, event.total, event.text);
  else if (event.type === 'log') output.line(`  ${event.text}`);
  else {
    output.line(`  ${event.title}`);
    output.table(event.rows);
  }
}
