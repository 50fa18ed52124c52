import { attach, count, detach, lowRankApply, lowRankProduct, lowRankScale, matchPattern, sgd } from '@matforge/core';
import type { GoldenInputs, MethodSuites } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import { combineAdapters, lora, loraPlus } from '../src/index.ts';

interface Module {
  name: string;
  in: number;
  out: number;
}

/** A model with one unbuilt-free dense layer per module, so that attach resolves the patterns. */
function branches(modules: readonly Module[]): tf.LayersModel {
  const inputs = modules.map((module) => tf.input({ shape: [module.in] }));
  const outputs = modules.map(
    (module, i) => tf.layers.dense({ name: module.name, units: module.out }).apply(inputs[i]) as tf.SymbolicTensor,
  );
  return tf.model({ inputs, outputs });
}

/** forward, kernel and gradients of the method itself on given tensors. */
export function apply(
  inputs: GoldenInputs,
  config: { r: number; alpha: number; useRslora: boolean },
  A: tf.Tensor,
  B: tf.Tensor,
  x: tf.Tensor,
): tf.Tensor {
  const s = lowRankScale({ rank: config.r, alpha: config.alpha, useRslora: config.useRslora });
  const plain = tf.add(tf.matMul(x as tf.Tensor2D, inputs.matrix('W')), inputs.tensor('bias'));
  return tf.add(plain, lowRankApply(x, A, B, s));
}

