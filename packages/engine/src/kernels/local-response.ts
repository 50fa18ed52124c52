import * as tf from '@tensorflow/tfjs';
import type { OwnKernel } from '../backend.ts';
import { native } from '../native.ts';

interface Attributes {
  depthRadius: number;
  bias: number;
  alpha: number;
  beta: number;
}

/** tf.localResponseNormalization, or its gradient where y and dy are given. */
export const localResponse: OwnKernel = ({ inputs, attrs, backend }) => {
  const engine = native(backend);
  const { x, y, dy } = inputs;
  if (!engine || [x, y, dy].some((tensor) => tensor && tensor.dtype !== 'float32')) return null;
  const { depthRadius, bias, alpha, beta } = attrs as unknown as Attributes;
  const n = x.shape[3];
  const out = backend.makeOutput(x.shape, 'float32');
  if (tf.util.sizeFromShape(x.shape) === 0) return out;
  const radius = Math.min(depthRadius, n - 1);
  const work = engine.work(2 * 4 * (n + 2 * radius + 8));
  const common = [tf.util.sizeFromShape(x.shape) / n, n, radius, bias, alpha, beta, engine.at(x)];
  if (dy) engine.kernels.mf_local_response_back(...common, engine.at(y), engine.at(dy), engine.at(out), work);
  else engine.kernels.mf_local_response(...common, engine.at(out), work);
  return out;
};
