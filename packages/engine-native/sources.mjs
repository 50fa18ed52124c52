// Gathers what the addon is compiled from: the kernels of @matforge/engine beside ours, and a call table made of their
// exported functions. Runs in the workspace before each build; the published package carries the result.
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** Kernel files that are compiled natively; products come from gemm.c. */
const KERNELS = ['conv.c', 'rows.c', 'elementwise.c'];

/**
 * How a kernel's work is cut between threads: its parameters as they have to be, and a letter for each. N rows to share,
 * u and i factors of a row's length, q rows that stay together; a pointer moves with the rows by R u·i floats, S i floats,
 * T the bytes in the next argument; G geometry whose images are shared, I, O and P pointers that move by an image of
 * input, of output, of output with the input's channels, W a work area that each thread needs for itself; - stays.
 */
const SPLIT = {
  mf_unary: ['op n x y', '-NRR'],
  mf_unary_back: ['op n x dy dx', '-NRRR'],
  mf_binary: ['op n a b y', '-NRRR'],
  mf_binary_row: ['op rows n a b y', '-NuR-R'],
  mf_bias_act: ['rows n c bias act slopes alpha', 'NuR----'],
  mf_adam: [
    'n w g m v w_out m_out v_out rate beta1 beta2 rest1 rest2 eps correct1 correct2 decay',
    'NRRRRRRR---------',
  ],
  mf_sgd: ['n w g u w_out u_out rate momentum nesterov decay', 'NRRRRR----'],
  mf_softmax: ['rows n x y', 'NuRR'],
  mf_causal_softmax: ['rows queries n scale x y', 'Nqu-RR'],
  mf_softmax_back: ['rows n scale y dy dx', 'Nu-RRR'],
  mf_log_softmax: ['rows n x y', 'NuRR'],
  mf_log_softmax_back: ['rows n y dy dx', 'NuRRR'],
  mf_cross_entropy_back: ['rows n x labels lse dloss dx', 'NuRSSSR'],
  mf_layer_norm: ['rows n x gamma beta eps y mean rstd', 'NuR---RSS'],
  mf_sum: ['outer n inner x y scale', 'NuiRS-'],
  mf_copy_rows: ['rows bytes from from_step to to_step', 'N-T-T-'],
  mf_conv: ['g x w y work', 'GI-OW'],
  mf_conv_back_input: ['g dy w dx work', 'GO-IW'],
  mf_depthwise: ['g x w y', 'GI-O'],
  mf_depthwise_back_input: ['g dy w dx', 'GO-I'],
  mf_max_pool: ['g x y', 'GIP'],
  mf_max_pool_back: ['g x dy dx', 'GIPI'],
  mf_avg_pool: ['g x y', 'GIP'],
  mf_avg_pool_back: ['g dy dx', 'GPI'],
};

/** What addon.c knows of the geometry. */
const GEOMETRY = /typedef struct \{\s*int batch, in_h, in_w, channels, out_h, out_w, filters, [^;]+;\s*\} Geometry;/;

function splitOf(name, parameters) {
  const [expected, letters] = SPLIT[name] ?? [];
  if (letters === undefined) return '0';
  if (expected === parameters.join(' ')) return `"${letters}"`;
  throw new Error(
    `sources.mjs: ${name}(${parameters.join(', ')}) is not what SPLIT says: (${expected}). Look at its work again.`,
  );
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
  if (!text.some((source) => GEOMETRY.test(source)))
    throw new Error('sources.mjs: the geometry of convolutions has changed.');
  const found = text.flatMap((source) => [...source.matchAll(/^EXPORT (\w+) (mf_\w+)\(([^)]*)\)/gm)]);
  const thunks = found.map(([, result, name, list]) => {
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
      row: `  {"${name}", ${types.length}, call_${name}, ${splitOf(name, parameters)}},`,
    };
  });
  writeFileSync(
    `${to}table.h`,
    `// Made by sources.mjs from the exported functions of the kernels.\n#define SOURCES "${fingerprint()}"\n${thunks.map((t) => t.declaration).join('\n')}\n${thunks.map((t) => t.body).join('\n')}\nstatic const Entry table[] = {\n${thunks.map((t) => t.row).join('\n')}\n};\n`,
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

const sgemmDeclaration = (source) => source.match(/^EXPORT void mf_sgemm\([^)]*\)/m)[0];

if (process.argv[1] === fileURLToPath(import.meta.url)) gatherSources();
