import * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { call, type OwnKernel } from '../backend.ts';
import { type Native, native } from '../native.ts';
import { stridesOf } from './broadcast.ts';

/** Codes of the element-wise functions in c/elementwise.c. */
export const FUNCTIONS = {
  exp: 0,
  tanh: 1,
  erf: 2,
  sigmoid: 3,
  log: 4,
  softplus: 5,
  relu: 6,
  relu6: 7,
  elu: 8,
  geluErf: 9,
  geluTanh: 10,
  silu: 11,
  selu: 12,
  square: 13,
  sqrt: 14,
  rsqrt: 15,
  neg: 16,
  step: 17,
  sign: 18,
  reciprocal: 19,
  expm1: 20,
  log1p: 21,
} as const;

/** Bias and activation that follow a product, checked before any work. */
export interface Epilogue {
  bias: number;
  activation: number;
  slopes: number;
  alpha: number;
}

/** What a fused kernel's inputs and attributes ask for after the product, or null where we do not have it. */
export function epilogue(
  engine: Native,
  channels: number,
  inputs: Record<string, tf.TensorInfo>,
  attrs: Record<string, unknown>,
): Epilogue | null {
  const { bias, preluActivationWeights: slopes } = inputs;
  const name = (attrs.activation as string | undefined) ?? 'linear';
  for (const tensor of [bias, slopes]) {
    if (tensor && (tensor.dtype !== 'float32' || tf.util.sizeFromShape(tensor.shape) !== channels)) return null;
    if (tensor && channels > 1 && tensor.shape.at(-1) !== channels) return null;
  }
  if (name === 'prelu' && !slopes) return null;
  const alpha = name === 'leakyrelu' ? ((attrs.leakyreluAlpha as number | undefined) ?? 0.2) : 0;
  const linear = name === 'linear' || name === 'prelu' || (name === 'leakyrelu' && alpha !== 0);
  const known: Record<string, number> = { ...FUNCTIONS, leakyrelu: FUNCTIONS.relu };
  if (!linear && known[name] === undefined) return null;
  return {
    bias: engine.at(bias),
    activation: linear ? -1 : known[name],
    slopes: name === 'prelu' ? engine.at(slopes) : 0,
    alpha,
  };
}

/** Applies bias and activation to `rows` rows of `channels` at `out`. */
export function finish(engine: Native, rows: number, channels: number, out: number, after: Epilogue): void {
  if (after.bias === 0 && after.activation < 0 && after.slopes === 0 && after.alpha === 0) return;
  engine.kernels.mf_bias_act(rows, channels, out, after.bias, after.activation, after.slopes, after.alpha);
}

/** op(a)·op(b) over the last two axes, the others broadcast. */
function multiply(
  backend: BackendWasm,
  engine: Native,
  a: tf.TensorInfo,
  b: tf.TensorInfo,
  transposeA: boolean,
  transposeB: boolean,
): tf.TensorInfo {
  const [rowsA, columnsA] = a.shape.slice(-2);
  const [rowsB, columnsB] = b.shape.slice(-2);
  const [m, inner] = transposeA ? [columnsA, rowsA] : [rowsA, columnsA];
  const [innerB, n] = transposeB ? [columnsB, rowsB] : [rowsB, columnsB];
  if (inner !== innerB) {
    throw new Error(
      `Error in matMul: inner shapes (${inner}) and (${innerB}) of Tensors with shapes ${a.shape} and ${b.shape} ` +
        `and transposeA=${transposeA} and transposeB=${transposeB} must match.`,
    );
  }
  const outerA = a.shape.slice(0, -2);
  const outerB = b.shape.slice(0, -2);
  const outer = tf.broadcast_util.assertAndGetBroadcastShape(outerA, outerB);
  const out = backend.makeOutput([...outer, m, n], 'float32');
  const sizeA = tf.util.sizeFromShape(outerA);
  const sizeB = tf.util.sizeFromShape(outerB);
  const batch = tf.util.sizeFromShape(outer);
  const { kernels } = engine;
  const work = engine.work(kernels.mf_sgemm_work());
  const [ta, tb] = [Number(transposeA), Number(transposeB)];
  const [atA, atB, atC] = [engine.at(a), engine.at(b), engine.at(out)];
  const run = (count: number, rows: number, fromA: number, stepA: number, fromB: number, stepB: number, to: number) =>
    kernels.mf_sgemm(count, ta, tb, rows, n, inner, fromA, stepA, fromB, stepB, to, 0, work);
  if (sizeB === 1 && sizeA === batch && !transposeA) run(1, batch * m, atA, 0, atB, 0, atC);
  else if ((sizeA === batch || sizeA === 1) && (sizeB === batch || sizeB === 1)) {
    run(batch, m, atA, sizeA === 1 ? 0 : m * inner, atB, sizeB === 1 ? 0 : n * inner, atC);
  } else {
    const stepsA = stridesOf(outerA, outer.length);
    const stepsB = stridesOf(outerB, outer.length);
    const strides = stridesOf(outer, outer.length);
    for (let i = 0; i < batch; i++) {
      let [fromA, fromB] = [0, 0];
      outer.forEach((size, axis) => {
        const index = strides[axis] === 0 ? 0 : Math.floor(i / strides[axis]) % size;
        fromA += index * stepsA[axis];
        fromB += index * stepsB[axis];
      });
      run(1, m, atA + 4 * fromA * m * inner, 0, atB + 4 * fromB * inner * n, 0, atC + 4 * i * m * n);
    }
  }
  return out;
}

/** tf.matMul. */
export const batchMatMul: OwnKernel = ({ inputs: { a, b }, attrs, backend }) => {
  const engine = native(backend);
  if (!engine || a.dtype !== 'float32' || b.dtype !== 'float32') return null;
  return multiply(backend, engine, a, b, Boolean(attrs.transposeA), Boolean(attrs.transposeB));
};

/** Product, bias and PReLU one after the other: slopes that are not one for each column. */
function apart(
  backend: BackendWasm,
  engine: Native,
  { a, b, bias, preluActivationWeights: alpha }: Record<string, tf.TensorInfo>,
  attrs: Record<string, unknown>,
): tf.TensorInfo {
  const product = multiply(backend, engine, a, b, Boolean(attrs.transposeA), Boolean(attrs.transposeB));
  const x = bias ? call(backend, 'Add', { a: product, b: bias }) : product;
  const out = call(backend, 'Prelu', { x, alpha });
  for (const { dataId } of new Set([product, x])) backend.disposeData(dataId);
  return out;
}

/** tf.fused.matMul. */
export const fusedMatMul: OwnKernel = ({ inputs, attrs, backend }) => {
  const engine = native(backend);
  const { a, b } = inputs;
  if (!engine || a.dtype !== 'float32' || b.dtype !== 'float32') return null;
  const channels = attrs.transposeB ? b.shape.at(-2)! : b.shape.at(-1)!;
  const after = epilogue(engine, channels, inputs, attrs);
  if (!after) {
    return attrs.activation === 'prelu' && inputs.preluActivationWeights ? apart(backend, engine, inputs, attrs) : null;
  }
  const out = multiply(backend, engine, a, b, Boolean(attrs.transposeA), Boolean(attrs.transposeB));
  const rows = tf.util.sizeFromShape(out.shape.slice(0, -1));
  finish(engine, rows, channels, engine.at(out), after);
  return out;
};
