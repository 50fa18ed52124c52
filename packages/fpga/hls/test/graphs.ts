import {
  buildGraph,
  digitLevels,
  type FixedType,
  fixedType,
  type NodeSpec,
  OVERFLOW_MODES,
  type QfxGraph,
  QUANTIZATION_MODES,
  type RawInput,
} from '@matforge/qfx';
import * as fc from 'fast-check';
import type { EmitOptions } from '../src/index.ts';

/** A choice in 0..1 for everything that a layer may need; what it means depends on the shape it meets. */
interface Recipe {
  op: string;
  seed: number;
}

export interface RandomGraph {
  graph: QfxGraph;
  options: EmitOptions;
  /** Raw samples, flat. */
  inputs: number[];
}

/** mulberry32 */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const pick = <T>(next: () => number, items: readonly T[]): T => items[Math.floor(next() * items.length)];
const between = (next: () => number, low: number, high: number): number => low + Math.floor(next() * (high - low + 1));

/** Mostly a few bits near the binary point, sometimes many or far away; every rounding and overflow mode. */
function randomType(next: () => number, widest: number): FixedType {
  const shape = next();
  const W = shape < 0.7 ? between(next, 1, 10) : shape < 0.86 ? between(next, 8, 24) : between(next, 20, widest);
  const I = next() < 0.9 ? between(next, -2, Math.min(W, 8) + 2) : between(next, -20, W + 12);
  const Q = pick(next, QUANTIZATION_MODES);
  const signed = next() < 0.6;
  const legal = OVERFLOW_MODES.filter((O) => (O === 'AP_WRAP_SM' ? signed : O !== 'AP_SAT_SYM' || !signed || W > 1));
  const O = pick(next, legal);
  // The vendor's headers agree with the standard on AP_WRAP_SM only without rounding.
  return fixedType(W, I, { signed, Q: O === 'AP_WRAP_SM' && next() < 0.8 ? 'AP_TRN' : Q, O });
}

function rawTensor(next: () => number, shape: number[], type: FixedType, levels?: number[]): RawInput {
  const low = type.signed ? -(2 ** (type.W - 1)) : 0;
  const high = type.signed ? 2 ** (type.W - 1) - 1 : 2 ** type.W - 1;
  const data = Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => {
    if (levels) return (type.signed && next() < 0.5 ? -1 : 1) * pick(next, levels) + 0;
    const corner = next();
    return corner < 0.05 ? low : corner < 0.1 ? high : between(next, low, high);
  });
  return { shape, data };
}

/** Result types are centred on the sums, or most layers would only ever return 0 or the extremes. */
function near(type: FixedType, sums: FixedType, next: () => number): FixedType {
  if (next() < 0.3) return type;
  return fixedType(type.W, sums.I - between(next, 0, 4) + (type.signed ? 0 : -1), type);
}

interface Made {
  name: string;
  shape: number[];
  type: FixedType;
}

const OPS = [
  'dense',
  'conv2d',
  'conv2d',
  'conv1d',
  'depthwiseConv2d',
  'batchNorm',
  'activation',
  'add',
  'maxPool2d',
  'avgPool2d',
  'globalAvgPool2d',
  'globalMaxPool2d',
  'flatten',
  'reshape',
  'zeroPad2d',
  'concat',
];

