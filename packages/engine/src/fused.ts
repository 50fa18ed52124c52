import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { type KernelCall, whole } from './backend.ts';
import { FUNCTIONS } from './kernels/matmul.ts';
import { native } from './native.ts';

// Each function here is one kernel on the wasm backend and plain ops elsewhere, and can be differentiated any number of
// times: the gradients of gradients are made of the same kernels and of plain ops.

const size = tf.util.sizeFromShape;

type Saved = tf.Tensor[];
type Gradients = Record<string, () => tf.Tensor>;

function isFused(name: string): boolean {
  return tf.getBackend() === 'wasm' && tf.getKernel(name, 'wasm') !== undefined;
}

function run<T>(name: string, inputs: Record<string, tf.Tensor>, attrs: Record<string, unknown> = {}): T {
  return tf.engine().runKernel(name, inputs as never, attrs as never) as T;
}

function asFloat(x: tf.TensorLike | tf.Tensor, name: string): tf.Tensor {
  const tensor = x instanceof tf.Tensor ? x : tf.tensor(x);
  if (tensor.dtype === 'float32') return tensor;
  throw new Error(`engine: ${name} has dtype '${tensor.dtype}'; give float32 (tf.cast).`);
}

// ------------------------------------------------------------------------------------------------ activations

const SQRT_HALF = Math.SQRT1_2;
const SQRT_2_OVER_PI = Math.sqrt(2 / Math.PI);

type Activation = 'geluErf' | 'geluTanh' | 'silu';
type WithSlope = Activation | 'relu';

const PLAIN: Record<Activation, (x: tf.Tensor) => tf.Tensor> = {
  geluErf: (x) => tf.mul(tf.mul(x, 0.5), tf.add(tf.erf(tf.mul(x, SQRT_HALF)), 1)),
  geluTanh: (x) => {
    const inner = tf.mul(tf.mul(x, SQRT_2_OVER_PI), tf.add(tf.mul(tf.square(x), 0.044715), 1));
    return tf.mul(tf.mul(x, 0.5), tf.add(tf.tanh(inner), 1));
  },
  silu: (x) => tf.mul(x, tf.sigmoid(x)),
};

function activation(name: Activation, x: tf.Tensor): tf.Tensor {
  return tf.tidy(() => (isFused('MatforgeActivation') ? run('MatforgeActivation', { x }, { name }) : PLAIN[name](x)));
}

/**
 * Gaussian error linear unit, x·Φ(x) (Hendrycks and Gimpel 2016).
 *
 * @param x any shape, float32.
 * @param approximate true for the tanh form 0.5x(1 + tanh(√(2/π)(x + 0.044715x³))); default false, the exact form.
 * @throws Error when x is not float32.
 */
export function gelu(x: tf.Tensor, approximate = false): tf.Tensor {
  return activation(approximate ? 'geluTanh' : 'geluErf', asFloat(x, 'x of gelu'));
}

/** Sigmoid linear unit (swish), x·σ(x). x: any shape, float32. */
export function silu(x: tf.Tensor): tf.Tensor {
  return activation('silu', asFloat(x, 'x of silu'));
}

// ------------------------------------------------------------------------------------------------- layer norm

function plainLayerNorm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, eps: number): tf.Tensor {
  const centred = tf.sub(x, tf.mean(x, -1, true));
  const variance = tf.mean(tf.square(centred), -1, true);
  return tf.add(tf.mul(tf.mul(centred, tf.rsqrt(tf.add(variance, eps))), gamma), beta);
}

/**
 * Layer normalisation over the last axis: γ·(x − mean)/√(var + ε) + β (Ba, Kiros and Hinton 2016).
 *
 * @param x [..., n], float32.
 * @param gamma [n].
 * @param beta [n].
 * @param eps added to the variance; default 1e-5.
 * @throws Error when gamma or beta is not of shape [n].
 */
