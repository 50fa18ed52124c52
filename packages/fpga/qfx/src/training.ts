import { ensure } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { QfxLayer } from './layers.ts';
import { packed, unpacked } from './packed.ts';
import type { FixedQuantizer } from './quantizer.ts';

/** Learning rate and schedule of the binary points under {@link QfxOptimizer}. */
export interface PositionTraining {
  /** Adam's learning rate of the positions. Default 0.01. */
  positionLr?: number;
  /** Fraction of the training steps after which positions are fixed by majority. Default 0.8. */
  freezeAfter?: number;
  /** Training steps in all. Default: those of each call of `fit`. */
  steps?: number;
}

/** The trainable positions of a model, in layer order, without duplicates. */
export function positionsOf(model: tf.LayersModel): { name: string; quantizer: FixedQuantizer }[] {
  return model.layers.flatMap((layer) => (layer instanceof QfxLayer ? [...layer.positions] : []));
}

/** Steps of which the majority decides a frozen position. */
const MAJORITY = 100;
const BETA1 = 0.9;
const BETA2 = 0.999;
const EPSILON = 1e-7;

interface PositionState {
  quantizer: FixedQuantizer;
  m: Float64Array;
  v: Float64Array;
  /** The last positions, newest last; one array of channels each. */
  history: number[][];
  /** Fixed by the schedule, not by the user. */
  scheduled: boolean;
}

/**
 * An optimizer that updates the weights with the user's one and the binary points with an Adam of their own (no weight
 * decay), and fixes each binary point, when its time has come, at its most frequent value of the last 100 steps.
 */
export class QfxOptimizer extends tf.Optimizer {
  static readonly className = 'QfxOptimizer';
  /** The user's optimizer: it updates everything but the positions. */
  readonly inner: tf.Optimizer;
  private readonly states = new Map<string, PositionState>();
  private readonly positionLr: number;
  private readonly freezeFraction: number;
  private freezeAt = Infinity;
  private step = 0;

  /**
   * @param inner updates everything but the positions
   * @param model whose positions are trained
   */
  constructor(inner: tf.Optimizer, model: tf.LayersModel, options: PositionTraining = {}) {
    super();
    this.inner = inner;
    this.positionLr = options.positionLr ?? 0.01;
    this.freezeFraction = options.freezeAfter ?? 0.8;
    ensure(this.positionLr > 0, 'positionLr', () => `must be greater than 0, got ${options.positionLr}`);
    ensure(
      this.freezeFraction >= 0 && this.freezeFraction <= 1,
      'freezeAfter',
      () => `is a fraction of training in 0..1, got ${options.freezeAfter}`,
    );
    for (const { quantizer } of positionsOf(model)) {
      const size = quantizer.theta.size;
      this.states.set(quantizer.theta.name, {
        quantizer,
        m: new Float64Array(size),
        v: new Float64Array(size),
        history: [],
        scheduled: false,
      });
    }
    if (options.steps !== undefined) this.schedule(options.steps);
  }

  /**
   * Fixes the positions after the given fraction of `steps` further steps. Positions that an earlier schedule fixed
   * learn again until then, so that a training cut into pieces learns in each of them.
   */
  schedule(steps: number): void {
    for (const state of this.states.values()) {
      if (state.scheduled) state.quantizer.learn = true;
      state.scheduled = false;
    }
    this.freezeAt = this.step + Math.floor(this.freezeFraction * steps);
  }

  override applyGradients(gradients: tf.NamedTensorMap | { name: string; tensor: tf.Tensor }[]): void {
    const named = Array.isArray(gradients)
      ? Object.fromEntries(gradients.map(({ name, tensor }) => [name, tensor]))
      : gradients;
    const rest: tf.NamedTensorMap = {};
    this.step++;
    for (const [name, gradient] of Object.entries(named)) {
      const state = this.states.get(name);
      if (!state) rest[name] = gradient;
      else if (state.quantizer.learn) this.move(state, gradient);
    }
    if (Object.keys(rest).length > 0) this.inner.applyGradients(rest);
    this.incrementIterations();
    for (const state of this.states.values()) {
      if (!state.quantizer.learn) continue;
      state.history.push(state.quantizer.positions());
      if (state.history.length > MAJORITY) state.history.shift();
    }
    if (this.step >= this.freezeAt) {
      const learning = [...this.states.values()].filter(({ quantizer }) => quantizer.learn);
      this.freezePositions();
      for (const state of learning) state.scheduled = true;
    }
  }

  private move({ quantizer, m, v }: PositionState, gradient: tf.Tensor): void {
    const g = gradient.dataSync();
    const theta = Float32Array.from(quantizer.theta.dataSync());
    const correct1 = 1 - BETA1 ** this.step;
    const correct2 = 1 - BETA2 ** this.step;
    for (let i = 0; i < theta.length; i++) {
      m[i] = BETA1 * m[i] + (1 - BETA1) * g[i];
      v[i] = BETA2 * v[i] + (1 - BETA2) * g[i] * g[i];
      theta[i] -= (this.positionLr * (m[i] / correct1)) / (Math.sqrt(v[i] / correct2) + EPSILON);
    }
    const value = tf.tensor(theta, quantizer.theta.shape);
    quantizer.theta.assign(value);
    value.dispose();
  }

