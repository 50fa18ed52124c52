import { type FixedType, formatType, fractionBits, type QuantizationMode, shiftRound } from '@matforge/qfx';
import { lines } from './text.ts';

/** Least container of C99 that holds W bits. */
export function container(W: number, signed: boolean): string {
  const bits = [8, 16, 32, 64].find((n) => n >= W) ?? 64;
  return `${signed ? '' : 'u'}int${bits}_t`;
}

/** The range of a type's stored integers. */
export function rawRange({ W, signed }: Pick<FixedType, 'W' | 'signed'>): [bigint, bigint] {
  return signed ? [-(1n << BigInt(W - 1)), (1n << BigInt(W - 1)) - 1n] : [0n, (1n << BigInt(W)) - 1n];
}

/** An int64_t constant. The least one cannot be written as a literal. */
export function int64(value: bigint): string {
  if (value === -(1n << 63n)) return '(-INT64_C(9223372036854775807) - 1)';
  return value >= -(1n << 31n) && value < 1n << 31n ? `${value}` : `INT64_C(${value})`;
}

const MODE_WORDS: Record<QuantizationMode, string> = {
  AP_TRN: 'floor',
  AP_TRN_ZERO: 'toward zero',
  AP_RND: 'to nearest, ties up',
  AP_RND_ZERO: 'to nearest, ties toward zero',
  AP_RND_INF: 'to nearest, ties away from zero',
  AP_RND_MIN_INF: 'to nearest, ties down',
  AP_RND_CONV: 'to nearest, ties to even',
};

/**
 * A C function `name` that casts the integer v, in units of 2^-fraction and within `range`, to `type`: rounding by an
 * addend and an arithmetic shift in 64 bits, then the overflow mode. Clamps that `range` cannot reach are left out.
 */
export function castFunction(name: string, result: string, fraction: number, range: [bigint, bigint], type: FixedType) {
  const sh = fraction - fractionBits(type);
  const steps: string[] = [];
  if (sh > 62) {
    steps.push(hugeShift(type.Q, sh, range));
  } else if (sh > 0) {
    steps.push(roundingStep(type.Q, sh, range));
  } else if (sh < 0) {
    steps.push(`v = v * ${int64(1n << BigInt(-sh))};`);
  }
  steps.push(...overflowSteps(type, range.map((v) => shiftRound(v, sh, type.Q)) as [bigint, bigint]));
  return lines(
    `/* ${formatType(type)} from ${fraction} fraction bits${sh > 0 ? `: round ${MODE_WORDS[type.Q]}` : ''} */`,
    `static ${result} ${name}(int64_t v)`,
    '{',
    ...steps.map((step) => step.replace(/^(?=[^\n])/gm, '    ')),
    `    return (${result})v;`,
    '}',
    '',
  );
}

/** A shift that C cannot write: the whole range of v lies within a step or so of zero, comparisons tell -1, 0 and 1. */
function hugeShift(Q: QuantizationMode, sh: number, [low, high]: [bigint, bigint]): string {
  const least = shiftRound(low, sh, Q);
  const most = shiftRound(high, sh, Q);
  if (least === most) return `v = ${least}; /* wherever v lies, it rounds to this */`;
  // Rounding is monotone: bisect for the first v that rounds above `q`.
  const firstAbove = (q: bigint): bigint => {
    let [a, b] = [low, high];
    while (a < b) {
      const middle = (a + b) >> 1n;
      if (shiftRound(middle, sh, Q) > q) b = middle;
      else a = middle + 1n;
    }
    return a;
  };
  const tests: string[] = [];
  for (let q = least; q < most; q++) tests.push(`v < ${int64(firstAbove(q))} ? ${q} : `);
  return `v = ${tests.join('')}${most};`;
}

function roundingStep(Q: QuantizationMode, sh: number, [low, high]: [bigint, bigint]): string {
  const half = 1n << BigInt(sh - 1);
  const negative = '(v < 0)';
  const addend: Record<QuantizationMode, string> = {
    AP_TRN: '',
    AP_TRN_ZERO: low < 0n ? `${negative} * ${int64(2n * half - 1n)}` : '',
    AP_RND: int64(half),
    AP_RND_ZERO: low < 0n ? `${int64(half - 1n)} + ${negative}` : int64(half - 1n),
    AP_RND_INF: low < 0n ? `${int64(half)} - ${negative}` : int64(half),
    AP_RND_MIN_INF: int64(half - 1n),
    AP_RND_CONV: `${int64(half - 1n)} + ((v >> ${sh}) & 1)`,
  };
  const add = addend[Q];
  if (add === '') return `v = v >> ${sh};`;
  // 63 unsigned bits leave no room for the addend: round the low part alone.
  if (high + 2n * half > 1n << 63n) {
    const mask = int64((1n << BigInt(sh)) - 1n);
    return `v = (v >> ${sh}) + (((v & ${mask}) + ${add}) >> ${sh});`;
  }
  return `v = (v + ${add}) >> ${sh};`;
}

function overflowSteps(type: FixedType, [low, high]: [bigint, bigint]): string[] {
  const { W, signed, O } = type;
  let [lo, hi] = rawRange(type);
  if (O === 'AP_SAT_SYM' && signed) lo = -hi;
  if (low >= lo && high <= hi) return [];
  const below = low < lo;
  const above = high > hi;
  switch (O) {
    case 'AP_SAT':
    case 'AP_SAT_SYM':
      return [
        ...(below ? [`if (v < ${int64(lo)}) v = ${int64(lo)};`] : []),
        ...(above ? [`if (v > ${int64(hi)}) v = ${int64(hi)};`] : []),
      ];
    case 'AP_SAT_ZERO': {
      const outside = [...(below ? [`v < ${int64(lo)}`] : []), ...(above ? [`v > ${int64(hi)}`] : [])];
      return [`if (${outside.join(' || ')}) v = 0;`];
    }
    case 'AP_WRAP':
      return W === 64 ? [] : [wrapStep(W, signed, '(uint64_t)v')];
    case 'AP_WRAP_SM': {
      // Where the lost bit and the sign bit differ, the kept bits are inverted.
      const lost = `(((uint64_t)v >> ${W}) ^ ((uint64_t)v >> ${W - 1})) & 1`;
      return [wrapStep(W, signed, `(${lost}) ? ~(uint64_t)v : (uint64_t)v`)];
    }
  }
}

/** The low W bits of the expression `bits`, read as a number of that width. */
function wrapStep(W: number, signed: boolean, bits: string): string {
  const mask = `UINT64_C(0x${((1n << BigInt(W)) - 1n).toString(16)})`;
  if (!signed) return `v = (int64_t)((${bits}) & ${mask});`;
  const sign = `UINT64_C(0x${(1n << BigInt(W - 1)).toString(16)})`;
  return `v = (int64_t)(((${bits}) & ${mask}) ^ ${sign}) - (int64_t)${sign};`;
}

/** Wraps an exact sum to an explicit accumulator, as a statement on `v`. */
export function wrapStatement(type: FixedType): string {
  return type.W >= 64 ? '' : wrapStep(type.W, type.signed, '(uint64_t)v');
}