export function layerNorm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, eps = 1e-5): tf.Tensor {
  const n = x.shape.at(-1) ?? 1;
  for (const [name, tensor] of Object.entries({ gamma, beta })) {
    if (tensor.rank === 1 && tensor.size === n) continue;
    throw new Error(`engine: ${name} of layerNorm has shape [${tensor.shape}]; give [${n}], the last axis of x.`);
  }
  asFloat(x, 'x of layerNorm');
  if (!isFused('MatforgeLayerNorm')) return tf.tidy(() => plainLayerNorm(x, gamma, beta, eps));
  return tf.tidy(() => run<tf.Tensor[]>('MatforgeLayerNorm', { x, gamma, beta }, { eps })[0]);
}

// ------------------------------------------------------------------------------------- softmax, cross-entropy

/** log(softmax(x)) over the last axis, one pass. x: [..., n], float32. */
export function logSoftmax(x: tf.Tensor): tf.Tensor {
  asFloat(x, 'x of logSoftmax');
  return tf.tidy(() => (isFused('MatforgeLogSoftmax') ? run('MatforgeLogSoftmax', { x }) : tf.logSoftmax(x)));
}

/**
 * Softmax of scale·scores over the keys that a query may see: key j ≤ i + (keys − queries) for query i.
 *
 * @param scores [..., queries, keys], float32, queries ≤ keys.
 * @param scale factor before the softmax; default 1.
 * @throws Error when there are more queries than keys.
 */
export function causalSoftmax(scores: tf.Tensor, scale = 1): tf.Tensor {
  asFloat(scores, 'scores of causalSoftmax');
  const [queries, keys] = scores.shape.slice(-2);
  if (scores.rank < 2 || queries > keys) {
    throw new Error(
      `engine: scores of causalSoftmax have shape [${scores.shape}]; give [..., queries, keys] with queries ≤ keys.`,
    );
  }
  return tf.tidy(() => {
    if (isFused('MatforgeCausalSoftmax')) return run('MatforgeCausalSoftmax', { x: scores }, { scale });
    const seen = tf.linalg.bandPart(tf.ones([queries, keys]) as tf.Tensor2D, -1, keys - queries);
    return tf.softmax(tf.add(tf.mul(scores, scale), tf.mul(tf.sub(seen, 1), 1e9)));
  });
}

/**
 * Cross-entropy of softmax(logits) with class numbers, one value per row.
 *
 * @param logits [..., classes], float32.
 * @param labels [...], int32 class numbers; a row with a label outside [0, classes) is ignored: loss and gradient 0.
 * @returns losses of the shape of `labels`.
 * @throws Error when the shapes do not fit or labels are not int32.
 */
export function softmaxCrossEntropy(logits: tf.Tensor, labels: tf.Tensor): tf.Tensor {
  asFloat(logits, 'logits of softmaxCrossEntropy');
  if (labels.dtype !== 'int32' || !tf.util.arraysEqual(labels.shape, logits.shape.slice(0, -1))) {
    throw new Error(
      `engine: labels of softmaxCrossEntropy are ${labels.dtype} of shape [${labels.shape}]; ` +
        `give int32 of shape [${logits.shape.slice(0, -1)}], class numbers.`,
    );
  }
  return tf.tidy(() => {
    if (isFused('MatforgeCrossEntropy')) return run('MatforgeCrossEntropy', { logits, labels });
    return plainCrossEntropy(logits, labels);
  });
}

function plainCrossEntropy(logits: tf.Tensor, labels: tf.Tensor): tf.Tensor {
  // One-hot rows of labels out of range are zero, and so is then the whole product.
  const target = tf.oneHot(labels as tf.Tensor1D, logits.shape.at(-1)!);
  return tf.neg(tf.sum(tf.mul(tf.logSoftmax(logits), tf.cast(target, 'float32')), -1));
}

// ------------------------------------------------------------------------------------------------- optimizers

/** Constants of Adam and AdamW. */
export interface AdamOptions {
  learningRate: number;
  /** Decay of the first moment; default 0.9. */
  beta1?: number;
  /** Decay of the second moment; default 0.999. */
  beta2?: number;
  /** Added to the root of the second moment; default 1e-8. */
  epsilon?: number;
  /** Decoupled weight decay per unit of learning rate (AdamW); default 0. */
  weightDecay?: number;
  /** Number of this step, from 1. */
  step: number;
}

