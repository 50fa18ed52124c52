import type * as tf from '@tensorflow/tfjs';
import { gradientHooks } from './hooks.ts';
import { type Host, markTrainable } from './host.ts';

type NamedGradients = { name: string; tensor: tf.Tensor | null }[] | Record<string, tf.Tensor | null>;
interface Hooked {
  applyGradients(gradients: NamedGradients): void;
}

const hooked = new WeakMap<object, () => void>();

/** True when the optimizer runs the model's gradient hooks by itself. */
export function runsHooks(optimizer: object): boolean {
  return hooked.has(optimizer);
}

/**
 * Makes the model's own optimizer, now and after each `compile`, run the gradient hooks around its update, so that
 * schedules work under `model.fit`.
 */
export function runHooksInOptimizer(host: Host): void {
  const model = host.model as tf.LayersModel & { optimizer?: Hooked };
  const compile = model.compile;
  model.compile = (args) => {
    compile.call(model, args);
    // A Sequential marks all of its weights as trainable when it is compiled.
    markTrainable(host);
    hook(model, model.optimizer as Hooked);
  };
  if (model.optimizer) hook(model, model.optimizer);
  host.restore.push(() => {
    if (Object.getPrototypeOf(model).compile === compile) delete (model as Partial<tf.LayersModel>).compile;
    else model.compile = compile;
    if (model.optimizer) hooked.get(model.optimizer)?.();
  });
}

function hook(model: object, optimizer: Hooked): void {
  if (hooked.has(optimizer)) return;
  const apply = optimizer.applyGradients;
  let step = 0;
  optimizer.applyGradients = (given) => {
    const gradients = Array.isArray(given)
      ? Object.fromEntries(given.map(({ name, tensor }) => [name, tensor]))
      : { ...given };
    const after = gradientHooks(model).map((run) =>
      run(gradients as Record<string, tf.Tensor | null>, { step: step + 1 }),
    );
    step++;
    // The order and number of entries stay: tfjs's optimizers know a variable by its place in the list.
    apply.call(
      optimizer,
      Array.isArray(given) ? given.map(({ name }) => ({ name, tensor: gradients[name] ?? null })) : gradients,
    );
    for (const finish of after) finish?.();
  };
  hooked.set(optimizer, () => {
    optimizer.applyGradients = apply;
    hooked.delete(optimizer);
  });
}
