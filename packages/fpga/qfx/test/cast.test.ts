import fc from 'fast-check';
import {
  addType,
  castBig,
  castNumber,
  castRaw,
  dyadic,
  type FixedType,
  fixedType,
  formatType,
  fractionBits,
  fromRaw,
  hiBig,
  loBig,
  mulType,
  OVERFLOW_MODES,
  type OverflowMode,
  parseType,
  QUANTIZATION_MODES,
  type QuantizationMode,
  shiftRound,
  toRaw,
} from '../src/index.ts';

// --- An independent statement of the cast: u is the fraction n/d, and every mode is said in words of n and d. ---

const floorDiv = (n: bigint, d: bigint): bigint => (n >= 0n ? n / d : -((-n + d - 1n) / d));

/** The integer that a mode picks for n/d, d > 0: the two neighbours, their distances, and who wins. */
function roundRational(n: bigint, d: bigint, Q: QuantizationMode): bigint {
  const below = floorDiv(n, d);
  const rest = n - below * d;
  if (rest === 0n || Q === 'AP_TRN') return below;
  const above = below + 1n;
  if (Q === 'AP_TRN_ZERO') return n < 0n ? above : below;
  if (2n * rest !== d) return 2n * rest < d ? below : above;
  const [toZero, away] = n < 0n ? [above, below] : [below, above];
  switch (Q) {
    case 'AP_RND':
      return above;
    case 'AP_RND_MIN_INF':
      return below;
    case 'AP_RND_ZERO':
      return toZero;
    case 'AP_RND_INF':
      return away;
    case 'AP_RND_CONV':
      return below % 2n === 0n ? below : above;
  }
}

/** Overflow by bit strings: the two's complement digits of q, least first. */
function overflowBits(q: bigint, { W, signed, O }: FixedType): bigint {
  const low = signed ? -(2n ** BigInt(W - 1)) : 0n;
  const high = signed ? 2n ** BigInt(W - 1) - 1n : 2n ** BigInt(W) - 1n;
  if (O === 'AP_SAT_SYM' && signed) return q > high ? high : q < -high ? -high : q;
  if (q >= low && q <= high) return q;
  if (O === 'AP_SAT' || O === 'AP_SAT_SYM') return q < low ? low : high;
  if (O === 'AP_SAT_ZERO') return 0n;
  const bits = Array.from({ length: W + 1 }, (_, i) => Number(floorDiv(q, 2n ** BigInt(i)) & 1n));
  const kept = bits.slice(0, W).map((bit) => (O === 'AP_WRAP_SM' && bits[W] !== bits[W - 1] ? 1 - bit : bit));
  return kept.reduce((sum, bit, i) => sum + BigInt(bit) * 2n ** BigInt(i) * (signed && i === W - 1 ? -1n : 1n), 0n);
}

function castRational(n: bigint, d: bigint, type: FixedType): bigint {
  const F = fractionBits(type);
  const q = F >= 0 ? roundRational(n * 2n ** BigInt(F), d, type.Q) : roundRational(n, d * 2n ** BigInt(-F), type.Q);
  return overflowBits(q, type);
}

const types = (maxW: number): fc.Arbitrary<FixedType> =>
  fc
    .record({
      W: fc.integer({ min: 1, max: maxW }),
      shift: fc.integer({ min: -8, max: 8 }),
      signed: fc.boolean(),
      Q: fc.constantFrom(...QUANTIZATION_MODES),
      O: fc.constantFrom(...OVERFLOW_MODES),
    })
    .filter(({ W, signed, O }) => !(O === 'AP_WRAP_SM' && !signed) && !(O === 'AP_SAT_SYM' && signed && W === 1))
    .map(({ W, shift, signed, Q, O }) => fixedType(W, Math.floor(W / 2) + shift, { signed, Q, O }));

