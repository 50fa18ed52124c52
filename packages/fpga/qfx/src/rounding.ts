import { overflower, quantise } from './cast.ts';
import { digitLevels, type MultiplierFreeConfig } from './digits.ts';
import { type FixedType, hi, lo } from './types.ts';

// Looked up once: in an isolated context (jest, vm) every look-up of a global is slow.
const { abs } = Math;

/** A grid of raw integers: where a scaled real number u = x * 2^F goes, and where its gradient passes. */
export interface Rounding {
  /** Rounded and brought into range. */
  raw(u: number): number;
  /** True where the gradient passes: the rounded value was in range, or the type wraps. */
  inside(u: number): boolean;
  /** Bounds of the plain round-half-up, saturating grid; loops take a short cut for it. */
  readonly plain?: { low: number; high: number };
}

/** What a rounding needs of a type: everything but the position. */
export type Format = Omit<FixedType, 'I'>;

/** The rounding of a fixed-point format (W <= 53). */
export function fixedRounding(format: Format): Rounding {
  const type: FixedType = { ...format, I: 0 };
  const high = hi(type);
  const low = type.O === 'AP_SAT_SYM' && type.signed ? -high : lo(type);
  const overflow = overflower(type);
  const wraps = type.O === 'AP_WRAP' || type.O === 'AP_WRAP_SM';
  return {
    raw: (u) => overflow(quantise(u, type.Q)),
    inside: (u) => {
      if (wraps) return true;
      const q = quantise(u, type.Q);
      return q >= low && q <= high;
    },
    ...(type.Q === 'AP_RND' && (type.O === 'AP_SAT' || type.O === 'AP_SAT_SYM') ? { plain: { low, high } } : {}),
  };
}

const tables = new Map<string, { levels: number[]; middles: Float64Array }>();

/** Levels and the midpoints between them, made once for each format. */
function digitTable(format: Format, { k, digits = 'unsigned' }: MultiplierFreeConfig) {
  const key = `${format.W}/${format.signed}/${k}/${digits}`;
  let table = tables.get(key);
  if (!table) {
    const levels = digitLevels(hi({ ...format, I: 0 }), k, digits);
    const middles = Float64Array.from({ length: levels.length - 1 }, (_, i) => (levels[i] + levels[i + 1]) / 2);
    table = { levels, middles };
    tables.set(key, table);
  }
  return table;
}

/** The sorted magnitudes that k digits can write. */
export function levelsOf(format: Format, config: MultiplierFreeConfig): readonly number[] {
  return digitTable(format, config).levels;
}

/**
 * The multiplier-free grid: the nearest magnitude of at most k digits, ties to the larger. By table: log2 in float32
 * is wrong at powers of two.
 */
export function digitRounding(format: Format, config: MultiplierFreeConfig): Rounding {
  const { levels, middles } = digitTable(format, config);
  const last = levels[levels.length - 1];
  const least = format.signed ? -last : 0;
  return {
    raw: (u) => {
      if (u < 0 && !format.signed) return 0;
      const a = abs(u);
      // j = number of midpoints <= a.
      let from = 0;
      let to = middles.length;
      while (from < to) {
        const middle = (from + to) >> 1;
        if (middles[middle] <= a) from = middle + 1;
        else to = middle;
      }
      return u < 0 ? 0 - levels[from] : levels[from];
    },
    inside: (u) => {
      const q = quantise(u, 'AP_RND_INF');
      return q >= least && q <= last;
    },
  };
}
