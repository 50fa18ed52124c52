import * as tf from '@tensorflow/tfjs';
import { ensure, refuse } from '../errors.ts';
import { tidyTree } from '../optim/tree.ts';
import { adapterOf, type Host, hostOf, isMergeable, stack } from './host.ts';
import { assign, type LayerSite, type LayerVariable } from './sites.ts';

/** Options of {@link merge}. */
export interface MergeOptions {
  /** Refuse when a merged kernel would not be finite. Default true. */
  safe?: boolean;
}

/**
 * Writes adapters into the kernels of their layers, so that the model runs at the base model's speed. A copy of each
 * kernel is kept, {@link unmerge} restores it bit for bit.
 *
 * @param names adapters in order; default the active ones.
 * @throws MatforgeError when a method has no dense kernel, an adapter is merged already, or the result is not finite.
 */
export function merge<M extends tf.LayersModel>(
  model: M,
  names?: string | readonly string[],
  { safe = true }: MergeOptions = {},
): M {
  const host = hostOf(model);
  const adding = names === undefined ? host.active : typeof names === 'string' ? [names] : [...names];
  for (const name of adding) {
    ensure(!host.merged.includes(name), 'names', () => `adapter "${name}" is merged already`);
    requireMergeable(host, name);
  }
  ensure(adding.length > 0, 'names', () => 'no adapter is active; name the adapters to merge');
  const merged = [...host.merged, ...adding];
  const forms = [...host.layers.values()]
    .filter(({ site }) => merged.some((name) => adapterOf(host, name).sites.has(site.name)))
    .map(({ site }) => ({ site, ...effective(host, site, merged) }));
  try {
    for (const { site, kernel } of forms) {
      if (safe && !tf.tidy(() => tf.all(tf.isFinite(kernel)).dataSync()[0])) {
        refuse(site.name, `NaNs detected in the merged weights. The adapter ${adding.join(', ')} seems to be broken`);
      }
    }
    for (const { site, kernel, bias } of forms) {
      const hosted = host.layers.get(site.name) as NonNullable<ReturnType<Host['layers']['get']>>;
      const { layer, weight } = site;
      hosted.original ??= { kernel: tf.clone(weight.read()), bias: layer.bias ? tf.clone(layer.bias.read()) : null };
      assign(weight, tf.reshape(kernel, weight.read().shape));
      if (layer.bias && bias) assign(layer.bias, tf.clone(bias));
    }
  } finally {
    for (const { kernel, bias } of forms) tf.dispose(bias ? [kernel, bias] : kernel);
  }
  host.merged = merged;
  return model;
}

/** Restores the kernels from before {@link merge}, bit for bit. */
export function unmerge<M extends tf.LayersModel>(model: M): M {
  const host = hostOf(model);
  ensure(host.merged.length > 0, 'model', () => 'has no merged adapters');
  for (const hosted of host.layers.values()) {
    if (!hosted.original) continue;
    const { kernel, bias } = hosted.original;
    assign(hosted.site.weight, tf.clone(kernel));
    if (bias && hosted.site.layer.bias) assign(hosted.site.layer.bias, tf.clone(bias));
    tf.dispose(bias ? [kernel, bias] : kernel);
    hosted.original = undefined;
  }
  host.merged = [];
  return model;
}

function requireMergeable(host: Host, name: string): void {
  const { configured } = adapterOf(host, name);
  if (!isMergeable(configured.method, configured.config)) {
    refuse(name, `${configured.method.info.id} is not mergeable: it has no dense kernel in this configuration`);
  }
}

/** Kernel and bias of a site with the named adapters, as new tensors. */
export function effective(
  host: Host,
  site: LayerSite,
  names: readonly string[],
): { kernel: tf.Tensor2D; bias: tf.Tensor1D | null } {
  return tidyTree(() => {
    const { kernel, bias } = stack(host, site, names, false);
    return { kernel: tf.clone(kernel), bias: bias && tf.clone(bias) };
  });
}

/**
 * Lets `model.save` write a plain model: kernels with the active adapters merged in, no adapter weights. Where an active
 * method has no dense kernel, the base model is written and a warning says how to store the adapter.
 */
export function saveMerged(host: Host): void {
  const model = host.model as unknown as {
    weights: LayerVariable[];
    getNamedWeights(config?: { trainableOnly?: boolean }): { name: string; tensor: tf.Tensor }[];
    save(...args: unknown[]): Promise<unknown>;
  };
  const { getNamedWeights, save } = model;
  let made: tf.Tensor[] = [];
  model.getNamedWeights = (config) => {
    const replaced = new Map<LayerVariable, tf.Tensor>();
    const mergeable = host.active.every((name) => {
      const { configured } = adapterOf(host, name);
      return isMergeable(configured.method, configured.config);
    });
    if (!mergeable) {
      console.warn(
        `matforge: adapter ${host.active.join(', ')} has no dense kernel, so the base model is saved; store the adapter with save(model, directory).`,
      );
    } else if (host.merged.length === 0) {
      for (const { site } of host.layers.values()) {
        const { kernel, bias } = effective(host, site, host.active);
        replaced.set(
          site.weight,
          tf.tidy(() => tf.reshape(kernel, site.weight.read().shape)),
        );
        kernel.dispose();
        if (site.layer.bias && bias) replaced.set(site.layer.bias, bias);
      }
      made.push(...replaced.values());
    }
    const own = new Set(
      [...host.adapters.values()].flatMap(({ sites }) =>
        [...sites.values()].flatMap(({ weights }) => Object.values(weights)),
      ),
    );
    return model.weights
      .filter((weight) => !own.has(weight) && (!config?.trainableOnly || weight.trainable))
      .map((weight) => ({ name: weight.originalName, tensor: replaced.get(weight) ?? weight.read() }));
  };
  model.save = async (...args) => {
    try {
      return await save.apply(model, args);
    } finally {
      tf.dispose(made);
      made = [];
    }
  };
  host.restore.push(() => {
    delete (model as Partial<typeof model>).getNamedWeights;
    delete (model as Partial<typeof model>).save;
    void getNamedWeights;
  });
}