/** What every backend must give for this package. */
export const suites: MethodSuites = {
  id: 'lora',
  linear: [
    {
      configured: lora({ rank: 2, alpha: 4 }),
      parameters: (inDim, outDim) => 2 * (inDim + outDim),
      refused: [
        [{ rank: 0 }, /lora\.rank: must be a positive integer, got 0/],
        [{ rank: 1.5 }, /lora\.rank: must be a positive integer, got 1.5/],
        [{ alpha: 0 }, /lora\.alpha: must be a finite number > 0, got 0/],
        [{ dropout: 1 }, /lora\.dropout: must be in \[0, 1\), got 1/],
        [{ rnak: 2 }, /lora\.rnak: unknown option; did you mean "rank"\?/],
        [{ init: 'orthogonal' }, /lora\.init: must be one of "default", "gaussian", got "orthogonal"/],
      ],
    },
  ],
  golden: {
    async patterns(_, config) {
      const model = branches(config.modules);
      const configured = lora({
        rank: config.r,
        alpha: config.alpha,
        useRslora: config.useRslora,
        rankPattern: config.rankPattern,
        alphaPattern: config.alphaPattern,
      });
      const bias = config.bias === 'loraOnly' ? 'adapterOnly' : config.bias;
      await attach(model, configured, { targets: config.modules.map(({ name }: Module) => name), bias });
      const rows = config.modules.map(({ name, in: inDim, out }: Module) => {
        const rank = matchPattern(config.rankPattern as Record<string, number>, name) ?? config.r;
        const alpha = matchPattern(config.alphaPattern as Record<string, number>, name) ?? config.alpha;
        const layer = model.getLayer(name);
        const own = layer.trainableWeights.filter((w) => w.trainable);
        const params = own.reduce((sum, w) => sum + w.shape.reduce((p: number, n) => p * (n as number), 1), 0);
        expect(own.find((w) => w.originalName.endsWith('/A'))?.shape).toEqual([inDim, rank]);
        expect(own.find((w) => w.originalName.endsWith('/B'))?.shape).toEqual([rank, out]);
        return { rank, alpha, scaling: lowRankScale({ rank, alpha, useRslora: config.useRslora }), params };
      });
      const total = count(model).trainable;
      detach(model);
      model.dispose();
      const column = (key: keyof (typeof rows)[number]) => rows.map((row: (typeof rows)[number]) => row[key]);
      return {
        ranks: column('rank'),
        alphas: column('alpha'),
        scalings: column('scaling'),
        params: column('params'),
        total,
      };
    },
    forward: (inputs, config) =>
      tf.tidy(() => {
        const [A, B] = [inputs.matrix('A'), inputs.matrix('B')];
        const scaling = lowRankScale({ rank: config.r, alpha: config.alpha, useRslora: config.useRslora });
        const delta = lowRankProduct(A, B, scaling);
        return {
          y: apply(inputs, config, A, B, inputs.tensor('x')),
          delta,
          merged: tf.add(inputs.matrix('W'), delta),
          scaling: tf.scalar(scaling),
          trainableParams: tf.scalar(A.size + B.size),
        };
      }),
    trainStep: (inputs, config) =>
      tf.tidy(() => {
        const [bias, upstream] = [inputs.tensor('bias'), inputs.tensor('upstream')];
        const s = lowRankScale({ rank: config.r, alpha: config.alpha, useRslora: config.useRslora });
        const loss = (A: tf.Tensor, B: tf.Tensor, x: tf.Tensor, b: tf.Tensor) =>
          tf.sum(
            tf.mul(
              upstream,
              tf.add(tf.add(tf.matMul(x as tf.Tensor2D, inputs.matrix('W')), b), lowRankApply(x, A, B, s)),
            ),
          ) as tf.Scalar;
        const args = [inputs.tensor('A'), inputs.tensor('B'), inputs.tensor('x'), bias];
        const [gradA, gradB, gradX, gradBias] = tf.grads(loss as (...t: tf.Tensor[]) => tf.Tensor)(args);
        const ratio = config.loraPlusRatio ?? 1;
        const [A, B, , b] = args;
        const params = { 'layer/A': A, 'layer/B': B, bias: b };
        const plus = loraPlus({
          learningRate: config.learningRate,
          ratio,
          transformation: (learningRate) => sgd({ learningRate }),
        });
        const { updates } = plus.update(
          { 'layer/A': gradA, 'layer/B': gradB, bias: gradBias },
          plus.init(params),
          params,
        );
        return {
          loss: loss(A, B, args[2], b),
          gradA,
          gradB,
          gradX,
          newA: tf.add(A, updates['layer/A']),
          newB: tf.add(B, updates['layer/B']),
          newBias: config.bias === 'none' ? tf.clone(b) : tf.add(b, updates.bias),
        };
      }),
    combine: (inputs, config) =>
      tf.tidy(() => {
        const adapter = (name: string) => {
          const settings = config.adapters?.[name] ?? config[name];
          return {
            A: inputs.matrix(`A_${name}`),
            B: inputs.matrix(`B_${name}`),
            scale: settings.alpha / settings.r,
            settings,
          };
        };
        const [first, second] = [adapter('first'), adapter('second')];
        const cat = combineAdapters([first, second], config.weights, 'cat');
        const x = inputs.tensor('x');
        const base = tf.add(tf.matMul(x as tf.Tensor2D, inputs.matrix('W')), inputs.tensor('bias'));
        const of = ({ A, B, scale }: typeof first) => tf.add(base, lowRankApply(x, A, B, scale));
        const rows = config.adapterNames.map((name: string, row: number) =>
          tf.slice(
            name === 'first' ? of(first) : name === 'second' ? of(second) : base,
            [row, 0],
            [1, base.shape[1] as number],
          ),
        );
        const equal = first.A.shape[1] === second.A.shape[1];
        const linear = equal ? combineAdapters([first, second], config.weights, 'linear') : undefined;
        return {
          catDelta: lowRankProduct(cat.A, cat.B),
          ...(linear && { linearA: linear.A, linearB: linear.B, linearDelta: lowRankProduct(linear.A, linear.B) }),
          mixedY: tf.concat(rows, 0),
          bothActiveY: tf.add(of(first), lowRankApply(x, second.A, second.B, second.scale)),
        };
      }),
  },
};
