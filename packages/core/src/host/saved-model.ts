import * as tf from '@tensorflow/tfjs';
import { adapterOf, effective, type Host, isMergeable, requireBias } from './host.ts';
import type { LayerVariable } from './sites.ts';

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
        const reshaped = tf.tidy(() => tf.reshape(kernel, site.weight.read().shape));
        kernel.dispose();
        made.push(...(bias ? [reshaped, bias] : [reshaped]));
        requireBias({ site, bias });
        replaced.set(site.weight, reshaped);
        if (site.layer.bias && bias) replaced.set(site.layer.bias, bias);
      }
    }
    return model.weights
      .filter((weight) => host.flags.has(weight) && (!config?.trainableOnly || host.flags.get(weight)))
      .map((weight) => ({ name: weight.originalName, tensor: replaced.get(weight) ?? weight.read() }));
  };
  model.save = async (handler, config) => {
    const { includeOptimizer, ...others } = (config ?? {}) as { includeOptimizer?: boolean };
    if (includeOptimizer) {
      console.warn(
        'matforge: the optimizer is not saved: its state is that of the adapter, which the saved model does not have.',
      );
    }
    try {
      return await save.call(model, handler, others);
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