describe('the cast', () => {
  test('of exact integers equals the rational formulation, W 1..64', () => {
    fc.assert(
      fc.property(types(64), fc.bigInt(-(2n ** 80n), 2n ** 80n), fc.integer({ min: -10, max: 90 }), (type, v, F) => {
        const [n, d] = F >= 0 ? [v, 2n ** BigInt(F)] : [v * 2n ** BigInt(-F), 1n];
        expect(castBig(v, F, type)).toBe(castRational(n, d, type));
      }),
      { numRuns: 1500, seed: 1 },
    );
  });

  test('of doubles equals the rational formulation', () => {
    const value = fc.oneof(
      fc.double({ noNaN: true, noDefaultInfinity: true, min: -1e9, max: 1e9 }),
      // Ties and values next to them.
      fc
        .tuple(fc.integer({ min: -5000, max: 5000 }), fc.integer({ min: -4, max: 12 }), fc.integer({ min: -1, max: 1 }))
        .map(([k, F, ulp]) => (k / 2) * 2 ** -F * (1 + ulp * Number.EPSILON)),
    );
    fc.assert(
      fc.property(types(53), value, (type, x) => {
        const { v, fraction } = dyadic(x);
        const expected = castRational(v, 2n ** BigInt(fraction), type);
        expect(castRaw(x, type)).toBe(expected);
        expect(BigInt(castNumber(x, type))).toBe(expected);
      }),
      { numRuns: 2000, seed: 2 },
    );
  });

  test('is idempotent', () => {
    fc.assert(
      fc.property(types(64), fc.bigInt(-(2n ** 70n), 2n ** 70n), (type, v) => {
        const once = castBig(v, fractionBits(type) + 5, type);
        expect(castBig(once, fractionBits(type), type)).toBe(once);
      }),
      { numRuns: 500, seed: 3 },
    );
  });

  test('rounds by at most half a step, truncates downwards, and is odd where it should be', () => {
    fc.assert(
      fc.property(fc.bigInt(-(2n ** 40n), 2n ** 40n), fc.integer({ min: 1, max: 30 }), (v, sh) => {
        const d = 2n ** BigInt(sh);
        const error = (Q: QuantizationMode): bigint => shiftRound(v, sh, Q) * d - v;
        expect(error('AP_TRN') <= 0n).toBe(true);
        for (const Q of QUANTIZATION_MODES) {
          if (Q.startsWith('AP_RND')) expect(2n * error(Q) <= d && -2n * error(Q) <= d).toBe(true);
        }
        for (const Q of ['AP_RND_INF', 'AP_RND_ZERO', 'AP_RND_CONV', 'AP_TRN_ZERO'] as const) {
          expect(shiftRound(-v, sh, Q)).toBe(-shiftRound(v, sh, Q));
        }
        expect(shiftRound(v, sh, 'AP_RND_MIN_INF')).toBe(-shiftRound(-v, sh, 'AP_RND'));
      }),
      { numRuns: 1000, seed: 4 },
    );
  });

  test('wraps with period 2^W', () => {
    fc.assert(
      fc.property(types(64), fc.bigInt(-(2n ** 66n), 2n ** 66n), (type, q) => {
        const wrap = { ...type, O: 'AP_WRAP' } as FixedType;
        const F = fractionBits(type);
        expect(castBig(q + 2n ** BigInt(type.W), F, wrap)).toBe(castBig(q, F, wrap));
      }),
      { numRuns: 500, seed: 5 },
    );
  });

  test('shift form and table agree on all of [-200, 200], sh 0..5, 7 modes', () => {
    for (const Q of QUANTIZATION_MODES) {
      for (let sh = 0; sh <= 5; sh++) {
        for (let v = -200; v <= 200; v++) {
          const type = fixedType(20, 20, { Q });
          expect(shiftRound(BigInt(v), sh, Q)).toBe(BigInt(castNumber(v * 2 ** -sh, type)));
        }
      }
    }
  });

  test('ReLU before a saturating cast equals ReLU after it', () => {
    fc.assert(
      fc.property(types(24), fc.bigInt(-(2n ** 30n), 2n ** 30n), (type, v) => {
        const signed = fixedType(Math.max(type.W, 2), type.I, { Q: type.Q, O: 'AP_SAT' });
        const relu = (x: bigint): bigint => (x > 0n ? x : 0n);
        expect(castBig(relu(v), 12, signed)).toBe(relu(castBig(v, 12, signed)));
      }),
      { numRuns: 500, seed: 6 },
    );
  });

  test('the largest float below a half rounds to zero', () => {
    const type = fixedType(8, 8, { Q: 'AP_RND' });
    expect(castNumber(0.49999999999999994, type)).toBe(0);
    expect(castNumber(-0.49999999999999994, type)).toBe(0);
    expect(castNumber(-1e-20, fixedType(8, 8, { Q: 'AP_TRN' }))).toBe(-1);
    expect(castNumber(-1e-20, type)).toBe(0);
  });

  test('stores 64 bits', () => {
    const type = fixedType(64, 32, { signed: true });
    expect(toRaw([1e30, -1e30, 1.5], type)).toEqual([2n ** 63n - 1n, -(2n ** 63n), 3n * 2n ** 31n]);
    expect(Array.from(fromRaw([3n * 2n ** 31n], type))).toEqual([1.5]);
    expect(toRaw([2 ** 63, -1], fixedType(64, 64, { signed: false, O: 'AP_WRAP' }))).toEqual([
      2n ** 63n,
      2n ** 64n - 1n,
    ]);
  });

  test.each([Number.NaN, Number.POSITIVE_INFINITY])('refuses %p', (value) => {
    const type = fixedType(8, 4);
    expect(() => castRaw(value, type)).toThrow('cannot represent');
    expect(() => toRaw([value], type)).toThrow('cannot represent');
  });
});

