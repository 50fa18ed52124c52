import { ensure } from '@matforge/core';
import {
  type FixedType,
  isMac,
  matrixSize,
  type QfxGraph,
  type RawData,
  type SimulationInput,
  simulate,
  sizeOf,
} from '@matforge/qfx';
import { averageProduct } from './c99.ts';
import { rawRange } from './casts.ts';
import { castLimits, eachSaturation } from './profile.ts';

/** Raw integers of one sample, flat. */
export type RawSample = readonly (number | bigint)[];

/** Options of {@link testbenchSamples}. */
export interface SampleOptions {
  /** Seed of the random samples, default 1. */
  seed?: number;
  /** Random samples, default 100. */
  random?: number;
  /** Draws in search of samples that saturate each layer, default 1000. */
  draws?: number;
}

/** mulberry32: small, seeded, the same everywhere. */
function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Rows of raw integers from whatever a simulation reads; real values are cast to the input type. */
export function rawSamples(graph: QfxGraph, x: SimulationInput, rawInput: boolean): RawSample[] {
  // The input node alone is a graph too: its simulation is the input cast.
  const input = graph.nodes[0];
  const { raw } = simulate({ ...graph, nodes: [input], output: input.id }, x, { rawInput });
  return rowsOf(raw, sizeOf(input.shape));
}

/**
 * Cuts flat raw integers into rows of `size`.
 * @throws MatforgeError when they do not fill whole rows.
 */
export function rowsOf(raw: RawData, size: number): RawSample[] {
  ensure(size > 0 && raw.length % size === 0, 'samples', () => `${raw.length} integers are no rows of ${size}`);
  return Array.from({ length: raw.length / size }, (_, i) =>
    Array.from(raw.slice(i * size, (i + 1) * size) as ArrayLike<number | bigint>),
  );
}

/** Samples flat again, in the form that the simulator reads fastest. */
export function flatten(rows: readonly RawSample[]): number[] | bigint[] {
  // A type is wider than 53 bits or it is not: the rows are all numbers or all bigint.
  return rows.flat() as number[] | bigint[];
}

/**
 * The samples of the testbench: zero, all-lowest, all-highest, random ones, and for every layer one that its cast
 * saturates, where a thousand draws find one.
 */
export function testbenchSamples(graph: QfxGraph, options: SampleOptions = {}): RawSample[] {
  const { seed = 1, random = 100, draws = 1000 } = options;
  const input = graph.nodes[0];
  const size = sizeOf(input.shape);
  const next = generator(seed);
  const [low, high] = legalRange(input.type);
  const narrow = input.type.W <= 53;
  const number = (v: bigint): number | bigint => (narrow ? Number(v) : v);
  const uniform = (): number | bigint => {
    if (narrow) return Number(low) + Math.floor(next() * (Number(high) - Number(low) + 1));
    const bits = (BigInt(Math.floor(next() * 2 ** 32)) << 32n) | BigInt(Math.floor(next() * 2 ** 32));
    return low + (bits % (high - low + 1n));
  };
  const constant = (v: bigint): RawSample => new Array<number | bigint>(size).fill(number(v));
  const anywhere = (): RawSample => Array.from({ length: size }, uniform);
  const extreme = (): RawSample => Array.from({ length: size }, () => number(next() < 0.5 ? low : high));
  const rows: RawSample[] = [constant(0n), constant(low), constant(high)];
  for (let i = 0; i < random; i++) rows.push(anywhere());

  const open = new Set(graph.nodes.filter((node) => canSaturate(graph, node.id)).map(({ id }) => id));
  const search = (batch: readonly RawSample[], keep: boolean): void => {
    const run = simulate(graph, flatten(batch), { rawInput: true, trace: true, accumulators: true });
    for (const id of [...open]) {
      const node = graph.nodes[id - 1];
      let first = Number.POSITIVE_INFINITY;
      eachSaturation(graph, node, run, (index) => {
        if (index < first) first = index;
      });
      if (first === Number.POSITIVE_INFINITY) continue;
      open.delete(id);
      if (keep) rows.push(batch[Math.floor(first / sizeOf(node.shape))]);
    }
  };
  const chunk = Math.max(1, Math.min(50, Math.floor(2e7 / (macs(graph) + 1))));
  for (let i = 0; i < rows.length && open.size > 0 && i < 3 + random; i += chunk) {
    search(rows.slice(i, Math.min(i + chunk, 3 + random)), false);
  }
  for (let done = 0; done < draws && open.size > 0; done += chunk) {
    const batch = Array.from({ length: Math.min(chunk, draws - done) }, (_, i) =>
      (done + i) % 2 === 0 ? extreme() : anywhere(),
    );
    search(batch, true);
  }
  return rows;
}

/** The integers that a cast to the type can return: AP_SAT_SYM never returns the least one. */
export function legalRange(type: FixedType): [bigint, bigint] {
  const [low, high] = rawRange(type);
  return [type.O === 'AP_SAT_SYM' && type.signed ? -high : low, high];
}

/** False when the exact values in front of a node's cast cannot leave its type, whatever the input is. */
function canSaturate(graph: QfxGraph, id: number): boolean {
  const node = graph.nodes[id - 1];
  let source: [bigint, bigint];
  let fraction: number;
  if (isMac(node) || node.op === 'add') {
    source = rawRange(node.accumulator);
    fraction = node.accFraction;
  } else if (node.op === 'activation') {
    const from = graph.nodes[node.inputs[0] - 1].type;
    source = rawRange(from);
    fraction = from.W - from.I;
  } else if (node.op === 'avgPool2d') {
    ({ range: source, fraction } = averageProduct(graph.nodes[node.inputs[0] - 1].type, node));
  } else {
    return false;
  }
  const [least, most] = castLimits(node.type, fraction);
  const relu = 'activation' in node && node.activation === 'relu';
  return source[1] > most || (relu ? 0n : source[0]) < least;
}

/** Multiply-accumulates of one inference. */
export function macs(graph: QfxGraph): number {
  return graph.nodes.reduce((sum, node) => {
    if (!isMac(node)) return sum;
    const { nIn, nOut, positions } = matrixSize(node);
    return sum + nIn * nOut * positions;
  }, 0);
}
