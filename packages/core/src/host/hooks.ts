import type * as tf from '@tensorflow/tfjs';

/**
 * Called with the gradients of a step, by variable name, before the optimizer applies them; `null` means that the
 * variable took no part in the loss. A hook may set an entry to null to keep that variable from being updated. A
 * returned function runs after the update, when the variables hold new values. The gradients belong to the caller:
 * dispose nothing, keep nothing.
 */
export interface GradientHook {
  (
    gradients: Record<string, tf.Tensor | null>,
    /** `step` is the number of the update, from 1. */
    info: { step: number; totalSteps?: number },
    // biome-ignore lint/suspicious/noConfusingVoidType: a hook without a return value is the common case
  ): void | (() => void);
  /** What the hook must remember for an exact resume: a tree of tensors, typed arrays, numbers and texts (copies). */
  state?: () => unknown;
  /** Continues from what {@link state} returned; copies it. */
  restore?: (state: unknown) => void;
}

const hooksOf = new WeakMap<object, GradientHook[]>();
const suspended = new WeakSet<object>();

/** Registers `hook` for every training step of `model`. Returns a function that removes it again. */
export function addGradientHook(model: object, hook: GradientHook): () => void {
  hooksOf.set(model, [...(hooksOf.get(model) ?? []), hook]);
  return () => {
    const left = (hooksOf.get(model) ?? []).filter((other) => other !== hook);
    if (left.length > 0) hooksOf.set(model, left);
    else hooksOf.delete(model);
  };
}

/** The hooks registered for `model`, in the order of registration; none while {@link suspendGradientHooks} runs. */
export function gradientHooks(model: object): GradientHook[] {
  return suspended.has(model) ? [] : (hooksOf.get(model) ?? []);
}

/** Runs `f` while nothing else sees the model's hooks: for who has run them already and now calls the optimizer. */
export function suspendGradientHooks<T>(model: object, f: () => T): T {
  suspended.add(model);
  try {
    return f();
  } finally {
    suspended.delete(model);
  }
}