  /** Fixes every position at its most frequent value of the last 100 steps (ties: the larger). */
  freezePositions(): void {
    for (const { quantizer, history } of this.states.values()) {
      if (!quantizer.learn || !quantizer.ready) continue;
      quantizer.freeze(history.length > 0 ? majority(history) : quantizer.positions());
    }
    this.freezeAt = Infinity;
  }

  override dispose(): void {
    this.inner.dispose();
  }

  override async getWeights(): Promise<{ name: string; tensor: tf.Tensor }[]> {
    const own = [...this.states.entries()].flatMap(([name, { m, v }]) => [
      { name: `positions/${name}/m`, tensor: tf.tensor(Float32Array.from(m)) },
      { name: `positions/${name}/v`, tensor: tf.tensor(Float32Array.from(v)) },
    ]);
    return [{ name: 'positions/step', tensor: tf.scalar(this.step) }, ...own, ...(await this.inner.getWeights())];
  }

  override async setWeights(weights: { name: string; tensor: tf.Tensor }[]): Promise<void> {
    this.step = weights[0].tensor.dataSync()[0];
    let at = 1;
    for (const state of this.states.values()) {
      state.m.set(weights[at++].tensor.dataSync());
      state.v.set(weights[at++].tensor.dataSync());
    }
    await this.inner.setWeights(weights.slice(at));
  }

  getConfig(): tf.serialization.ConfigDict {
    return { positionLr: this.positionLr, freezeAfter: this.freezeFraction };
  }
}

/** The most frequent value of each channel; ties go to the larger. */
export function majority(history: readonly (readonly number[])[]): number[] {
  return history[0].map((_, channel) => {
    const counts = new Map<number, number>();
    for (const positions of history) counts.set(positions[channel], (counts.get(positions[channel]) ?? 0) + 1);
    return [...counts].reduce((best, next) =>
      next[1] > best[1] || (next[1] === best[1] && next[0] > best[0]) ? next : best,
    )[0];
  });
}

/** What a quantized model remembers besides its layers. */
export interface QfxModelSettings extends PositionTraining {
  /** Appended when the model is frozen. */
  head?: 'argmax';
}

/**
 * A quantized tf.LayersModel. `compile` gives the positions an Adam of their own beside the user's optimizer, and `fit`
 * fixes the positions after 80 % of its steps (or of `steps`).
 */
export class QfxModel extends tf.LayersModel {
  static override className = 'QfxModel';
  settings: QfxModelSettings = {};
  /** What the user should know about the conversion. */
  readonly notes: string[] = [];

  override compile(args: tf.ModelCompileArgs): void {
    super.compile(args);
    this.optimizer_ = new QfxOptimizer(this.optimizer_, this, this.settings);
  }

  override async fit(...[x, y, args = {}]: Parameters<tf.LayersModel['fit']>): Promise<tf.History> {
    if (this.settings.steps === undefined && this.optimizer_ instanceof QfxOptimizer) {
      const first = (Array.isArray(x) ? x[0] : x instanceof tf.Tensor ? x : Object.values(x)[0]) as tf.Tensor;
      const samples = Math.floor(first.shape[0] * (1 - (args.validationSplit ?? 0)));
      const epochs = (args.epochs ?? 1) - (args.initialEpoch ?? 0);
      this.optimizer_.schedule(epochs * Math.ceil(samples / (args.batchSize ?? 32)));
    }
    return super.fit(x, y, args);
  }

  override async fitDataset<T>(
    dataset: Parameters<tf.LayersModel['fitDataset']>[0],
    args: tf.ModelFitDatasetArgs<T>,
  ): Promise<tf.History> {
    const { settings } = this;
    if (settings.steps === undefined && args.batchesPerEpoch && this.optimizer_ instanceof QfxOptimizer) {
      this.optimizer_.schedule((args.epochs ?? 1) * args.batchesPerEpoch);
    }
    return super.fitDataset(dataset, args as never);
  }

  /** Fixes the positions now: by majority of the last steps when the model was trained, else where they are. */
  freezePositions(): void {
    if (this.optimizer_ instanceof QfxOptimizer) this.optimizer_.freezePositions();
    else for (const { quantizer } of positionsOf(this)) if (quantizer.learn && quantizer.ready) quantizer.freeze();
  }

  override getConfig(): tf.serialization.ConfigDict {
    return { ...super.getConfig(), qfx: packed(this.settings) };
  }

  static override fromConfig<T extends tf.serialization.Serializable>(
    cls: tf.serialization.SerializableConstructor<T>,
    config: tf.serialization.ConfigDict,
    customObjects?: tf.serialization.ConfigDict,
    fastWeightInit?: boolean,
  ): T {
    const model = tf.LayersModel.fromConfig(cls, config, customObjects, fastWeightInit) as unknown as QfxModel;
    model.settings = (config.qfx ? unpacked(config.qfx) : {}) as QfxModelSettings;
    return model as unknown as T;
  }
}

tf.serialization.registerClass(QfxModel as never);
