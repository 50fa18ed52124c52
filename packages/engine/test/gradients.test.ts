import { repairGradients } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { causalSoftmax, gelu, layerNorm, logSoftmax, ready, silu, softmaxCrossEntropy } from '../src/index.ts';
import { checkDirections, draw, evaluate, type Input, type Op, uniform } from './differences.ts';

type Pick = (low: number, high: number) => number;
interface Case {
  f: Op;
  inputs: Input[];
  /** Why the cpu backend cannot serve as reference. */
  notOnCpu?: string;
  /** An input that no gradient depends on. */
  addend?: number;
}
type Row = [name: string, make: (pick: Pick) => Case];
type Four = tf.Tensor4D;

const SHAPES = 6;
const one =
  (f: Op, input: Partial<Input> = {}) =>
  (pick: Pick): Case => ({ f, inputs: [{ shape: [pick(1, 5), pick(1, 7), pick(2, 9)], ...input }] });

/** Two shapes of which one is repeated to the other: axes dropped in front and axes of one element. */
function repeated(pick: Pick): [number[], number[]] {
  const whole = [pick(2, 4), pick(2, 7), pick(2, 9)];
  const part = whole.slice(pick(0, 3)).map((length) => (pick(0, 2) === 0 ? 1 : length));
  return pick(0, 1) ? [whole, part] : [part, whole];
}
const two =
  (f: Op, second: Partial<Input> = {}) =>
  (pick: Pick): Case => {
    const [a, b] = repeated(pick);
    return { f, inputs: [{ shape: a }, { shape: b, ...second }] };
  };

const FUNCTIONS: Row[] = [
  ['exp', one(tf.exp)],
  ['tanh', one(tf.tanh)],
  ['erf', one(tf.erf, { range: [-1.5, 1.5] })],
  ['sigmoid', one(tf.sigmoid)],
  ['log', one(tf.log, { range: [0.5, 4] })],
  ['softplus', one(tf.softplus)],
  ['elu', one(tf.elu, { kinks: [0] })],
  ['selu', one(tf.selu, { kinks: [0] })],
  ['relu', one(tf.relu, { kinks: [0] })],
  ['relu6', one(tf.relu6, { kinks: [0, 6], range: [-3, 9] })],
  ['square', one(tf.square)],
  ['sqrt', one(tf.sqrt, { range: [0.5, 4] })],
  ['rsqrt', one(tf.rsqrt, { range: [0.5, 4] })],
  ['neg', one(tf.neg)],
  ['gelu', one((x) => gelu(x))],
  ['gelu, tanh form', one((x) => gelu(x, true))],
  ['silu', one(silu)],
  ['add', two(tf.add)],
  ['sub', two(tf.sub)],
  ['mul', two(tf.mul)],
  ['div', two(tf.div, { range: [1, 3] })],
];

const axesOf = (pick: Pick): number[] => [[0], [1], [2], [0, 2], [1, 2], [0, 1, 2]][pick(0, 5)];

