import * as tf from '@tensorflow/tfjs';
import type { GradientTransformation } from '../optim/transformation.ts';
import { chain } from '../optim/transformation.ts';
import { adam, perGroup } from '../optim/transformations.ts';
import { learningRateMultipliers, projectionError } from '../tensors/structured.ts';
import { declared } from './attach.ts';
import { adapterOf, effective, findHost, hostOf } from './host.ts';
import { namedLayers, sitesOf } from './sites.ts';
import { StructuredLayer } from './structured-layer.ts';

/** What a method makes of one layer. */
export interface StructureReport {
  readonly layer: string;
  /** ‖kernel − dense kernel‖_F/‖dense kernel‖_F, now; right after `attach` the error of the projection. */
  readonly relError: number;
  /** Numbers of the dense kernel. */
  readonly paramsBefore: number;
  /** Trained numbers in its place. */
  readonly paramsAfter: number;
}

/**
 * How near the structured kernels of a model are to the dense ones they replace, and how many numbers they have.
 *
 * @param name of the attached method. Default the active one.
 */
export function structureReport(model: tf.LayersModel, name?: string): StructureReport[] {
  const host = hostOf(model);
  const adapter = adapterOf(host, name ?? host.active[0]);
  return [...adapter.sites.values()].map(({ site, weights }) => {
    const { kernel, bias } = effective(host, site, [adapter.name]);
    const { relError } = projectionError(site.weight.read(), kernel);
    tf.dispose(bias ? [kernel, bias] : kernel);
    return {
      layer: site.name,
      relError,
      paramsBefore: site.inDim * site.outDim,
      paramsAfter: Object.values(weights).reduce((sum, weight) => sum + weight.read().size, 0),
    };
  });
}

/** Options of {@link groupLearningRates}. */
export interface GroupLearningRatesOptions {
  /** Input width of the dense layer that the learning rate was tuned for. Default: each layer's own input width. */
  baseInDim?: number;
  /** Makes the transformation that the factors multiply. Default Adam. */
  transformation?: (learningRate: number) => GradientTransformation;
}

/**
 * An optimizer with a learning rate for every weight, so that one rate suits dense and structured layers of all widths
 * (Qiu et al. 2024, arXiv 2406.06248, section 3.2): η·baseInDim/in for a dense kernel, η·baseInDim/(d·L) for a factor of
 * in-width d of a structured kernel with L factors, η for all else. A decoupled weight decay inside `transformation` is
 * multiplied along. For Adam and its kin, whose updates do not depend on the size of the gradient.
 *
 * Call it when the model has its layers and attached methods: it knows the weights by name.
 */
export function groupLearningRates(
  model: tf.LayersModel,
  learningRate: number,
  { baseInDim, transformation = (rate) => adam({ learningRate: rate }) }: GroupLearningRatesOptions = {},
): GradientTransformation {
  return chain(
    transformation(learningRate),
    perGroup(variableMultipliers(model, baseInDim), (name) => name),
  );
}

function variableMultipliers(model: tf.LayersModel, baseInDim?: number): Record<string, number> {
  const multipliers: Record<string, number> = {};
  for (const { kind, inDim, weight } of sitesOf(model)) {
    if (kind !== 'embedding') multipliers[weight.read().name] = (baseInDim ?? inDim) / inDim;
  }
  for (const { layer } of namedLayers(model) as { layer: unknown }[]) {
    if (layer instanceof StructuredLayer) Object.assign(multipliers, layer.variableMultipliers(baseInDim));
  }
  for (const { configured, group, sites } of findHost(model)?.adapters.values() ?? []) {
    for (const { site, config, weights } of sites.values()) {
      const { inDim, outDim } = site;
      const specs = declared(configured.method.tensors({ inDim, outDim, config, site, group }));
      const factors = learningRateMultipliers(specs, baseInDim ?? inDim);
      for (const [key, weight] of Object.entries(weights)) multipliers[weight.read().name] = factors[key] ?? 1;
    }
  }
  return multipliers;
}
