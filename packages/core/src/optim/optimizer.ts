import * as tf from '@tensorflow/tfjs';
import { ensure, refuse } from '../errors.ts';
import type { GradientTransformation } from './transformation.ts';
import { learningRateAt } from './transformations.ts';
import {
  copyTree,
  disposeTree,
  flattenTree,
  graft,
  mapTensors,
  type NamedTensors,
  type StateArray,
  tensorsOf,
  tidyTree,
  unflattenTree,
} from './tree.ts';

/** A tensor with its name, as `getWeights` of tfjs optimizers lists them. */
export interface NamedTensor {
  name: string;
  tensor: tf.Tensor;
}

/** Everything an optimizer must remember to go on exactly where it was. */
export interface OptimizerState {
  /** Number of updates made. */
  step: number;
  /** Names of the variables that have a state. */
  names: string[];
  /** The transformation's own state. */
  state: unknown;
}

/**
 * A `tf.Optimizer` that applies a {@link GradientTransformation}. Accepted by `model.compile`, `optimizer.minimize` and
 * the training loop. States are kept by variable name: variables without a gradient are left alone, and variables may
 * join, leave and return between steps.
 */
export class TransformationOptimizer extends tf.Optimizer {
  /** @nocollapse */
  static get className(): string {
    return 'TransformationOptimizer';
  }

  /** tfjs lets every object with the methods of an optimizer pass for an instance; here the class counts. */
  static override [Symbol.hasInstance](value: unknown): boolean {
    // biome-ignore lint/complexity/noThisInStatic: a subclass must not accept instances of its base class.
    return Object.prototype.isPrototypeOf.call(this.prototype, value as object);
  }

  readonly transformation: GradientTransformation;
  private tree: unknown;
  private names = new Set<string>();
  private rate: number | undefined;

  constructor(transformation: GradientTransformation) {
    super();
    ensure(
      typeof transformation?.init === 'function' && typeof transformation?.update === 'function',
      'transformation',
      () => 'not a gradient transformation; accepted is an object with init(params) and update(updates, state, params)',
    );
    this.transformation = transformation;
  }

  /** The learning rate of the next update; 1 for a transformation that has none of its own. */
  get learningRate(): number {
    return this.rate ?? learningRateAt(this.transformation, this.iterations) ?? 1;
  }

  /**
   * Sets the learning rate from the next update on. Updates are proportional to it, so they are rescaled; for a
   * transformation without a learning rate of its own, `rate` is the factor that multiplies its updates.
   *
   * @throws MatforgeError when the transformation follows a schedule of its own, or its own rate is 0.
   */
  setLearningRate(rate: number): void {
    ensure(Number.isFinite(rate) && rate >= 0, 'learningRate', () => `${rate} given; accepted is a finite number >= 0`);
    const own = this.transformation.learningRate;
    if (typeof own === 'function') {
      refuse('learningRate', 'the transformation follows a schedule of its own; give it a number to set the rate here');
    }
    if (own === 0 && rate !== 0 && !this.transformation.withLearningRate) {
      refuse('learningRate', 'the transformation was made with learning rate 0; its updates cannot be rescaled');
    }
    this.rate = rate;
  }

  /**
   * Updates the registered variables of these names. Entries that are null are skipped.
   *
   * @throws MatforgeError for a name that is no variable or a gradient of another shape.
   */
  override applyGradients(gradients: tf.NamedTensorMap | NamedTensor[]): void {
    const given = Array.isArray(gradients)
      ? gradients.map(({ name, tensor }) => [name, tensor] as const)
      : Object.entries(gradients);
    const updates: NamedTensors = {};
    const params: Record<string, tf.Variable> = {};
    for (const [name, gradient] of given as [string, tf.Tensor | null | undefined][]) {
      if (gradient == null) continue;
      const variable = tf.engine().registeredVariables[name];
      if (variable === undefined) refuse(name, 'no variable of this name exists; it was disposed or renamed');
      ensure(
        tf.util.arraysEqual(gradient.shape, variable.shape),
        name,
        () => `gradient of shape [${gradient.shape}] for a variable of shape [${variable.shape}]`,
      );
      updates[name] = gradient;
      params[name] = variable;
    }
    if (Object.keys(updates).length > 0) this.step(updates, params);
    this.incrementIterations();
  }

  private step(updates: NamedTensors, params: Record<string, tf.Variable>): void {
    const joining = new Set(Object.keys(updates).filter((name) => !this.names.has(name)));
    const absent = new Set([...this.names].filter((name) => !(name in updates)));
    const inputs = new Set<tf.Tensor>([...Object.values(updates), ...Object.values(params)]);
    const old = this.tree;
    const { transformation, factor } = this.atRate();

    this.tree = tidyTree(() => {
      let state = old;
      if (state === undefined) state = transformation.init(params);
      else if (joining.size > 0) {
        const joined = Object.fromEntries([...joining].map((name) => [name, params[name]]));
        state = graft(state, transformation.init(joined), joining);
      }
      const result = transformation.update(updates, state, params);
      for (const [name, update] of Object.entries(result.updates)) {
        const variable = params[name];
        variable.assign(tf.add(variable, factor === 1 ? update : tf.mul(update, factor)));
      }
      // A state that is the gradient or the variable itself would die or change with it.
      const next = mapTensors(graft(result.state, state, absent), (t) => (inputs.has(t) ? t.clone() : t));
      for (const tensor of tensorsOf(next)) tf.keep(tensor);
      return next;
    });
    for (const name of joining) this.names.add(name);
    disposeTree(old, this.tree);
  }