describe('widths', () => {
  test('products and sums of any two types hold every result', () => {
    fc.assert(
      fc.property(types(30), types(30), (a, b) => {
        const [product, sum] = [mulType(a, b), addType(a, b)];
        const ends = (t: FixedType): bigint[] => [loBig(t), hiBig(t), 0n];
        const F = fractionBits(sum);
        for (const x of ends(a)) {
          for (const y of ends(b)) {
            expect(x * y >= loBig(product) && x * y <= hiBig(product)).toBe(true);
            const s = (x << BigInt(F - fractionBits(a))) + (y << BigInt(F - fractionBits(b)));
            expect(s >= loBig(sum) && s <= hiBig(sum)).toBe(true);
          }
        }
      }),
      { numRuns: 500, seed: 7 },
    );
  });
});

describe('type strings', () => {
  test('print and read back', () => {
    fc.assert(
      fc.property(types(64), (type) => {
        expect(parseType(formatType(type))).toEqual(type);
      }),
      { numRuns: 300, seed: 8 },
    );
  });

  const is = (W: number, I: number, signed: boolean, Q: QuantizationMode, O: OverflowMode): FixedType =>
    fixedType(W, I, { signed, Q, O });

  test.each<[string, FixedType]>([
    ['ap_fixed<16,6>', is(16, 6, true, 'AP_TRN', 'AP_WRAP')],
    ['ap_ufixed<8, 3, AP_RND, AP_SAT>', is(8, 3, false, 'AP_RND', 'AP_SAT')],
    ['fixed<16,6,RND,SAT,0>', is(16, 6, true, 'AP_RND', 'AP_SAT')],
    ['ufixed<8,0,rnd_conv>', is(8, 0, false, 'AP_RND_CONV', 'AP_WRAP')],
    ['ap_fixed<4,-2>', is(4, -2, true, 'AP_TRN', 'AP_WRAP')],
    ['ap_int<8>', is(8, 8, true, 'AP_TRN', 'AP_WRAP')],
    ['uint<4>', is(4, 4, false, 'AP_TRN', 'AP_WRAP')],
    ['quantized_bits(8, 2)', is(8, 3, true, 'AP_RND_CONV', 'AP_SAT')],
    ['quantized_bits(8,2,symmetric=1,alpha=1)', is(8, 3, true, 'AP_RND_CONV', 'AP_SAT_SYM')],
    ['quantized_bits(6,1,keep_negative=0)', is(6, 1, false, 'AP_RND_CONV', 'AP_SAT')],
    ['quantized_relu(6,2)', is(6, 2, false, 'AP_RND_CONV', 'AP_SAT')],
    ['INT8', is(8, 8, true, 'AP_RND_CONV', 'AP_SAT')],
    ['UINT4', is(4, 4, false, 'AP_RND_CONV', 'AP_SAT')],
    ['FIXED<8,3>', is(8, 3, true, 'AP_RND_CONV', 'AP_SAT')],
    ['BIPOLAR', is(2, 2, true, 'AP_RND_CONV', 'AP_SAT_SYM')],
  ])('%s', (text, type) => expect(parseType(text)).toEqual(type));

  test.each<[string, string]>([
    ['ap_fixed<0,0>', 'word length must be an integer in 1..64, got 0'],
    ['ap_fixed<65,3>', 'word length must be an integer in 1..64, got 65'],
    ['ap_fixed<8,3,AP_ROUND>', 'unknown quantization mode AP_ROUND; legal are AP_TRN'],
    ['ap_fixed<8,3,AP_RND,AP_CLIP>', 'unknown overflow mode AP_CLIP; legal are AP_SAT'],
    ['ap_ufixed<8,3,AP_TRN,AP_WRAP_SM>', 'AP_WRAP_SM needs a signed type'],
    ['ap_fixed<1,1,AP_TRN,AP_SAT_SYM>', 'AP_SAT_SYM needs at least 2 bits'],
    ['ap_fixed<8,3,AP_TRN,AP_WRAP,2>', 'must be 0'],
    ['ap_fixed<8>', 'cannot read'],
    ['float', 'cannot read'],
    ['ap_fixed<8.5,3>', 'expected an integer'],
    ['quantized_po2(8)', 'multiplierFree: { k: 1 }'],
    ['quantized_bits(8,2,alpha=auto)', 'not a plain fixed-point type'],
  ])('refuses %s', (text, message) => expect(() => parseType(text)).toThrow(message));

  test('refuses word lengths that are not integers', () => {
    expect(() => fixedType(7.5, 3)).toThrow('word length must be an integer in 1..64, got 7.5');
    expect(() => fixedType(8, 0.5)).toThrow('integer bits must be an integer');
  });
});
