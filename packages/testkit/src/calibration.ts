import { type Batch, type Calibration, random } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/**
 * Seeded normal inputs and targets that fit a model, for methods whose start depends on data: the same for the same model
 * shape. Batches are made when they are read and disposed behind the reader.
 */
export function calibrationFor(model: tf.LayersModel, { batches = 2, rows = 6, seed = 5 } = {}): Calibration {
  const shapeOf = ({ shape }: tf.SymbolicTensor) => [rows, ...(shape.slice(1) as number[])];
  function* data(): Generator<Batch> {
    const stream = random(seed);
    for (let i = 0; i < batches; i++) {
      const xs = stream.normal(shapeOf(model.inputs[0]));
      const ys = stream.normal(shapeOf(model.outputs[0]));
      try {
        yield { xs, ys };
      } finally {
        tf.dispose([xs, ys]);
      }
    }
  }
  return { data: data(), loss: (yTrue, yPred) => tf.losses.meanSquaredError(yTrue, yPred) };
}
