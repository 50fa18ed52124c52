import { buildGraph, graphFromJson, graphToJson, type MacNode, type NodeSpec } from '../src/index.ts';

const range = (n: number, from = 0): number[] => Array.from({ length: n }, (_, i) => i + from);

describe('buildGraph', () => {
  const cnn: NodeSpec[] = [
    { op: 'input', name: 'x', shape: [4, 5, 2], type: 'ap_ufixed<4,2,AP_RND,AP_SAT>' },
    {
      op: 'conv2d',
      name: 'conv',
      padding: 'same',
      strides: 2,
      weights: { shape: [3, 3, 2, 3], data: range(54, -27) },
      weightType: 'ap_fixed<6,2,AP_RND,AP_SAT>',
      bias: { shape: [3], data: [1, -2, 3] },
      biasType: 'ap_fixed<8,1,AP_RND,AP_SAT>',
      activation: 'relu',
      type: 'ap_ufixed<6,5,AP_RND,AP_SAT>',
    },
    { op: 'maxPool2d', size: 2 },
    { op: 'flatten' },
    {
      op: 'dense',
      weights: { shape: [3, 2], data: range(6, -3) },
      weightType: 'ap_int<3>',
      type: 'ap_fixed<12,10,AP_RND,AP_SAT>',
    },
  ];

  test('derives shapes, TensorFlow padding, accumulators and alignment', () => {
    const graph = buildGraph({ nodes: cnn });
    expect(graph.nodes.map(({ shape }) => shape)).toEqual([[4, 5, 2], [2, 3, 3], [1, 1, 3], [3], [2]]);
    const conv = graph.nodes[1] as MacNode & { window: object };
    expect(conv.window).toMatchObject({ padTop: 0, padBottom: 1, padLeft: 1, padRight: 1, outH: 2, outW: 3 });
    // Product 10 bits with 6 fraction bits, 18 terms: +5; the bias has 7 fraction bits: one more bit on each side.
    expect(conv.accumulator).toMatchObject({ W: 17, I: 10, signed: true });
    expect([conv.accFraction, conv.productShift, conv.biasShift]).toEqual([7, 1, 0]);
  });

  test('survives JSON', () => {
    const graph = buildGraph({ nodes: cnn });
    expect(graphFromJson(graphToJson(graph))).toEqual(graph);
    expect(() => graphFromJson('{}')).toThrow('not a matforge-qfx graph');
  });

  test('stores raw integers above 53 bits as text', () => {
    const big = 2n ** 62n + 1n;
    const graph = buildGraph({
      nodes: [
        { op: 'input', shape: [1], type: 'ap_fixed<2,2>' },
        {
          op: 'dense',
          weights: { shape: [1, 1], data: [big] },
          weightType: 'ap_fixed<64,1>',
          type: 'ap_fixed<64,2>',
        },
      ],
    });
    expect((graph.nodes[1] as MacNode).weights.data).toEqual([big.toString()]);
    expect(graphFromJson(graphToJson(graph))).toEqual(graph);
  });

  test.each<[string, NodeSpec[], string]>([
    ['no input', [{ op: 'flatten' }], 'no input quantizer'],
    ['unread node', [cnn[0], { op: 'flatten' }, { op: 'flatten', inputs: ['x'] }], 'no node reads'],
    ['unknown name', [cnn[0], { op: 'flatten', inputs: ['y'] }], 'reads "y"'],
    [
      'raw out of range',
      [cnn[0], { ...cnn[1], weightType: 'ap_fixed<5,2>' } as NodeSpec],
      'does not fit 5 signed bits',
    ],
    ['rounding accumulator', [cnn[0], { ...cnn[1], accumulator: 'ap_fixed<20,14>' } as NodeSpec], 'would round sums'],
    [
      'saturating accumulator',
      [cnn[0], { ...cnn[1], accumulator: 'ap_fixed<20,10,AP_TRN,AP_SAT>' } as NodeSpec],
      'would saturate',
    ],
    ['reuse factor 0', [cnn[0], { op: 'flatten', directives: { reuseFactor: 0 } }], 'at least 1'],
    [
      'concat of two types',
      [cnn[0], { op: 'activation', name: 'a', type: 'ap_fixed<4,2>' }, { op: 'concat', inputs: ['x', 'a'] }],
      'inputs of one type',
    ],
    ['too many digits', [cnn[0], { ...cnn[1], multiplierFree: { k: 1 } } as NodeSpec], 'more than k = 1'],
  ])('refuses %s', (_, nodes, message) => {
    expect(() => buildGraph({ nodes })).toThrow(message);
  });
});
