import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildGraph, type FixedType, type NodeSpec, type QfxGraph, toRaw } from '@matforge/qfx';
import type { Csim, EmitOptions, Flavour } from '../src/index.ts';
import { random } from './graphs.ts';
import { compileAll, removeTemporary, SANITIZE } from './units.ts';

const compilers: Record<Flavour, string> = { c: 'gcc', hls: 'g++' };
const flavours = Object.keys(compilers) as Flavour[];
const missing = (flavour: Flavour): boolean => spawnSync(compilers[flavour], ['--version']).status !== 0;
const flags: Record<Flavour, string[]> = { c: SANITIZE, hls: ['-O0'] };

afterAll(removeTemporary);

interface Program {
  name: string;
  graph: QfxGraph;
  options?: EmitOptions;
  /** Raw inputs, one flat row after the other. */
  inputs: number[];
  /** Raw outputs that do not come from the simulator. */
  expected?: number[];
}

const S8 = 'ap_fixed<8,4,AP_RND,AP_SAT>';
const U8 = 'ap_ufixed<8,4,AP_RND,AP_SAT>';
const W6 = 'ap_fixed<6,2,AP_RND,AP_SAT>';
const B12 = 'ap_fixed<12,6,AP_RND,AP_SAT>';

function integers(shape: number[], low: number, high: number, seed: number) {
  const next = random(seed);
  const size = shape.reduce((a, b) => a * b, 1);
  return { shape, data: Array.from({ length: size }, () => low + Math.floor(next() * (high - low + 1))) };
}

const weights = (shape: number[], seed = 1) => ({ weights: integers(shape, -32, 31, seed), weightType: W6 });
const bias = (n: number, seed = 2) => ({ bias: integers([n], -2000, 2000, seed), biasType: B12 });

/** A program on 8-bit samples: zero, lowest, highest and random ones. */
function program(name: string, shape: number[], layers: NodeSpec[], options?: EmitOptions): Program {
  const graph = buildGraph({ nodes: [{ op: 'input', name: 'x', shape, type: S8 }, ...layers] });
  const size = shape.reduce((a, b) => a * b, 1);
  const corners = [0, -128, 127].flatMap((v) => new Array<number>(size).fill(v));
  return { name, graph, options, inputs: [...corners, ...integers([5 * size], -128, 127, 77).data] };
}

const conv = (extra: object): NodeSpec =>
  ({ op: 'conv2d', ...weights([3, 2, 2, 3]), ...bias(3), type: U8, activation: 'relu', ...extra }) as NodeSpec;

