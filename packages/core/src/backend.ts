import { type ReadyOptions as EngineOptions, ready as prepareEngine } from '@matforge/engine';
import * as tf from '@tensorflow/tfjs';
import { currentSteps } from './blocking.ts';
import { refuse } from './errors.ts';
import { repairGradients } from './ops/index.ts';
import { refineTrigonometry } from './ops/trigonometry.ts';

export { onHeap } from '@matforge/engine';

/** How the `wasm` backend is found and started: `wasmPaths` (browsers need it) and `threads`. */
export type ReadyOptions = EngineOptions;

/**
 * Makes a backend ready for training and current, and registers the gradients that tfjs lacks. The default, `wasm` with
 * matforge's kernels, is the fastest in Node. On other backends the kernels that they lack run on `cpu`.
 *
 * `webgpu` cannot read values while the program waits: what does so (attaching, merging, linear algebra) is refused there.
 * Do it on another backend and switch; tensors move along. Leaving `webgpu` by this function reads all of them first.
 *
 * @param backend `wasm`, `cpu`, `webgl`, `webgpu` or another that is registered with tfjs. Default `wasm`; options in its
 *   place are those of `wasm`.
 * @param options for `wasm` alone.
 * @returns the name of the backend in use.
 * @throws MatforgeError (`backend`) when it is not registered or does not start.
 */
export async function ready(backend: string | ReadyOptions = 'wasm', options: ReadyOptions = {}): Promise<string> {
  if (typeof backend !== 'string') return ready('wasm', backend);
  if (backend !== tf.getBackend()) await fetchAll();
  if (backend === 'wasm') await prepareEngine(options);
  else await start(backend);
  await tf.ready();
  repairGradients();
  return tf.getBackend();
}

async function start(backend: string): Promise<void> {
  if (!tf.findBackendFactory(backend)) {
    const bring =
      backend === 'webgpu'
        ? "npm i @tensorflow/tfjs-backend-webgpu and import it before ready('webgpu')"
        : `import the package that registers it first, or use one of ${registered().join(', ')}`;
    refuse('backend', `TensorFlow.js knows no backend "${backend}"; ${bring}`);
  }
  let cause: unknown;
  const started = await tf.setBackend(backend).catch((error) => {
    cause = error;
    return false;
  });
  if (!started) {
    refuse(
      'backend',
      `"${backend}" did not start: this machine or browser does not offer it; use 'wasm', which runs everywhere`,
      { cause },
    );
  }
  if (backend === 'cpu') return;
  if (backend === 'webgpu') refuseBlockingReads(tf.backend() as Device);
  fillKernels(backend);
  if (backend === 'webgl' || backend === 'webgpu') await refineTrigonometry(backend);
}

const registered = (): string[] =>
  ['wasm', 'cpu', 'webgl', 'webgpu', 'tensorflow'].filter((name) => tf.findBackendFactory(name) !== null);

type Values = tf.backend_util.BackendValues;
type Call = { inputs: tf.NamedTensorInfoMap | tf.TensorInfo[]; attrs?: tf.NamedAttrMap; backend: tf.KernelBackend };

/** What every backend has, though tfjs declares only part of it. */
interface Device extends tf.KernelBackend {
  write(values: Values, shape: number[], dtype: tf.DataType): object;
  tensorMap: Map<object, { values?: Values | null; shape: number[]; dtype: tf.DataType; refCount: number }>;
}

/** Live tensors of a webgpu backend. Its own table is a weak map, which cannot be walked. */
const living = new WeakMap<tf.KernelBackend, Set<object>>();

/**
 * The browser lets a page wait for the device only through a canvas. tfjs does so, and what comes back may be zeros, or the
 * device may be lost, without an error at that place. Values that are on the host already can be had.
 */
