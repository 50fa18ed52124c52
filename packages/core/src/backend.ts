import { ready as prepareEngine } from '@matforge/engine';
import * as tf from '@tensorflow/tfjs';
import { repairGradients } from './ops/index.ts';

/**
 * Makes the fastest backend that can train ready and current, and registers the gradients that tfjs lacks. In Node that is wasm with matforge's kernels, in place of
 * tfjs's own `cpu`; a backend that the caller chose before (webgl, webgpu, node) is left alone.
 *
 * @param backend a tfjs backend name to use instead.
 * @returns the name of the backend in use.
 */
export async function ready(backend: string = 'wasm'): Promise<string> {
  if (backend === 'wasm') await prepareEngine();
  else await tf.setBackend(backend);
  await tf.ready();
  repairGradients();
  return tf.getBackend();
}
