import type * as tf from '@tensorflow/tfjs';
import { gradientHooks } from './hooks.ts';
import { type Host, markTrainable } from './host.ts';
import type { LayerVariable } from './sites.ts';

type NamedGradients = { name: string; tensor: tf.Tensor | null }[] | Record<string, tf.Tensor | null>;
interface Hooked {
  readonly iterations: number;
  applyGradients(gradients: NamedGradients): void;
}

/** The model whose hooks an optimizer runs. */
const hooked = new WeakMap<object, { model: object }>();

/** True when the optimizer runs the model's gradient hooks by itself. */
export function runsHooks(optimizer: object): boolean {
  return hooked.has(optimizer);
}

/**
 * Makes the model's own optimizer, now and after each `compile`, run the gradient hooks around its update, so that
 * schedules work under `model.fit`, and keep its state while adapters come, go and are switched.
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
  const compiled = host.model as unknown as Compiled;
  if (model.optimizer) hook(model, model.optimizer, (compiled.model ?? compiled).collectedTrainableWeights);
  host.restore.push(() => {
    if (Object.getPrototypeOf(model).compile === compile) delete (model as Partial<tf.LayersModel>).compile;
    else model.compile = compile;
  });
}

interface Compiled {
  readonly collectedTrainableWeights?: readonly LayerVariable[];
  readonly model?: Compiled;
}

/**
 * Stays on the optimizer for good: its state goes by the places that were given out here.
 *
 * @param trained what the optimizer has trained so far, in its order.
 */
function hook(model: object, optimizer: Hooked, trained: readonly LayerVariable[] = []): void {
  const present = hooked.get(optimizer);
  if (present) {
    present.model = model;
    return;
  }
  const owner = { model };
  hooked.set(optimizer, owner);
  const apply = optimizer.applyGradients;
  // tfjs's optimizers know a variable by its place in the list, so every variable keeps the place of its first time.
  const places = optimizer.iterations > 0 ? trained.map((weight) => weight.read().name) : [];
  const known = new Set(places);
  let step = 0;
  optimizer.applyGradients = (given) => {
    const gradients: Record<string, tf.Tensor | null> = Array.isArray(given)
      ? Object.fromEntries(given.map(({ name, tensor }) => [name, tensor]))
      : { ...given };
    const after = gradientHooks(owner.model).map((run) => run(gradients, { step: step + 1 }));
    step++;
    for (const name of Object.keys(gradients)) {
      if (known.has(name)) continue;
      known.add(name);
      places.push(name);
    }
    apply.call(
      optimizer,
      places.map((name) => ({ name, tensor: gradients[name] ?? null })),
    );
    for (const finish of after) finish?.();
  };
}
