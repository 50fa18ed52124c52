import { type GoldenInputs, type GoldenResult, testGolden } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  accType,
  addType,
  cast,
  digitCount,
  divRaw,
  divType,
  estimateLayer,
  FixedQuantizer,
  type FixedType,
  fixedQuantization,
  fixedType,
  fractionBits,
  freeze,
  fromRaw,
  initialPosition,
  type LayerSize,
  type MacNode,
  MultiplierFreeQuantizer,
  mulType,
  type OverflowMode,
  QfxAdd,
  QfxAvgPool2d,
  QfxBatchNorm,
  QfxConv2d,
  QfxDense,
  QfxDepthwiseConv2d,
  QfxGlobalAvgPool2d,
  type QfxGraph,
  QfxInput,
  QfxMaxPool2d,
  QfxSoftmax,
  type QuantizationMode,
  reciprocal,
  type Simulation,
  type SoftmaxNode,
  simulate,
  subType,
  tightAccType,
  toRaw,
} from '../src/index.ts';

// biome-ignore lint/suspicious/noExplicitAny: every kind has its own configuration.
type Config = any;

beforeAll(() => tf.setBackend('cpu'));

const triple = ({ W, I, signed }: FixedType): number[] => [W, I, signed ? 1 : 0];
const bigs = (values: Float64Array): bigint[] => Array.from(values, (v) => BigInt(v));

interface Run {
  graph: QfxGraph;
  simulation: Simulation;
  /** Output of the training-time forward pass. */
  forward: Float32Array;
}

/** Freezes and simulates a model, and runs its own forward pass. */
function run(model: tf.LayersModel, x: tf.Tensor): Run {
  const graph = freeze(model);
  const simulation = simulate(graph, x, { trace: true, accumulators: true });
  const forward = tf.tidy(() => (model.apply(x, { training: true }) as tf.Tensor).dataSync() as Float32Array);
  model.dispose();
  return { graph, simulation, forward };
}

/** A chain of layers behind an input of a type; `fill` sets weights once they exist. */
function chain(shape: number[], type: FixedType, layers: tf.layers.Layer[], fill: () => void): tf.LayersModel {
  const input = tf.input({ shape });
  let y = new QfxInput({ name: 'x', result: fixedQuantization(type) }).apply(input) as tf.SymbolicTensor;
  for (const layer of layers) y = layer.apply(y) as tf.SymbolicTensor;
  fill();
  return tf.model({ inputs: input, outputs: y });
}

function macFields({ graph, simulation, forward }: Run, name: string, last: string): GoldenResult {
  const node = graph.nodes.find((n) => n.name === name) as MacNode;
  const xType = graph.nodes[node.inputs[0] - 1].type;
  const channels = node.op === 'depthwiseConv2d' ? node.window.outC : undefined;
  const tight = tightAccType(xType, node.weights, node.weightType, node.bias, node.biasType, channels);
  return {
    xRaw: simulation.trace.x.raw,
    wRaw: node.weights.data,
    bRaw: node.bias?.data,
    accRaw: simulation.accumulators[name],
    accFraction: node.accFraction,
    accFull: triple(node.accumulator),
    accTightWidth: tight.W,
    accTightSigned: tight.signed ? 1 : 0,
    yRaw: simulation.trace[last].raw,
    y: forward,
  };
}

