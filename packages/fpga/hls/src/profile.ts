import {
  type FixedType,
  fixedType,
  formatType,
  fractionBits,
  isMac,
  overflowBig,
  type QfxGraph,
  type QfxNode,
  type RawData,
  rawBigints,
  rawNumbers,
  type Simulation,
  type SimulationInput,
  shiftRound,
  simulate,
  type Window2d,
} from '@matforge/qfx';
import { averageProduct } from './c99.ts';
import { rawRange } from './casts.ts';
import { describe } from './plan.ts';
import { decimal } from './text.ts';

/** Which tensor of a layer a {@link ProfileRow} describes; `accum` is the sum before the cast. */
export type TensorRole = 'input' | 'weight' | 'bias' | 'accum' | 'result';

/** What the calibration samples did with one tensor. */
export interface ProfileRow {
  layer: string;
  tensor: TensorRole;
  type: string;
  fixed: FixedType;
  /** Least and largest raw integer seen; decimal strings beyond 53 bits. */
  min: number | string;
  max: number | string;
  /** The same as values. */
  minValue: number;
  maxValue: number;
  /** Least magnitude other than zero, as a value; 0 when all are zero. */
  leastMagnitude: number;
  elements: number;
  zeros: number;
  /** Elements whose rounded value left the type; null where that is not known (weights arrive already cast). */
  saturated: number | null;
  /** A type of the same width whose binary point fits what was seen. */
  suggested: string;
}

/** What the cast of a node reads: exact values in units of 2^-fraction, ReLU not yet applied. */
interface CastSource {
  values: RawData;
  fraction: number;
  relu: boolean;
}

function castSource(graph: QfxGraph, node: QfxNode, run: Simulation): CastSource | undefined {
  const relu = 'activation' in node && node.activation === 'relu';
  if (isMac(node) || node.op === 'add') {
    const sums = run.accumulators[node.name];
    const wraps = isMac(node) && node.accumulatorRule === 'explicit';
    const values = wraps
      ? Array.from(sums as ArrayLike<number | bigint>, (v) => overflowBig(BigInt(v), node.accumulator))
      : sums;
    return { values, fraction: node.accFraction, relu };
  }
  if (node.op === 'activation') {
    const from = graph.nodes[node.inputs[0] - 1];
    return { values: run.trace[from.name].raw, fraction: fractionBits(from.type), relu };
  }
  if (node.op === 'avgPool2d') {
    const { scaled, fraction } = averageProduct(graph.nodes[node.inputs[0] - 1].type, node);
    const reciprocalOf = new Map(scaled.map(({ count, raw }) => [count, raw]));
    const counts = cellCounts(node.window);
    const { inC } = node.window;
    const products = Array.from(
      run.accumulators[node.name] as ArrayLike<number | bigint>,
      (sum, i) => BigInt(sum) * reciprocalOf.get(counts[Math.floor(i / inC) % counts.length])!,
    );
    return { values: products, fraction, relu };
  }
  return undefined;
}

/** The number of cells that are not padding, for every position of a window. */
function cellCounts(window: Window2d): number[] {
  const { inH, inW, outH, outW, kernelH, kernelW, strideH, strideW, padTop, padLeft } = window;
  const inside = (start: number, kernel: number, n: number): number => Math.min(start + kernel, n) - Math.max(start, 0);
  return Array.from({ length: outH * outW }, (_, i) => {
    const rows = inside(Math.floor(i / outW) * strideH - padTop, kernelH, inH);
    return rows * inside((i % outW) * strideW - padLeft, kernelW, inW);
  });
}

/** Calls `hit(index)` for every element that the cast of the node changed by its overflow mode. */
export function eachSaturation(graph: QfxGraph, node: QfxNode, run: Simulation, hit: (index: number) => void): boolean {
  const source = castSource(graph, node, run);
  if (!source) return false;
  const { values, relu } = source;
  const limits = castLimits(node.type, source.fraction);
  if (Array.isArray(values)) {
    for (let i = 0; i < values.length; i++) {
      const v = relu && values[i] < 0n ? 0n : values[i];
      if (v < limits[0] || v > limits[1]) hit(i);
    }
    return true;
  }
  const [low, high] = [Number(limits[0]), Number(limits[1])];
  for (let i = 0; i < values.length; i++) {
    const v = relu && values[i] < 0 ? 0 : values[i];
    if (v < low || v > high) hit(i);
  }
  return true;
}

