import { ensure, refuse } from '@matforge/core';

/** How a value between two steps is rounded (HLS and SystemC names). */
export const QUANTIZATION_MODES = [
  'AP_TRN',
  'AP_TRN_ZERO',
  'AP_RND',
  'AP_RND_ZERO',
  'AP_RND_INF',
  'AP_RND_MIN_INF',
  'AP_RND_CONV',
] as const;

/** What happens to a rounded value outside the range of its type. */
export const OVERFLOW_MODES = ['AP_SAT', 'AP_SAT_ZERO', 'AP_SAT_SYM', 'AP_WRAP', 'AP_WRAP_SM'] as const;

/** One of {@link QUANTIZATION_MODES}. */
export type QuantizationMode = (typeof QUANTIZATION_MODES)[number];
/** One of {@link OVERFLOW_MODES}. */
export type OverflowMode = (typeof OVERFLOW_MODES)[number];

/**
 * An HLS fixed-point type. The stored integer `raw` stands for raw * 2^-F with F = W - I.
 * `I` includes the sign bit, and may be negative or larger than `W`.
 */
export interface FixedType {
  /** Word length in bits. */
  readonly W: number;
  /** Integer bits, the sign bit included when signed. */
  readonly I: number;
  readonly signed: boolean;
  readonly Q: QuantizationMode;
  readonly O: OverflowMode;
}

/** Sign and modes of {@link fixedType}. */
export interface FixedTypeOptions {
  /** Default true. */
  signed?: boolean;
  /** Default `AP_RND` (a type string without modes means `AP_TRN`, as in HLS). */
  Q?: QuantizationMode;
  /** Default `AP_SAT` (a type string without modes means `AP_WRAP`, as in HLS). */
  O?: OverflowMode;
}

/**
 * A checked fixed-point type.
 * @throws MatforgeError when W is not an integer in 1..64, I is not an integer, a mode is unknown, or the modes do not
 *   fit the type (AP_WRAP_SM unsigned, AP_SAT_SYM on one signed bit).
 */
export function fixedType(W: number, I: number, options: FixedTypeOptions = {}): FixedType {
  const type: FixedType = {
    W,
    I,
    signed: options.signed ?? true,
    Q: options.Q ?? 'AP_RND',
    O: options.O ?? 'AP_SAT',
  };
  checkType(type);
  return type;
}

/** Refuses a type that no hardware has; `field` names it in the message. */
export function checkType(type: FixedType, field = 'type'): void {
  ensure(
    Number.isInteger(type.W) && type.W >= 1 && type.W <= 64,
    `${field}.W`,
    () => `word length must be an integer in 1..64, got ${type.W}`,
  );
  ensure(
    Number.isInteger(type.I) && Math.abs(type.I) <= 512,
    `${field}.I`,
    () => `integer bits must be an integer in -512..512, got ${type.I}`,
  );
  ensure(
    QUANTIZATION_MODES.includes(type.Q),
    `${field}.Q`,
    () => `unknown quantization mode ${String(type.Q)}; legal are ${QUANTIZATION_MODES.join(', ')}`,
  );
  ensure(
    OVERFLOW_MODES.includes(type.O),
    `${field}.O`,
    () => `unknown overflow mode ${String(type.O)}; legal are ${OVERFLOW_MODES.join(', ')}`,
  );
  ensure(
    type.O !== 'AP_WRAP_SM' || type.signed,
    `${field}.O`,
    () => 'AP_WRAP_SM needs a signed type; use AP_WRAP for an unsigned one',
  );
  ensure(
    !(type.O === 'AP_SAT_SYM' && type.signed && type.W === 1),
    `${field}.O`,
    () => 'AP_SAT_SYM needs at least 2 bits when signed (one bit would hold only 0); use AP_SAT or W = 2',
  );
}

/** Fraction bits F = W - I; the step is 2^-F. */
export function fractionBits(type: FixedType): number {
  return type.W - type.I;
}

/** Least stored integer. Exact for W <= 64 (a power of two). */
export function lo(type: FixedType): number {
  return type.signed ? -(2 ** (type.W - 1)) : 0;
}

/** Largest stored integer as a double: exact for W <= 53, see {@link hiBig} above. */
export function hi(type: FixedType): number {
  return type.signed ? 2 ** (type.W - 1) - 1 : 2 ** type.W - 1;
}

/** Least stored integer, exact for every W. */
export function loBig(type: FixedType): bigint {
  return type.signed ? -(1n << BigInt(type.W - 1)) : 0n;
}

/** Largest stored integer, exact for every W. */
export function hiBig(type: FixedType): bigint {
  return (1n << BigInt(type.signed ? type.W - 1 : type.W)) - 1n;
}

/** `ap_fixed<W,I,Q,O>` or `ap_ufixed<W,I,Q,O>`, modes always printed. */
export function formatType(type: FixedType): string {
  return `ap_${type.signed ? '' : 'u'}fixed<${type.W},${type.I},${type.Q},${type.O}>`;
}