/** Constants of SGD. */
export interface SgdOptions {
  learningRate: number;
  /** Default 0; needs `velocity` otherwise. */
  momentum?: number;
  /** Nesterov's look-ahead; default false. */
  nesterov?: boolean;
  /** Decoupled weight decay per unit of learning rate; default 0. */
  weightDecay?: number;
}

/**
 * One step of Adam (Kingma and Ba 2015, algorithm 1) or AdamW (Loshchilov and Hutter 2019): assigns the new values to
 * `param`, `m` and `v`, in place where nothing else shares their memory.
 *
 * @param param trained variable.
 * @param gradient its gradient, same shape; not disposed.
 * @param m first moment, same shape, zero at the start.
 * @param v second moment, same shape, zero at the start.
 * @throws Error when shapes differ or the step is not at least 1.
 */
export function adamStep(
  param: tf.Variable,
  gradient: tf.Tensor,
  m: tf.Variable,
  v: tf.Variable,
  options: AdamOptions,
): void {
  const { learningRate, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weightDecay = 0, step } = options;
  if (!(step >= 1)) throw new Error(`engine: step of adamStep is ${step}; count from 1.`);
  const corrections: [number, number] = [1 - beta1 ** step, 1 - beta2 ** step];
  adamUpdate(param, gradient, m, v, learningRate, beta1, beta2, epsilon, corrections, weightDecay);
}

/** Adam with the bias corrections 1 − βᵗ given. */
export function adamUpdate(
  param: tf.Variable,
  gradient: tf.Tensor,
  m: tf.Variable,
  v: tf.Variable,
  rate: number,
  beta1: number,
  beta2: number,
  epsilon: number,
  [correct1, correct2]: [number, number],
  weightDecay: number,
): void {
  sameShape('adamStep', param, gradient, m, v);
  const decay = rate * weightDecay;
  const done = inPlace([param, m, v], gradient, (kernels, n, g, [w, m1, v1], [w2, m2, v2]) =>
    kernels.mf_adam(
      ...[n, w, g, m1, v1, w2, m2, v2],
      ...[rate, beta1, beta2, 1 - beta1, 1 - beta2, epsilon, correct1, correct2, decay],
    ),
  );
  if (done) return;
  tf.tidy(() => {
    const m2 = tf.add(tf.mul(m, beta1), tf.mul(gradient, 1 - beta1));
    const v2 = tf.add(tf.mul(v, beta2), tf.mul(tf.square(gradient), 1 - beta2));
    const move = tf.div(tf.div(m2, correct1), tf.add(tf.sqrt(tf.div(v2, correct2)), epsilon));
    m.assign(m2);
    v.assign(v2);
    param.assign(tf.sub(tf.mul(param, 1 - decay), tf.mul(move, rate)));
  });
}

/** New moments and the direction of a step; see {@link adamDirection}. */
export interface AdamDirection {
  /** m̂/(√v̂ + ε), shape of the gradient: what Adam subtracts, before the learning rate. */
  direction: tf.Tensor;
  m: tf.Tensor;
  v: tf.Tensor;
}

/**
 * Adam as a pure function (Kingma and Ba 2015, algorithm 1): m′ = β₁m + (1 − β₁)g, v′ = β₂v + (1 − β₂)g² and the
 * direction m̂/(√v̂ + ε) with both moments corrected for their bias. One kernel on the wasm backend; plain ops elsewhere,
 * for other types than float32, and while gradients are being recorded, so that it can be differentiated.
 *
 * @param gradient any shape, float32.
 * @param m first moment, same shape; zero before step 1.
 * @param v second moment, same shape; zero before step 1.
 * @returns three new tensors.
 * @throws Error when shapes differ or the step is not at least 1.
 */
