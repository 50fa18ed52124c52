import { hash, random, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import type { MatforgeLayerOptions } from './layers.ts';

/** A Hugging Face `config.json` as read. */
export type HuggingFaceConfig = { model_type: string; architectures?: string[]; [key: string]: unknown };

/** Symbolic tensor of a model under construction. */
export type Node = tf.SymbolicTensor;

/** Applies a layer to symbolic tensors. */
export function apply(layer: tf.layers.Layer, ...inputs: Node[]): Node {
  return layer.apply(inputs.length === 1 ? inputs[0] : inputs) as Node;
}

/** An ordinary dense layer; its weights start at zero until {@link initialize} or a checkpoint fills them. */
export function dense(name: string, units: number, useBias: boolean): tf.layers.Layer {
  return tf.layers.dense({ name, units, useBias, kernelInitializer: 'zeros', biasInitializer: 'zeros' });
}

/** An ordinary embedding layer, filled later like {@link dense}. */
export function embedding(name: string, inputDim: number, outputDim: number): tf.layers.Layer {
  return tf.layers.embedding({ name, inputDim, outputDim, embeddingsInitializer: 'zeros' });
}

/** Sum of the inputs. */
export function add(name: string, ...inputs: Node[]): Node {
  return apply(tf.layers.add({ name }), ...inputs);
}

/** Integer input [batch, positions]. */
export function tokenInput(name: string): Node {
  return tf.input({ shape: [null], dtype: 'int32', name });
}

/** The weight of a layer that carries the given name in the layer, whatever else (adapters) the layer holds. */
export function ownWeight(layer: tf.layers.Layer, name: string): tf.LayerVariable | undefined {
  return layer.weights.find(({ originalName }) => originalName === `${layer.name}/${name}`);
}

const matrices = ['kernel', 'embeddings', 'cls_token', 'position_embeddings'];

/**
 * Draws kernels and embeddings from N(0, deviation²); the rest keeps its start (norm weights 1, biases 0). Every weight
 * has a stream of its own, so that the numbers depend on seed and name alone.
 */
export function initialize(
  model: tf.LayersModel,
  seed: number,
  deviation: number | ((layer: tf.layers.Layer, shape: number[]) => number),
): void {
  for (const layer of model.layers) {
    for (const name of matrices) {
      const variable = ownWeight(layer, name);
      if (!variable) continue;
      const shape = variable.shape as number[];
      const scale = typeof deviation === 'number' ? deviation : deviation(layer, shape);
      const values = random(hash(`${seed}/${layer.name}/${name}`)).normal(shape, 0, scale);
      variable.write(values);
      values.dispose();
    }
  }
}

const built = new WeakMap<tf.LayersModel, HuggingFaceConfig>();

/** Notes the configuration a model was built from. */
export function rememberConfig(model: tf.LayersModel, config: HuggingFaceConfig): tf.LayersModel {
  built.set(model, config);
  return model;
}

/**
 * The Hugging Face configuration a model was built from, also after `model.save` and `tf.loadLayersModel` (a layer of
 * this package carries it; MLP and CNN consist of tfjs's own layers alone and lose it).
 *
 * @throws MatforgeError when the model was not built by this package.
 */
export function configOf(model: tf.LayersModel): HuggingFaceConfig {
  const known = built.get(model);
  if (known) return known;
  for (const layer of model.layers) {
    const { architecture } = (layer as { options?: MatforgeLayerOptions }).options ?? {};
    if (architecture) return JSON.parse(architecture) as HuggingFaceConfig;
  }
  return refuse('model', 'carries no configuration; build it with mlp, cnn, vit, gpt2, llama, bert or fromConfig');
}
