import { ready } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import {
  estimate,
  fixedQuantization,
  freeze,
  nearestReuseFactor,
  QfxDense,
  QfxInput,
  type QuantizeConfig,
  quantizeModel,
  simulate,
  validReuseFactors,
} from '../src/index.ts';

beforeAll(() => tf.setBackend('cpu'));

const { layers } = tf;
const opened: tf.LayersModel[] = [];
afterEach(() => {
  for (const model of opened.splice(0)) model.dispose();
});

function sequential(...list: tf.layers.Layer[]): tf.LayersModel {
  const model = tf.sequential({ layers: list });
  opened.push(model);
  return model;
}

const dense = (more: object = {}): tf.layers.Layer =>
  layers.dense({ name: 'first', inputShape: [3], units: 2, ...more });

describe('quantizeModel refuses', () => {
  test.each<[string, () => tf.LayersModel, QuantizeConfig, string]>([
    ['an unknown option', () => sequential(dense()), { bit: 8 } as QuantizeConfig, 'did you mean bits'],
    ['a word length of 0', () => sequential(dense()), { bits: 0 }, 'word length must be an integer in 1..32, got 0'],
    ['half bits', () => sequential(dense()), { layers: { first: { weightBits: 2.5 } } }, 'layers.first.weightBits'],
    ['an unknown layer name', () => sequential(dense()), { layers: { firts: {} } }, 'did you mean first'],
    ['an unknown mode', () => sequential(dense()), { modes: { Q: 'AP_UP' as never } }, 'legal are AP_TRN'],
    [
      'AP_WRAP_SM on ReLU outputs',
      () => sequential(dense({ activation: 'relu' })),
      { modes: { O: 'AP_WRAP_SM' } },
      'needs a signed type',
    ],
    [
      'sigmoid',
      () => sequential(dense({ activation: 'sigmoid' })),
      {},
      'activation sigmoid cannot be emitted; supported',
    ],
    [
      'an LSTM',
      () => sequential(layers.lstm({ name: 'memory', inputShape: [3, 2], units: 2 })),
      {},
      'layer memory of class LSTM cannot be emitted; supported: InputLayer, Dense',
    ],
    [
      'dilation',
      () => sequential(layers.conv2d({ inputShape: [6, 6, 1], filters: 1, kernelSize: 2, dilationRate: 2 })),
      {},
      'dilation 2,2 cannot be emitted',
    ],
    ['a clipped ReLU', () => sequential(dense(), layers.reLU({ maxValue: 6 })), {}, 'clipped ReLU'],
    ['k = 5', () => sequential(dense()), { multiplierFree: { k: 5 } }, 'k must be an integer in 1..4'],
    ['30-bit activations', () => sequential(dense()), { activationBits: 30 }, 'do not fit the 24 bits of float32'],
    [
      'a broken accumulator type',
      () => sequential(dense()),
      { accumulator: 'ap_fixed<0,0>', calibration: undefined },
      'word length',
    ],
  ])('%s', (_, make, config, message) => {
    const attempt = (): void => {
      const model = quantizeModel(make(), config);
      const x = tf.ones([1, ...(model.inputs[0].shape.slice(1) as number[])]);
      try {
        tf.dispose(model.predict(x));
      } finally {
        x.dispose();
        model.dispose();
      }
    };
    expect(attempt).toThrow(message);
  });

  test('several outputs, shared layers, NaN weights', () => {
    const input = tf.input({ shape: [3] });
    const shared = layers.dense({ units: 3 });
    const twice = shared.apply(shared.apply(input) as tf.SymbolicTensor) as tf.SymbolicTensor;
    opened.push(tf.model({ inputs: input, outputs: twice }), tf.model({ inputs: input, outputs: [twice, input] }));
    expect(() => quantizeModel(opened[0])).toThrow('applied more than once');
    expect(() => quantizeModel(opened[1])).toThrow('1 inputs and 2 outputs');
    const broken = sequential(dense());
    const nan = tf.fill([3, 2], Number.NaN);
    const zero = tf.zeros([2]);
    broken.layers[0].setWeights([nan, zero]);
    expect(() => quantizeModel(broken)).toThrow('first.weights[0]: cannot represent NaN');
    tf.dispose([nan, zero]);
  });
});

describe('freeze refuses', () => {
  test('a model that never saw data', () => {
    const model = quantizeModel(sequential(dense()));
    expect(() => freeze(model)).toThrow('give quantizeModel a calibration batch');
    model.dispose();
  });

  test('a model without an input quantizer', () => {
    expect(() => freeze(sequential(dense()))).toThrow('no input quantizer');
    const args = { units: 2, weight: { W: 4 }, result: { W: 4 } };
    const bare = sequential(new QfxDense({ ...args, inputShape: [3] }));
    expect(() => freeze(bare)).toThrow('no input quantizer');
  });

  test('layers of other kinds', () => {
    const args = { inputShape: [4], result: fixedQuantization('ap_fixed<8,4>') };
    const model = sequential(new QfxInput(args), layers.dense({ name: 'plain', units: 2 }));
    expect(() => freeze(model)).toThrow('layer plain of class Dense cannot be emitted');
  });
});

