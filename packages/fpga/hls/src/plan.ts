import { ensure, refuse } from '@matforge/core';
import {
  type FixedType,
  formatType,
  isMac,
  type MacNode,
  matrixSize,
  nearestReuseFactor,
  type QfxGraph,
  type QfxNode,
  type QfxOp,
  type Strategy,
  sameFormat,
  sizeOf,
} from '@matforge/qfx';
import type { Settings } from './options.ts';
import { identifier } from './text.ts';

const SUPPORTED: readonly QfxOp[] = [
  'input',
  'dense',
  'conv2d',
  'depthwiseConv2d',
  'batchNorm',
  'activation',
  'add',
  'maxPool2d',
  'avgPool2d',
  'softmax',
  'argmax',
  'reshape',
  'flatten',
  'zeroPad2d',
  'concat',
];

/** One array of the top function: what a layer wrote, or a clone of it for one more reader. */
export interface Buffer {
  readonly name: string;
  /** Id of the layer whose values it holds. */
  readonly layer: number;
  readonly size: number;
}

/** One layer of the top function: what it reads and writes, and its folding. */
export interface LayerPlan {
  readonly node: QfxNode;
  readonly id: number;
  /** Name of the layer's function, `layer2_conv1`. */
  readonly fn: string;
  readonly size: number;
  /** Nodes that this one reads, reshapes skipped. */
  readonly sources: readonly QfxNode[];
  /** Arrays that this one reads, in the order of its inputs. */
  readonly reads: readonly Buffer[];
  readonly writes: Buffer;
  readonly strategy: Strategy;
  /** Reuse factor after moving it to the nearest legal one; 1 for layers without a matrix. */
  readonly reuse: number;
  /** Of all positions that are computed at once; 0 for layers without a matrix. */
  readonly multipliers: number;
  /** Output positions computed at once. */
  readonly parallel: number;
  /** Arrays between the layers are partitioned. */
  readonly parallelIo: boolean;
}

/** A clone function: DATAFLOW allows one reader an array, so a result with several readers is copied. */
export interface ClonePlan {
  readonly from: Buffer;
  readonly to: readonly Buffer[];
}

/** One call in the top function. */
export type Step = { kind: 'layer'; layer: LayerPlan } | { kind: 'clone'; clone: ClonePlan };

/** Everything both flavours agree on: order, names, arrays, reuse factors. */
export interface Plan {
  readonly graph: QfxGraph;
  readonly settings: Settings;
  readonly steps: readonly Step[];
  readonly layers: readonly LayerPlan[];
  /** The array in which each node's values can be seen, by id (reshapes share their source's). */
  readonly bufferOf: ReadonlyMap<number, Buffer>;
  readonly input: QfxNode;
  readonly output: QfxNode;
  /** The node that computes the output; `output` may be a reshape of it. */
  readonly outputRoot: QfxNode;
  readonly warnings: readonly string[];
}

/** A reshape moves nothing: arrays are flat and row-major. */
function isAlias(node: QfxNode): boolean {
  return node.op === 'reshape' || node.op === 'flatten';
}

/**
 * Orders the work: which array each layer writes, who reads it, where clones are needed, which reuse factor is legal.
 * @throws MatforgeError for an unsupported layer, a parallelization factor that does not divide the positions.
 */
