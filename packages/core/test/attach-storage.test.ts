import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type * as tf from '@tensorflow/tfjs';
import { attach, directoryStorage, load, memoryStorage, save } from '../src/index.ts';
import {
  additive,
  discard,
  noise,
  outputs,
  scaling,
  snapshot,
  threeLayers,
  type Weight,
  watchLeaks,
} from './attach-methods.ts';

watchLeaks();

const FILES = ['adapter_config.json', 'adapter_model.safetensors'];

async function adapted(): Promise<tf.LayersModel> {
  const model = threeLayers();
  await attach(model, additive({ rank: 2 }), { seed: 3 });
  return train(model, 4);
}

/** Moves what is trained, and leaves the base as it is. */
function train(model: tf.LayersModel, seed: number): tf.LayersModel {
  for (const weight of model.trainableWeights as unknown as Weight[]) {
    const value = noise(weight.read().shape, seed);
    weight.read().assign(value);
    value.dispose();
  }
  return model;
}

test('a storage holds the files of a directory, byte for byte, and each is read back by the other', async () => {
  const model = await adapted();
  const parent = await mkdtemp(join(tmpdir(), 'matforge-'));
  const directory = join(parent, 'adapter');
  const storage = memoryStorage();
  try {
    await save(model, directory);
    await save(model, storage);
    expect([...storage.files.keys()].sort()).toEqual(FILES);
    for (const file of FILES) {
      expect(Array.from(storage.files.get(file) as Uint8Array)).toEqual([...(await readFile(join(directory, file)))]);
    }
    const x = noise([3, 4], 1);
    const expected = outputs(model, x);
    for (const source of [storage, directoryStorage(directory)]) {
      const other = threeLayers();
      await load(other, source, { methods: [additive] });
      expect(outputs(other, x)).toEqual(expected);
      discard(other);
    }
    x.dispose();
  } finally {
    await rm(parent, { recursive: true, force: true });
  }
  discard(model);
});

test('an adapter in a storage is replaced only when that is asked for', async () => {
  const model = await adapted();
  const storage = memoryStorage();
  await save(model, storage);
  const first = storage.files.get(FILES[1]);
  train(model, 5);
  await expect(save(model, storage)).rejects.toThrow(
    /^adapter_config\.json: exists already in the storage .*; pass overwrite: true/,
  );
  expect(storage.files.get(FILES[1])).toBe(first);
  await save(model, storage, { overwrite: true });
  expect(storage.files.get(FILES[1])).not.toEqual(first);
  discard(model);
});

test('what is neither a path nor a storage, and methods that are none, are refused', async () => {
  const model = await adapted();
  for (const wrong of [undefined, '', {}, 'https://example.com/adapter', 'file:///tmp/adapter']) {
    const message = /^path: .*; accepted is a directory's path, or a storage such as memoryStorage\(\)/;
    await expect(save(model, wrong as never)).rejects.toThrow(message);
    await expect(load(model, wrong as never, { methods: [additive] })).rejects.toThrow(message);
  }
  for (const options of [undefined, {}, { methods: additive }, { methods: [additive()] }]) {
    await expect(load(model, memoryStorage(), options as never)).rejects.toThrow(
      /^methods: .*load\(model, source, \{ methods: \[lora\] \}\)/,
    );
  }
  discard(model);
});

test('a storage without an adapter, without weights or with another method is refused, and the model stays', async () => {
  const model = await adapted();
  const storage = memoryStorage();
  const other = threeLayers();
  const before = snapshot(other);
  await expect(load(other, storage, { methods: [additive] })).rejects.toThrow(
    /^adapter_config\.json: cannot be read; an adapter directory holds/,
  );
  await save(model, storage);
  await expect(load(other, storage, { methods: [scaling] })).rejects.toThrow(/peft_type|additive/i);
  storage.files.delete(FILES[1]);
  await expect(load(other, storage, { methods: [additive] })).rejects.toThrow(
    /^adapter_model\.safetensors: cannot be read/,
  );
  await storage.write(FILES[0], new TextEncoder().encode('{'));
  await expect(load(other, storage, { methods: [additive] })).rejects.toThrow(
    /^adapter_config\.json: is not valid JSON/,
  );
  expect(snapshot(other)).toEqual(before);
  discard(other);
  discard(model);
});
