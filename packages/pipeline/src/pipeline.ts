import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { ensure, type MatforgeError, parseConfig, ready, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { type RunContext, type RunEvent, RunRecord } from './context.ts';
import { findPackage, installedPackages, loadMethod } from './packages.ts';
import type { Part, Stage } from './stage.ts';
import { emptyState, type State } from './state.ts';
import { Interrupted } from './training.ts';

/** A named list of stages. */
export interface Pipeline {
  readonly name: string;
  readonly seed: number;
  readonly stages: readonly Stage[];
}

/** How a pipeline is run. */
export interface RunOptions {
  /** The run directory. Default `runs/<name>`. */
  readonly directory?: string;
  /** Continue the run in that directory. */
  readonly resume?: boolean;
  /** Replace the directory. */
  readonly overwrite?: boolean;
  /** Stops the run at the next step; it can then be resumed. */
  readonly signal?: AbortSignal;
  readonly onEvent?: (event: RunEvent) => void;
  /** Directory that packages are looked up from. Default the current one. */
  readonly from?: string;
  /** The pipeline as it was written, for the record. */
  readonly source?: string;
}

/** What a run left. */
export interface RunResult {
  readonly directory: string;
  readonly report: Readonly<Record<string, unknown>>;
  /** False when the signal stopped it. */
  readonly finished: boolean;
}

/** Composes stages: `pipeline({ name: 'digits', seed: 1 }, data({…}), model({…}), train({…}))`. */
export function pipeline({ name, seed = 0 }: { name: string; seed?: number }, ...stages: Stage[]): Pipeline {
  ensure(/^[\w.-]+$/.test(name), 'name', () => `"${name}" must be a plain folder name`);
  ensure(Number.isInteger(seed), 'seed', () => `must be an integer, got ${seed}`);
  ensure(stages.length > 0, 'stages', () => 'is empty; a pipeline needs at least one stage');
  return { name, seed, stages };
}

/** Where a fault in a pipeline is: the stage's place and the path below it. */
export type At = (stage: number, path?: readonly (string | number)[]) => string;

/**
 * Checks a pipeline without running it: the order of its stages, that the packages it names are installed, and their
 * options.
 *
 * @param at turns a place into text for messages, e.g. the line in a YAML file.
 */
export async function validate(
  { stages }: Pipeline,
  from: string,
  at: At = (stage) => `stage ${stage + 1}`,
): Promise<void> {
  const given = new Set<Part>();
  for (const [index, { definition, options }] of stages.entries()) {
    for (const part of definition.needs ?? []) {
      ensure(
        given.has(part),
        at(index),
        () => `"${definition.name}" needs ${article(part)} from a stage before it; there is none`,
      );
    }
    for (const part of definition.gives ?? []) given.add(part);
    for (const use of definition.methods?.(options as never) ?? []) {
      const where = at(index, use.path);
      try {
        findPackage(use.name, from);
        if (use.options) {
          const { config, info } = await loadMethod(use.name, from);
          parseConfig(info.id, config as never, use.options);
        }
      } catch (error) {
        refuse(where, (error as MatforgeError).message, { cause: error });
      }
    }
  }
}

function article(part: Part): string {
  return part === 'data' ? 'data' : part === 'adapter' ? 'an adapter' : `a ${part}`;
}

/**
 * Runs a pipeline into a run directory: `run.json` (configuration, seed, versions), `metrics.jsonl`, `report.json`,
 * artifacts. The same pipeline and seed give the same numbers.
 *
 * @returns with `finished: false` when the signal stopped it; `resume: true` then goes on.
 * @throws MatforgeError when the pipeline is not valid (before anything runs) or a stage fails.
 */
export async function run(given: Pipeline, options: RunOptions = {}): Promise<RunResult> {
  const { from = process.cwd(), resume = false, overwrite = false, onEvent = () => {} } = options;
  const signal = options.signal ?? new AbortController().signal;
  const directory = options.directory ?? join('runs', given.name);
  await validate(given, from);
  if (overwrite && !resume) await removeRun(directory);
  const record = await RunRecord.open(directory, resume);
  const backend = await ready();
  const identity = JSON.stringify(given.stages.map(({ definition, options: o }) => [definition.name, o]));
  const before = await record.read('run.json');
  if (before)
    ensure(
      before.identity === identity && before.seed === given.seed,
      directory,
      () => 'holds a run of another pipeline or seed; start a new one',
    );
  else {
    await record.writeJson('run.json', {
      name: given.name,
      seed: given.seed,
      started: new Date().toISOString(),
      versions: versions(from, backend),
      pipeline: options.source ?? given.stages.map(({ definition, options: o }) => ({ [definition.name]: o })),
      identity,
    });
  }
  const done = Number((await record.read('checkpoints/done.json'))?.stages ?? 0);
  let state: State = emptyState;
  try {
    for (const [index, stage] of given.stages.entries()) {
      const { definition } = stage;
      const restored = index < done;
      const checkpoint = join(directory, 'checkpoints', `${index + 1}-${definition.name}`);
      await mkdir(checkpoint, { recursive: true });
      onEvent({ type: 'stage', index, count: given.stages.length, name: definition.name, restored });
      const context: RunContext = {
        name: given.name,
        seed: given.seed,
        directory,
        from,
        signal,
        checkpoint,
        resuming: resume && index === done,
        reported: record.reported,
        tell: restored ? () => {} : onEvent,
        metric: (values) => record.metric(values),
        report: (section, value) => record.report(section, value),
      };
      if (signal.aborted) throw new Interrupted('stopped');
      const step = restored && definition.restore ? definition.restore : definition.run;
      state = await step(state, stage.options as never, context);
      if (!restored) await record.writeJson('checkpoints/done.json', { stages: index + 1 });
    }
  } catch (error) {
    if (error instanceof Interrupted || (signal.aborted && (error as Error).name === 'AbortError')) {
      return { directory, report: record.reported, finished: false };
    }
    throw error;
  } finally {
    dispose(state);
  }
  return { directory, report: record.reported, finished: true };
}

/** Removes a run directory; refuses to remove anything else. */
async function removeRun(directory: string): Promise<void> {
  const entries = await readdir(directory).catch((): string[] => []);
  const isRun = entries.length === 0 || entries.includes('run.json');
  ensure(
    isRun,
    directory,
    () => 'is not a run directory (it has no run.json), so it is not replaced; choose another (--out)',
  );
  await rm(directory, { recursive: true, force: true });
}

function dispose(state: State): void {
  state.model?.dispose();
}

function versions(from: string, backend: string): Record<string, string> {
  return {
    node: process.version,
    tfjs: tf.version.tfjs,
    backend,
    platform: `${process.platform}-${process.arch}`,
    ...Object.fromEntries(installedPackages(from).map(({ name, version }) => [name, version])),
  };
}
