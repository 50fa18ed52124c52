import * as tf from '@tensorflow/tfjs';

type Maybe = tf.Tensor | null | undefined;
interface TapeNode {
  outputs: tf.Tensor[];
  saved: Maybe[];
}
type AddTapeNode = (
  kernelName: string,
  inputs: Record<string, Maybe>,
  outputs: tf.Tensor[],
  gradient: unknown,
  saved: Maybe[],
  attrs: object,
) => void;

const REPAIRED = Symbol.for('matforge.engine.tape');

/**
 * Lets TensorFlow.js differentiate ops without an input that they can do without (the scale of a batch norm), and gradients
 * that are functions of an op's result (exp, tanh, sigmoid, softmax).
 *
 * tfjs copies and walks all inputs of an op, there or not. Here those that are not there stay off the tape, and a gradient
 * gets undefined in their place.
 *
 * The copies of results that an op keeps for its gradient are written on the tape before the op itself, and since the tape
 * is read in order, what a gradient owes to them is lost: the second derivative of exp is refused, that of tanh a part
 * short. Here they go behind the op.
 *
 * And where a function or its gradient fails, the copies that were kept until then are freed; in tfjs they stay. All of it
 * holds for every backend; calling it again changes nothing.
 */
export function repairTape(): void {
  const engine = tf.engine() as unknown as {
    addTapeNode: AddTapeNode;
    saveTensorsForBackwardMode(tensors: Maybe[]): Maybe[];
    keep(tensor: tf.Tensor): tf.Tensor;
    clone(tensor: tf.Tensor): tf.Tensor;
    gradients(...args: unknown[]): tf.TensorContainer;
    tidy<T extends tf.TensorContainer>(f: () => T): T;
    state: { activeTape: TapeNode[] | null; gradientDepth: number };
    [REPAIRED]?: true;
  };
  if (engine[REPAIRED]) return;
  engine[REPAIRED] = true;
  engine.saveTensorsForBackwardMode = function (this: typeof engine, tensors): Maybe[] {
    return tensors.map((tensor) => (tensor ? this.keep(this.clone(tensor)) : undefined));
  };
  const add = engine.addTapeNode;
  engine.addTapeNode = function (this: typeof engine, kernelName, inputs, outputs, gradient, saved, attrs): void {
    add.call(this, kernelName, present(inputs), outputs, gradient, saved, attrs);
    const tape = this.state.activeTape!;
    const node = tape.at(-1)!;
    // What tfjs disposes of in the end; the gradient has a list of its own.
    if (saved.includes(undefined)) node.saved = saved.filter(Boolean);
    let at = tape.length - 1;
    while (at > 0 && saved.includes(tape[at - 1].outputs[0])) at--;
    tape.copyWithin(at + 1, at, -1);
    tape[at] = node;
  };
  const differentiate = engine.gradients;
  engine.gradients = function (this: typeof engine, ...args): tf.TensorContainer {
    try {
      return this.tidy(() => differentiate.apply(this, args));
    } catch (error) {
      if (this.state.gradientDepth === 0) {
        tf.dispose(this.state.activeTape?.flatMap(({ saved }) => saved as tf.Tensor[]) ?? []);
        this.state.activeTape = null;
      }
      throw error;
    }
  };
}

function present(inputs: Record<string, Maybe>): Record<string, Maybe> {
  for (const name in inputs) {
    if (!inputs[name]) return Object.fromEntries(Object.entries(inputs).filter(([, input]) => input));
  }
  return inputs;
}
