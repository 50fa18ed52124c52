import { access, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openCheckpoint, readJsonFile, refuse, writeDirectoryAtomic, writeSafetensors } from '@matforge/core';
import { loadPretrained } from '@matforge/models';
import * as tf from '@tensorflow/tfjs';

/** Writes a model as a directory with model.json and weights.bin, whole or not at all. */
export async function saveModel(model: tf.LayersModel, directory: string, { overwrite = false } = {}): Promise<void> {
  await writeDirectoryAtomic(
    directory,
    async (temporary) => {
      await model.save(
        tf.io.withSaveHandler(async (artifacts) => {
          const data = artifacts.weightData;
          const bytes = Array.isArray(data)
            ? Buffer.concat(data.map((part) => Buffer.from(part)))
            : Buffer.from(data as ArrayBuffer);
          await writeFile(join(temporary, 'weights.bin'), bytes);
          const { weightData: _, weightSpecs, ...rest } = artifacts;
          const manifest = { ...rest, weightsManifest: [{ paths: ['weights.bin'], weights: weightSpecs }] };
          await writeFile(join(temporary, 'model.json'), JSON.stringify(manifest));
          return { modelArtifactsInfo: { dateSaved: new Date(), modelTopologyType: 'JSON' } };
        }),
      );
    },
    { overwrite },
  );
}

/**
 * Reads a model from a directory: a tfjs model.json, or a Hugging Face checkpoint.
 *
 * @throws MatforgeError when the directory holds neither, or a file is damaged.
 */
export async function loadModel(directory: string): Promise<tf.LayersModel> {
  if (await exists(join(directory, 'model.json'))) {
    const manifest = (await readJsonFile(join(directory, 'model.json'))) as {
      modelTopology: object;
      weightsManifest: { paths: string[]; weights: tf.io.WeightsManifestEntry[] }[];
    };
    const weights = await Promise.all(
      manifest.weightsManifest.flatMap(({ paths }) => paths.map((path) => readFile(join(directory, path)))),
    );
    const bytes = Buffer.concat(weights);
    const weightSpecs = manifest.weightsManifest.flatMap((group) => group.weights);
    const needed = weightSpecs.reduce(
      (sum, { shape }) => sum + 4 * shape.reduce((product, size) => product * size, 1),
      0,
    );
    if (bytes.length < needed) refuse(directory, `weights.bin is truncated: ${bytes.length} bytes of ${needed}`);
    const weightData = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length) as ArrayBuffer;
    return tf.loadLayersModel(tf.io.fromMemory({ modelTopology: manifest.modelTopology, weightSpecs, weightData }));
  }
  if (await exists(join(directory, 'config.json'))) return loadPretrained(directory);
  return refuse(
    directory,
    'holds no model; expected model.json (TensorFlow.js) or config.json with safetensors (Hugging Face)',
  );
}

/** A model with the same architecture and weights. */
export async function cloneModel(model: tf.LayersModel): Promise<tf.LayersModel> {
  const copy = await tf.models.modelFromJSON(model.toJSON(null, false) as never);
  copy.setWeights(model.getWeights());
  return copy;
}

/** Writes all weights of a model into one file of a directory, for a later {@link restoreWeights}. */
export async function storeWeights(model: tf.LayersModel, path: string): Promise<void> {
  await mkdir(join(path, '..'), { recursive: true });
  const weights = model.getWeights();
  await writeSafetensors(path, Object.fromEntries(weights.map((weight, i) => [String(i), weight])), {
    overwrite: true,
  });
}

/** Puts weights back that {@link storeWeights} wrote. */
export async function restoreWeights(model: tf.LayersModel, path: string): Promise<void> {
  const file = await openCheckpoint(path);
  try {
    const weights = await Promise.all(model.getWeights().map((_, i) => file.read(String(i))));
    model.setWeights(weights);
    tf.dispose(weights);
  } finally {
    await file.close();
  }
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
