import { adapterTensors, attach, count, detach, functional, setAdapterTensors } from '@matforge/core';
import type { GoldenInputs, MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { denseLoraParameterCount, denselora } from '../src/index.ts';

const refused = [
  [{ rank: 0 }, /denselora\.rank: must be a positive integer, got 0/],
  [{ activation: 'swish' }, /denselora\.activation: must be one of "gelu", "relu", "tanh", "identity", got "swish"/],
  [{ activation: 'relu', decoderInit: 0 }, /layer0\.decoderInit: must be > 0 with activation "relu"/],
  [{ alpha: -1 }, /denselora\.alpha: must be a finite number > 0, got -1/],
] as const;

/** One input and one dense layer `layers.<l>.proj` per kernel: a bank that shares. */
export function bank(W: tf.Tensor, bias?: tf.Tensor): tf.LayersModel {
  const [count, inDim, units] = W.shape;
  const inputs = Array.from({ length: count }, () => tf.input({ shape: [inDim] }));
  const outputs = inputs.map((input, l) => {
    const weights = tf.tidy(() => [W, ...(bias ? [bias] : [])].map((all) => tf.keep(tf.unstack(all)[l])));
    const layer = tf.layers.dense({ name: `layers.${l}.proj`, units, useBias: Boolean(bias), weights });
    const output = layer.apply(input) as tf.SymbolicTensor;
    tf.dispose(weights);
    return output;
  });
  return tf.model({ inputs, outputs });
}

export function apply(model: tf.LayersModel, x: tf.Tensor): tf.Tensor {
  return tf.stack([model.apply(tf.unstack(x))].flat() as tf.Tensor[]);
}

type Config = { r: number; alpha: number; activation: 'gelu' | 'relu' | 'tanh' | 'identity' };

/** The bank of a golden case with the case's adapter. */
async function goldenBank(inputs: GoldenInputs, { r, alpha, activation }: Config): Promise<tf.LayersModel> {
  const model = bank(inputs.tensor('W'), inputs.optional('bias'));
  await attach(model, denselora({ rank: r, alpha, activation }));
  const cores = tf.unstack(inputs.tensor('core'));
  const [encoder, decoder] = [inputs.tensor('encoder'), inputs.tensor('decoder')];
  setAdapterTensors(
    model,
    'default',
    Object.fromEntries(
      cores.map((core, l): [string, Record<string, tf.Tensor>] => [
        `layers.${l}.proj`,
        l === 0 ? { core, encoder, decoder } : { core },
      ]),
    ),
  );
  tf.dispose(cores);
  return model;
}

export function close(model: tf.LayersModel): void {
  detach(model);
  model.dispose();
}

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'denselora',
  linear: [
    {
      title: 'gelu, one group of three layers',
      configured: denselora({ rank: 3, alpha: 6, groupBy: 'shape' }),
      dims: [6, 6, 6, 6],
      parameters: () => 9,
      sharedParameters: 3 * 12,
      refused,
    },
    {
      title: 'identity, groups of one layer',
      configured: denselora({ rank: 3, alpha: 6, activation: 'identity' }),
      parameters: (inDim, outDim) => 3 * (inDim + outDim) + 9,
      refused: refused.slice(0, 1),
    },
  ],
  golden: {
    async forward(inputs, config) {
      const model = await goldenBank(inputs, config);
      const y = tf.tidy(() => apply(model, inputs.tensor('x')));
      const trainableParams = count(model).adapters.default;
      const own = Object.values(adapterTensors(model, 'default'));
      const { r, alpha, activation } = config;
      const [layers, inDim, outDim] = inputs.tensor('W').shape;
      const merged =
        activation === 'identity'
          ? tf.tidy(() =>
              tf.stack(
                tf
                  .unstack(inputs.tensor('W'))
                  .map(
                    (kernel, l) =>
                      functional(denselora({ rank: r, alpha, activation }), { kernel: kernel as tf.Tensor2D }).dense(
                        own[l],
                      ).kernel,
                  ),
              ),
            )
          : undefined;
      close(model);
      const { lora } = denseLoraParameterCount([{ in: inDim, out: outDim, layers }], r);
      return { y, trainableParams, loraParams: lora, ...(merged && { merged }) };
    },
    async gradients(inputs, config) {
      const model = await goldenBank(inputs, config);
      const [x, upstream] = [inputs.tensor('x'), inputs.tensor('upstream')];
      const loss = (at: tf.Tensor) => tf.sum(tf.mul(apply(model, at), upstream)) as tf.Scalar;
      const sites = Object.values(adapterTensors(model, 'default')) as Record<string, tf.Variable>[];
      const variables = [sites[0].encoder, sites[0].decoder, ...sites.map(({ core }) => core)];
      const { value, grads } = tf.variableGrads(() => loss(x), variables);
      const gradX = tf.tidy(() => tf.grad(loss)(x));
      const gradCore = tf.tidy(() => tf.stack(sites.map(({ core }) => grads[core.name])));
      const result = {
        loss: value,
        gradEncoder: tf.clone(grads[sites[0].encoder.name]),
        gradDecoder: tf.clone(grads[sites[0].decoder.name]),
        gradCore,
        gradX,
      };
      tf.dispose(grads);
      close(model);
      return result;
    },
    parameterCount: (_, { r, groups }) => denseLoraParameterCount(groups, r),
  },
};
