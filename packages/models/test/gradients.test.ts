import { random, ready } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { classificationLoss, gpt2, languageModelLoss, llama, vit } from '../src/index.ts';

const int = (rows: number[][]) => tf.tensor2d(rows, undefined, 'int32');
const sizes = { vocabSize: 13, hiddenSize: 16, layers: 1, heads: 4, initializerRange: 0.3, seed: 3 };

describe.each(['cpu', 'wasm'])('on %s', (backend) => {
  let before: number;
  beforeAll(() => ready(backend));
  beforeEach(() => {
    before = tf.memory().numTensors;
  });
  afterEach(() => expect(tf.memory().numTensors).toBe(before));

  test.each([
    ['llama', () => llama({ ...sizes, kvHeads: 2 })],
    ['llama, tied', () => llama({ ...sizes, kvHeads: 1, tieWordEmbeddings: true, slidingWindow: 3 })],
    ['gpt2', () => gpt2({ ...sizes, maxPositions: 8 })],
  ])('%s: gradients of the loss equal finite differences at every weight tensor', (_, make) => {
    const model = make();
    const inputs = int([
      [1, 7, 3, 0, 12, 4],
      [2, 2, 9, 5, 11, 6],
    ]);
    const labels = int([
      [7, 3, 0, 12, 4, 8],
      [2, 9, 5, 11, 6, -100],
    ]);
    const loss = () => tf.tidy(() => languageModelLoss(labels, model.apply(inputs) as tf.Tensor));
    checkGradients(model, loss);
    tf.dispose([inputs, labels]);
    model.dispose();
  });

  test('vit: gradients of the loss equal finite differences at every weight tensor', () => {
    const model = vit({
      imageSize: 8,
      patchSize: 4,
      channels: 1,
      hiddenSize: 16,
      layers: 1,
      heads: 2,
      classes: 3,
      initializerRange: 0.3,
    });
    const images = random(1).normal([2, 8, 8, 1]) as tf.Tensor4D;
    const labels = tf.tensor1d([2, 0], 'int32');
    checkGradients(model, () => tf.tidy(() => classificationLoss(labels, model.apply(images) as tf.Tensor)));
    tf.dispose([images, labels]);
    model.dispose();
  });
});

/** Central differences at two entries of every weight, against tf.variableGrads. */
function checkGradients(model: tf.LayersModel, loss: () => tf.Scalar): void {
  const { value, grads } = tf.variableGrads(loss);
  value.dispose();
  const step = 1e-2;
  for (const weight of model.trainableWeights) {
    const variable = weight.read() as tf.Variable;
    const gradient = grads[variable.name].dataSync() as Float32Array;
    const values = variable.dataSync().slice();
    const largest = gradient.reduce((best, g, i) => (Math.abs(g) > Math.abs(gradient[best]) ? i : best), 0);
    for (const entry of [largest, Math.floor(values.length / 2)]) {
      const at = (shift: number) => {
        const moved = values.slice();
        moved[entry] += shift;
        return tf.tidy(() => {
          variable.assign(tf.tensor(moved, variable.shape));
          return loss().dataSync()[0];
        });
      };
      // Richardson: the error of the plain central difference falls with step².
      const central = (h: number) => (at(h) - at(-h)) / (2 * h);
      const numeric = (4 * central(step) - central(2 * step)) / 3;
      const error = Math.abs(numeric - gradient[entry]);
      if (error > 2e-4 + 1e-2 * Math.abs(numeric)) {
        throw new Error(`${weight.originalName}[${entry}]: gradient ${gradient[entry]}, differences ${numeric}`);
      }
    }
    tf.tidy(() => variable.assign(tf.tensor(values, variable.shape)));
  }
  tf.dispose(grads);
}