const ALIASES: Record<string, (args: string[]) => FixedType> = {
  // QKeras rounds with tf.round (ties to even), and its `integer` leaves the sign bit out.
  quantized_bits: ([bits = '8', integer = '0', symmetric = '0', keepNegative = '1']) => {
    const keep = flag(keepNegative);
    return fixedType(integerOf(bits), integerOf(integer) + (keep ? 1 : 0), {
      signed: keep,
      Q: 'AP_RND_CONV',
      O: keep && flag(symmetric) ? 'AP_SAT_SYM' : 'AP_SAT',
    });
  },
  quantized_relu: ([bits = '8', integer = '0']) =>
    fixedType(integerOf(bits), integerOf(integer), { signed: false, Q: 'AP_RND_CONV', O: 'AP_SAT' }),
};

/**
 * Reads a type in the vocabulary of the HLS tools: `ap_fixed<16,6>`, `ap_ufixed<8,3,AP_RND,AP_SAT>`,
 * `fixed<16,6,RND,SAT,0>`, `ap_int<8>`, `uint<4>`; QKeras `quantized_bits(8,2,symmetric=1)`, `quantized_relu(6,2)`;
 * FINN `INT8`, `UINT4`, `BINARY`, `BIPOLAR`, `TERNARY`, `FIXED<8,3>`. Modes may lack the AP_ prefix, in any case;
 * omitted modes are HLS's own defaults AP_TRN and AP_WRAP (QKeras and FINN names: round to even and saturate).
 * @throws MatforgeError when the text is none of these or the type is impossible.
 */
export function parseType(text: string): FixedType {
  const refuseText = (): never =>
    refuse(
      'type',
      `cannot read "${text}"; accepted are ap_fixed<W,I[,Q[,O[,0]]]>, ap_ufixed, fixed, ufixed, ap_int<W>, ap_uint<W>, ` +
        'int<W>, uint<W>, quantized_bits(bits,integer,symmetric,keep_negative), quantized_relu(bits,integer), INT<W>, ' +
        'UINT<W>, BINARY, BIPOLAR, TERNARY, FIXED<W,I>',
    );
  const compact = text.replace(/\s+/g, '');
  const finn = finnType(compact);
  if (finn) return finn;
  const call = /^([a-z_0-9]+)\((.*)\)$/i.exec(compact);
  if (call) {
    const name = call[1].toLowerCase();
    if (name === 'quantized_po2' || name === 'quantized_relu_po2') {
      refuse('type', `${name} is a sign and an exponent, not a fixed-point type; use multiplierFree: { k: 1 }`);
    }
    return (ALIASES[name] ?? refuseText)(qkerasArguments(name, call[2]));
  }
  const match = /^(?:ap_)?(u?)(fixed|int)<([^<>]*)>$/i.exec(compact);
  if (!match) return refuseText();
  const signed = match[1] === '';
  const args = match[3].split(',');
  if (match[2].toLowerCase() === 'int') {
    if (args.length !== 1) return refuseText();
    const W = integerOf(args[0]);
    return fixedType(W, W, { signed, Q: 'AP_TRN', O: 'AP_WRAP' });
  }
  if (args.length < 2 || args.length > 5) return refuseText();
  ensure(
    args.length < 5 || integerOf(args[4]) === 0,
    'type',
    () => `the fifth argument (saturated bits of AP_WRAP) must be 0, got ${args[4]} in "${text}"`,
  );
  return fixedType(integerOf(args[0]), integerOf(args[1]), {
    signed,
    Q: args[2] === undefined ? 'AP_TRN' : (modeName(args[2]) as QuantizationMode),
    O: args[3] === undefined ? 'AP_WRAP' : (modeName(args[3]) as OverflowMode),
  });
}

function finnType(text: string): FixedType | undefined {
  const round = { Q: 'AP_RND_CONV', O: 'AP_SAT' } as const;
  const integer = /^(U?)INT(\d+)$/.exec(text);
  if (integer) return fixedType(Number(integer[2]), Number(integer[2]), { signed: integer[1] === '', ...round });
  const fixed = /^FIXED<(\d+),(-?\d+)>$/.exec(text);
  if (fixed) return fixedType(Number(fixed[1]), Number(fixed[2]), round);
  if (text === 'BINARY') return fixedType(1, 1, { signed: false, ...round });
  // -1 and +1 need two bits as numbers.
  if (text === 'BIPOLAR' || text === 'TERNARY') return fixedType(2, 2, { Q: 'AP_RND_CONV', O: 'AP_SAT_SYM' });
  return undefined;
}

const QKERAS_ORDER: Record<string, string[]> = {
  quantized_bits: ['bits', 'integer', 'symmetric', 'keep_negative', 'alpha'],
  quantized_relu: ['bits', 'integer', 'use_sigmoid'],
};

