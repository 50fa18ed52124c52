import type * as tf from "@tensorflow/tfjs";

/**
 * Called with the gradients of a step, by variable name, before the optimizer applies them; `null` means that the
 * variable took no part in the loss. A returned function runs after the update, when the variables hold new values.
 * The gradients belong to the caller: read them, dispose nothing, keep nothing.
 */
export type GradientHook = (
  gradients: Record<string, tf.Tensor | null>,
  info: { step: number; totalSteps?: number },
  // biome-ignore lint/suspicious/noConfusingVoidType: a hook without a return value is the common case
) => void | (() => void);

const hooksOf = new WeakMap<object, GradientHook[]>();

/** Registers `hook` for every training step of `model`. Returns a function that removes it again. */
export function addGradientHook(model: object, hook: GradientHook): () => void {
  hooksOf.set(model, [...gradientHooks(model), hook]);
  return () => {
    const left = gradientHooks(model).filter((other) => other !== hook);
    if (left.length > 0) hooksOf.set(model, left);
    else hooksOf.delete(model);
  };
}

/** The hooks registered for `model`, in the order of registration. */
export function gradientHooks(model: object): GradientHook[] {
  return hooksOf.get(model) ?? [];
}