export function adamDirection(
  gradient: tf.Tensor,
  m: tf.Tensor,
  v: tf.Tensor,
  options: Pick<AdamOptions, 'beta1' | 'beta2' | 'epsilon' | 'step'>,
): AdamDirection {
  const { beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, step } = options;
  if (!(step >= 1)) throw new Error(`engine: step of adamDirection is ${step}; count from 1.`);
  sameShape('adamDirection', gradient, m, v);
  const [correct1, correct2] = [1 - beta1 ** step, 1 - beta2 ** step];
  const isFloat = [gradient, m, v].every(({ dtype }) => dtype === 'float32');
  if (isFloat && !isRecording() && isFused('MatforgeAdam')) {
    const attrs = { beta1, beta2, epsilon, correct1, correct2 };
    const [direction, m2, v2] = run<tf.Tensor[]>('MatforgeAdam', { gradient, m, v }, attrs);
    return { direction, m: m2, v: v2 };
  }
  const m2 = tf.tidy(() => tf.add(tf.mul(m, beta1), tf.mul(gradient, 1 - beta1)));
  const v2 = tf.tidy(() => tf.add(tf.mul(v, beta2), tf.mul(tf.square(gradient), 1 - beta2)));
  const direction = tf.tidy(() => tf.div(tf.div(m2, correct1), tf.add(tf.sqrt(tf.div(v2, correct2)), epsilon)));
  return { direction, m: m2, v: v2 };
}

/** Whether kernels are being recorded for a gradient. */
function isRecording(): boolean {
  return (tf.engine() as unknown as { isTapeOn(): boolean }).isTapeOn();
}

/**
 * One step of stochastic gradient descent: u = μu + g, w −= η·u (with Nesterov: η·(g + μu)), after decoupled decay.
 *
 * @param param trained variable.
 * @param gradient its gradient, same shape; not disposed.
 * @param velocity u, same shape, zero at the start; needed with momentum.
 * @throws Error when shapes differ, or momentum is asked for without a velocity.
 */
export function sgdStep(
  param: tf.Variable,
  gradient: tf.Tensor,
  options: SgdOptions,
  velocity?: tf.Variable | null,
): void {
  const { learningRate: rate, momentum = 0, nesterov = false, weightDecay = 0 } = options;
  if (momentum !== 0 && !velocity) {
    throw new Error(
      `engine: sgdStep has momentum ${momentum} and no velocity; give a variable of zeros shaped like param.`,
    );
  }
  const u = momentum === 0 ? null : velocity!;
  sameShape('sgdStep', param, gradient, ...(u ? [u] : []));
  const decay = rate * weightDecay;
  const states = u ? [param, u] : [param];
  const done = inPlace(states, gradient, (kernels, n, g, [w, u1 = 0], [w2, u2 = 0]) =>
    kernels.mf_sgd(n, w, g, u1, w2, u2, rate, momentum, Number(nesterov), decay),
  );
  if (done) return;
  tf.tidy(() => {
    let move: tf.Tensor = gradient;
    if (u) {
      u.assign(tf.add(tf.mul(u, momentum), gradient));
      move = nesterov ? tf.add(gradient, tf.mul(u, momentum)) : u;
    }
    param.assign(tf.sub(tf.mul(param, 1 - decay), tf.mul(move, rate)));
  });
}

function sameShape(name: string, param: tf.Tensor, ...others: tf.Tensor[]): void {
  const odd = others.find((other) => !tf.util.arraysEqual(other.shape, param.shape));
  if (!odd) return;
  throw new Error(
    `engine: ${name} was given a tensor of shape [${odd.shape}] for a variable of shape [${param.shape}].`,
  );
}

type Update = (
  kernels: Record<string, (...args: number[]) => number>,
  n: number,
  gradient: number,
  from: number[],
  to: number[],
) => void;

/** Updates variables on the wasm heap; those whose memory another tensor shares move to new memory first. */
function inPlace(states: tf.Variable[], gradient: tf.Tensor, update: Update): boolean {
  if (tf.getBackend() !== 'wasm' || [gradient, ...states].some(({ dtype }) => dtype !== 'float32')) return false;
  const backend = tf.backend() as BackendWasm;
  const engine = native(backend);
  if (!engine) return false;
  // Reading an address also brings a tensor over that another backend still holds.
  const from = states.map((state) => engine.at(state));
  const fresh = states.map((state) =>
    backend.refCount(state.dataId) === 1 ? null : tf.tidy(() => tf.keep(tf.fill(state.shape, 0))),
  );
  const to = states.map((state, i) => (fresh[i] ? engine.at(fresh[i]) : engine.at(state)));
  update(engine.kernels, gradient.size, engine.at(gradient), from, to);
  states.forEach((state, i) => {
    if (!fresh[i]) return;
    state.assign(fresh[i] as tf.Tensor);
    fresh[i]?.dispose();
  });
  return true;
}