  /** The transformation at the rate that was set, and the factor that its updates still need. */
  private atRate(): { transformation: GradientTransformation; factor: number } {
    const { transformation, rate } = this;
    if (rate === undefined) return { transformation, factor: 1 };
    if (transformation.withLearningRate) {
      return { transformation: transformation.withLearningRate(rate), factor: 1 };
    }
    const own = transformation.learningRate;
    return { transformation, factor: rate === 0 ? 0 : rate / (typeof own === 'number' ? own : 1) };
  }

  /** A copy of the state, for a checkpoint. The caller owns its tensors ({@link disposeTree}). */
  state(): OptimizerState {
    return { step: this.iterations, names: [...this.names], state: copyTree(this.tree) };
  }

  /** Continues from a state that {@link state} returned; copies it. */
  restore({ step, names, state }: OptimizerState): void {
    const next = copyTree(state);
    disposeTree(this.tree);
    this.tree = next;
    this.names = new Set(names);
    this.iterations_ = step;
  }

  /** Forgets the state. The optimizer can be used again and starts anew. */
  override dispose(): void {
    disposeTree(this.tree);
    this.tree = undefined;
    this.names.clear();
    this.iterations_ = 0;
  }

  /** A copy of the state as named tensors: `iter` first, then one for each leaf, named by its path and kind. */
  override async getWeights(): Promise<NamedTensor[]> {
    const leaves = flattenTree({ names: [...this.names], state: this.tree });
    const weights = [...leaves].map(([path, leaf]) => encodeLeaf(path, leaf));
    return [await this.saveIterations(), ...weights];
  }

  /** Restores what {@link getWeights} returned. */
  override async setWeights(weights: NamedTensor[]): Promise<void> {
    const rest = await this.extractIterations(weights);
    const leaves: [string, unknown][] = [];
    for (const weight of rest) leaves.push(await decodeLeaf(weight));
    const { names, state } = unflattenTree(leaves) as { names: string[]; state: unknown };
    this.restore({ step: this.iterations, names, state });
  }

  /**
   * Called by `model.save` with `includeOptimizer`. A transformation holds functions, which no file can: subclasses that
   * can be rebuilt from options override this.
   *
   * @throws MatforgeError always.
   */
  override getConfig(): tf.serialization.ConfigDict {
    refuse(
      'includeOptimizer',
      'this optimizer cannot be stored within a model file; save without includeOptimizer, and its state by a checkpoint of train() or by state()',
    );
  }
}

/** Makes an optimizer of a transformation; see {@link TransformationOptimizer}. */
export function toOptimizer(transformation: GradientTransformation): TransformationOptimizer {
  return new TransformationOptimizer(transformation);
}

// A leaf's kind travels in its name. Numbers that are no int32 and float64 arrays go as their bits, losing nothing.
const ARRAYS = { Int8Array, Uint8Array, Int16Array, Int32Array, Float32Array, Float64Array };

function encodeLeaf(path: string, leaf: unknown): NamedTensor {
  if (leaf instanceof tf.Tensor) return { name: `${path}#tensor`, tensor: leaf.clone() };
  if (ArrayBuffer.isView(leaf)) {
    const array = leaf as StateArray;
    const kind = array.constructor.name;
    if (array instanceof Float32Array) return { name: `${path}#${kind}`, tensor: tf.tensor1d(array) };
    const whole = array instanceof Float64Array ? new Int32Array(array.slice().buffer) : Int32Array.from(array);
    return { name: `${path}#${kind}`, tensor: tf.tensor1d(whole, 'int32') };
  }
  const text = JSON.stringify(typeof leaf === 'number' && !Number.isFinite(leaf) ? { number: String(leaf) } : leaf);
  return { name: `${path}#json`, tensor: tf.tensor1d(Int32Array.from(new TextEncoder().encode(text)), 'int32') };
}

async function decodeLeaf({ name, tensor }: NamedTensor): Promise<[string, unknown]> {
  const at = name.lastIndexOf('#');
  const path = name.slice(0, at);
  const kind = name.slice(at + 1);
  if (kind === 'tensor') return [path, tensor];
  const data = await tensor.data();
  if (kind === 'json') {
    const value = JSON.parse(new TextDecoder().decode(Uint8Array.from(data)));
    return [path, typeof value === 'object' && value !== null ? Number(value.number) : value];
  }
  const type = ARRAYS[kind as keyof typeof ARRAYS];
  if (at < 0 || type === undefined) refuse('weights', `"${name}" was not written by this optimizer`);
  return [path, type === Float64Array ? new Float64Array(Int32Array.from(data).buffer) : type.from(data)];
}