function refuseBlockingReads(device: Device): void {
  if (living.has(device)) return;
  const alive = new Set<object>();
  living.set(device, alive);
  const { tensorMap } = device;
  const [set, remove] = [tensorMap.set.bind(tensorMap), tensorMap.delete.bind(tensorMap)];
  tensorMap.set = (id, entry) => {
    alive.add(id);
    return set(id, entry);
  };
  tensorMap.delete = (id) => {
    alive.delete(id);
    return remove(id);
  };
  const read = device.readSync.bind(device);
  device.readSync = (id) => {
    const { values, shape, dtype } = tensorMap.get(id)!;
    if (values == null && dtype !== 'string' && dtype !== 'complex64') {
      refuse(
        'webgpu',
        `${currentSteps().join(': ') || 'dataSync'}: a ${dtype} tensor of shape [${shape}] is on the device and ` +
          'cannot be read at once; await its data() first, or do this step (attach, merge, linear algebra, an optimizer ' +
          "that decomposes gradients) after await ready('wasm') and come back with await ready('webgpu')",
      );
    }
    return read(id);
  };
}

/** Reads every tensor of a webgpu backend that is being left: from then on the host has them, and they can move. */
async function fetchAll(): Promise<void> {
  const device = tf.getBackend() === 'webgpu' ? (tf.backend() as Device) : undefined;
  const alive = device && living.get(device);
  if (!device || !alive) return;
  await Promise.all(
    [...alive].map(async (id) => {
      // Work that waits may need what is disposed already; the first read sends it off, and with that they are gone.
      if (!alive.has(id) || device.tensorMap.get(id)?.refCount === 0) return;
      await device.read(id).catch((cause) => alive.has(id) && Promise.reject(cause));
    }),
  );
}

const filled = new Set<string>();

/** Its kernels draw on a canvas of their own backend's kind. */
const UNFILLABLE: Record<string, string> = { Draw: 'draw with tf.browser.toPixels' };

/** Lets kernels of the cpu backend stand in, on copies, for those that a backend lacks. */
function fillKernels(backendName: string): void {
  if (filled.has(backendName)) return;
  filled.add(backendName);
  for (const { kernelName, kernelFunc } of tf.getKernelsForBackend('cpu')) {
    if (tf.getKernel(kernelName, backendName)) continue;
    const standIn = (call: Call): tf.TensorInfo | tf.TensorInfo[] => {
      const field = `tf op ${kernelName}`;
      const elsewhere = "run it after await ready('wasm') or ready('cpu')";
      if (kernelName in UNFILLABLE) {
        refuse(field, `${backendName} has no kernel for it; ${UNFILLABLE[kernelName]}, or ${elsewhere}`);
      }
      try {
        return onCpu(kernelFunc, call);
      } catch (cause) {
        const why = cause instanceof Error ? cause.message : String(cause);
        refuse(field, `${backendName} has no kernel for it, and cpu's could not stand in (${why}); ${elsewhere}`, {
          cause,
        });
      }
    };
    tf.registerKernel({ kernelName, backendName, kernelFunc: standIn as unknown as tf.KernelFunc });
  }
}

function onCpu(kernel: tf.KernelFunc, { inputs, attrs, backend }: Call): tf.TensorInfo | tf.TensorInfo[] {
  const [device, cpu] = [backend as Device, tf.findBackend('cpu') as Device];
  const lent: object[] = [];
  const lend = (tensor: tf.TensorInfo): tf.TensorInfo => {
    const { dataId, shape, dtype } = tensor;
    const copy = cpu.write(device.readSync(dataId) as Values, shape, dtype);
    lent.push(copy);
    // Some kernels ask for what only a tensor has.
    return { dataId: copy, shape, dtype, rank: shape.length, size: tf.util.sizeFromShape(shape) } as tf.TensorInfo;
  };
  const take = ({ dataId, shape, dtype }: tf.TensorInfo): tf.TensorInfo => {
    const values = cpu.readSync(dataId) as Values;
    const typed =
      dtype === 'string' || ArrayBuffer.isView(values) ? values : tf.util.toTypedArray(values as never, dtype);
    lent.push(dataId);
    return { dataId: device.write(typed as Values, shape, dtype), shape, dtype };
  };
  try {
    const named = Object.entries(inputs).map(([name, value]) => [
      name,
      Array.isArray(value) ? value.map(lend) : value && lend(value as tf.TensorInfo),
    ]);
    const borrowed = Array.isArray(inputs) ? named.map(([, value]) => value) : Object.fromEntries(named);
    const result = kernel({ inputs: borrowed, attrs, backend: cpu });
    return Array.isArray(result) ? result.map(take) : take(result as tf.TensorInfo);
  } finally {
    for (const id of new Set(lent)) cpu.disposeData(id);
  }
}