const ROWS: Row[] = [
  ['softmax', one((x) => tf.softmax(x))],
  ['logSoftmax', one(logSoftmax)],
  [
    'causalSoftmax',
    (pick) => {
      const queries = pick(2, 6);
      return { f: (x) => causalSoftmax(x, 0.7), inputs: [{ shape: [pick(1, 3), queries, queries + pick(0, 7)] }] };
    },
  ],
  [
    'softmaxCrossEntropy',
    (pick) => {
      const [rows, n] = [pick(2, 9), pick(2, 13)];
      const labels = Int32Array.from({ length: rows }, (_, i) => (i === 0 ? pick(0, n - 1) : pick(-1, n)));
      return { f: (x) => softmaxCrossEntropy(x, tf.tensor1d(labels, 'int32')), inputs: [{ shape: [rows, n] }] };
    },
  ],
  [
    'layerNorm',
    (pick) => {
      const n = pick(3, 21);
      const inputs = [{ shape: [pick(1, 3), pick(1, 3), n], distinct: 0.5 }, { shape: [n] }, { shape: [n] }];
      return { f: (x, gamma, beta) => layerNorm(x, gamma, beta, 1e-3), inputs, addend: 2 };
    },
  ],
  [
    'sum',
    (pick) => {
      const axes = axesOf(pick);
      return one((x) => tf.sum(x, axes))(pick);
    },
  ],
  [
    'mean',
    (pick) => {
      const axes = axesOf(pick);
      return one((x) => tf.mean(x, axes, true))(pick);
    },
  ],
  [
    'matMul, all transpositions',
    (pick) => {
      const [m, n, k, batch] = [pick(1, 19), pick(1, 19), pick(1, 19), pick(1, 3)];
      const [ta, tb] = [pick(0, 1) === 1, pick(0, 1) === 1];
      return {
        f: (a, b) => tf.matMul(a, b, ta, tb),
        inputs: [{ shape: [batch, ...(ta ? [k, m] : [m, k])] }, { shape: [batch, ...(tb ? [n, k] : [k, n])] }],
      };
    },
  ],
  [
    'matMul, batches repeated',
    (pick) => {
      const [m, n, k, p, q] = [pick(1, 5), pick(1, 9), pick(1, 9), pick(2, 3), pick(2, 3)];
      const outers: [number[], number[]][] = [
        [[p, q], []],
        [[], [p, q]],
        [
          [p, q],
          [1, q],
        ],
        [
          [p, 1],
          [1, q],
        ],
      ];
      const kind = pick(0, 3);
      const [outerA, outerB] = outers[kind];
      const [ta, tb] = [pick(0, 1) === 1, pick(0, 1) === 1];
      return {
        f: (a, b) => tf.matMul(a, b, ta, tb),
        inputs: [{ shape: [...outerA, ...(ta ? [k, m] : [m, k])] }, { shape: [...outerB, ...(tb ? [n, k] : [k, n])] }],
        notOnCpu: kind === 3 ? 'the cpu backend mixes up batches that are both repeated' : undefined,
      };
    },
  ],
  ...(['linear', 'relu', 'relu6', 'elu', 'sigmoid'] as const).map(
    (activation): Row => [
      `fused matMul with bias, ${activation}`,
      (pick) => {
        const [m, n, k] = [pick(1, 5), pick(1, 9), pick(1, 7)];
        const [transposeA, transposeB] = [pick(0, 1) === 1, pick(0, 1) === 1];
        // A bias of 3 or 9, and products below 2 in absolute value, keep the activations away from their kinks.
        const small: Partial<Input> = { range: [-0.5, 0.5] };
        const bias: Input = { shape: [n], range: [2.5, 3.5] };
        return {
          f: (a, b, c) =>
            tf.fused.matMul({
              ...{ a: a as tf.Tensor2D, b: b as tf.Tensor2D, bias: c, activation, transposeA, transposeB },
            }),
          inputs: [
            { shape: transposeA ? [k, m] : [m, k], ...small },
            { shape: transposeB ? [n, k] : [k, n], ...small },
            bias,
          ],
        };
      },
    ],
  ),
  [
    'conv2d',
    (pick) => {
      const [channels, filters, stride] = [pick(1, 5), pick(1, 6), pick(1, 2)];
      const pad = pick(0, 1) ? 'same' : 'valid';
      return {
        f: (x, w) => tf.conv2d(x as Four, w as Four, stride, pad),
        inputs: [
          { shape: [pick(1, 2), pick(5, 8), pick(5, 9), channels] },
          { shape: [3, pick(1, 3), channels, filters] },
        ],
      };
    },
  ],
  [
    'fused conv2d with bias, relu',
    (pick) => {
      const [channels, filters] = [pick(1, 3), pick(1, 6)];
      const inputs: Input[] = [
        { shape: [pick(1, 2), pick(3, 6), pick(3, 7), channels], range: [-0.25, 0.25] },
        { shape: [3, 3, channels, filters], range: [-0.25, 0.25] },
        { shape: [filters], range: [2.5, 3.5] },
      ];
      return {
        f: (x, filter, bias) =>
          tf.fused.conv2d({
            ...{ x: x as Four, filter: filter as Four, bias, strides: 1, pad: 'same', activation: 'relu' },
          }),
        inputs,
      };
    },
  ],
  [
    'conv2d, dilated',
    (pick) => {
      const [channels, filters] = [pick(1, 4), pick(1, 5)];
      const [dilations, pad] = [[pick(1, 3), pick(2, 3)] as [number, number], pick(0, 1) ? 'same' : 'valid'] as const;
      return {
        f: (x, w) => tf.conv2d(x as Four, w as Four, 1, pad, 'NHWC', dilations),
        inputs: [
          { shape: [pick(1, 2), pick(7, 9), pick(7, 9), channels] },
          { shape: [3, pick(2, 3), channels, filters] },
        ],
      };
    },
  ],
  [
    'depthwiseConv2d, dilated',
    (pick) => {
      const [channels, times] = [pick(1, 5), pick(1, 2)];
      const [dilations, pad] = [[pick(1, 3), pick(2, 3)] as [number, number], pick(0, 1) ? 'same' : 'valid'] as const;
      return {
        f: (x, w) => tf.depthwiseConv2d(x as Four, w as Four, 1, pad, 'NHWC', dilations),
        inputs: [
          { shape: [pick(1, 2), pick(7, 8), pick(7, 8), channels] },
          { shape: [3, pick(2, 3), channels, times] },
        ],
      };
    },
  ],
  ...[1, 2].map(
    (dilation): Row => [
      dilation === 1 ? 'conv3d' : 'conv3d, dilated',
      (pick) => {
        const [channels, filters, pad] = [pick(1, 3), pick(1, 3), pick(0, 1) ? 'same' : 'valid'] as const;
        const stride = dilation === 1 ? pick(1, 2) : 1;
        return {
          f: (x, w) => tf.conv3d(x as tf.Tensor5D, w as tf.Tensor5D, stride, pad, 'NDHWC', [dilation, 1, dilation]),
          inputs: [
            { shape: [pick(1, 2), pick(3, 4), pick(3, 4), pick(3, 4), channels] },
            { shape: [2, pick(1, 2), 2, channels, filters] },
          ],
        };
      },
    ],
  ),
  [
    'conv2dTranspose',
    (pick) => {
      const [channels, filters, stride, side] = [pick(1, 3), pick(1, 4), pick(1, 2), pick(3, 5)];
      return {
        f: (x, w) =>
          tf.conv2dTranspose(x as Four, w as Four, [1, side * stride, side * stride, filters], stride, 'same'),
        inputs: [{ shape: [1, side, side, channels] }, { shape: [3, pick(1, 3), filters, channels] }],
      };
    },
  ],
  [
    'depthwiseConv2d',
    (pick) => {
      const [channels, times, stride] = [pick(1, 6), pick(1, 2), pick(1, 2)];
      const pad = pick(0, 1) ? 'same' : 'valid';
      return {
        f: (x, w) => tf.depthwiseConv2d(x as Four, w as Four, stride, pad),
        inputs: [
          { shape: [pick(1, 2), pick(3, 7), pick(3, 8), channels] },
          { shape: [3, pick(1, 3), channels, times] },
        ],
      };
    },
  ],
  ...[tf.maxPool, tf.avgPool].map(
    (pool): Row => [
      pool === tf.maxPool ? 'maxPool' : 'avgPool',
      (pick) => {
        const [size, stride, pad] = [pick(1, 3), pick(1, 3), pick(0, 1) ? ('same' as const) : ('valid' as const)];
        return {
          f: (x) => pool(x as Four, size, stride, pad),
          inputs: [
            {
              shape: [pick(1, 2), pick(3, 8), pick(3, 9), pick(1, 5)],
              distinct: pool === tf.maxPool ? 0.125 : undefined,
            },
          ],
          notOnCpu:
            pool === tf.avgPool && pad === 'same' ? "the cpu backend's gradient is not that of its mean" : undefined,
        };
      },
    ],
  ),
  [
    'gather',
    (pick) => {
      const shape = [pick(2, 4), pick(2, 7), pick(2, 5)];
      const axis = pick(0, 2);
      const indices = Int32Array.from({ length: pick(3, 11) }, () => pick(0, shape[axis] - 1));
      return { f: (x) => tf.gather(x, tf.tensor1d(indices, 'int32'), axis), inputs: [{ shape }] };
    },
  ],
  [
    'unsortedSegmentSum',
    (pick) => {
      const rows = pick(2, 9);
      const ids = Int32Array.from({ length: rows }, (_, i) => (i === 0 ? 1 : pick(-1, 3)));
      return {
        f: (x) => tf.unsortedSegmentSum(x, tf.tensor1d(ids, 'int32'), 4),
        inputs: [{ shape: [rows, pick(1, 7)] }],
      };
    },
  ],
  [
    'transpose',
    (pick) => {
      const order = [
        [2, 0, 1],
        [1, 0, 2],
        [0, 2, 1],
        [2, 1, 0],
      ][pick(0, 3)];
      return one((x) => tf.transpose(x, order))(pick);
    },
  ],
  [
    'slice',
    (pick) => {
      const shape = [pick(2, 4), pick(2, 7), pick(2, 9)];
      const begin = shape.map((length) => pick(0, length - 1));
      const size = shape.map((length, axis) => pick(1, length - begin[axis]));
      return { f: (x) => tf.slice(x, begin, size), inputs: [{ shape }] };
    },
  ],
  [
    'split',
    (pick) => {
      const lengths = [pick(1, 4), pick(1, 3), pick(1, 5)];
      const axis = pick(0, 1);
      const total = lengths[0] + lengths[1] + lengths[2];
      // Unlike factors, so that no two pieces can stand for each other.
      const f: Op = (x) =>
        tf.concat(
          tf
            .split(x, lengths, axis)
            .map((piece, i) => tf.mul(piece, i + 1))
            .reverse(),
          axis,
        );
      return { f, inputs: [{ shape: axis === 0 ? [total, pick(1, 5)] : [pick(1, 5), total] }] };
    },
  ],
  [
    'concat',
    (pick) => {
      const [axis, other] = [pick(0, 1), pick(1, 5)];
      const shape = (n: number): number[] => (axis === 0 ? [n, other] : [other, n]);
      return {
        f: (...xs) => tf.concat(xs, axis),
        inputs: [{ shape: shape(pick(1, 5)) }, { shape: shape(pick(1, 3)) }, { shape: shape(pick(1, 4)) }],
      };
    },
  ],
  [
    'stack',
    (pick) => {
      const [shape, axis] = [[pick(1, 4), pick(1, 5)], pick(0, 2)];
      return { f: (...xs) => tf.stack(xs, axis), inputs: [{ shape }, { shape }, { shape }] };
    },
  ],
  [
    'unstack',
    (pick) => {
      const axis = pick(0, 2);
      const f: Op = (x) => tf.addN(tf.unstack(x, axis).map((piece, i) => tf.mul(piece, 1 + i / 2)));
      return { f, inputs: [{ shape: [pick(2, 4), pick(2, 5), pick(2, 3)] }] };
    },
  ],
  [
    'einsum',
    (pick) => {
      const [b, i, j, k] = [pick(1, 3), pick(1, 5), pick(1, 7), pick(1, 4)];
      const [equation, ...shapes] = [
        ['bij,bjk->bik', [b, i, j], [b, j, k]] as const,
        ['bij,kj->ibk', [b, i, j], [k, j]] as const,
        ['ij,ij->j', [i, j], [i, j]] as const,
        ['bi,jk->bijk', [b, i], [j, k]] as const,
      ][pick(0, 3)];
      return { f: (...xs) => tf.einsum(equation, ...xs), inputs: shapes.map((shape) => ({ shape: [...shape] })) };
    },
  ],
  [
    'einsum of three',
    (pick) => {
      const [i, j, k, l] = [pick(2, 4), pick(2, 5), pick(2, 3), pick(2, 4)];
      return {
        f: (...xs) => tf.einsum('ij,jk,kl->il', ...xs),
        inputs: [{ shape: [i, j] }, { shape: [j, k] }, { shape: [k, l] }],
        notOnCpu: 'the cpu backend has einsum of two tensors only',
      };
    },
  ],
];

