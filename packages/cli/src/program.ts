import { readFileSync } from 'node:fs';
import { MatforgeError } from '@matforge/core';
import { Command, CommanderError, Option } from 'commander';
import { convert } from './commands/convert.ts';
import { emit } from './commands/emit.ts';
import { inspect } from './commands/inspect.ts';
import { mergeAdapter } from './commands/merge.ts';
import { listMethods } from './commands/methods.ts';
import { reproduce } from './commands/reproduce.ts';
import { run } from './commands/run.ts';
import { Output } from './output.ts';

/** Exit codes: the command did its work; a fault of the input; wrong usage; stopped by the user, can be resumed. */
export const EXIT = { done: 0, fault: 1, usage: 2, claimFailed: 3, interrupted: 130 } as const;

/** What every command gets. */
export interface Session {
  readonly output: Output;
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal;
  /** Directory that packages are looked up from. */
  readonly from: string;
}

/**
 * Runs the command line.
 *
 * @param args without `node` and the script's name.
 * @returns the exit code; see {@link EXIT}.
 */
export async function main(args: readonly string[]): Promise<number> {
  const controller = new AbortController();
  const stop = (): void => {
    if (controller.signal.aborted) process.exit(EXIT.interrupted);
    process.stderr.write('\nstopping after this step; press Ctrl-C again to stop at once\n');
    controller.abort();
  };
  process.on('SIGINT', stop);
  let code: number = EXIT.done;
  const program = build((action) => async (...given: unknown[]) => {
    const command = given.at(-1) as Command;
    const json = Boolean(command.optsWithGlobals().json);
    const session: Session = { output: new Output({ json }), signal: controller.signal, from: process.cwd() };
    code = await action(session, ...given.slice(0, -1));
  });
  try {
    await program.parseAsync([...args], { from: 'user' });
    return code;
  } catch (error) {
    return explain(error, args.includes('--json'));
  } finally {
    process.off('SIGINT', stop);
  }
}

type Action = (session: Session, ...given: never[]) => Promise<number>;

function build(
  wrap: (action: (session: Session, ...given: unknown[]) => Promise<number>) => (...given: unknown[]) => Promise<void>,
): Command {
  const act = (action: Action) => wrap(action as (session: Session, ...given: unknown[]) => Promise<number>);
  const program = new Command('matforge')
    .description('Fine-tune, adapt, structure, watermark and ship neural networks: one research method per package.')
    .version(version(), '-v, --version')
    .addOption(new Option('--json', 'print one JSON document instead of text'))
    .showSuggestionAfterError()
    .showHelpAfterError('(add --help for what is accepted)')
    .exitOverride()
    .configureOutput({ writeErr: (text) => process.stderr.write(text) });

  program
    .command('run')
    .description('run a pipeline file: train, adapt, watermark, quantize, emit …')
    .argument('<pipeline.yaml>', 'the pipeline; stages and options are checked before anything runs')
    .option('--out <directory>', 'run directory (default: runs/<name>)')
    .option('--resume', 'go on where a stopped run left off')
    .option('--overwrite', 'replace the run directory')
    .option('--check', 'check the file and stop')
    .action(act(run as Action));
  program
    .command('methods')
    .description('list the installed methods, or the options of one')
    .argument('[method]', 'show the options of this method')
    .action(act(listMethods as Action));
  program
    .command('inspect')
    .description('show a checkpoint: shapes, norms and spectra of its tensors')
    .argument('<path>', 'a .safetensors file, a checkpoint directory, an adapter directory, or a model directory')
    .option('--spectra', 'singular values, norm ratio and effective rank of every matrix')
    .option('--plot <file.svg>', 'draw the singular values')
    .action(act(inspect as Action));
  program
    .command('convert')
    .description('change the number format of a checkpoint or adapter, or split it into shards')
    .argument('<from>', 'a .safetensors file, or a directory of a checkpoint or adapter')
    .argument('<to>', 'where to write: a .safetensors file or a directory')
    .addOption(
      new Option('--dtype <type>', 'number format of the tensors').choices(['F32', 'F16', 'BF16']).default('F32'),
    )
    .option('--max-shard <bytes>', 'largest file in a directory', Number)
    .option('--overwrite', 'replace what is there')
    .action(act(convert as Action));
  program
    .command('merge')
    .description('write an adapter into the kernels of a model')
    .argument('<model>', 'directory of the model')
    .argument('<adapter>', 'directory of the adapter (PEFT format)')
    .argument('<to>', 'directory to write')
    .option('--overwrite', 'replace what is there')
    .action(act(mergeAdapter as Action));
  program
    .command('reproduce')
    .description("run a method's claim at small scale and say whether it held")
    .argument('<method>', 'an installed method, e.g. pissa')
    .action(act(reproduce as Action));
  program
    .command('emit')
    .description('write a fixed-point C project from a saved model')
    .argument('<model>', 'directory of the model')
    .argument('<to>', 'directory to write')
    .option('--bits <n>', 'word length of weights and activations', Number, 8)
    .option('--samples <file.safetensors>', 'typical inputs, a tensor named "x": sets the binary points')
    .option('--overwrite', 'replace what is there')
    .action(act(emit as Action));
  return program;
}

function explain(error: unknown, json: boolean): number {
  if (error instanceof CommanderError) {
    return error.exitCode === 0 ? EXIT.done : EXIT.usage;
  }
  const message = error instanceof Error ? error.message : String(error);
  if (json)
    process.stdout.write(
      `${JSON.stringify({ error: message, field: error instanceof MatforgeError ? error.field : undefined }, null, 2)}\n`,
    );
  else process.stderr.write(`error: ${message}\n`);
  if (!(error instanceof MatforgeError) && process.env.MATFORGE_DEBUG) console.error(error);
  return EXIT.fault;
}

function version(): string {
  return JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')).version;
}