export function plan(graph: QfxGraph, settings: Settings): Plan {
  ensure(
    graph.format === 'matforge-qfx' && graph.version === 1,
    'graph',
    () => 'is not a frozen graph of this version; make one with freeze(model) or graphFromJson(text)',
  );
  const byId = new Map(graph.nodes.map((node) => [node.id, node]));
  for (const node of graph.nodes) {
    ensure(
      SUPPORTED.includes(node.op),
      node.name,
      () => `layer ${node.name} of class ${node.op} cannot be emitted; supported: ${SUPPORTED.join(', ')}`,
    );
  }
  for (const node of graph.nodes) {
    if (node.op !== 'concat') continue;
    const types = node.inputs.map((id) => byId.get(id)?.type).filter((type) => type !== undefined);
    ensure(
      types.every((type) => sameFormat(type, node.type)),
      node.name,
      () => `concatenate needs inputs of one type, got ${types.map(formatType).join(' and ')}`,
    );
  }
  const input = byId.get(graph.input);
  if (input?.op !== 'input') refuse('graph.input', 'the model has no input quantizer; its first node must be an input');
  const output = byId.get(graph.output) ?? refuse('graph.output', `no node ${graph.output}`);
  const root = (id: number): QfxNode => {
    const node = byId.get(id) ?? refuse('graph', `a layer reads node ${id}, which does not exist`);
    return isAlias(node) ? root(node.inputs[0]) : node;
  };
  const working = graph.nodes.filter((node) => node.op !== 'input' && !isAlias(node));
  const outputRoot = root(graph.output);

  // A copy of the input is the only work left when nothing but reshapes lies between input and output.
  const needsCopy = outputRoot.id === input.id;
  const readers = new Map<number, number>();
  for (const node of working)
    for (const id of node.inputs) readers.set(root(id).id, (readers.get(root(id).id) ?? 0) + 1);
  readers.set(outputRoot.id, (readers.get(outputRoot.id) ?? 0) + 1);

  const main = new Map<number, Buffer>();
  const queues = new Map<number, Buffer[]>();
  const clones = new Map<number, ClonePlan>();
  for (const node of [input, ...working]) {
    const size = sizeOf(node.shape);
    const count = readers.get(node.id) ?? 0;
    const isOutput = node.id === outputRoot.id;
    const own = node.op === 'input' ? 'in' : isOutput && count === 1 ? 'out' : `layer${node.id}_out`;
    const buffer: Buffer = { name: own, layer: node.id, size };
    main.set(node.id, buffer);
    if (count <= 1 && !needsCopy) {
      queues.set(node.id, [buffer]);
      continue;
    }
    const stem = node.op === 'input' ? 'in' : `layer${node.id}`;
    const copies = Array.from({ length: count - (isOutput ? 1 : 0) }, (_, i) => ({
      name: `${stem}_copy${i + 1}`,
      layer: node.id,
      size,
    }));
    const to = isOutput ? [{ name: 'out', layer: node.id, size }, ...copies] : copies;
    clones.set(node.id, { from: buffer, to });
    queues.set(node.id, [...copies]);
  }

  const warnings: string[] = [...graph.warnings];
  const layers: LayerPlan[] = [];
  const steps: Step[] = [];
  const addClone = (id: number): void => {
    const clone = clones.get(id);
    if (clone) steps.push({ kind: 'clone', clone });
  };
  addClone(input.id);
  for (const node of working) {
    const sources = node.inputs.map(root);
    const layer: LayerPlan = {
      node,
      id: node.id,
      fn: `layer${node.id}_${identifier(node.name)}`,
      size: sizeOf(node.shape),
      sources,
      reads: sources.map(({ id, name }) => queues.get(id)?.shift() ?? refuse(name, 'is read before it is computed')),
      writes: main.get(node.id)!,
      parallelIo: settings.ioType === 'io_parallel',
      ...folding(node, settings, warnings),
    };
    layers.push(layer);
    steps.push({ kind: 'layer', layer });
    addClone(node.id);
  }
  const bufferOf = new Map(graph.nodes.map((node) => [node.id, main.get(root(node.id).id)!]));
  return { graph, settings, steps, layers, bufferOf, input, output, outputRoot, warnings };
}

/** Reuse factor, strategy and parallel positions of a layer. */
function folding(
  node: QfxNode,
  settings: Settings,
  warnings: string[],
): Pick<LayerPlan, 'strategy' | 'reuse' | 'multipliers' | 'parallel'> {
  const own = settings.layers[node.name] ?? {};
  const wanted = {
    reuse: own.reuseFactor ?? settings.defaults.reuseFactor ?? node.directives?.reuseFactor ?? 1,
    strategy: own.strategy ?? settings.defaults.strategy ?? node.directives?.strategy ?? 'latency',
    parallel:
      own.parallelizationFactor ??
      settings.defaults.parallelizationFactor ??
      node.directives?.parallelizationFactor ??
      1,
  };
  if (!isMac(node)) return { strategy: wanted.strategy, reuse: 1, multipliers: 0, parallel: 1 };
  const { nIn, nOut, positions } = matrixSize(node);
  const reuse = nearestReuseFactor(nIn, nOut, wanted.reuse);
  if (reuse !== wanted.reuse) {
    warnings.push(
      `${node.name}: reuse factor ${wanted.reuse} does not divide ${nIn} x ${nOut} evenly; ${reuse} is used`,
    );
  }
  const slides = node.op === 'conv2d' || node.op === 'depthwiseConv2d';
  let parallel = slides ? wanted.parallel : 1;
  if (parallel > 1 && settings.ioType !== 'io_parallel') {
    warnings.push(`${node.name}: a parallelization factor needs ioType io_parallel; 1 is used`);
    parallel = 1;
  }
  const explicit = own.parallelizationFactor ?? node.directives?.parallelizationFactor;
  if (slides && positions % parallel !== 0) {
    const message = `parallelization factor ${parallel} does not divide the ${positions} output positions`;
    if (explicit !== undefined) refuse(`${node.name}.parallelizationFactor`, message);
    warnings.push(`${node.name}: ${message}; 1 is used`);
    return { strategy: wanted.strategy, reuse, multipliers: Math.ceil((nIn * nOut) / reuse), parallel: 1 };
  }
  const multipliers = Math.ceil((nIn * nOut) / reuse) * parallel;
  return { strategy: wanted.strategy, reuse, multipliers, parallel };
}

/** How many bits an exact sum of products can need, whatever the weights are: for accumulators that wrap on purpose. */
export function exactSumWidth(node: MacNode, x: FixedType): number {
  const { nIn } = matrixSize(node);
  const products = x.W + node.weightType.W + Math.ceil(Math.log2(Math.max(nIn, 1))) + node.productShift;
  const bias = node.biasType ? node.biasType.W + node.biasShift : 0;
  return Math.max(products, bias) + 2;
}

/** `ap_fixed<W,I>` of an exact type, whose modes never act. */
export function formatExact({ W, I, signed }: FixedType): string {
  return `ap_${signed ? '' : 'u'}fixed<${W},${I}>`;
}

/** A type as the comments write it: with modes where they can act. */
export function describe(type: FixedType): string {
  return type.Q === 'AP_TRN' && type.O === 'AP_WRAP' ? formatExact(type) : formatType(type);
}