describe('what is kept', () => {
  const make = (): tf.LayersModel =>
    sequential(
      layers.conv2d({ name: 'conv', inputShape: [5, 5, 2], filters: 3, kernelSize: 3 }),
      layers.batchNormalization({ name: 'norm' }),
      layers.reLU(),
      layers.flatten(),
      layers.dense({ name: 'logits', units: 4 }),
    );

  test('a saved model freezes to the same program', async () => {
    const x = tf.randomUniform([4, 5, 5, 2], -1, 1, 'float32', 2);
    const model = quantizeModel(make(), { calibration: x, perChannel: true, softmax: 'argmax', positionLr: 0.02 });
    let saved!: tf.io.ModelArtifacts;
    await model.save(
      tf.io.withSaveHandler(async (artifacts) => {
        saved = artifacts;
        return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } };
      }),
    );
    const loaded = await tf.loadLayersModel(tf.io.fromMemory(saved));
    const [before, after] = [freeze(model), freeze(loaded)];
    expect(after).toEqual(before);
    expect(before.nodes[before.output - 1].op).toBe('argmax');
    x.dispose();
    model.dispose();
    loaded.dispose();
  });

  test('types, directives and hls4ml spellings reach the graph', () => {
    const x = tf.ones([1, 5, 5, 2]);
    const model = quantizeModel(make(), {
      calibration: x,
      input: { type: 'ap_fixed<10,3>' },
      layers: {
        conv: {
          Precision: { weight: 'fixed<6,2,RND,SAT>', result: 'ufixed<7,3,RND,SAT>' },
          ReuseFactor: 6,
          Strategy: 'Resource',
        },
        logits: { weightBits: 5, resultType: 'ap_fixed<20,8>', accumulator: 'tight' },
      },
    });
    const graph = freeze(model);
    const [input, conv, , logits] = graph.nodes;
    expect(input.type).toMatchObject({ W: 10, I: 3, signed: true, Q: 'AP_TRN', O: 'AP_WRAP' });
    expect(conv).toMatchObject({
      weightType: { W: 6, I: 2 },
      type: { W: 7, I: 3, signed: false },
      directives: { reuseFactor: 6, strategy: 'resource' },
      activation: 'relu',
    });
    expect(logits).toMatchObject({ weightType: { W: 5 }, type: { W: 20, I: 8 }, accumulatorRule: 'tight' });
    // 18 inputs, 3 outputs: 6 divides the 54 products, and 54/6 = 9 is a multiple of 3 outputs.
    expect(estimate(graph).layers.conv).toMatchObject({ reuseFactor: 6, multipliers: 9, ii: 54 });
    x.dispose();
    model.dispose();
  });

  test("Brevitas' names leave the position to training", () => {
    const x = tf.ones([1, 5, 5, 2]);
    const names = { weightType: 'Int6WeightPerTensorFixedPoint', resultType: 'Uint5ActPerTensorFixedPoint' };
    const model = quantizeModel(make(), { calibration: x, layers: { conv: names } });
    const [, conv] = freeze(model).nodes;
    expect(conv).toMatchObject({ weightType: { W: 6, O: 'AP_SAT_SYM' }, type: { W: 5, signed: false } });
    x.dispose();
    model.dispose();
  });

  test("exact: 'fast' leaves a warning where float32 is too short", () => {
    const x = tf.randomUniform([4, 5, 5, 2], -1, 1, 'float32', 2);
    const wide = quantizeModel(make(), { bits: 16, calibration: x, exact: 'fast' });
    expect(freeze(wide).warnings).toEqual([
      expect.stringContaining("conv: trained with exact: 'fast'"),
      expect.stringContaining('logits'),
    ]);
    const narrow = quantizeModel(make(), { bits: 6, calibration: x, exact: 'fast' });
    expect(freeze(narrow).warnings).toEqual([]);
    x.dispose();
    wide.dispose();
    narrow.dispose();
  });

  test('nothing leaks', () => {
    const float = make();
    const x = tf.ones([2, 5, 5, 2]);
    // Layers of TensorFlow.js keep some constants from their first use.
    quantizeModel(float, { calibration: x }).dispose();
    const before = tf.memory().numTensors;
    const model = quantizeModel(float, { calibration: x });
    simulate(freeze(model), x);
    tf.dispose(model.predict(x));
    model.dispose();
    expect(tf.memory().numTensors).toBe(before);
    x.dispose();
  });

  test('training on the wasm backend is the integer program too', async () => {
    await ready();
    const float = make();
    const x = tf.randomUniform([8, 5, 5, 2], -1, 1, 'float32', 2);
    const y = tf.randomUniform([8, 4], -1, 1, 'float32', 3);
    const model = quantizeModel(float, { bits: 5, calibration: x });
    model.compile({ optimizer: 'adam', loss: 'meanSquaredError' });
    await model.fit(x, y, { epochs: 10, batchSize: 4, verbose: 0 });
    const forward = model.apply(x, { training: true }) as tf.Tensor;
    expect(Array.from(forward.dataSync())).toEqual(Array.from(simulate(freeze(model), x).values));
    tf.dispose([x, y, forward]);
    model.dispose();
    float.dispose();
    opened.length = 0;
    await tf.setBackend('cpu');
  });
});

describe('reuse factors', () => {
  test("follow hls4ml's rule", () => {
    // 4 x 6: R < 4 divides 24 with 24/R a multiple of 6 outputs; R >= 4 a multiple of 4.
    expect(validReuseFactors(4, 6)).toEqual([1, 2, 4, 8, 12, 24]);
    expect(nearestReuseFactor(4, 6, 3)).toBe(2);
    expect(nearestReuseFactor(4, 6, 1000)).toBe(24);
    expect(() => nearestReuseFactor(4, 6, 0)).toThrow('at least 1');
  });
});
