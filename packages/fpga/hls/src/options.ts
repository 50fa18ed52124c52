import { didYouMean, ensure, refuse } from '@matforge/core';
import type { QfxGraph, Strategy } from '@matforge/qfx';

/** Which programs are written: C99 with plain integers, or HLS C++ with ap_fixed types. */
export type Flavour = 'c' | 'hls';

/** How the top function meets the world. `io_parallel` is hls4ml's name for partitioned arrays with `ap_vld`. */
export type IoType = 'io_parallel' | 'axis' | 'm_axi';

/** How the multiplications of a layer are spread over time and hardware. */
export interface LayerOptions {
  /** Multiplications that one multiplier does; an illegal value moves to the nearest legal one, with a warning. */
  reuseFactor?: number;
  /** Default that of the graph, else `latency`. */
  strategy?: Strategy;
  /** Output positions of a convolution computed at once. Must divide the number of positions. Default 1. */
  parallelizationFactor?: number;
}

/**
 * Options of every emitter. The members of {@link LayerOptions} hold for all layers that `layers` does not set.
 */
export interface EmitOptions extends LayerOptions {
  /** Name of the top function and of the files. A C identifier. Default the graph's name. */
  name?: string;
  /** Default `io_parallel`. */
  ioType?: IoType;
  /** Default xczu3eg-sbva484-1-i (Ultra96 v2). */
  part?: string;
  /** Nanoseconds, default 5. */
  clockPeriod?: number;
  /** Percent of the period, default 27. */
  clockUncertainty?: number;
  /** Settings of single layers, by name. They win over the model's settings and over the graph's own directives. */
  layers?: Record<string, LayerOptions & Pick<Hls4mlAliases, 'ReuseFactor' | 'Strategy' | 'ParallelizationFactor'>>;
}

/** hls4ml's spellings, accepted beside ours. */
export interface Hls4mlAliases {
  ReuseFactor?: number;
  Strategy?: string;
  ParallelizationFactor?: number;
  Part?: string;
  ClockPeriod?: number;
  ClockUncertainty?: number | string;
  IOType?: string;
  ProjectName?: string;
  /** Settings of single layers. */
  LayerName?: Record<string, LayerOptions & Hls4mlAliases>;
}

/** Checked options with every default filled in, as {@link resolveOptions} returns them. */
export interface Settings extends Required<Omit<EmitOptions, 'layers' | keyof LayerOptions>> {
  /** For layers without an entry of their own in `layers`. */
  readonly defaults: LayerOptions;
  readonly layers: Readonly<Record<string, LayerOptions>>;
}

const ALIASES: Record<string, string> = {
  ReuseFactor: 'reuseFactor',
  Strategy: 'strategy',
  ParallelizationFactor: 'parallelizationFactor',
  Part: 'part',
  ClockPeriod: 'clockPeriod',
  ClockUncertainty: 'clockUncertainty',
  IOType: 'ioType',
  ProjectName: 'name',
  LayerName: 'layers',
};
const LAYER_KEYS = ['reuseFactor', 'strategy', 'parallelizationFactor'];
const KEYS = [...LAYER_KEYS, 'name', 'ioType', 'part', 'clockPeriod', 'clockUncertainty', 'layers'];

/** Words that cannot name a function: those of C and C++, and what compilers know as built-in functions. */
const RESERVED = new Set(
  (
    'auto break case char const continue default do double else enum extern float for goto if inline int long register ' +
    'restrict return short signed sizeof static struct switch typedef union unsigned void volatile while asm bool class ' +
    'new delete this throw try catch template typename namespace using virtual public private protected operator friend ' +
    'true false and or not xor main in out linux unix abs labs div exit abort malloc calloc realloc free memcpy memset ' +
    'memcmp memmove strlen strcpy strcmp printf puts putchar scanf fopen fclose index rindex bcmp bzero signbit isnan ' +
    'sin cos tan asin acos atan atan2 sinh cosh tanh exp exp2 expm1 log log2 log10 log1p pow sqrt cbrt hypot floor ceil ' +
    'round trunc rint fabs fmin fmax fma fmod gamma lgamma tgamma erf erfc j0 j1 jn y0 y1 yn frexp ldexp modf'
  ).split(' '),
);