const programs: Program[] = [
  // 1.5*0.5 + (-2)*1.25 + 0.25 = -1.5 and 1.5*(-1) + (-2)*(-0.75) + 1 = 1; units of 2^-4.
  {
    name: 'dense by hand',
    graph: buildGraph({
      nodes: [
        { op: 'input', shape: [2], type: S8 },
        {
          op: 'dense',
          weights: { shape: [2, 2], data: [8, -16, 20, -12] },
          weightType: W6,
          bias: { shape: [2], data: [16, 64] },
          biasType: B12,
          type: S8,
        },
      ],
    }),
    inputs: [24, -32],
    expected: [-24, 16],
  },
  // -3 >> 1 rounds to -2 (floor), and 5 wraps in three signed bits: 5 - 8 = -3.
  {
    name: 'truncation and wrap-around by hand',
    graph: buildGraph({
      nodes: [
        { op: 'input', shape: [4], type: 'ap_int<8>' },
        { op: 'activation', type: 'ap_fixed<3,4,AP_TRN,AP_WRAP>' },
      ],
    }),
    inputs: [-3, 10, 5, -9],
    expected: [-2, -3, 2, 3],
  },
  {
    name: 'argmax takes the lowest index on ties',
    graph: buildGraph({
      nodes: [{ op: 'input', shape: [2, 3], type: S8 }, { op: 'argmax' }],
    }),
    inputs: [1, 5, 5, -7, -8, -7],
    expected: [1, 0],
  },
  {
    name: 'reshapes alone copy the input',
    graph: buildGraph({
      nodes: [{ op: 'input', shape: [2, 2], type: S8 }, { op: 'reshape', shape: [4, 1] }, { op: 'flatten' }],
    }),
    inputs: [4, 3, -2, 1],
    expected: [4, 3, -2, 1],
  },
  {
    name: 'average of padded windows counts the valid cells alone',
    graph: buildGraph({
      nodes: [
        { op: 'input', shape: [2, 3, 1], type: 'ap_int<8>' },
        { op: 'avgPool2d', size: 2, strides: 2, padding: 'same', type: 'ap_fixed<10,8,AP_RND,AP_SAT>' },
      ],
    }),
    inputs: [1, 2, 7, 3, 4, 8],
    // (1+2+3+4)/4 = 2.5 and (7+8)/2 = 7.5, in quarters.
    expected: [10, 30],
  },
  program('dense on rows', [3, 4], [{ op: 'dense', ...weights([4, 5]), ...bias(5), type: S8 }]),
  program('dense, relu, resource', [12], [{ op: 'dense', ...weights([12, 4]), activation: 'relu', type: U8 }], {
    strategy: 'resource',
    reuseFactor: 6,
  }),
  program('conv2d same', [5, 4, 2], [conv({ padding: 'same' })]),
  program('conv2d same, strides', [6, 5, 2], [conv({ padding: 'same', strides: [2, 3] })]),
  program('conv2d valid, resource', [6, 5, 2], [conv({})], { strategy: 'resource', reuseFactor: 4 }),
  program('conv2d, three positions at once', [5, 4, 2], [conv({ padding: 'same', strides: [1, 2] })], {
    parallelizationFactor: 5,
  }),
  program('conv2d 1 x 1, strides', [5, 4, 2], [{ op: 'conv2d', ...weights([1, 1, 2, 3]), type: S8, strides: 2 }]),
  program('conv2d of one row', [1, 6, 2], [{ op: 'conv2d', ...weights([1, 3, 2, 2]), type: S8 }]),
  program('conv2d of one column', [6, 1, 2], [{ op: 'conv2d', ...weights([4, 1, 2, 2]), type: S8, padding: 'same' }]),
  program('conv1d', [7, 2], [{ op: 'conv1d', ...weights([3, 2, 4]), ...bias(4), type: S8, strides: 2 }]),
  program('depthwise', [5, 5, 3], [{ op: 'depthwiseConv2d', ...weights([3, 3, 3, 1]), ...bias(3), type: S8 }]),
  program(
    'depthwise, multiplier 2, resource',
    [4, 5, 3],
    [{ op: 'depthwiseConv2d', ...weights([2, 3, 3, 2]), type: S8, padding: 'same', strides: 2 }],
    { strategy: 'resource', reuseFactor: 3 },
  ),
  program('batch norm', [3, 2, 4], [{ op: 'batchNorm', ...weights([4]), ...bias(4), activation: 'relu', type: U8 }]),
  program(
    'activation and cast',
    [9],
    [{ op: 'activation', activation: 'relu', type: 'ap_ufixed<4,3,AP_RND_CONV,AP_SAT>' }],
  ),
  program(
    'add of three, one of them twice',
    [6],
    [
      { op: 'dense', name: 'a', ...weights([6, 6]), type: 'ap_fixed<9,5,AP_RND,AP_SAT>' },
      { op: 'add', inputs: ['x', 'a', 'x'], activation: 'relu', type: U8 },
    ],
  ),
  program('max pool, padded', [5, 4, 2], [{ op: 'maxPool2d', size: [3, 2], strides: 2, padding: 'same' }]),
  program(
    'global pools',
    [3, 3, 4],
    [
      { op: 'globalMaxPool2d', name: 'most' },
      { op: 'globalAvgPool2d', name: 'mean', inputs: ['x'], type: 'ap_fixed<8,4,AP_RND,AP_SAT>' },
      { op: 'concat', inputs: ['most', 'mean', 'most'] },
    ],
  ),
  program('softmax on rows', [3, 6], [{ op: 'softmax', expTableSize: 64, invTableSize: 256 }]),
  program('softmax of one', [1], [{ op: 'softmax' }]),
  program(
    'zero padding and concat of rows',
    [3, 3, 2],
    [
      {
        op: 'zeroPad2d',
        name: 'padded',
        padding: [
          [1, 0],
          [2, 1],
        ],
      },
      { op: 'concat', inputs: ['padded', 'padded'], axis: 0 },
      {
        op: 'zeroPad2d',
        padding: [
          [0, 1],
          [0, 0],
        ],
      },
    ],
  ),
  program(
    'a branch joined again, reshaped at the end',
    [4],
    [
      { op: 'dense', name: 'first', ...weights([4, 4]), type: S8 },
      { op: 'dense', name: 'second', ...weights([4, 4], 5), type: S8 },
      { op: 'add', name: 'sum', inputs: ['first', 'second'], type: S8 },
      { op: 'flatten', name: 'end' },
    ],
  ),
  program(
    'k-hot, bias finer than the products',
    [6],
    [
      {
        op: 'dense',
        weights: {
          shape: [6, 2],
          data: [3, -5, 0, 12, -24, 20, 16, -1, 6, -9, 20, 24],
        },
        weightType: W6,
        bias: { shape: [2], data: [-777, 500] },
        biasType: 'ap_fixed<14,3,AP_RND,AP_SAT>',
        type: S8,
        multiplierFree: { k: 2 },
      },
    ],
  ),
  program(
    'signed digits',
    [3],
    [
      {
        op: 'dense',
        weights: { shape: [3, 2], data: [31, -31, 7, -15, 30, -32] },
        weightType: W6,
        type: S8,
        accumulator: 'tight',
        multiplierFree: { k: 2, digits: 'signed' },
      },
    ],
  ),
  program(
    'a wrapping accumulator',
    [8],
    [{ op: 'dense', ...weights([8, 3]), type: S8, activation: 'relu', accumulator: 'ap_fixed<12,3>' }],
  ),
  program(
    'wide words',
    [4],
    [
      {
        op: 'dense',
        weights: integers([4, 2], -(2 ** 29), 2 ** 29, 4),
        weightType: 'ap_fixed<31,2,AP_RND,AP_SAT>',
        type: 'ap_fixed<40,12,AP_RND,AP_SAT>',
      },
      { op: 'activation', type: 'ap_fixed<16,8,AP_RND_ZERO,AP_SAT_SYM>' },
    ],
  ),
];

