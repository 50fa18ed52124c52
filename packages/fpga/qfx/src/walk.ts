import { ensure } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** One application of a layer, with the applications that it reads. */
export interface Step {
  layer: tf.layers.Layer;
  inputs: Step[];
}

/**
 * The layer applications of a model in topological order, nested models opened up; the last is the output.
 * @throws MatforgeError when the model has several inputs or outputs, or a layer is used twice.
 */
export function steps(model: tf.LayersModel): Step[] {
  ensure(
    model.inputs.length === 1 && model.outputs.length === 1,
    model.name,
    () => `has ${model.inputs.length} inputs and ${model.outputs.length} outputs; exactly one of each is supported`,
  );
  const order: Step[] = [];
  const done = new Map<tf.layers.Layer, Step>();
  // Inputs of nested models stand for what the outer model feeds them.
  const alias = new Map<number, tf.SymbolicTensor>();
  const visit = (tensor: tf.SymbolicTensor): Step => {
    const outer = alias.get(tensor.id);
    if (outer) return visit(outer);
    const layer = tensor.sourceLayer;
    const node = layer.inboundNodes[tensor.nodeIndex];
    if (layer instanceof tf.LayersModel) {
      for (const [i, input] of layer.inputs.entries()) alias.set(input.id, node.inputTensors[i]);
      return visit(layer.outputs[tensor.outputTensorIndex ?? 0]);
    }
    const known = done.get(layer);
    if (known) return known;
    ensure(
      node !== undefined && (layer.inboundNodes.length === 1 || tensor.nodeIndex === 0),
      layer.name,
      () => 'is applied more than once; shared layers cannot be emitted',
    );
    // An InputLayer reads its own output.
    const step: Step = { layer, inputs: node.inboundLayers.length === 0 ? [] : node.inputTensors.map(visit) };
    done.set(layer, step);
    order.push(step);
    return step;
  };
  visit(model.outputs[0]);
  return order;
}
