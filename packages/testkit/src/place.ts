import { type CheckpointStorage, directoryStorage, memoryStorage, ready } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';

/** Where a conformance suite runs. */
export interface Place {
  /** Backend that forward passes, gradients and optimizers run on. Default `'wasm'`. */
  readonly backend?: string;
  /**
   * Backend for what needs values while the program waits: attaching, merging, projecting. Default the backend itself,
   * and `'cpu'` where that is `'webgpu'`, which refuses these steps.
   */
  readonly home?: string;
  /** Whether adapters are saved to a directory (Node) or to memory, as a page does. Default `'directory'`. */
  readonly files?: 'directory' | 'memory';
  /** Fewer widths, repetitions and entries, for a backend that computes in software. Default false. */
  readonly small?: boolean;
}

/** A {@link Place} with its defaults and what suites do there. */
export interface OpenPlace extends Required<Place> {
  /** A backend to compare with: `cpu`, or `wasm` for a suite that runs on `cpu`. */
  readonly reference: string;
  /** Makes the backend current. */
  enter(): Promise<void>;
  /** Runs a step on the home backend and comes back. */
  atHome<T>(step: () => T | Promise<T>): Promise<T>;
  /** Lends a place for one adapter: what `save` and `load` take, and its files. */
  withFiles(body: (target: string | CheckpointStorage, files: CheckpointStorage) => Promise<void>): Promise<void>;
}

/** Fills in the defaults of a place. */
export function openPlace({ backend = 'wasm', home, files = 'directory', small = false }: Place = {}): OpenPlace {
  const settled = home ?? (backend === 'webgpu' ? 'cpu' : backend);
  return {
    backend,
    home: settled,
    files,
    small,
    reference: backend === 'cpu' ? 'wasm' : 'cpu',
    enter: async () => {
      await ready(backend);
    },
    async atHome(step) {
      if (settled === backend) return step();
      await ready(settled);
      try {
        return await step();
      } finally {
        await ready(backend);
      }
    },
    async withFiles(body) {
      if (files === 'memory') {
        const storage = memoryStorage();
        return body(storage, storage);
      }
      const [{ mkdtemp, rm }, { tmpdir }, { join }] = [
        await import('node:fs/promises'),
        await import('node:os'),
        await import('node:path'),
      ];
      const parent = await mkdtemp(join(tmpdir(), 'matforge-'));
      try {
        await body(join(parent, 'adapter'), directoryStorage(join(parent, 'adapter')));
      } finally {
        await rm(parent, { recursive: true, force: true });
      }
    },
  };
}

/** The values of a tensor, awaited: a webgpu backend has no other way. */
export async function valuesOf(tensor: tf.Tensor): Promise<number[]> {
  return Array.from(await tensor.data());
}

/** The values of a tensor that nobody else needs. */
export async function taken(tensor: tf.Tensor): Promise<number[]> {
  try {
    return await valuesOf(tensor);
  } finally {
    tensor.dispose();
  }
}

/** `tf.tidy` for a body that awaits. Nothing else may make tensors meanwhile. */
export async function scoped<T>(body: () => Promise<T>): Promise<T> {
  tf.engine().startScope();
  try {
    return await body();
  } finally {
    tf.engine().endScope();
  }
}