type Case = {
  name: string;
  kind: string;
  // biome-ignore lint/suspicious/noExplicitAny: every kind of case has its own configuration.
  config: any;
  inputs: Record<string, Tensor>;
  expected: Record<string, Tensor>;
};
type Tensor = { shape: number[]; data: number[] };

/** The golden cases of @matforge/qfx that are whole programs: their raw results come from an independent reference. */
function golden(): Program[] {
  const folder = process.env['MATFORGE_GOLDEN_DIR'];
  const file = folder ? join(folder, 'qfx.json') : join(__dirname, '../../qfx/test/golden.json');
  const { cases } = JSON.parse(readFileSync(file, 'utf8')) as { cases: Case[] };
  const raw = (tensor: Tensor, type: FixedType): Tensor => ({
    shape: tensor.shape,
    data: Array.from(toRaw(tensor.data, type) as Float64Array),
  });
  const perSample = ({ shape }: Tensor): number[] => shape.slice(1);
  return cases.flatMap(({ name, kind, config, inputs, expected }): Program[] => {
    const made = (part: string, type: FixedType, shape: number[], layers: NodeSpec[], result: Tensor): Program => ({
      name: `golden ${name}${part}`,
      graph: buildGraph({ nodes: [{ op: 'input', name: 'x', shape, type }, ...layers] }),
      inputs: expected['xRaw']?.data ?? raw(inputs['x'], type).data,
      expected: result.data,
    });
    const { x: xType, w: weightType, b: biasType, y: type } = config;
    const fields = (suffix = '') =>
      suffix === ''
        ? {
            weights: expected['wRaw'],
            weightType,
            ...(biasType ? { bias: expected['bRaw'], biasType } : {}),
          }
        : {
            weights: raw(inputs[`W${suffix}`], weightType),
            weightType,
            bias: raw(inputs[`b${suffix}`], biasType),
            biasType,
          };
    const { activation, padding } = config;
    switch (kind) {
      case 'dense':
        return [
          made('', xType, perSample(inputs['x']), [{ op: 'dense', ...fields(), activation, type }], expected['yRaw']),
        ];
      case 'conv2d': {
        const op = config.depthwise ? 'depthwiseConv2d' : 'conv2d';
        const unfolded = config.batchNorm === 'unfolded';
        const layers: NodeSpec[] = [
          {
            op,
            ...fields(),
            strides: config.stride,
            padding,
            ...(unfolded ? { type: config.conv } : { activation, type }),
          },
        ];
        if (unfolded) {
          layers.push({
            op: 'batchNorm',
            weights: expected['scaleRaw'],
            weightType: config.scale,
            bias: expected['offsetRaw'],
            biasType: config.offset,
            activation,
            type,
          });
        }
        return [made('', xType, perSample(inputs['x']), layers, expected['yRaw'])];
      }
      case 'elementwise': {
        const shape = perSample(inputs['x']);
        const pool = (part: string, layer: NodeSpec, result: string): Program =>
          made(part, xType, shape, [layer], expected[result]);
        const window = ({ size, stride, padding }: { size: number; stride: number; padding: 'same' | 'valid' }) => ({
          size,
          strides: stride,
          padding,
        });
        const { pool: to, reciprocalBits } = config;
        return [
          pool(' average', { op: 'avgPool2d', ...window(config.avgPool), type: to, reciprocalBits }, 'avgPoolRaw'),
          pool(' maximum', { op: 'maxPool2d', ...window(config.maxPool) }, 'maxPoolRaw'),
          pool(' global average', { op: 'globalAvgPool2d', type: to, reciprocalBits }, 'globalAvgRaw'),
          pool(' global maximum', { op: 'globalMaxPool2d' }, 'globalMaxRaw'),
        ];
      }
      case 'softmaxTable': {
        const { expTableSize, invTableSize } = config;
        const layer: NodeSpec = { op: 'softmax', expTableSize, invTableSize, type };
        return [made('', xType, perSample(inputs['x']), [layer], expected['yRaw'])];
      }
      case 'network': {
        const free = config.k > 0 ? { multiplierFree: { k: config.k } } : {};
        const result = config.activation;
        const layers: NodeSpec[] = [
          { op: 'conv2d', ...fields('1'), activation: 'relu', padding, type: result, ...free },
          { op: 'maxPool2d', size: config.pool },
          { op: 'flatten' },
          { op: 'dense', ...fields('2'), type, ...free },
        ];
        return [made('', xType, perSample(inputs['x']), layers, expected['yRaw'])];
      }
      default:
        return [];
    }
  });
}

describe.each(flavours)('programs in the %s flavour', (flavour) => {
  const all = [...programs, ...golden()].map((p, i) => ({ ...p, options: { ...p.options, name: `op${i}` } }));
  let sims: Csim[];
  const skip = missing(flavour);
  const run = skip ? test.skip.each : test.each;
  beforeAll(async () => {
    if (!skip) sims = await compileAll(all, flavour, flags[flavour]);
  }, 120_000);

  run(all.map((p, i) => [p.name, i] as const))(
    `%s${skip ? ` (skipped: no ${compilers[flavour]})` : ''}`,
    async (_, i) => {
      const { inputs, expected } = all[i];
      const report = await sims[i].compare(inputs, { rawInput: true });
      expect(report).toMatchObject({ mismatches: 0, passed: true });
      if (expected) {
        const { raw } = await sims[i].predict(inputs, { rawInput: true });
        expect(Array.from(raw as Int32Array)).toEqual(expected);
      }
    },
  );
});