/** All gradients of `f` as one function of the points and of the upstream gradient. */
const gradientsOf =
  (f: Op, inputs: number): Op =>
  (...all) =>
    tf.concat(
      tf
        .grads(f)(all.slice(0, inputs), all[inputs])
        .map((gradient) => tf.reshape(gradient, [-1])),
    );

function second([name, make]: Row): Row {
  return [
    name,
    (pick) => {
      const { f, inputs, addend } = make(pick);
      const shape = tf.tidy(() => f(...inputs.map((input) => tf.ones(input.shape))).shape);
      const gradients = gradientsOf(f, inputs.length);
      if (addend === undefined) return { f: gradients, inputs: [...inputs, { shape }] };
      return {
        f: (...xs) => gradients(...xs.toSpliced(addend, 0, tf.ones(inputs[addend].shape))),
        inputs: [...inputs.toSpliced(addend, 1), { shape }],
      };
    },
  ];
}

// What has a second derivative, or gradients that depend on the input: of linear ops nothing depends.
const SECOND = [
  ...['exp', 'tanh', 'erf', 'sigmoid', 'log', 'softplus', 'selu', 'square', 'sqrt', 'rsqrt', 'mul', 'div'],
  ...['gelu', 'gelu, tanh form', 'silu', 'softmax', 'logSoftmax', 'causalSoftmax', 'softmaxCrossEntropy', 'layerNorm'],
  ...[
    'elu',
    'conv2d',
    'conv2d, dilated',
    'conv2dTranspose',
    'fused conv2d with bias, relu',
    'conv3d',
    'conv3d, dilated',
  ],
  ...['depthwiseConv2d', 'depthwiseConv2d, dilated', 'maxPool', 'avgPool'],
  ...['matMul, all transpositions', 'matMul, batches repeated', 'fused matMul with bias, sigmoid', 'einsum'],
];

