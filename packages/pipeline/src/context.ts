import { appendFile, mkdir, readdir, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { ensure, writeFileAtomic } from '@matforge/core';

/** What a run tells while it works. */
export type RunEvent =
  | {
      readonly type: 'stage';
      readonly index: number;
      readonly count: number;
      readonly name: string;
      readonly restored: boolean;
    }
  | {
      readonly type: 'progress';
      readonly label: string;
      readonly step: number;
      readonly total?: number;
      readonly text: string;
    }
  | { readonly type: 'log'; readonly text: string }
  | { readonly type: 'table'; readonly title: string; readonly rows: readonly Record<string, string | number>[] };

/** What a stage is given besides the state. */
export interface RunContext {
  readonly name: string;
  readonly seed: number;
  /** The run directory. */
  readonly directory: string;
  /** Where packages named in the pipeline are looked up. */
  readonly from: string;
  readonly signal: AbortSignal;
  /** Folder for this stage's checkpoints; exists. */
  readonly checkpoint: string;
  /** True when this stage continues where a stopped run left it. */
  readonly resuming: boolean;
  tell(event: RunEvent): void;
  /** Adds a line to metrics.jsonl. */
  metric(values: Record<string, unknown>): Promise<void>;
  /** Sets a part of report.json. */
  report(section: string, value: unknown): Promise<void>;
  /** What is in report.json. */
  readonly reported: Readonly<Record<string, unknown>>;
}

/** A run directory: config, seed, versions, metrics, report, artifacts. */
export class RunRecord {
  readonly directory: string;
  readonly reported: Record<string, unknown>;

  private constructor(directory: string, reported: Record<string, unknown>) {
    this.directory = directory;
    this.reported = reported;
  }

  /**
   * Opens a run directory.
   *
   * @throws MatforgeError when it exists and `resume` is not set, or the other way round.
   */
  static async open(directory: string, resume: boolean): Promise<RunRecord> {
    const present = await readJson(join(directory, 'run.json'));
    if (resume) {
      ensure(present, directory, () => 'holds no run to resume; start one without --resume');
    } else {
      const entries = await readdir(directory).catch((): string[] => []);
      ensure(
        entries.length === 0,
        directory,
        () => 'exists already; resume it (--resume), replace it (--overwrite) or choose another directory (--out)',
      );
      await mkdir(directory, { recursive: true }).catch((cause) =>
        ensure(false, directory, () => `cannot be created: ${(cause as Error).message}`),
      );
    }
    return new RunRecord(directory, (await readJson(join(directory, 'report.json'))) ?? {});
  }

  async report(section: string, value: unknown): Promise<void> {
    this.reported[section] = value;
    await this.writeJson('report.json', this.reported);
  }

  async metric(values: Record<string, unknown>): Promise<void> {
    await appendFile(join(this.directory, 'metrics.jsonl'), `${JSON.stringify(values)}\n`);
  }

  async writeJson(path: string, value: unknown): Promise<void> {
    const file = join(this.directory, path);
    await mkdir(dirname(file), { recursive: true });
    await writeFileAtomic(file, `${JSON.stringify(value, null, 2)}\n`, { overwrite: true });
  }

  async read(path: string): Promise<Record<string, unknown> | undefined> {
    return readJson(join(this.directory, path));
  }
}

/** A JSON file, or undefined where there is none. */
export async function readJson(path: string): Promise<Record<string, unknown> | undefined> {
  try {
    return JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw error;
  }
}
