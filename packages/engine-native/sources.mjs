// Gathers what the addon is compiled from: the kernels of @matforge/engine beside ours, and a call table made of their
// exported functions. Runs in the workspace before each build; the published package carries the result.
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** Kernel files that are compiled natively; products come from gemm.c. */
const KERNELS = ['few.c', 'conv.c', 'rows.c', 'elementwise.c', 'volume.c', 'norm.c', 'morphology.c', 'fft.c'];

/** An exported function: how its work is shared, result, name, parameters. */
const EXPORTED = /^(?:SHARE\("([^"]*)"\)\s+)?EXPORT (\w+) (mf_\w+)\(([^)]*)\)/gm;

/** What addon.c knows of the geometry. */
const GEOMETRY = /typedef struct \{\s*int batch, in_h, in_w, channels, out_h, out_w, filters, [^;]+;\s*\} Geometry;/;

/** How threads share a kernel's work, as common.h explains; null for what one thread does here (A: sums over pieces). */
function shareOf(name, letters, parameters) {
  if (letters !== undefined && letters.length !== parameters.length) {
    throw new Error(
      `sources.mjs: SHARE("${letters}") of ${name} has not a letter for each of ${parameters.join(', ')}.`,
    );
  }
  return letters === undefined || letters.includes('A') ? '0' : `"${letters}"`;
}

export function gatherSources() {
  const from = fileURLToPath(new URL('../engine/c/', import.meta.url));
  const to = fileURLToPath(new URL('c/engine/', import.meta.url));
  if (!existsSync(from)) return;
  mkdirSync(to, { recursive: true });
  const headers = readdirSync(from).filter((name) => name.endsWith('.h'));
  for (const name of [...headers, ...KERNELS]) copyFileSync(from + name, to + name);
  const text = [
    ...KERNELS.map((name) => readFileSync(from + name, 'utf8')),
    sgemmDeclaration(readFileSync(`${from}sgemm.c`, 'utf8')),
  ];
  if (!GEOMETRY.test(readFileSync(`${from}geometry.h`, 'utf8')))
    throw new Error('sources.mjs: the geometry of convolutions has changed.');
  const found = text.flatMap((source) => [...source.matchAll(EXPORTED)]);
  const thunks = found.map(([, letters, result, name, list]) => {
    const types = list.trim() === 'void' ? [] : list.split(',').map((argument) => argument.trim());
    const parameters = types.map((type) => type.match(/\w+$/)[0]);
    const values = types.map((type, i) =>
      type.includes('*') ? `AT(${i})` : type.startsWith('int ') ? `(int)v[${i}]` : `v[${i}]`,
    );
    const declared =
      types.map((type) => (type.includes('*') ? 'void *' : type.replace(/ \w+$/, ''))).join(', ') || 'void';
    const call = `${name}(${values.join(', ')})`;
    return {
      name,
      declaration: `extern ${result} ${name}(${declared});`,
      body: `static double call_${name}(const double *v, char *heap) {\n  (void)v, (void)heap;\n  ${result === 'void' ? `${call};\n  return 0` : `return ${call}`};\n}`,
      row: `  {"${name}", ${types.length}, call_${name}, ${shareOf(name, letters, parameters)}},`,
    };
  });
  writeFileSync(
    `${to}table.h`,
    `// Made by sources.mjs from the exported functions of the kernels.\n#define SOURCES "${fingerprint()}"\n#define ENGINE "${engineSources()}"\n${thunks.map((t) => t.declaration).join('\n')}\n${thunks.map((t) => t.body).join('\n')}\nstatic const Entry table[] = {\n${thunks.map((t) => t.row).join('\n')}\n};\n`,
  );
}

/** Hash of everything that the addon's results depend on, as it is in the workspace now. */
export function fingerprint() {
  const hash = createHash('sha256');
  for (const folder of ['../engine/c/', 'c/', 'c/shim/']) {
    const path = fileURLToPath(new URL(folder, import.meta.url));
    const names = readdirSync(path).filter((name) => /\.[ch]$/.test(name) && !/^(linalg|sgemm\.c)/.test(name));
    for (const name of names.sort()) hash.update(`${name}\n`).update(readFileSync(path + name));
  }
  return hash.digest('hex').slice(0, 16);
}

/** The fingerprint that @matforge/engine knows its kernels by. */
function engineSources() {
  const path = fileURLToPath(new URL('../engine/src/shares.ts', import.meta.url));
  return readFileSync(path, 'utf8').match(/SOURCES = '(\w+)'/)[1];
}

const sgemmDeclaration = (source) => source.match(/^EXPORT void mf_sgemm\([^)]*\)/m)[0];

if (process.argv[1] === fileURLToPath(import.meta.url)) gatherSources();
