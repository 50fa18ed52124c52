import * as tf from '@tensorflow/tfjs';
import { during } from '../blocking.ts';
import type { AnyConfiguredMethod, ForwardContext, Group, Site } from '../contracts/linear-method.ts';
import { random } from '../tensors/random.ts';
import { declared, makeSite } from './attach.ts';
import { denseBase } from './dense-base.ts';
import { denseForm } from './host.ts';

/** A kernel `[in, out]` and its bias `[out]`. */
export interface DenseMap {
  readonly kernel: tf.Tensor2D;
  readonly bias?: tf.Tensor1D | null;
}

/** Options of {@link functional}. */
export interface FunctionalOptions {
  /** Name of the site, for errors. Default `'kernel'`. */
  name?: string;
  /** Seed of the start values. Default 0. */
  seed?: number;
  /** Calibration statistics, for methods that need them. */
  activations?: tf.Tensor2D;
  gradients?: tf.Tensor2D;
  /** Widest layer of the group, for shared tensors. Default this kernel's sizes. */
  maxIn?: number;
  maxOut?: number;
}

/** A method on one kernel, as pure functions of tensors. */
export interface FunctionalMethod {
  /** Start values of all tensors. */
  init(): Record<string, tf.Tensor>;
  /** x `[..., in]` → y `[..., out]`, bias included; differentiable. */
  forward(x: tf.Tensor, tensors: Record<string, tf.Tensor>): tf.Tensor;
  /** Dense kernel and bias. */
  dense(tensors: Record<string, tf.Tensor>): { kernel: tf.Tensor2D; bias: tf.Tensor1D | null };
}

/**
 * A linear method without a model: for tests, for research, for kernels that live outside of tf.layers.
 *
 * @throws MatforgeError when the configuration does not fit the kernel, or the method is not mergeable (`dense`).
 */
export function functional(
  { method, config }: AnyConfiguredMethod,
  { kernel, bias = null }: DenseMap,
  { name = 'kernel', seed = 0, activations, gradients, maxIn, maxOut }: FunctionalOptions = {},
): FunctionalMethod {
  const [inDim, outDim] = kernel.shape;
  const site: Site = { name, kind: 'dense', inDim, outDim };
  const group: Group = { sites: [site], maxIn: maxIn ?? inDim, maxOut: maxOut ?? outDim };
  const base = denseBase(kernel, bias);
  const context: ForwardContext<unknown> = { config, base, site, training: false, dropout: (x) => x };
  method.validate?.(site, config);
  return {
    init: () => {
      const specs = declared(method.tensors({ inDim, outDim, config, site, group }));
      const source = random(seed).fork(name);
      const start = { kernel, bias, config, site, group, random: source, activations, gradients, data: {} };
      return tf.tidy(() => {
        const given: Record<string, tf.Tensor | undefined> =
          during(`${method.info.id}.init`, () => method.init?.(start)) ?? {};
        return makeSite(method, specs, { seed, shared: new Map() }, start, (key) => given[key]);
      });
    },
    forward: (x, tensors) => tf.tidy(() => method.forward(x, tensors, context)),
    dense: (tensors) => denseForm(method, { tensors, site, config }, context),
  };
}