/** The least and the largest v * 2^-fraction that rounds into the type. */
export function castLimits(type: FixedType, fraction: number): [bigint, bigint] {
  const sh = fraction - fractionBits(type);
  let [lo, hi] = rawRange(type);
  if (type.O === 'AP_SAT_SYM' && type.signed) lo = -hi;
  if (sh <= 0) {
    const up = 1n << BigInt(-sh);
    return [-(-lo / up), hi / up];
  }
  // Rounding is monotone: look for the edge within two steps of where it must be.
  const step = 1n << BigInt(sh);
  let low = (lo - 2n) * step;
  for (let span = 4n * step; span > 0n; span >>= 1n) {
    while (shiftRound(low + span, sh, type.Q) < lo) low += span;
  }
  let high = (hi + 2n) * step;
  for (let span = 4n * step; span > 0n; span >>= 1n) {
    while (shiftRound(high - span, sh, type.Q) > hi) high -= span;
  }
  return [low + 1n, high - 1n];
}

/**
 * Ranges, saturation counts and suggested types of every tensor of the graph on a batch of samples.
 * @param x samples, [batch, ...input shape]; raw integers with `rawInput`.
 */
export function profile(graph: QfxGraph, x: SimulationInput, options: { rawInput?: boolean } = {}): ProfileRow[] {
  return profileOf(graph, simulate(graph, x, { ...options, trace: true, accumulators: true }));
}

/** As {@link profile}, from a simulation that kept its trace and accumulators. */
export function profileOf(graph: QfxGraph, run: Simulation): ProfileRow[] {
  const rows: ProfileRow[] = [];
  for (const node of graph.nodes) {
    if (node.op === 'reshape' || node.op === 'flatten') continue;
    if (isMac(node)) {
      const tensors = [
        ['weight', node.weights, node.weightType],
        ['bias', node.bias, node.biasType],
      ] as const;
      for (const [tensor, raw, type] of tensors) {
        if (!raw || !type) continue;
        const data = type.W <= 53 ? rawNumbers(raw) : rawBigints(raw);
        rows.push(row(node.name, tensor, type, formatType(type), data, null));
      }
    }
    const sums = run.accumulators[node.name];
    if (sums && 'accumulator' in node) {
      const { accumulator } = node;
      const [low, high] = rawRange(accumulator);
      let outside = 0;
      for (const v of sums) if (v < low || v > high) outside++;
      rows.push(row(node.name, 'accum', accumulator, describe(accumulator), sums, outside));
    }
    let saturated = 0;
    const known = eachSaturation(graph, node, run, () => {
      saturated++;
    });
    const role = node.op === 'input' ? 'input' : 'result';
    rows.push(row(node.name, role, node.type, describe(node.type), run.trace[node.name].raw, known ? saturated : null));
  }
  return rows;
}

function row(
  layer: string,
  tensor: TensorRole,
  fixed: FixedType,
  type: string,
  data: RawData,
  saturated: number | null,
): ProfileRow {
  const F = fractionBits(fixed);
  let least: number | bigint = data[0];
  let most: number | bigint = data[0];
  let magnitude: number | bigint | undefined;
  let zeros = 0;
  for (const v of data) {
    if (v < least) least = v;
    if (v > most) most = v;
    if (Number(v) === 0) zeros++;
    else {
      const m = v < 0 ? -v : v;
      if (magnitude === undefined || m < magnitude) magnitude = m;
    }
  }
  const json = (v: number | bigint): number | string =>
    typeof v === 'bigint' && (v > 9007199254740991n || v < -9007199254740991n) ? v.toString() : Number(v);
  const value = (v: number | bigint): number => Number(decimal(v, F));
  return {
    layer,
    tensor,
    type,
    fixed,
    min: json(least),
    max: json(most),
    minValue: value(least),
    maxValue: value(most),
    leastMagnitude: magnitude === undefined ? 0 : value(magnitude),
    elements: data.length,
    zeros,
    saturated,
    // An accumulator's type follows from the operands; it is nobody's choice.
    suggested: tensor === 'accum' ? type : suggest(fixed, BigInt(least), BigInt(most), saturated ?? 0),
  };
}

