import * as tf from '@tensorflow/tfjs';
import { during } from '../blocking.ts';

/** Numbers, strings and plain arrays that an op takes besides its tensors. */
export type Attributes = Record<string, unknown>;
type Tensors = Record<string, tf.Tensor>;

/** The gradient of one output (or of all, for an op of several outputs) pulled back to each input, on demand. */
export type Pullback<A extends Attributes> = (
  dy: tf.Tensor[],
  saved: tf.Tensor[],
  attributes: A,
) => Record<string, () => tf.Tensor>;

/** What {@link defineOp} is given. */
export interface OpDefinition<A extends Attributes> {
  /** Kernel name; a backend may register a faster kernel of this name with `matforge: true` in its configuration. */
  name: string;
  /** Computes the outputs from tfjs ops or typed arrays; intermediates are disposed for it. */
  forward(inputs: Tensors, attributes: A): tf.Tensor[];
  /** Names of the inputs that `pullback` needs. They come first in `saved`, in this order. */
  saveInputs?: string[];
  /** Which outputs `pullback` needs. They follow the inputs in `saved`. */
  saveOutputs?: boolean[];
  pullback: Pullback<A>;
}

/** A differentiable op: named tensors and attributes in, all outputs out. */
export type Op<A extends Attributes> = (inputs: Tensors, attributes: A) => tf.Tensor[];

/** A kernel that a backend registers under the name of one of our ops says so, or it is taken for a stale stand-in. */
interface MatforgeKernelConfig extends tf.KernelConfig {
  matforge?: true;
}

/**
 * Makes a differentiable op that runs on every tfjs backend. Unlike `tf.customGrad`, the op may have several outputs and
 * computes only those gradients that are asked for: a frozen input costs nothing in the backward pass.
 */
export function defineOp<A extends Attributes>(definition: OpDefinition<A>): Op<A> {
  const { name, forward, pullback } = definition;
  const kernelFunc: tf.KernelFunc = ({ inputs, attrs }) =>
    during(name, () => tf.tidy(() => forward(inputs as Tensors, attrs as unknown as A))) as unknown as tf.TensorInfo[];
  const gradient: tf.GradConfig = {
    kernelName: name,
    inputsToSave: definition.saveInputs ?? [],
    outputsToSave: definition.saveOutputs ?? [],
    gradFunc: (dy, saved, attrs) => pullback(Array.isArray(dy) ? dy : [dy], saved, attrs as unknown as A),
  };
  return (inputs, attributes) => {
    const backendName = tf.backend() && tf.getBackend();
    const present = tf.getKernel(name, backendName) as MatforgeKernelConfig | undefined;
    if (present?.kernelFunc !== kernelFunc && !present?.matforge) {
      if (present) tf.unregisterKernel(name, backendName);
      tf.registerKernel({ kernelName: name, backendName, kernelFunc });
    }
    if (tf.getGradient(name) !== gradient) tf.registerGradient(gradient);
    const outputs = tf
      .engine()
      .runKernel(name, inputs as tf.NamedTensorMap, attributes as unknown as tf.NamedAttrMap) as
      | tf.Tensor
      | tf.Tensor[];
    return Array.isArray(outputs) ? outputs : [outputs];
  };
}

/**
 * The values of a tensor, cut off from the tape: nothing behind it gets a gradient through the result (PyTorch's
 * `detach`). A result that depends on nothing else is constant to `tf.grad`, which then refuses, as it does for constants.
 */
export function stopGradient<T extends tf.Tensor>(x: T): T {
  return detached({}, { x })[0] as T;
}

// The tensor travels as an attribute: a tape node without inputs ends the path backwards.
const detached = defineOp<{ x: tf.Tensor }>({
  name: 'MatforgeStopGradient',
  forward: (_, { x }) => [tf.clone(x)],
  pullback: () => ({}),
});