// -------------------------------------------------------------------------------------------------- the kernels

function out(call: KernelCall, shape: number[]): tf.TensorInfo {
  return call.backend.makeOutput(shape, 'float32');
}

type Run = (call: KernelCall) => tf.TensorInfo | tf.TensorInfo[];

const CODES: Record<WithSlope, number> = {
  relu: FUNCTIONS.relu,
  geluErf: FUNCTIONS.geluErf,
  geluTanh: FUNCTIONS.geluTanh,
  silu: FUNCTIONS.silu,
};

const KERNELS: Record<string, Run> = {
  MatforgeAdam: (call) => {
    const { gradient, m, v } = call.inputs;
    const { beta1, beta2, epsilon, correct1, correct2 } = call.attrs as Record<string, number>;
    const outputs = [out(call, m.shape), out(call, m.shape), out(call, m.shape)];
    const engine = native(call.backend)!;
    const [g, m1, v1, ...to] = [gradient, m, v, ...outputs].map((tensor) => engine.at(tensor));
    // A step of rate -1 from weights that decay by all of themselves: the direction is what remains.
    engine.kernels.mf_adam(
      ...[size(m.shape), g, g, m1, v1, ...to],
      ...[-1, beta1, beta2, 1 - beta1, 1 - beta2, epsilon, correct1, correct2, 1],
    );
    return outputs;
  },
  MatforgeActivation: (call) => {
    const { x } = call.inputs;
    const y = out(call, x.shape);
    const engine = native(call.backend)!;
    engine.kernels.mf_unary(CODES[call.attrs.name as Activation], size(x.shape), engine.at(x), engine.at(y));
    return y;
  },
  MatforgeActivationGrad: (call) => {
    const { x, dy } = call.inputs;
    const dx = out(call, x.shape);
    const engine = native(call.backend)!;
    const code = CODES[call.attrs.name as WithSlope];
    engine.kernels.mf_unary_back(code, size(x.shape), engine.at(x), engine.at(dy), engine.at(dx));
    return dx;
  },
  MatforgeLayerNorm: (call) => {
    const { x, gamma, beta } = call.inputs;
    const [rows, n] = rowsOf(x);
    const [y, mean, rstd] = [out(call, x.shape), out(call, [rows]), out(call, [rows])];
    const engine = native(call.backend)!;
    const at = [x, gamma, beta].map((tensor) => engine.at(tensor));
    const eps = call.attrs.eps as number;
    engine.kernels.mf_layer_norm(rows, n, at[0], at[1], at[2], eps, engine.at(y), engine.at(mean), engine.at(rstd));
    return [y, mean, rstd];
  },
  MatforgeLayerNormGrad: (call) => {
    const { x, gamma, dy, mean, rstd } = call.inputs;
    const [rows, n] = rowsOf(x);
    const outputs = [out(call, x.shape), out(call, [n]), out(call, [n])];
    const engine = native(call.backend)!;
    const at = [x, gamma, dy, mean, rstd, ...outputs].map((tensor) => engine.at(tensor));
    engine.kernels.mf_layer_norm_back(rows, n, ...at);
    return outputs;
  },
  MatforgeLogSoftmax: (call) => {
    const { x } = call.inputs;
    const [rows, n] = rowsOf(x);
    const y = out(call, x.shape);
    const engine = native(call.backend)!;
    engine.kernels.mf_log_softmax(rows, n, engine.at(x), engine.at(y));
    return y;
  },
  MatforgeLogSoftmaxGrad: (call) => {
    const { y, dy } = call.inputs;
    const [rows, n] = rowsOf(y);
    const dx = out(call, y.shape);
    const engine = native(call.backend)!;
    engine.kernels.mf_log_softmax_back(rows, n, engine.at(y), engine.at(dy), engine.at(dx));
    return dx;
  },
  MatforgeCausalSoftmax: (call) => {
    const { x } = call.inputs;
    const [rows, n] = rowsOf(x);
    const y = out(call, x.shape);
    const engine = native(call.backend)!;
    engine.kernels.mf_causal_softmax(rows, x.shape.at(-2)!, n, call.attrs.scale as number, engine.at(x), engine.at(y));
    return y;
  },
  MatforgeSoftmaxGrad: (call) => {
    const { y, dy } = call.inputs;
    const [rows, n] = rowsOf(y);
    const dx = out(call, y.shape);
    const engine = native(call.backend)!;
    const scale = (call.attrs.scale as number | undefined) ?? 1;
    engine.kernels.mf_softmax_back(rows, n, scale, engine.at(y), engine.at(dy), engine.at(dx));
    return dx;
  },
  MatforgeCrossEntropy: (call) => {
    const { logits, labels } = call.inputs;
    const [rows, n] = rowsOf(logits);
    const loss = out(call, labels.shape);
    const engine = native(call.backend)!;
    const work = engine.work(4 * n);
    const at = [logits, labels, loss].map((tensor) => engine.at(tensor));
    engine.kernels.mf_cross_entropy(rows, n, ...at, work);
    return loss;
  },
  MatforgeCrossEntropyGrad: (call) => {
    const { logits, labels, dloss } = call.inputs;
    const [rows, n] = rowsOf(logits);
    const dx = out(call, logits.shape);
    const engine = native(call.backend)!;
    const at = [logits, labels, dloss, dx].map((tensor) => engine.at(tensor));
    engine.kernels.mf_cross_entropy_back(rows, n, ...at);
    return dx;
  },
};

