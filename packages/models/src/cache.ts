import * as tf from '@tensorflow/tfjs';

/**
 * Keys and values of the tokens a model has seen, per attention layer. It lives outside of the graph: while a cache is
 * active, attention layers append to it and position layers start at its length, so the model runs on new tokens only,
 * through the same layers (adapters included) as ever.
 */
export class KeyValueCache {
  /** Number of positions held. */
  length = 0;
  readonly #entries = new Map<object, { keys: tf.Tensor4D; values: tf.Tensor4D }>();

  /** Runs `step` on the next `count` positions with this cache active. */
  run<T extends tf.TensorContainer>(count: number, step: () => T): T {
    const outer = active;
    active = this;
    try {
      const result = tf.tidy(step);
      this.length += count;
      return result;
    } finally {
      active = outer;
    }
  }

  /** All keys and values of a layer, the given new ones last, each [batch, heads, positions, size]. */
  extend(layer: object, keys: tf.Tensor4D, values: tf.Tensor4D): { keys: tf.Tensor4D; values: tf.Tensor4D } {
    const held = this.#entries.get(layer);
    const entry = {
      keys: tf.keep(held ? tf.concat([held.keys, keys], 2) : keys.clone()),
      values: tf.keep(held ? tf.concat([held.values, values], 2) : values.clone()),
    };
    if (held) tf.dispose([held.keys, held.values]);
    this.#entries.set(layer, entry);
    return entry;
  }

  /** Frees the tensors. */
  dispose(): void {
    for (const { keys, values } of this.#entries.values()) tf.dispose([keys, values]);
    this.#entries.clear();
    this.length = 0;
  }
}

let active: KeyValueCache | undefined;

/** The cache of the generation step that is running, if one is. */
export function activeCache(): KeyValueCache | undefined {
  return active;
}
