import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { QfxGraph } from '@matforge/qfx';
import { firmware } from '../src/firmware.ts';
import { type Csim, compileUnits, type EmitOptions, type Flavour, plan, resolveOptions } from '../src/index.ts';

const made: string[] = [];

export function temporary(): string {
  const directory = mkdtempSync(join(tmpdir(), 'matforge-hls-'));
  made.push(directory);
  return directory;
}

export function removeTemporary(): void {
  for (const directory of made.splice(0)) rmSync(directory, { recursive: true, force: true });
}

/** Checks for what C leaves undefined: the emitted programs must not rely on it. */
export const SANITIZE = ['-O0', '-fsanitize=address,undefined', '-fno-sanitize-recover=all'];

/** Compiles many graphs into one binary. */
export async function compileAll(
  graphs: readonly { graph: QfxGraph; options: EmitOptions }[],
  flavour: Flavour,
  flags: readonly string[],
): Promise<Csim[]> {
  const directory = temporary();
  const units = graphs.map(({ graph, options }) => {
    const layout = plan(graph, resolveOptions(graph, options));
    const root = join(directory, layout.settings.name);
    for (const [file, text] of Object.entries(firmware(layout, [flavour]))) {
      mkdirSync(dirname(join(root, file)), { recursive: true });
      writeFileSync(join(root, file), text);
    }
    return { plan: layout, source: join(root, 'firmware', `${layout.settings.name}.${flavour === 'c' ? 'c' : 'cpp'}`) };
  });
  const include = join(directory, units[0].plan.settings.name, 'firmware');
  return compileUnits(join(directory, 'build'), units, flavour, { flags, include });
}