function rowsOf({ shape }: tf.TensorInfo): [rows: number, n: number] {
  const n = shape.at(-1) ?? 1;
  return [size(shape.slice(0, -1)), n];
}

// -------------------------------------------------------------------------------------------------- gradients

type Gradient = Pick<tf.GradConfig, 'inputsToSave' | 'outputsToSave'> & {
  gradient(dy: tf.Tensor | tf.Tensor[], saved: Saved, attrs: Record<string, unknown>): Gradients;
};

/** f″ of the activations, for gradients of gradients. */
const CURVATURE: Record<WithSlope, (x: tf.Tensor) => tf.Tensor> = {
  relu: (x) => tf.zerosLike(x),
  // φ(x)(2 − x²)
  geluErf: (x) => {
    const density = tf.mul(tf.exp(tf.mul(tf.square(x), -0.5)), 1 / Math.sqrt(2 * Math.PI));
    return tf.mul(density, tf.sub(2, tf.square(x)));
  },
  // With t = tanh u(x): (1 − t²)(u′ + x(u″/2 − t·u′²))
  geluTanh: (x) => {
    const square = tf.square(x);
    const t = tf.tanh(tf.mul(tf.mul(x, SQRT_2_OVER_PI), tf.add(tf.mul(square, 0.044715), 1)));
    const slope = tf.mul(tf.add(tf.mul(square, 3 * 0.044715), 1), SQRT_2_OVER_PI);
    const bend = tf.sub(tf.mul(x, 3 * 0.044715 * SQRT_2_OVER_PI), tf.mul(t, tf.square(slope)));
    return tf.mul(tf.sub(1, tf.square(t)), tf.add(slope, tf.mul(x, bend)));
  },
  // σ(1 − σ)(2 + x(1 − 2σ))
  silu: (x) => {
    const s = tf.sigmoid(x);
    return tf.mul(tf.mul(s, tf.sub(1, s)), tf.add(tf.mul(x, tf.sub(1, tf.mul(s, 2))), 2));
  },
};

const plainSoftmaxGrad = ([y, dy]: Saved, attrs: Record<string, unknown>): tf.Tensor => {
  const product = tf.mul(y, dy);
  const dx = tf.sub(product, tf.mul(tf.sum(product, -1, true), y));
  return tf.mul(dx, (attrs.scale as number | undefined) ?? 1);
};