/** Kernel against cpu, gradients included, and gradients against differences, for random shapes. */
async function check([, make]: Row): Promise<void> {
  let judged = 0;
  for (let seed = 1; judged < SHAPES; seed++) {
    const random = uniform(seed);
    await ready();
    const { f, inputs, notOnCpu } = make((low, high) => low + Math.floor(random() * (high - low + 1)));
    const points = inputs.map((input) => draw(input, random));
    const shapes = points.map(({ shape }) => `[${shape}]`).join(' ');
    const upstream = Float32Array.from({ length: 1 << 14 }, () => 2 * random() - 1);
    const tensors = tf.memory().numTensors;
    try {
      const got = evaluate(f, points, upstream);
      if (checkDirections(f, points, random)) judged++;
      if (!notOnCpu) {
        await tf.setBackend('cpu');
        expectSame(got, evaluate(f, points, upstream));
      }
    } catch (error) {
      throw new Error(`shapes ${shapes} (seed ${seed}): ${(error as Error).message}`, { cause: error });
    } finally {
      await ready();
    }
    expect(tf.memory().numTensors).toBe(tensors);
    if (seed - judged > SHAPES) throw new Error('most gradients drown in rounding errors');
  }
}

type Results = ReturnType<typeof evaluate>;

function expectSame(got: Results, expected: Results): void {
  got.forEach(({ numbers, shape }, output) => {
    const want = expected[output];
    if (!tf.util.arraysEqual(shape, want.shape)) {
      throw new Error(`output ${output} has shape [${shape}], on cpu [${want.shape}]`);
    }
    const scale = want.numbers.reduce((largest, value) => Math.max(largest, Math.abs(value)), 1);
    numbers.forEach((number, i) => {
      if (Math.abs(number - want.numbers[i]) <= 2e-5 * scale) return;
      throw new Error(`output ${output}, element ${i}: ${number}, cpu says ${want.numbers[i]}`);
    });
  });
}

