import * as tf from '@tensorflow/tfjs';
import fc from 'fast-check';
import {
  buildGraph,
  castBig,
  type FixedType,
  fixedType,
  fractionBits,
  hiBig,
  loBig,
  type MacNode,
  mulType,
  type NodeSpec,
  OVERFLOW_MODES,
  QUANTIZATION_MODES,
  rawBigints,
  simulate,
} from '../src/index.ts';

beforeAll(() => tf.setBackend('cpu'));

/** Random types; `wide` ones force the bigint path. */
const someType = (maxW: number): fc.Arbitrary<FixedType> =>
  fc
    .record({
      W: fc.integer({ min: 1, max: maxW }),
      I: fc.integer({ min: -2, max: 6 }),
      signed: fc.boolean(),
      Q: fc.constantFrom(...QUANTIZATION_MODES),
      O: fc.constantFrom(...OVERFLOW_MODES),
    })
    .filter(({ W, signed, O }) => !(O === 'AP_WRAP_SM' && !signed) && !(O === 'AP_SAT_SYM' && signed && W === 1))
    .map(({ W, I, signed, Q, O }) => fixedType(W, I, { signed, Q, O }));

function rawOf(type: FixedType, seed: number): bigint {
  const span = hiBig(type) - loBig(type) + 1n;
  // Ends as often as the middle.
  if (seed % 5 === 0) return hiBig(type);
  if (seed % 5 === 1) return loBig(type);
  return loBig(type) + ((BigInt(seed) * 2654435761n * 40503n) % span);
}

/** The definition of section "layers", in bigint, one output at a time. */
function naiveConv(node: Extract<MacNode, { window: unknown }>, xType: FixedType, x: bigint[]): bigint[] {
  const { window } = node;
  const w = rawBigints(node.weights);
  const b = node.bias ? rawBigints(node.bias) : [];
  const out: bigint[] = [];
  const Fp = fractionBits(xType) + fractionBits(node.weightType);
  for (let oy = 0; oy < window.outH; oy++) {
    for (let ox = 0; ox < window.outW; ox++) {
      for (let oc = 0; oc < window.outC; oc++) {
        let acc = b.length > 0 ? b[oc] << BigInt(node.accFraction - fractionBits(node.biasType as FixedType)) : 0n;
        for (let ky = 0; ky < window.kernelH; ky++) {
          for (let kx = 0; kx < window.kernelW; kx++) {
            const [y, xx] = [oy * window.strideH - window.padTop + ky, ox * window.strideW - window.padLeft + kx];
            if (y < 0 || y >= window.inH || xx < 0 || xx >= window.inW) continue;
            for (let c = 0; c < window.inC; c++) {
              const tap = (ky * window.kernelW + kx) * window.inC + c;
              let weight: bigint;
              if (node.op === 'depthwiseConv2d') {
                if (Math.floor(oc / node.depthMultiplier) !== c) continue;
                weight = w[tap * node.depthMultiplier + (oc % node.depthMultiplier)];
              } else weight = w[tap * window.outC + oc];
              acc += (x[(y * window.inW + xx) * window.inC + c] * weight) << BigInt(node.accFraction - Fp);
            }
          }
        }
        expect(acc >= loBig(node.accumulator) && acc <= hiBig(node.accumulator)).toBe(true);
        if (node.activation === 'relu' && acc < 0n) acc = 0n;
        out.push(castBig(acc, node.accFraction, node.type));
      }
    }
  }
  return out;
}

const convolution = fc.record({
  op: fc.constantFrom('conv2d' as const, 'depthwiseConv2d' as const),
  x: someType(40),
  w: someType(30),
  b: fc.option(someType(30), { nil: undefined }),
  y: someType(60),
  size: fc.tuple(fc.integer({ min: 3, max: 5 }), fc.integer({ min: 3, max: 5 }), fc.integer({ min: 1, max: 3 })),
  kernel: fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 3 })),
  filters: fc.integer({ min: 1, max: 5 }),
  strides: fc.integer({ min: 1, max: 2 }),
  padding: fc.constantFrom('valid' as const, 'same' as const),
  activation: fc.constantFrom('linear' as const, 'relu' as const),
  accumulator: fc.constantFrom('full' as const, 'tight' as const),
  seed: fc.integer({ min: 0, max: 10000 }),
});