const GRADIENTS: Record<string, Gradient> = {
  MatforgeActivation: {
    inputsToSave: ['x'],
    gradient: (dy, [x], attrs) => ({ x: () => run('MatforgeActivationGrad', { x, dy: dy as tf.Tensor }, attrs) }),
  },
  MatforgeActivationGrad: {
    inputsToSave: ['x', 'dy'],
    gradient: (g, [x, dy], attrs) => ({
      x: () => tf.mul(tf.mul(g as tf.Tensor, dy), CURVATURE[attrs.name as WithSlope](x)),
      dy: () => run('MatforgeActivationGrad', { x, dy: g as tf.Tensor }, attrs),
    }),
  },
  MatforgeLayerNorm: {
    inputsToSave: ['x', 'gamma'],
    outputsToSave: [false, true, true],
    gradient: (dys, [x, gamma, mean, rstd], attrs) => {
      const dy = (dys as tf.Tensor[])[0];
      // All at once: each closure runs in a tidy of its own, which would dispose what another still needs.
      const [dx, dgamma, dbeta] = run<tf.Tensor[]>('MatforgeLayerNormGrad', { x, gamma, dy, mean, rstd }, attrs);
      return { x: () => dx, gamma: () => dgamma, beta: () => dbeta };
    },
  },
  // With x̂ = (x − mean)·r and its Jacobian P(v) = r(v − mean(v) − x̂·mean(v·x̂)), which is symmetric, the kernel gives
  // dx = P(γ·dy), dγ = Σ dy·x̂ and dβ = Σ dy. Let a, b, c be the cotangents of the three.
  MatforgeLayerNormGrad: {
    inputsToSave: ['x', 'gamma', 'dy', 'mean', 'rstd'],
    gradient: (gs, [x, gamma, dy, mean, rstd], attrs) => {
      const [a, b, c] = gs as tf.Tensor[];
      const eps = attrs.eps as number;
      const [ones, zeros] = [tf.onesLike(gamma), tf.zerosLike(gamma)];
      const rowMean = (u: tf.Tensor, v: tf.Tensor): tf.Tensor => tf.mean(tf.mul(u, v), -1, true);
      const project = (v: tf.Tensor): tf.Tensor =>
        run<tf.Tensor[]>('MatforgeLayerNormGrad', { x, gamma: ones, dy: v, mean, rstd }, attrs)[0];
      const normal = (): tf.Tensor => layerNorm(x, ones, zeros, eps);
      return {
        // Through x̂ in dγ and in P, and through r in P, for r′(x) = −r²·x̂/n.
        x: () => {
          const [hat, u] = [normal(), tf.mul(dy, gamma)];
          const centred = tf.sub(x, tf.mean(x, -1, true));
          const r = tf.rsqrt(tf.add(rowMean(centred, centred), eps));
          const bend = tf.add(tf.mul(a, rowMean(u, hat)), tf.mul(u, rowMean(a, hat)));
          const slope = project(tf.sub(tf.mul(dy, b), tf.mul(bend, r)));
          return tf.sub(slope, tf.mul(tf.mul(hat, r), rowMean(a, project(u))));
        },
        gamma: () => {
          const axes = x.shape.map((_, axis) => axis).slice(0, -1);
          return tf.sum(tf.mul(dy, project(a)), axes);
        },
        dy: () => tf.add(tf.add(tf.mul(project(a), gamma), tf.mul(normal(), b)), c),
        // Both are functions of x, and x has their share already.
        mean: () => tf.zerosLike(mean),
        rstd: () => tf.zerosLike(rstd),
      };
    },
  },
  MatforgeLogSoftmax: {
    outputsToSave: [true],
    gradient: (dy, [y]) => ({ x: () => run('MatforgeLogSoftmaxGrad', { y, dy: dy as tf.Tensor }) }),
  },
  // dx = dy − exp(y)·Σ dy
  MatforgeLogSoftmaxGrad: {
    inputsToSave: ['y', 'dy'],
    gradient: (g, [y, dy]) => {
      const weighted = (): tf.Tensor => tf.mul(g as tf.Tensor, tf.exp(y));
      return {
        y: () => tf.neg(tf.mul(weighted(), tf.sum(dy, -1, true))),
        dy: () => tf.sub(g as tf.Tensor, tf.sum(weighted(), -1, true)),
      };
    },
  },
  MatforgeCausalSoftmax: {
    outputsToSave: [true],
    gradient: (dy, [y], attrs) => ({ x: () => run('MatforgeSoftmaxGrad', { y, dy: dy as tf.Tensor }, attrs) }),
  },
  // dx = scale·y·(dy − Σ y·dy), symmetric in dy
  MatforgeSoftmaxGrad: {
    inputsToSave: ['y', 'dy'],
    gradient: (g, [y, dy], attrs) => {
      const upstream = g as tf.Tensor;
      const dot = (v: tf.Tensor): tf.Tensor => tf.sum(tf.mul(y, v), -1, true);
      return {
        y: () => {
          const slope = tf.sub(tf.mul(upstream, tf.sub(dy, dot(dy))), tf.mul(dy, dot(upstream)));
          return tf.mul(slope, (attrs.scale as number | undefined) ?? 1);
        },
        dy: () => run('MatforgeSoftmaxGrad', { y, dy: upstream }, attrs),
      };
    },
  },
  MatforgeCrossEntropy: {
    inputsToSave: ['logits', 'labels'],
    gradient: (dy, [logits, labels]) => ({
      logits: () => run('MatforgeCrossEntropyGrad', { logits, labels, dloss: dy as tf.Tensor }),
      labels: () => tf.zeros(labels.shape),
    }),
  },
  // dlogits = dloss·(softmax(logits) − target), 0 in rows that are ignored
  MatforgeCrossEntropyGrad: {
    inputsToSave: ['logits', 'labels', 'dloss'],
    gradient: (g, [logits, labels, dloss]) => {
      const upstream = g as tf.Tensor;
      return {
        logits: () => {
          const inRange = tf.logicalAnd(tf.greaterEqual(labels, 0), tf.less(labels, logits.shape.at(-1)!));
          const weights = tf.expandDims(tf.mul(dloss, tf.cast(inRange, 'float32')), -1);
          return run('MatforgeSoftmaxGrad', { y: tf.softmax(logits), dy: tf.mul(upstream, weights) });
        },
        dloss: () => {
          const slope = run<tf.Tensor>('MatforgeCrossEntropyGrad', { logits, labels, dloss: tf.onesLike(dloss) });
          return tf.sum(tf.mul(upstream, slope), -1);
        },
        labels: () => tf.zeros(labels.shape),
      };
    },
  },
};