testGolden('qfx', __dirname, {
  castModes(inputs, config: Config) {
    const x = inputs.tensor('x');
    const exact = inputs.values('x').data;
    const raw: number[][] = [];
    const y: number[][] = [];
    for (const Q of config.qModes as QuantizationMode[]) {
      for (const O of config.oModes as OverflowMode[]) {
        const type = fixedType(config.W, config.I, { signed: config.signed, Q, O });
        const r = toRaw(exact, type);
        raw.push(Array.from(r as ArrayLike<number>, Number));
        const op = cast(x, type);
        y.push(config.W <= 24 ? Array.from(op.dataSync()) : Array.from(fromRaw(r, type)));
        op.dispose();
      }
    }
    return { raw, y };
  },

  widthRules(inputs, config: Config) {
    const [a, b] = [config.a as FixedType, config.b as FixedType];
    const [ra, rb] = [bigs(inputs.values('aRaw').data), bigs(inputs.values('bRaw').data)];
    const [mul, add, sub, div] = [mulType(a, b), addType(a, b), subType(a, b), divType(a, b)];
    const align = (r: bigint, from: FixedType, to: FixedType): bigint =>
      r << BigInt(fractionBits(to) - fractionBits(from));
    return {
      mulType: triple(mul),
      addType: triple(add),
      subType: triple(sub),
      divType: triple(div),
      mulRaw: ra.map((r, i) => Number(r * rb[i])),
      addRaw: ra.map((r, i) => Number(align(r, a, add) + align(rb[i], b, add))),
      subRaw: ra.map((r, i) => Number(align(r, a, sub) - align(rb[i], b, sub))),
      divRaw: ra.map((r, i) => Number(divRaw(r, rb[i], b))),
    };
  },

  binaryPointGrad(inputs, config: Config) {
    const { W, signed, Q, O, theta } = config;
    const quantizer = new FixedQuantizer({ W, signed, Q, O, theta });
    const [x, dy] = [inputs.tensor('x'), inputs.tensor('dy')];
    const { value, grads } = tf.variableGrads(
      () => tf.sum(tf.mul(quantizer.apply(x), dy)) as tf.Scalar,
      [quantizer.theta],
    );
    const dx = tf.grad((v) => quantizer.apply(v))(x, dy);
    const mask = tf.tidy(() => tf.grad((v) => quantizer.apply(v))(x, tf.onesLike(x)));
    const type = quantizer.type();
    const result = {
      I: type.I,
      raw: toRaw(x.dataSync(), type),
      y: Array.from(tf.tidy(() => quantizer.apply(x).dataSync())),
      mask: Array.from(mask.dataSync()),
      dx: Array.from(dx.dataSync()),
      dTheta: Object.values(grads)[0].dataSync()[0],
    };
    tf.dispose([value, grads, dx, mask]);
    quantizer.theta.dispose();
    return result;
  },

  learnBinaryPoint(inputs, config: Config) {
    const { W, signed, Q, O, theta0, lr, steps } = config;
    const quantizer = new FixedQuantizer({ W, signed, Q, O, theta: theta0 });
    const x = inputs.tensor('x');
    const [theta, I, loss]: number[][] = [[], [], []];
    for (let step = 0; step < steps; step++) {
      const { value, grads } = tf.variableGrads(
        () => tf.mean(tf.squaredDifference(quantizer.apply(x), x)) as tf.Scalar,
        [quantizer.theta],
      );
      loss.push(value.dataSync()[0]);
      tf.tidy(() => quantizer.theta.assign(tf.sub(quantizer.theta, tf.mul(lr, Object.values(grads)[0]))));
      theta.push(quantizer.theta.dataSync()[0]);
      I.push(quantizer.type().I);
      tf.dispose([value, grads]);
    }
    const values = x.dataSync();
    const { format } = quantizer;
    const initMse = initialPosition(values, format, 'mse');
    const cast = fromRaw(toRaw(values, { ...format, I: initMse }), { ...format, I: initMse });
    const initMseError = cast.reduce((sum, y, i) => sum + (y - values[i]) ** 2, 0) / values.length;
    quantizer.theta.dispose();
    return { theta, I, loss, initMax: initialPosition(values, format, 'max'), initMse, initMseError };
  },

  multiplierFree(inputs, config: Config) {
    const { W, I, signed, k, digits } = config;
    const quantizer = new MultiplierFreeQuantizer({ W, signed, k, digits, theta: I });
    const y = quantizer.apply(inputs.tensor('x'));
    const raw = Array.from(y.dataSync(), (v) => v * 2 ** (W - I));
    quantizer.theta.dispose();
    return { levels: [...quantizer.levels()], raw, y, digits: raw.map((r) => digitCount(Math.abs(r), digits)) };
  },

  dense(inputs, config: Config) {
    const w = inputs.matrix('W');
    const b = inputs.optional('b');
    const layer = new QfxDense({
      name: 'dense',
      units: w.shape[1],
      weight: fixedQuantization(config.w),
      ...(b ? { bias: fixedQuantization(config.b) } : {}),
      useBias: b !== undefined,
      result: fixedQuantization(config.y),
      activation: config.activation,
    });
    const x = inputs.tensor('x');
    const model = chain(x.shape.slice(1), config.x, [layer], () => {
      layer.kernel.write(w);
      if (b) layer.bias?.write(b);
    });
    const result = run(model, x);
    const accFull = accType(config.x, config.w, w.shape[0], b && config.b);
    return { ...macFields(result, 'dense', 'dense'), accFull: triple(accFull) };
  },

  conv2d(inputs, config: Config) {
    const w = inputs.tensor('W');
    const b = inputs.optional('b');
    const unfolded = config.batchNorm === 'unfolded';
    const args = {
      name: 'conv',
      kernelSize: w.shape.slice(0, 2) as [number, number],
      strides: config.stride,
      padding: config.padding,
      weight: fixedQuantization(config.w),
      ...(config.b ? { bias: fixedQuantization(config.b) } : {}),
      useBias: b !== undefined,
      result: fixedQuantization(unfolded ? config.conv : config.y),
      activation: unfolded ? 'linear' : config.activation,
      ...(config.batchNorm === 'folded' ? { batchNorm: { epsilon: config.epsilon } } : {}),
    } as const;
    const layer = config.depthwise
      ? new QfxDepthwiseConv2d({ ...args, depthMultiplier: w.shape[3] as number })
      : new QfxConv2d({ ...args, filters: w.shape[3] as number });
    const norm = unfolded
      ? new QfxBatchNorm({
          name: 'norm',
          scale: fixedQuantization(config.scale),
          offset: fixedQuantization(config.offset),
          result: fixedQuantization(config.y),
          activation: config.activation,
          epsilon: config.epsilon,
        })
      : undefined;
    const x = inputs.tensor('x');
    const model = chain(x.shape.slice(1), config.x, norm ? [layer, norm] : [layer], () => {
      layer.kernel.write(w);
      if (b) layer.bias?.write(b);
      const fold = norm?.fold ?? layer.fold;
      for (const name of ['gamma', 'beta', 'mean', 'variance'] as const) fold?.[name].write(inputs.tensor(name));
    });
    const result = run(model, x);
    const scale = result.graph.nodes.find(({ name }) => name === 'norm') as MacNode | undefined;
    return {
      ...macFields(result, 'conv', norm ? 'norm' : 'conv'),
      convRaw: result.simulation.trace.conv.raw,
      scaleRaw: scale?.weights.data,
      offsetRaw: scale?.bias?.data,
    };
  },

  elementwise(inputs, config: Config) {
    const [x, skip] = [inputs.tensor('x'), inputs.tensor('skip')];
    const both = tf.concat([x, skip], -1);
    const C = x.shape[3] as number;
    /** Branches start at one input that holds both tensors exactly: a 1x1 convolution picks channels and casts. */
    const branches = (finish: (pick: (name: string, from: number) => tf.SymbolicTensor) => tf.SymbolicTensor): Run => {
      const input = tf.input({ shape: both.shape.slice(1) });
      const wide = new QfxInput({ name: 'wide', result: fixedQuantization('ap_fixed<24,16>') });
      const source = wide.apply(input) as tf.SymbolicTensor;
      const pick = (name: string, from: number): tf.SymbolicTensor => {
        const layer = new QfxConv2d({
          name,
          filters: C,
          kernelSize: 1,
          useBias: false,
          weight: fixedQuantization('ap_int<2>'),
          result: fixedQuantization(config[name]),
        });
        const y = layer.apply(source) as tf.SymbolicTensor;
        tf.tidy(
          () =>
            void layer.kernel.write(
              tf
                .slice(tf.eye(2 * C), [0, from])
                .slice([0, 0], [2 * C, C])
                .reshape([1, 1, 2 * C, C]),
            ),
        );
        return y;
      };
      return run(tf.model({ inputs: input, outputs: finish(pick) }), both);
    };
    const add = branches(
      (pick) =>
        new QfxAdd({
          name: 'add',
          result: fixedQuantization(config.residual),
          activation: config.residualActivation,
        }).apply([pick('x', 0), pick('skip', C)]) as tf.SymbolicTensor,
    );
    const pool = (layer: tf.layers.Layer): Run => {
      const result = branches((pick) => layer.apply(pick('x', 0)) as tf.SymbolicTensor);
      expect(Array.from(result.forward)).toEqual(Array.from(result.simulation.values));
      return result;
    };
    const result = fixedQuantization(config.pool);
    const window = ({ size, stride, padding }: { size: number; stride: number; padding: 'valid' | 'same' }) => ({
      poolSize: size,
      strides: stride,
      padding,
    });
    const { reciprocalBits } = config;
    const avg = pool(new QfxAvgPool2d({ result, ...window(config.avgPool), reciprocalBits }));
    const max = pool(new QfxMaxPool2d(window(config.maxPool)));
    const globalAvg = pool(new QfxGlobalAvgPool2d({ result, reciprocalBits }));
    const globalMax = pool(new QfxMaxPool2d({ global: true }));
    both.dispose();
    expect(Array.from(add.forward)).toEqual(Array.from(add.simulation.values));
    const { raw, fraction } = reciprocal(25, reciprocalBits);
    return {
      xRaw: add.simulation.trace.x.raw,
      skipRaw: add.simulation.trace.skip.raw,
      addType: triple(addType(config.x, config.skip)),
      residualRaw: add.simulation.raw,
      avgPoolRaw: avg.simulation.raw,
      maxPoolRaw: max.simulation.raw,
      globalAvgRaw: globalAvg.simulation.raw,
      globalMaxRaw: globalMax.simulation.raw,
      reciprocal25: raw,
      reciprocal25Fraction: fraction,
    };
  },

  softmaxTable(inputs, config: Config, { expected }) {
    const { expTableSize, invTableSize } = config;
    const x = inputs.tensor('x');
    const layer = new QfxSoftmax({ name: 'softmax', type: config.y, expTableSize, invTableSize });
    const { graph, simulation, forward } = run(
      chain(x.shape.slice(1), config.x, [layer], () => {}),
      x,
    );
    const node = graph.nodes[1] as SoftmaxNode;
    const at = (field: string): number[] => (expected[field] as { data: number[] }).data;
    return {
      xRaw: simulation.trace.x.raw,
      yRaw: simulation.raw,
      y: forward,
      expLength: node.expTable.data.length,
      expShift: node.expShift,
      expIndex: at('expIndex'),
      expEntries: at('expIndex').map((i) => node.expTable.data[i]),
      invLength: node.invTable.data.length,
      invShift: node.invShift,
      invIndex: at('invIndex'),
      invEntries: at('invIndex').map((i) => node.invTable.data[i]),
    };
  },

  network(inputs, config: Config) {
    const w1 = inputs.tensor('W1');
    const w2 = inputs.matrix('W2');
    const weight = {
      ...fixedQuantization(config.w),
      ...(config.k > 0 ? { multiplierFree: { k: config.k, digits: 'unsigned' as const } } : {}),
    };
    const bias = fixedQuantization(config.b);
    const conv = new QfxConv2d({
      name: 'conv',
      filters: w1.shape[3] as number,
      kernelSize: w1.shape.slice(0, 2) as [number, number],
      padding: config.padding,
      weight,
      bias,
      result: fixedQuantization(config.activation),
      activation: 'relu',
    });
    const pool = new QfxMaxPool2d({ name: 'pool', poolSize: config.pool });
    const dense = new QfxDense({
      name: 'dense',
      units: w2.shape[1],
      weight,
      bias,
      result: fixedQuantization(config.y),
    });
    const x = inputs.tensor('x');
    const model = chain(x.shape.slice(1), config.x, [conv, pool, tf.layers.flatten(), dense], () => {
      conv.kernel.write(w1);
      conv.bias?.write(inputs.tensor('b1'));
      dense.kernel.write(w2);
      dense.bias?.write(inputs.tensor('b2'));
    });
    const withArgmax = freeze(model, { head: 'argmax' });
    const { graph, simulation, forward } = run(model, x);
    return {
      convRaw: simulation.trace.conv.raw,
      poolRaw: simulation.trace.pool.raw,
      accRaw: simulation.accumulators.dense,
      accFraction: (graph.nodes[graph.output - 1] as MacNode).accFraction,
      yRaw: simulation.raw,
      y: forward,
      argmax: simulate(withArgmax, x).raw,
    };
  },

  resourceEstimate(_: GoldenInputs, config: Config) {
    const all = (config.layers as LayerSize[]).map((layer) =>
      estimateLayer(layer, { lutMaxBits: config.lutMaxBits, dspPorts: config.dspPorts }),
    );
    return {
      multipliers: all.map(({ multipliers }) => multipliers),
      dsp: all.map(({ dsp }) => dsp),
      lut: all.map(({ lut }) => lut),
      bram18: all.map(({ bram18 }) => bram18),
      ii: all.map(({ ii }) => ii),
    };
  },
});