describe('simulate', () => {
  test('equals the definition for random convolutions in every width, and no sum leaves its accumulator', () => {
    fc.assert(
      fc.property(convolution, (c) => {
        const [H, W, C] = c.size;
        const outC = c.op === 'conv2d' ? c.filters : C * c.filters;
        const weights = Array.from({ length: c.kernel[0] * c.kernel[1] * C * c.filters }, (_, i) =>
          rawOf(c.w, c.seed + i),
        );
        const spec: NodeSpec = {
          op: c.op,
          weights: { shape: [...c.kernel, C, c.filters], data: weights },
          weightType: c.w,
          ...(c.b
            ? {
                bias: {
                  shape: [outC],
                  data: Array.from({ length: outC }, (_, i) => rawOf(c.b as FixedType, c.seed + 3 * i)),
                },
                biasType: c.b,
              }
            : {}),
          type: c.y,
          strides: c.strides,
          padding: c.padding,
          activation: c.activation,
          accumulator: c.accumulator,
        };
        const graph = buildGraph({ nodes: [{ op: 'input', shape: [H, W, C], type: c.x }, spec] });
        const x = Array.from({ length: H * W * C }, (_, i) => rawOf(c.x, c.seed + 7 * i));
        const { raw } = simulate(graph, x, { rawInput: true });
        const expected = naiveConv(graph.nodes[1] as Extract<MacNode, { window: unknown }>, c.x, x);
        expect(Array.from(raw as ArrayLike<number | bigint>, (v) => BigInt(v))).toEqual(expected);
      }),
      { numRuns: 150, seed: 30 },
    );
  });

  test('sums at the ends of all types stay in tight and full accumulators; full is never narrower', () => {
    fc.assert(
      fc.property(
        someType(12),
        someType(10),
        someType(16),
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 0, max: 999 }),
        (x, w, b, n, seed) => {
          const weights = Array.from({ length: n * 2 }, (_, i) => rawOf(w, seed + i));
          const bias = [rawOf(b, seed), rawOf(b, seed + 1)];
          const dense = (accumulator: 'full' | 'tight'): MacNode =>
            buildGraph({
              nodes: [
                { op: 'input', shape: [n], type: x },
                {
                  op: 'dense',
                  weights: { shape: [n, 2], data: weights },
                  weightType: w,
                  bias: { shape: [2], data: bias },
                  biasType: b,
                  type: 'ap_fixed<8,8>',
                  accumulator,
                },
              ],
            }).nodes[1] as MacNode;
          const [full, tight] = [dense('full'), dense('tight')];
          const needed = (t: FixedType): number => t.W + (t.signed ? 0 : 1);
          expect(needed(full.accumulator)).toBeGreaterThanOrEqual(
            needed(tight.accumulator) - (tight.accumulator.signed === full.accumulator.signed ? 0 : 1),
          );
          for (const { accumulator, productShift, biasShift } of [full, tight]) {
            for (const channel of [0, 1]) {
              const extremes = [loBig(x), hiBig(x)].flatMap((end) => {
                // All inputs at one end; and each at the end that makes its product largest.
                const other = end === loBig(x) ? hiBig(x) : loBig(x);
                return [(_: bigint) => end, (v: bigint) => (v < 0n ? end : other)];
              });
              for (const pick of extremes) {
                let acc = bias[channel] << BigInt(biasShift);
                for (let i = 0; i < n; i++) {
                  const v = weights[2 * i + channel];
                  acc += (v * pick(v)) << BigInt(productShift);
                }
                expect(acc >= loBig(accumulator) && acc <= hiBig(accumulator)).toBe(true);
              }
            }
          }
          expect(mulType(x, w).W).toBe(x.W + w.W);
        },
      ),
      { numRuns: 200, seed: 31 },
    );
  });

  const single = (nodes: NodeSpec[], x: number[]): number[] =>
    Array.from(simulate(buildGraph({ nodes }), x, { rawInput: true }).raw as ArrayLike<number>);

  test('an explicit accumulator wraps the exact sum', () => {
    const nodes: NodeSpec[] = [
      { op: 'input', shape: [2], type: 'ap_int<8>' },
      {
        op: 'dense',
        weights: { shape: [2, 1], data: [100, 100] },
        weightType: 'ap_int<8>',
        type: 'ap_int<20>',
        accumulator: 'ap_int<12>',
      },
    ];
    // 100*100 + 27*100 = 12700 = 412 modulo 4096.
    expect(single(nodes, [100, 27])).toEqual([412]);
  });

  test('an average of 2^j cells is a shift', () => {
    const nodes: NodeSpec[] = [
      { op: 'input', shape: [2, 4, 1], type: 'ap_int<8>' },
      { op: 'globalAvgPool2d', type: 'ap_fixed<8,8,AP_TRN,AP_SAT>' },
    ];
    for (const cells of [
      [1, 2, 3, 4, 5, 6, 7, 9],
      [-1, -2, -3, -4, -5, -6, -7, -9],
      [127, 127, 127, 127, 127, 127, 127, 126],
    ]) {
      expect(single(nodes, cells)).toEqual([cells.reduce((a, b) => a + b) >> 3]);
    }
  });

  test('softmax: one logit is 1; a wide gap is 1 and 0; argmax takes the lowest of equals', () => {
    const input = (n: number): NodeSpec => ({ op: 'input', shape: [n], type: 'ap_fixed<16,8>' });
    expect(single([input(1), { op: 'softmax' }], [-77])).toEqual([2 ** 15]);
    // The exponential table has 2^(16-10) raw steps an entry: 0.25.
    const gap = Math.ceil((12 + 0.25) * 256);
    expect(single([input(2), { op: 'softmax' }], [gap, 0])).toEqual([2 ** 15, 0]);
    expect(single([input(4), { op: 'argmax' }], [3, 9, 9, -5])).toEqual([1]);
  });

  test('pads, concatenates and reshapes', () => {
    const nodes: NodeSpec[] = [
      { op: 'input', name: 'x', shape: [1, 2, 2], type: 'ap_int<8>' },
      {
        op: 'zeroPad2d',
        name: 'p',
        padding: [
          [0, 1],
          [1, 0],
        ],
      },
      { op: 'activation', name: 'r', activation: 'relu', type: 'ap_int<8>' },
      { op: 'concat', inputs: ['p', 'r'] },
      { op: 'reshape', shape: [24] },
    ];
    expect(single(nodes, [1, -2, 3, -4])).toEqual([
      ...[0, 0, 0, 0, 1, -2, 1, 0, 3, -4, 3, 0],
      ...[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]);
  });

  test('refuses inputs that do not fit', () => {
    const graph = buildGraph({ nodes: [{ op: 'input', shape: [3], type: 'ap_int<4>' }] });
    expect(() => simulate(graph, [1, 2])).toThrow('do not fill samples of [3]');
    expect(() => simulate(graph, [1, 2, Number.NaN])).toThrow('cannot represent NaN');
    expect(() => simulate(graph, [1, 2, 8], { rawInput: true })).toThrow('does not fit 4 bits');
    expect(() => simulate(graph, [1, 2, 0.5], { rawInput: true })).toThrow('are integers');
    const x = tf.tensor2d([[1, 2, 3]]);
    expect(simulate(graph, x).shape).toEqual([1, 3]);
    x.dispose();
  });
});