/** Names that the emitted sources use themselves: arrays, layer functions, types. */
const OWN_NAMES = /^(w|b|layer|clone_|recip|exp_table|inv_table)\d|_t$|^N_/;

/**
 * Checks the options and fills in the defaults.
 * @throws MatforgeError for unknown keys or layers, a name that is no C identifier, a reuse factor below 1.
 */
export function resolveOptions(graph: QfxGraph, given: EmitOptions & Hls4mlAliases = {}): Settings {
  const options = withoutAliases(given as Record<string, unknown>, KEYS, 'options') as EmitOptions;
  const name = options.name ?? graph.name;
  ensure(
    /^[A-Za-z][A-Za-z0-9_]*$/.test(name) && !RESERVED.has(name) && !OWN_NAMES.test(name),
    'name',
    () =>
      `"${name}" cannot name a C function; use letters, digits and _, begin with a letter, avoid words of C and of the emitted sources`,
  );
  const ioType = options.ioType ?? 'io_parallel';
  ensure(
    ['io_parallel', 'axis', 'm_axi'].includes(ioType),
    'ioType',
    () => `unknown io type "${ioType}"; accepted are io_parallel, axis, m_axi`,
  );
  const clockPeriod = options.clockPeriod ?? 5;
  ensure(
    clockPeriod > 0 && Number.isFinite(clockPeriod),
    'clockPeriod',
    () => `must be nanoseconds > 0, got ${clockPeriod}`,
  );
  const clockUncertainty = Number.parseFloat(String(options.clockUncertainty ?? 27));
  ensure(
    clockUncertainty >= 0 && clockUncertainty < 100,
    'clockUncertainty',
    () => `must be a percentage in 0..100, got ${options.clockUncertainty}`,
  );
  const part = options.part ?? 'xczu3eg-sbva484-1-i';
  ensure(/^[A-Za-z0-9_.-]+$/.test(part), 'part', () => `"${part}" is no part number`);
  const names = graph.nodes.map((node) => node.name);
  const layers: Record<string, LayerOptions> = {};
  for (const [layer, value] of Object.entries(options.layers ?? {})) {
    if (!names.includes(layer)) {
      const near = didYouMean(layer, names);
      refuse(
        'layers',
        `no layer "${layer}"${near ? `; did you mean "${near}"?` : `; the layers are ${names.join(', ')}`}`,
      );
    }
    layers[layer] = layerOptions(
      withoutAliases(value as Record<string, unknown>, LAYER_KEYS, `layers.${layer}`),
      `layers.${layer}`,
    );
  }
  return { name, ioType, part, clockPeriod, clockUncertainty, defaults: layerOptions(options, 'options'), layers };
}

function withoutAliases(given: Record<string, unknown>, known: string[], field: string): Record<string, unknown> {
  const out: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(given)) {
    const plain = ALIASES[key] ?? key;
    if (!known.includes(plain)) {
      const near = didYouMean(plain, known);
      refuse(field, `unknown option "${key}"${near ? `; did you mean "${near}"?` : `; known are ${known.join(', ')}`}`);
    }
    if (value !== undefined) out[plain] = value;
  }
  return out;
}

function layerOptions(given: Record<string, unknown> | LayerOptions, field: string): LayerOptions {
  const { reuseFactor, parallelizationFactor } = given as LayerOptions;
  for (const [key, value] of Object.entries({ reuseFactor, parallelizationFactor })) {
    ensure(
      value === undefined || (Number.isInteger(value) && value >= 1),
      `${field}.${key}`,
      () => `must be an integer >= 1, got ${value}`,
    );
  }
  const strategy = (given as LayerOptions).strategy?.toLowerCase() as Strategy | undefined;
  ensure(
    strategy === undefined || strategy === 'latency' || strategy === 'resource',
    `${field}.strategy`,
    () => `unknown strategy "${strategy}"; accepted are latency, resource`,
  );
  return { reuseFactor, strategy, parallelizationFactor };
}