/** Same width and modes; as few integer bits as the range needs, one more than now where values saturated. */
function suggest(type: FixedType, least: bigint, most: bigint, saturated: number): string {
  if (type.W > 64) return describe(type);
  let I = type.I;
  if (saturated > 0) {
    I += 1;
  } else if (least !== 0n || most !== 0n) {
    let bits = type.signed ? 1 : 0;
    const fits = (): boolean =>
      type.signed
        ? least >= -(1n << BigInt(bits - 1)) && most <= (1n << BigInt(bits - 1)) - 1n
        : most <= (1n << BigInt(bits)) - 1n;
    while (!fits()) bits++;
    I = bits - fractionBits(type);
  }
  return describe(fixedType(type.W, I, type));
}

/**
 * The profile as an SVG picture: for every tensor the range of its type (light) and the range of magnitudes seen (dark)
 * on a scale of powers of two, saturations in red, the suggested type to the right.
 */
export function profileSvg(rows: readonly ProfileRow[]): string {
  const exponent = (v: number): number => Math.log2(Math.abs(v));
  const spans = rows.map((r) => {
    const type = r.fixed;
    const seen = Math.max(Math.abs(r.minValue), Math.abs(r.maxValue));
    return {
      row: r,
      typeLow: -fractionBits(type),
      typeHigh: type.I - (type.signed ? 1 : 0),
      low: r.leastMagnitude > 0 ? exponent(r.leastMagnitude) : undefined,
      high: seen > 0 ? exponent(seen) : undefined,
    };
  });
  const least = Math.floor(Math.min(...spans.map((s) => Math.min(s.typeLow, s.low ?? s.typeLow)))) - 1;
  const most = Math.ceil(Math.max(...spans.map((s) => Math.max(s.typeHigh, s.high ?? s.typeHigh)))) + 1;
  const left = 230;
  const width = 520;
  const line = 20;
  const top = 46;
  const height = top + rows.length * line + 34;
  const at = (e: number): number => tenths(left + ((e - least) / (most - least)) * width);
  const step = Math.max(1, Math.ceil((most - least) / 13));
  const parts: string[] = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="1050" height="${height}" viewBox="0 0 1050 ${height}" font-family="sans-serif" font-size="12">`,
    `<rect width="1050" height="${height}" fill="#ffffff"/>`,
    '<text x="12" y="20" font-size="14" font-weight="bold">Magnitudes seen (dark) within the types (light), powers of two</text>',
  ];
  for (let e = least; e <= most; e += step) {
    parts.push(
      `<line x1="${at(e)}" y1="${top - 8}" x2="${at(e)}" y2="${height - 26}" stroke="#dddddd"/>`,
      `<text x="${at(e)}" y="${height - 10}" text-anchor="middle" fill="#555555">2^${e}</text>`,
    );
  }
  spans.forEach((s, i) => {
    const y = top + i * line;
    const { row: r } = s;
    parts.push(
      `<text x="12" y="${y + 11}">${escapeXml(`${r.layer} ${r.tensor}`.slice(0, 34))}</text>`,
      `<rect x="${at(s.typeLow)}" y="${y}" width="${tenths(Math.max(at(s.typeHigh) - at(s.typeLow), 1))}" height="14" fill="#c9dcf0"/>`,
    );
    if (s.low !== undefined && s.high !== undefined) {
      const color = r.saturated ? '#c0392b' : '#2f6690';
      parts.push(
        `<rect x="${at(s.low)}" y="${y + 4}" width="${tenths(Math.max(at(s.high) - at(s.low), 2))}" height="6" fill="${color}"/>`,
      );
    }
    const better = r.suggested === r.type ? 'fits' : r.suggested;
    const note = r.saturated ? `${r.saturated} of ${r.elements} saturated: ${better}` : better;
    parts.push(
      `<text x="${left + width + 12}" y="${y + 11}" fill="${r.saturated ? '#c0392b' : '#333333'}">${escapeXml(note)}</text>`,
    );
  });
  parts.push('</svg>');
  return `${parts.join('\n')}\n`;
}

const tenths = (v: number): number => Math.round(v * 10) / 10;

const escapeXml = (text: string): string =>
  text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/"/g, '&quot;');
