import { estimateLayer, isMac, matrixSize, sizeOf } from '@matforge/qfx';
import type { LayerPlan, Plan } from './plan.ts';

/** Analytic estimate of one layer; field names as hls4ml's and FINN's reports have them. */
export interface LayerEstimate {
  multipliers: number;
  DSP: number;
  LUT: number;
  BRAM_18K: number;
  /** Clock cycles between two inferences. */
  II: number;
  /** Clock cycles of one inference. */
  cycles: number;
}

/**
 * Analytic estimates by layer name. In `total` resources and `cycles` are sums and `II` is the maximum; `clockPeriod` is in
 * nanoseconds.
 */
export interface EstimateReport {
  readonly layers: Readonly<Record<string, LayerEstimate>>;
  readonly total: LayerEstimate;
  readonly clockPeriod: number;
}

/** Resources and initiation intervals by the formulas of the documentation. An estimate: nothing was synthesized. */
export function estimateReport(plan: Plan): EstimateReport {
  const layers: Record<string, LayerEstimate> = {};
  const total: LayerEstimate = { multipliers: 0, DSP: 0, LUT: 0, BRAM_18K: 0, II: 1, cycles: 0 };
  for (const layer of plan.layers) {
    const estimate = layerEstimate(plan, layer);
    layers[layer.node.name] = estimate;
    total.multipliers += estimate.multipliers;
    total.DSP += estimate.DSP;
    total.LUT += estimate.LUT;
    total.BRAM_18K += estimate.BRAM_18K;
    total.II = Math.max(total.II, estimate.II);
    total.cycles += estimate.cycles;
  }
  return { layers, total, clockPeriod: plan.settings.clockPeriod };
}

function layerEstimate(plan: Plan, layer: LayerPlan): LayerEstimate {
  const { node } = layer;
  if (!isMac(node)) {
    const steps = 'window' in node ? node.window.outH * node.window.outW : pixels(node.shape);
    return { multipliers: 0, DSP: 0, LUT: 0, BRAM_18K: 0, II: steps, cycles: steps };
  }
  const { nIn, nOut, positions } = matrixSize(node);
  const ports = /^xc7|^xq7|^xa7/.test(plan.settings.part) ? [25, 18] : [27, 18];
  const { multipliers, dsp, lut, bram18, ii } = estimateLayer(
    {
      nIn,
      nOut,
      reuseFactor: layer.reuse,
      Wx: layer.sources[0].type.W,
      Ww: node.channelBits ?? node.weightType.W,
      Wacc: node.accumulator.W,
      k: node.multiplierFree?.k,
      pixels: positions / layer.parallel,
    },
    { dspPorts: ports as [number, number] },
  );
  // Positions that are computed at once each have their own multipliers; the weights are stored once.
  const copies = layer.parallel;
  return {
    multipliers: multipliers * copies,
    DSP: dsp * copies,
    LUT: lut * copies,
    BRAM_18K: bram18,
    II: ii,
    cycles: ii,
  };
}

const pixels = (shape: readonly number[]): number => Math.max(1, sizeOf(shape.slice(0, -1)));

const NOTE = 'analytic estimate, not synthesized: no flip-flops, no routing, weights not folded into the logic';

/** The three estimate files below report/. */
export function reportFiles(report: EstimateReport): Record<string, string> {
  const json = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;
  const { layers, total, clockPeriod } = report;
  const cycles = Object.fromEntries(Object.entries(layers).map(([name, { cycles }]) => [name, cycles]));
  return {
    'report/estimate_layer_resources.json': json({ note: NOTE, ...layers, total }),
    'report/estimate_layer_cycles.json': json({ note: NOTE, ...cycles }),
    'report/estimate_network_performance.json': json({
      note: NOTE,
      TargetClockPeriod: clockPeriod,
      critical_path_cycles: total.cycles,
      max_cycles: total.II,
      max_cycles_node_name: Object.entries(layers).find(([, { II }]) => II === total.II)?.[0] ?? '',
      estimated_throughput_fps: 1e9 / (clockPeriod * total.II),
      estimated_latency_ns: clockPeriod * total.cycles,
      ...total,
    }),
  };
}