/** Registers the fused kernels of a wasm backend that carries our module, and their gradients. */
export function registerFused(): void {
  for (const [kernelName, kernelFunc] of Object.entries(KERNELS)) {
    if (tf.getKernel(kernelName, 'wasm')) tf.unregisterKernel(kernelName, 'wasm');
    tf.registerKernel({ kernelName, backendName: 'wasm', kernelFunc: whole(kernelFunc) as unknown as tf.KernelFunc });
  }
  for (const [kernelName, { gradient, ...saves }] of Object.entries(GRADIENTS)) {
    tf.registerGradient({ kernelName, ...saves, gradFunc: gradient as unknown as tf.GradFunc });
  }
  // tf.relu: its gradient is two kernels in tfjs.
  tf.registerGradient({
    kernelName: 'Relu',
    inputsToSave: ['x'],
    gradFunc: (dy, saved) => {
      const [x] = saved as Saved;
      return {
        x: () =>
          x.dtype === 'float32' && isFused('MatforgeActivationGrad')
            ? run('MatforgeActivationGrad', { x, dy: dy as tf.Tensor }, { name: 'relu' })
            : tf.mul(dy as tf.Tensor, tf.cast(tf.step(x), 'float32')),
      };
    },
  });
  // tf.softmax itself: its gradient is five kernels in tfjs.
  tf.registerGradient({
    kernelName: 'Softmax',
    outputsToSave: [true],
    gradFunc: (dy, saved) => ({
      logits: () =>
        isFused('MatforgeSoftmaxGrad')
          ? run('MatforgeSoftmaxGrad', { y: (saved as Saved)[0], dy: dy as tf.Tensor })
          : tf.tidy(() => plainSoftmaxGrad([(saved as Saved)[0], dy as tf.Tensor], {})),
    }),
  });
}
