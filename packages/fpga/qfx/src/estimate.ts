import { ensure } from '@matforge/core';
import { isMac, matrixSize, nodeOf, type QfxGraph } from './graph.ts';
import { ceilLog2 } from './types.ts';

/** What the estimate of one matrix layer needs to know. */
export interface LayerSize {
  /** Inputs per output: kh*kw*C_in for convolutions, kh*kw for depthwise ones. */
  readonly nIn: number;
  /** Outputs per position. */
  readonly nOut: number;
  /** Default 1. Used as given; see {@link nearestReuseFactor}. */
  readonly reuseFactor?: number;
  /** Word length of the inputs. */
  readonly Wx: number;
  /** Word length of the weights. */
  readonly Ww: number;
  /** Word length of the accumulator. */
  readonly Wacc: number;
  /** Digits of multiplier-free weights; absent or 0: multipliers. */
  readonly k?: number;
  /** Output positions, default 1. */
  readonly pixels?: number;
}

/** Options of {@link estimate} and {@link estimateLayer}. */
export interface EstimateOptions {
  /** Narrower operands up to this width are multiplied in LUTs. Default 8. */
  lutMaxBits?: number;
  /** Ports of the DSP block. Default [27, 18]; 7-series: [25, 18]. */
  dspPorts?: readonly [number, number];
  /** Overrides the directives of the graph, by node name. */
  reuseFactors?: Readonly<Record<string, number>>;
}

/** Counts before synthesis: an analytic estimate (after FINN-R), not a synthesis result. */
export interface Resources {
  multipliers: number;
  dsp: number;
  lut: number;
  bram18: number;
  /** Initiation interval in clock cycles. */
  ii: number;
}

/**
 * The resources of one matrix layer with M = ceil(n_in*n_out/R) multipliers: LUT multipliers up to `lutMaxBits`, DSP
 * blocks above, shift-and-add for k-hot weights; weights in fabric (R = 1), LUT-ROM (R <= 64) or BRAM18.
 */
export function estimateLayer(layer: LayerSize, options: EstimateOptions = {}): Resources {
  const { nIn, nOut, reuseFactor: R = 1, Wx, Ww, Wacc, k = 0, pixels = 1 } = layer;
  ensure(Number.isInteger(R) && R >= 1, 'reuseFactor', () => `must be an integer of at least 1, got ${R}`);
  const { lutMaxBits = 8, dspPorts: [A, B] = [27, 18] } = options;
  const M = Math.ceil((nIn * nOut) / R);
  const small = Math.min(Wx, Ww);
  const big = Math.max(Wx, Ww);
  let dsp = 0;
  let lutMul = 0;
  if (k > 0) {
    lutMul = M * (k - 1) * (Wx + Ww);
    // With reuse the shifts vary at run time: barrel shifters.
    if (R > 1) lutMul += M * k * Wx * ceilLog2(Ww);
  } else if (small <= lutMaxBits) lutMul = M * (2 * Math.ceil((Wx + Ww) / 6) - 1) * (Wx + Ww);
  else dsp = M * Math.ceil(big / A) * Math.ceil(small / B);
  const lutRom = R > 1 && R <= 64 ? M * Ww : 0;
  const bram18 = R > 64 ? blockRams(M * Ww, R) : 0;
  return { multipliers: M, dsp, lut: lutMul + M * Wacc + lutRom, bram18, ii: R * pixels };
}

/** BRAM18 blocks of a memory, by the shapes that one block can take. */
function blockRams(width: number, depth: number): number {
  if (width === 1) return Math.ceil(depth / 16384);
  if (width === 2) return Math.ceil(depth / 8192);
  if (width <= 4) return Math.ceil(depth / 4096);
  if (width <= 9) return Math.ceil(depth / 2048);
  if (width <= 18 || depth > 512) return Math.ceil(depth / 1024) * Math.ceil(width / 18);
  return Math.ceil(depth / 512) * Math.ceil(width / 36);
}

/** What {@link estimate} returns: one entry per layer that multiplies, and their total. */
export interface Estimate {
  /** By node name; nodes without products are left out. */
  readonly layers: Record<string, Resources & { reuseFactor: number }>;
  /** Layers added up; `ii` is the maximum. */
  readonly total: Resources;
}

/**
 * The estimate of a whole graph. An invalid reuse factor is moved to the nearest valid one, as the emitter does.
 * Batch norms count as layers of one input per output.
 */
export function estimate(graph: QfxGraph, options: EstimateOptions = {}): Estimate {
  const layers: Record<string, Resources & { reuseFactor: number }> = {};
  const total: Resources = { multipliers: 0, dsp: 0, lut: 0, bram18: 0, ii: 1 };
  for (const node of graph.nodes) {
    if (!isMac(node)) continue;
    const { nIn, nOut, positions } = matrixSize(node);
    const wanted = options.reuseFactors?.[node.name] ?? node.directives?.reuseFactor ?? 1;
    const reuseFactor = nearestReuseFactor(nIn, nOut, wanted);
    const one = estimateLayer(
      {
        nIn,
        nOut,
        reuseFactor,
        Wx: nodeOf(graph, node.inputs[0]).type.W,
        Ww: node.channelBits ?? node.weightType.W,
        Wacc: node.accumulator.W,
        k: node.multiplierFree?.k,
        pixels: positions,
      },
      options,
    );
    layers[node.name] = { ...one, reuseFactor };
    total.multipliers += one.multipliers;
    total.dsp += one.dsp;
    total.lut += one.lut;
    total.bram18 += one.bram18;
    total.ii = Math.max(total.ii, one.ii);
  }
  return { layers, total };
}

/** hls4ml's rule for one reuse factor. */
function isValidReuse(nIn: number, nOut: number, R: number): boolean {
  if ((nIn * nOut) % R !== 0) return false;
  const lim = Math.ceil((nIn * nOut) / Math.min(nIn, R));
  return R < nIn ? lim % nOut === 0 : R % nIn === 0;
}

/** The reuse factors that divide the work of an n_in x n_out layer evenly, ascending. */
export function validReuseFactors(nIn: number, nOut: number): number[] {
  const valid: number[] = [];
  for (let R = 1; R <= nIn * nOut; R++) if (isValidReuse(nIn, nOut, R)) valid.push(R);
  return valid;
}

/**
 * The valid reuse factor nearest to the wanted one (ties: the smaller).
 * @throws MatforgeError when the wanted one is not a positive integer.
 */
export function nearestReuseFactor(nIn: number, nOut: number, wanted: number): number {
  ensure(
    Number.isInteger(wanted) && wanted >= 1,
    'reuseFactor',
    () => `must be an integer of at least 1 (1 = fully parallel), got ${wanted}`,
  );
  const most = nIn * nOut;
  for (let distance = 0; distance <= most + wanted; distance++) {
    for (const R of [wanted - distance, wanted + distance]) {
      if (R >= 1 && R <= most && isValidReuse(nIn, nOut, R)) return R;
    }
  }
  return 1;
}