function qkerasArguments(name: string, text: string): string[] {
  const order = QKERAS_ORDER[name] ?? [];
  const out: string[] = [];
  text
    .split(',')
    .filter((part) => part !== '')
    .forEach((part, i) => {
      const [key, value] = part.includes('=') ? part.split('=') : [order[i], part];
      const at = order.indexOf(key);
      ensure(at >= 0, 'type', () => `unknown argument "${part}" of ${name}; known are ${order.join(', ')}`);
      const trivial = ['1', '1.0', 'None', '"None"', "'None'"].includes(value);
      ensure(
        (key !== 'alpha' || trivial) && (key !== 'use_sigmoid' || !flag(value)),
        'type',
        () => `${name} with ${part} is not a plain fixed-point type; leave ${key} out`,
      );
      out[at] = value;
    });
  return out.slice(0, 4);
}

function modeName(text: string): string {
  const upper = text.toUpperCase();
  return upper.startsWith('AP_') ? upper : `AP_${upper}`;
}

function integerOf(text: string): number {
  ensure(/^[+-]?\d+$/.test(text), 'type', () => `expected an integer, got "${text}"`);
  return Number(text);
}

function flag(text: string): boolean {
  return text === '1' || text.toLowerCase() === 'true';
}

/** A result type of exact arithmetic: its modes never act, and it may be wider than 64 bits. */
export function exactType(W: number, I: number, signed: boolean): FixedType {
  return { W, I, signed, Q: 'AP_TRN', O: 'AP_WRAP' };
}

/** Type of the exact product a*b: widths and integer bits add up. */
export function mulType(a: FixedType, b: FixedType): FixedType {
  return exactType(a.W + b.W, a.I + b.I, a.signed || b.signed);
}

/** Type of the exact sum a+b: one more integer bit than the larger, the finer fraction. */
export function addType(a: FixedType, b: FixedType): FixedType {
  const signA = b.signed && !a.signed ? 1 : 0;
  const signB = a.signed && !b.signed ? 1 : 0;
  const I = Math.max(a.I + signA, b.I + signB) + 1;
  const F = Math.max(fractionBits(a), fractionBits(b));
  return exactType(I + F, I, a.signed || b.signed);
}

/** Type of the exact difference a-b: as the sum, always signed. */
export function subType(a: FixedType, b: FixedType): FixedType {
  const { W, I } = addType(a, b);
  return exactType(W, I, true);
}

/** Type of -a: one more bit, signed. */
export function negType(a: FixedType): FixedType {
  return exactType(a.W + 1, a.I + 1, true);
}

/** Type of the quotient a/b, which is truncated toward zero to F_a + max(F_b, 0) - F_b fraction bits. */
export function divType(a: FixedType, b: FixedType): FixedType {
  const sign = b.signed ? 1 : 0;
  const Fb = fractionBits(b);
  return exactType(sign + a.W + Math.max(Fb, 0), sign + a.I + Fb, a.signed || b.signed);
}

/** The raw quotient in the fraction bits of {@link divType}: trunc(ra * 2^max(F_b,0) / rb). */
export function divRaw(ra: bigint, rb: bigint, b: FixedType): bigint {
  ensure(rb !== 0n, 'b', () => 'division by zero');
  return (ra << BigInt(Math.max(fractionBits(b), 0))) / rb;
}

/** ceil(log2 n) for a positive integer, by comparison. */
export function ceilLog2(n: number): number {
  let e = 0;
  while (2 ** e < n) e++;
  return e;
}

/**
 * Accumulator of rule `full`: the product type, ceil(log2 n) integer bits for the n terms of one output, then the
 * addition rule once for the bias (hls4ml's inference). It never overflows, so the order of additions is free.
 */
export function accType(x: FixedType, w: FixedType, terms: number, bias?: FixedType): FixedType {
  const product = mulType(x, w);
  const grow = ceilLog2(terms);
  const sum = exactType(product.W + grow, product.I + grow, product.signed);
  return bias ? addType(sum, bias) : sum;
}

/** The least exact type with F fraction bits that holds every [low, high]; unsigned when no low is negative. */
export function typeOfRanges(low: readonly bigint[], high: readonly bigint[], F: number): FixedType {
  const signed = low.some((v) => v < 0n);
  const holds = (W: number): boolean => {
    const type = exactType(W, W, signed);
    return low.every((v) => v >= loBig(type)) && high.every((v) => v <= hiBig(type));
  };
  let W = 1;
  while (!holds(W)) W++;
  return exactType(W, W - F, signed);
}

/** Same W, I and signedness (modes do not change what a stored integer means). */
export function sameFormat(a: FixedType, b: FixedType): boolean {
  return a.W === b.W && a.I === b.I && a.signed === b.signed;
}
