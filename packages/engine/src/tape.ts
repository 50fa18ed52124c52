import * as tf from '@tensorflow/tfjs';

interface TapeNode {
  outputs: tf.Tensor[];
}
type AddTapeNode = (
  kernelName: string,
  inputs: object,
  outputs: tf.Tensor[],
  gradient: unknown,
  saved: tf.Tensor[],
  attrs: object,
) => void;

const REPAIRED = Symbol.for('matforge.engine.tape');

/**
 * Lets TensorFlow.js differentiate gradients that are functions of an op's result (exp, tanh, sigmoid, softmax).
 *
 * The copies of results that an op keeps for its gradient are written on the tape before the op itself, and since the tape
 * is read in order, what a gradient owes to them is lost: the second derivative of exp is refused, that of tanh a part
 * short. Here they go behind the op. Holds for every backend; calling it again changes nothing.
 */
export function repairTape(): void {
  const engine = tf.engine() as unknown as {
    addTapeNode: AddTapeNode;
    state: { activeTape: TapeNode[] };
    [REPAIRED]?: true;
  };
  if (engine[REPAIRED]) return;
  engine[REPAIRED] = true;
  const add = engine.addTapeNode;
  engine.addTapeNode = function (this: typeof engine, kernelName, inputs, outputs, gradient, saved, attrs): void {
    add.call(this, kernelName, inputs, outputs, gradient, saved, attrs);
    const tape = this.state.activeTape;
    const node = tape.at(-1)!;
    let at = tape.length - 1;
    while (at > 0 && saved.includes(tape[at - 1].outputs[0])) at--;
    tape.copyWithin(at + 1, at, -1);
    tape[at] = node;
  };
}
