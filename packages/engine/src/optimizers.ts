import * as tf from '@tensorflow/tfjs';
import { adamUpdate, sgdStep } from './fused.ts';

// The members of tfjs's optimizers that their own applyGradients works with.
interface Slot {
  originalName: string;
  variable: tf.Variable;
}
interface AdamState {
  learningRate: number;
  beta1: number;
  beta2: number;
  epsilon: number;
  accBeta1: tf.Variable;
  accBeta2: tf.Variable;
  accumulatedFirstMoment: Slot[];
  accumulatedSecondMoment: Slot[];
  incrementIterations(): void;
}

type Gradients = tf.NamedTensorMap | { name: string; tensor: tf.Tensor | null }[];
type Apply = (this: never, gradients: Gradients) => void;

function entries(gradients: Gradients): [name: string, gradient: tf.Tensor | null][] {
  return Array.isArray(gradients) ? gradients.map(({ name, tensor }) => [name, tensor]) : Object.entries(gradients);
}

function variable(name: string): tf.Variable {
  return tf.engine().registeredVariables[name];
}

function slot(slots: Slot[], i: number, name: string, value: tf.Variable): tf.Variable {
  slots[i] ??= { originalName: name, variable: tf.tidy(() => tf.zerosLike(value).variable(false)) };
  return slots[i].variable;
}

function applyAdam(this: AdamState, gradients: Gradients): void {
  const [power1] = this.accBeta1.dataSync();
  const [power2] = this.accBeta2.dataSync();
  entries(gradients).forEach(([name, gradient], i) => {
    const value = variable(name);
    const m = slot(this.accumulatedFirstMoment, i, `${name}/m`, value);
    const v = slot(this.accumulatedSecondMoment, i, `${name}/v`, value);
    if (!gradient) return;
    const corrections: [number, number] = [1 - power1, 1 - power2];
    adamUpdate(value, gradient, m, v, this.learningRate, this.beta1, this.beta2, this.epsilon, corrections, 0);
  });
  tf.tidy(() => {
    this.accBeta1.assign(tf.mul(this.accBeta1, this.beta1));
    this.accBeta2.assign(tf.mul(this.accBeta2, this.beta2));
  });
  this.incrementIterations();
}

function applySgd(this: { learningRate: number; incrementIterations(): void }, gradients: Gradients): void {
  for (const [name, gradient] of entries(gradients)) {
    if (gradient) sgdStep(variable(name), gradient, { learningRate: this.learningRate });
  }
  this.incrementIterations();
}

const ORIGINAL = Symbol.for('matforge.engine.applyGradients');

function replace(owner: object, own: Apply): void {
  const prototype = owner as { applyGradients: Apply & { [ORIGINAL]?: Apply } };
  const original = prototype.applyGradients[ORIGINAL] ?? prototype.applyGradients;
  const chosen = function (this: never, gradients: Gradients): void {
    (tf.getBackend() === 'wasm' ? own : original).call(this, gradients);
  };
  prototype.applyGradients = Object.assign(chosen, { [ORIGINAL]: original });
}

/** Lets tf.train.adam and tf.train.sgd update each variable by one kernel while the wasm backend is current. */
export function speedUpOptimizers(): void {
  replace(tf.AdamOptimizer.prototype, applyAdam as unknown as Apply);
  replace(tf.SGDOptimizer.prototype, applySgd as unknown as Apply);
}
