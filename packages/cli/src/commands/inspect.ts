import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type Checkpoint, linalg, openCheckpoint, ready, toMatrix, writeFileAtomic } from '@matforge/core';
import { lineChart, loadModel } from '@matforge/pipeline';
import * as tf from '@tensorflow/tfjs';
import type { Row } from '../output.ts';
import { EXIT, type Session } from '../program.ts';

interface InspectOptions {
  spectra?: boolean;
  plot?: string;
}

/** `matforge inspect <path>` */
export async function inspect(
  { output, signal }: Session,
  path: string,
  { spectra = false, plot }: InspectOptions,
): Promise<number> {
  await ready();
  const file = await open(path);
  const rows: Row[] = [];
  const curves: Record<string, number[]> = {};
  let total = 0;
  try {
    for (const [name, { dtype, shape }] of file.entries) {
      signal.throwIfAborted();
      const size = shape.reduce((product, n) => product * n, 1);
      total += size;
      const tensor = await file.read(name);
      const row: Record<string, string | number> = {
        tensor: name,
        dtype,
        shape: `[${shape.join(', ')}]`,
        ...statistics(tensor),
      };
      if ((spectra || plot) && tensor.rank === 2) {
        const { s } = linalg.svd(toMatrix(tensor as tf.Tensor2D));
        curves[name] = Array.from(s);
        const energy = s.reduce((sum, value) => sum + value * value, 0);
        row['largest σ'] = round(s[0]);
        row['smallest σ'] = round(s[s.length - 1]);
        row['effective rank'] = round(effectiveRank(s, energy), 1);
      }
      tensor.dispose();
      rows.push(row);
    }
  } finally {
    await file.close();
  }
  if (plot) {
    await writeFileAtomic(
      plot,
      lineChart({ title: `Singular values of ${path}`, x: 'index', y: 'singular value', logY: true, series: curves }),
    );
  }
  output.result(
    { path, metadata: file.metadata, parameters: total, tensors: rows, ...(spectra && { spectra: curves }) },
    () => {
      output.table(rows);
      output.line(`${file.entries.size} tensors, ${total} numbers${plot ? `; drawn in ${plot}` : ''}`);
    },
  );
  return EXIT.done;
}

/** What is looked at: a checkpoint, or a model that stands for one. */
interface Contents extends Pick<Checkpoint, 'metadata' | 'read' | 'close'> {
  readonly entries: ReadonlyMap<string, { dtype: string; shape: readonly number[] }>;
}

async function open(path: string): Promise<Contents> {
  const isDirectory = await stat(path).then(
    (entry) => entry.isDirectory(),
    () => false,
  );
  if (!isDirectory) return openCheckpoint(path);
  const adapter = join(path, 'adapter_model.safetensors');
  if (await exists(adapter)) return openCheckpoint(adapter);
  return (await exists(join(path, 'model.json'))) ? openModel(path) : openCheckpoint(path);
}

function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

/** The weights of a model that TensorFlow.js has written, as a checkpoint. */
async function openModel(path: string): Promise<Contents> {
  const model = await loadModel(path);
  const weights = new Map<string, (typeof model.weights)[number]>();
  // Layers of models inside the model may have the same names.
  for (const weight of model.weights)
    weights.set(weights.has(weight.originalName) ? weight.name : weight.originalName, weight);
  return {
    entries: new Map([...weights].map(([name, { shape }]) => [name, { dtype: 'F32', shape: shape as number[] }])),
    metadata: {},
    read: async (name) => tf.clone((weights.get(name) as { read(): tf.Tensor }).read()),
    close: async () => {
      model.dispose();
    },
  };
}

function statistics(tensor: tf.Tensor): Record<'norm' | 'min' | 'max', number> {
  return tf.tidy(() => {
    const values = tf.cast(tensor, 'float32');
    const [norm, min, max] = [tf.norm(tf.reshape(values, [-1])), tf.min(values), tf.max(values)].map((t) =>
      round(t.dataSync()[0]),
    );
    return { norm, min, max };
  });
}

/** exp of the entropy of the normalised squared singular values. */
function effectiveRank(s: Float64Array, energy: number): number {
  const entropy = s.reduce((sum, value) => {
    const share = (value * value) / energy;
    return share > 0 ? sum - share * Math.log(share) : sum;
  }, 0);
  return Math.exp(entropy);
}

function round(value: number, digits = 4): number {
  return Number(value.toPrecision(digits));
}
