import { refuse } from '@matforge/core';
import type * as tf from '@tensorflow/tfjs';
import { buildGraph, type NodeSpec } from './build.ts';
import type { QfxGraph } from './graph.ts';
import { QfxInput, QfxLayer } from './layers.ts';
import { QfxModel } from './training.ts';
import { steps } from './walk.ts';

/** Options of {@link freeze}. */
export interface FreezeOptions {
  /** Project name in the graph. Default `myproject`. */
  name?: string;
  /** Appended to the model's output: `softmax` (two tables), `argmax`, or nothing. Default: what the model asks for. */
  head?: 'softmax' | 'argmax' | 'none';
}

/**
 * The integer program of a quantized model: positions are rounded, weights become raw integers, tables are computed.
 * The model is left as it is.
 * @throws MatforgeError when a layer is not quantized, or a position was never set (no calibration, no batch seen).
 */
export function freeze(model: tf.LayersModel, options: FreezeOptions = {}): QfxGraph {
  const nodes: NodeSpec[] = [];
  const warnings: string[] = [];
  const nameOf = new Map<tf.layers.Layer, string>();
  const order = steps(model);
  for (const { layer, inputs } of order) {
    if (layer.getClassName() === 'InputLayer') continue;
    const from = inputs.map((step) => nameOf.get(step.layer) ?? '');
    if (nodes.length === 0 && !(layer instanceof QfxInput)) {
      refuse(layer.name, 'the model has no input quantizer: start it with a QfxInput, or use quantizeModel');
    }
    const own = layer instanceof QfxLayer ? named(layer, from) : wiring(layer, from);
    if (layer instanceof QfxLayer) warnings.push(...layer.warnings());
    nodes.push(...own);
    nameOf.set(layer, own.length > 0 ? own[own.length - 1].name : from[0]);
  }
  const settings = model instanceof QfxModel ? model.settings : {};
  const head = options.head ?? settings.head ?? 'none';
  const output = nameOf.get(order[order.length - 1].layer) as string;
  if (head !== 'none') nodes.push({ op: head, name: `${output}_${head}`, inputs: [output] });
  return buildGraph({ name: options.name, nodes, warnings });
}

function named(layer: QfxLayer, from: string[]): (NodeSpec & { name: string })[] {
  for (const { name, quantizer } of layer.positions) {
    // Weights carry their own data; everything else needs a batch.
    if (!quantizer.ready && name.endsWith('/result')) {
      refuse(name, 'has no binary point yet; give quantizeModel a calibration batch, or run the model on one batch');
    }
  }
  return layer.freeze(from);
}

/** Layers of TensorFlow.js that only move values. */
function wiring(layer: tf.layers.Layer, inputs: string[]): (NodeSpec & { name: string })[] {
  const { name } = layer;
  const config = layer.getConfig() as Record<string, unknown>;
  const shape = (layer.outputShape as (number | null)[]).slice(1) as number[];
  switch (layer.getClassName()) {
    case 'Dropout':
      return [];
    case 'Flatten':
      return [{ op: 'flatten', name, inputs }];
    case 'Reshape':
      return [{ op: 'reshape', name, inputs, shape }];
    case 'ZeroPadding2D':
      return [{ op: 'zeroPad2d', name, inputs, padding: paddingOf(config.padding) }];
    case 'GlobalMaxPooling2D':
      return [{ op: 'globalMaxPool2d', name, inputs }];
    case 'MaxPooling2D':
      return [
        {
          op: 'maxPool2d',
          name,
          inputs,
          size: config.poolSize as [number, number],
          strides: config.strides as [number, number],
          padding: config.padding as 'valid' | 'same',
        },
      ];
    default:
      return refuse(
        name,
        `layer ${name} of class ${layer.getClassName()} cannot be emitted; supported: Qfx layers, Flatten, Reshape, ` +
          'ZeroPadding2D, MaxPooling2D, GlobalMaxPooling2D, Dropout',
      );
  }
}

/** [[top, bottom], [left, right]] of ZeroPadding2D's configuration: a number, a pair, or a pair of pairs. */
function paddingOf(padding: unknown): [[number, number], [number, number]] {
  if (typeof padding === 'number') {
    return [
      [padding, padding],
      [padding, padding],
    ];
  }
  const [rows, columns] = padding as [number | [number, number], number | [number, number]];
  const both = (p: number | [number, number]): [number, number] => (typeof p === 'number' ? [p, p] : [p[0], p[1]]);
  return [both(rows), both(columns)];
}