beforeAll(async () => {
  await ready();
  // Gradients of einsum and of repeated batches come from core.
  repairGradients();
});

describe('gradients are those of the cpu backend and slopes of the function', () => {
  it.each([...FUNCTIONS, ...ROWS])('%s', async (...row) => check(row));
});

describe('gradients of gradients, by every input and by the upstream gradient', () => {
  const rows = [...FUNCTIONS, ...ROWS].filter(([name]) => SECOND.includes(name)).map(second);
  it.each(rows)('%s', async (...row) => check(row));
});

describe('gradients of gradients of gradients', () => {
  const third = ['softmax', 'logSoftmax', 'softmaxCrossEntropy', 'layerNorm', 'tanh', 'elu', 'conv2d, dilated'];
  const rows = [...FUNCTIONS, ...ROWS].filter(([name]) => third.includes(name)).map((row) => second(second(row)));
  it.each(rows)('%s', async (...row) => check(row));
});

describe('the check itself', () => {
  /** f whose gradient by one input is off by a factor. */
  const off = (f: Op, input: number, factor: number): Op => {
    const skew = tf.customGrad((x: tf.Tensor | tf.GradSaveFunc) => ({
      value: tf.mul(x as tf.Tensor, 1),
      gradFunc: (dy: tf.Tensor) => tf.mul(dy, factor),
    }));
    return (...xs) => f(...xs.map((x, i) => (i === input ? skew(x) : x)));
  };

  it.each([
    ['square', tf.square as Op, [{ shape: [7, 9] }]],
    ['matMul', (a: tf.Tensor, b: tf.Tensor) => tf.matMul(a, b), [{ shape: [11, 5] }, { shape: [5, 8] }]],
    ['softmax', (x: tf.Tensor) => tf.softmax(x), [{ shape: [6, 9] }]],
  ] as [string, Op, Input[]][])('tells a gradient of %s that is off by one part in a hundred', async (_, f, inputs) => {
    await ready();
    const random = uniform(5);
    const points = inputs.map((input) => draw(input, random));
    inputs.forEach((_, input) => {
      expect(checkDirections(off(f, input, 1), points, random)).toBe(true);
      expect(() => checkDirections(off(f, input, 1.01), points, random)).toThrow(/the gradient says/);
      expect(() => checkDirections(off(f, input, 0.99), points, random)).toThrow(/the gradient says/);
    });
  });

  it('does not judge what drowns in rounding errors', async () => {
    await ready();
    const point = draw({ shape: [5, 5] }, uniform(1));
    const slope = (offset: number): boolean =>
      checkDirections((x) => tf.add(tf.mul(x, 1e-3), offset), [point], uniform(2));
    expect([slope(0), slope(1e3)]).toEqual([true, false]);
  });
});
