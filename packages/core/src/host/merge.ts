import * as tf from '@tensorflow/tfjs';
import { during } from '../blocking.ts';
import { ensure, refuse } from '../errors.ts';
import { detach, finite } from './attach.ts';
import { adapterOf, effective, type Host, hostOf, isMergeable, placeModules, requireBias } from './host.ts';
import { assign, type LayerSite } from './sites.ts';

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
  return during('merge', () => mergeInto(model, names, safe));
}

function mergeInto<M extends tf.LayersModel>(
  model: M,
  names: string | readonly string[] | undefined,
  safe: boolean,
): M {
  const host = hostOf(model);
  const adding = names === undefined ? host.active : typeof names === 'string' ? [names] : [...names];
  adding.forEach((name, place) => {
    const twice = host.merged.includes(name) || adding.indexOf(name) < place;
    ensure(!twice, 'names', () => `adapter "${name}" is merged already`);
    requireMergeable(host, name);
  });
  ensure(adding.length > 0, 'names', () => 'no adapter is active; name the adapters to merge');
  const merged = [...host.merged, ...adding];
  const forms: { site: LayerSite; kernel: tf.Tensor2D; bias: tf.Tensor1D | null }[] = [];
  try {
    for (const { site } of host.layers.values()) {
      if (!merged.some((name) => adapterOf(host, name).sites.has(site.name))) continue;
      const form = { site, ...effective(host, site, merged) };
      forms.push(form);
      requireBias(form);
      if (safe && ![form.kernel, form.bias].every((part) => part === null || finite(part))) {
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
  placeModules(host);
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
  placeModules(host);
  return model;
}

/**
 * Writes the active (or merged) adapters into the kernels for good and removes every adapter: an ordinary model is left,
 * as PEFT's `merge_and_unload` does. Biases and modules that they trained keep their trained values.
 *
 * @throws MatforgeError as {@link merge}.
 */
export function mergeAndUnload<M extends tf.LayersModel>(model: M): M {
  const host = hostOf(model);
  if (host.merged.length === 0) merge(model);
  for (const hosted of host.layers.values()) {
    if (hosted.original)
      tf.dispose(hosted.original.bias ? [hosted.original.kernel, hosted.original.bias] : hosted.original.kernel);
    hosted.original = undefined;
  }
  for (const { modules } of host.adapters.values()) {
    tf.dispose([...modules.values()].filter((value) => value !== null));
    modules.clear();
  }
  tf.dispose([...host.originals.values()]);
  host.originals.clear();
  host.placed.clear();
  host.merged = [];
  return detach(model);
}

function requireMergeable(host: Host, name: string): void {
  const { configured } = adapterOf(host, name);
  if (!isMergeable(configured.method, configured.config)) {
    refuse(name, `${configured.method.info.id} is not mergeable: it has no dense kernel in this configuration`);
  }
}