/** Sums of products over `terms` inputs. */
function macFields(next: () => number, x: FixedType, shape: number[], channels: number, terms: number) {
  const free = next() < 0.25;
  let weightType = randomType(next, 40);
  const k = between(next, 1, 3);
  const digits = pick(next, ['unsigned', 'signed'] as const);
  if (free) weightType = fixedType(Math.min(weightType.W, 10), weightType.I, { ...weightType, O: 'AP_SAT' });
  const high = weightType.signed ? 2 ** (weightType.W - 1) - 1 : 2 ** weightType.W - 1;
  const levels = free ? digitLevels(high, k, digits) : undefined;
  const weights = rawTensor(next, shape, weightType, levels);
  const withBias = next() < 0.7;
  const biasType = randomType(next, 45);
  const sums = fixedType(8, x.I + weightType.I + Math.ceil(Math.log2(terms)), {});
  const rule = next();
  const fraction = Math.max(x.W - x.I + weightType.W - weightType.I, withBias ? biasType.W - biasType.I : -999);
  const width = between(next, 4, 40);
  const explicit = `${next() < 0.7 ? 'ap_fixed' : 'ap_ufixed'}<${width},${width - fraction - between(next, 0, 2)}>`;
  return {
    weights,
    weightType,
    ...(withBias ? { bias: rawTensor(next, [channels], biasType), biasType } : {}),
    activation: next() < 0.5 ? ('relu' as const) : ('linear' as const),
    type: near(randomType(next, 45), sums, next),
    accumulator: rule < 0.55 ? ('full' as const) : rule < 0.85 ? ('tight' as const) : explicit,
    ...(free ? { multiplierFree: { k, digits } } : {}),
    directives: {
      reuseFactor: between(next, 1, 40),
      strategy: pick(next, ['latency', 'resource'] as const),
    },
  };
}

/** Turns a recipe into a node that fits what is there; undefined when the op cannot follow. */
function node(op: string, name: string, made: Made[], next: () => number): NodeSpec | undefined {
  const from = made[made.length - 1];
  const { shape, type } = from;
  const last = shape[shape.length - 1];
  const size = shape.reduce((a, b) => a * b, 1);
  const base = { name, inputs: [from.name] };
  const image = shape.length === 3;
  const window = () => [between(next, 1, Math.min(3, shape[0])), between(next, 1, Math.min(3, shape[1]))] as const;
  const strides = () => [between(next, 1, 2), between(next, 1, 3)] as const;
  const padding = pick(next, ['valid', 'same'] as const);
  switch (op) {
    case 'dense': {
      const out = between(next, 1, 6);
      return { ...base, op, ...macFields(next, type, [last, out], out, last) };
    }
    case 'conv1d': {
      if (shape.length !== 2) return undefined;
      const [k, out] = [between(next, 1, Math.min(3, shape[0])), between(next, 1, 4)];
      const fields = macFields(next, type, [k, last, out], out, k * last);
      return { ...base, op, ...fields, strides: between(next, 1, 2), padding };
    }
    case 'conv2d': {
      if (!image) return undefined;
      const [kh, kw] = window();
      const out = between(next, 1, 4);
      return {
        ...base,
        op,
        ...macFields(next, type, [kh, kw, last, out], out, kh * kw * last),
        strides: strides(),
        padding,
      };
    }
    case 'depthwiseConv2d': {
      if (!image) return undefined;
      const [kh, kw] = window();
      const multiplier = between(next, 1, 2);
      const fields = macFields(next, type, [kh, kw, last, multiplier], last * multiplier, kh * kw);
      return { ...base, op, ...fields, strides: strides(), padding };
    }
    case 'batchNorm':
      return { ...base, op, ...macFields(next, type, [last], last, 1) };
    case 'activation':
      return {
        ...base,
        op,
        activation: pick(next, ['relu', 'linear'] as const),
        type: near(randomType(next, 40), type, next),
      };
    case 'add': {
      const peers = made.filter((m) => `${m.shape}` === `${shape}`);
      const inputs = [from.name, pick(next, peers).name, ...(next() < 0.2 ? [pick(next, peers).name] : [])];
      const activation = pick(next, ['relu', 'linear'] as const);
      return { name, inputs, op, activation, type: near(randomType(next, 40), type, next) };
    }
    case 'concat': {
      const peers = made.filter(
        (m) =>
          m.shape.length === shape.length &&
          m.type.W === type.W &&
          m.type.I === type.I &&
          m.type.signed === type.signed,
      );
      const axis = between(next, 0, shape.length - 1);
      const matching = peers.filter((m) => m.shape.every((d, i) => i === axis || d === shape[i]));
      return { name, op, inputs: [from.name, pick(next, matching).name], axis };
    }
    case 'maxPool2d':
      return image ? { ...base, op, size: window(), strides: strides(), padding } : undefined;
    case 'avgPool2d':
      return image
        ? {
            ...base,
            op,
            size: window(),
            strides: strides(),
            padding,
            type: near(randomType(next, 30), type, next),
            reciprocalBits: between(next, 4, 18),
          }
        : undefined;
    case 'globalAvgPool2d':
      return image && next() < 0.5 ? { ...base, op, type: near(randomType(next, 30), type, next) } : undefined;
    case 'globalMaxPool2d':
      return image && next() < 0.5 ? { ...base, op } : undefined;
    case 'flatten':
      return next() < 0.5 ? { ...base, op } : undefined;
    case 'reshape': {
      const divisors = [1, 2, 3, 4].filter((d) => size % d === 0);
      const d = pick(next, divisors);
      return { ...base, op, shape: next() < 0.5 ? [d, size / d] : [d, 1, size / d] };
    }
    case 'zeroPad2d':
      return image && size < 200
        ? {
            ...base,
            op,
            padding: [
              [between(next, 0, 1), between(next, 0, 2)],
              [between(next, 0, 2), between(next, 0, 1)],
            ],
          }
        : undefined;
    default:
      return undefined;
  }
}

const recipe: fc.Arbitrary<Recipe> = fc.record({ op: fc.constantFrom(...OPS), seed: fc.nat(2 ** 30) });

/** Random graphs of supported layers with random types, folding and interfaces. */
export const randomGraph: fc.Arbitrary<{ seed: number; recipes: Recipe[] }> = fc.record({
  seed: fc.nat(2 ** 30),
  recipes: fc.array(recipe, { minLength: 1, maxLength: 7 }),
});

/** Grows the graph of a description; every node that nothing else reads is joined into the output where types allow. */
export function grow(name: string, description: { seed: number; recipes: Recipe[] }, samples = 12): RandomGraph {
  const next = random(description.seed);
  const inputType = randomType(next, 40);
  const inputShape = pick(next, [[5], [6, 2], [5, 4, 2], [4, 6, 1], [3, 3, 3], [1, 5, 2], [7, 1, 1]]);
  const made: Made[] = [{ name: 'x', shape: inputShape, type: inputType }];
  const nodes: NodeSpec[] = [{ op: 'input', name: 'x', shape: inputShape, type: inputType }];
  const build = (extra?: NodeSpec): QfxGraph => {
    const all = extra ? [...nodes, extra] : nodes;
    return buildGraph({ name, nodes: all });
  };
  const append = (op: string, seed: number): void => {
    const layer = node(op, `${op}-${nodes.length}`, made, random(seed));
    if (!layer) return;
    const graph = build(layer);
    const built = graph.nodes[graph.nodes.length - 1];
    nodes.push(layer);
    made.push({ name: built.name, shape: [...built.shape], type: built.type });
  };
  for (const { op, seed } of description.recipes) append(op, seed);
  const end = next();
  const { type, shape } = made[made.length - 1];
  if (end < 0.2 && type.W <= 20) {
    nodes.push({
      op: 'softmax',
      name: 'softmax',
      expTableSize: pick(next, [16, 128, 1024]),
      invTableSize: pick(next, [16, 4096]),
      ...(next() < 0.5 ? { type: randomType(next, 30) } : {}),
    });
  } else if (end < 0.35 && shape.length > 0) nodes.push({ op: 'argmax', name: 'argmax' });
  const graph = build();
  const size = inputShape.reduce((a, b) => a * b, 1);
  const low = inputType.signed ? -(2 ** (inputType.W - 1)) : 0;
  const high = inputType.signed ? 2 ** (inputType.W - 1) - 1 : 2 ** inputType.W - 1;
  const inputs = Array.from({ length: samples }, (_, i) =>
    Array.from({ length: size }, () => (i === 0 ? 0 : i === 1 ? low : i === 2 ? high : between(next, low, high))),
  ).flat();
  const options: EmitOptions = {
    name,
    ioType: pick(next, ['io_parallel', 'axis', 'm_axi'] as const),
    ...(next() < 0.3 ? { parallelizationFactor: 2 } : {}),
  };
  return { graph, options, inputs };
}
