import * as tf from '@tensorflow/tfjs';
import { ensure, refuse } from '../errors.ts';
import { type Attributes, defineOp, type Op } from '../ops/define-op.ts';
import { broadcastShape, sameShape, sizeOf } from '../ops/shapes.ts';
import { compileGpu, compileLoop, gpuConstructor, type Run } from './executors.ts';
import { type KernelBody, type KernelSource, kernelSource, mentions } from './source.ts';

/** Gradients as tfjs ops: what flows back to each input, given what flows back to the result. */
export type GradientFunction<I extends string> = (
  dy: tf.Tensor,
  inputs: Record<I, tf.Tensor>,
  y: tf.Tensor,
) => Partial<Record<I, tf.Tensor>>;

/** What {@link defineElementwiseKernel} is given. */
export interface ElementwiseKernelDefinition<I extends string> {
  /** For messages. */
  name: string;
  /** Names of the tensors that are read, element by element; they broadcast. */
  inputs: readonly I[];
  /** Named numbers, compiled in. */
  constants?: Record<string, number>;
  /** Named look-up tables, read as `table[index]` with an index that must be inside. */
  tables?: Record<string, ArrayLike<number>>;
  /** Results per element; given, the output has one more axis of this length and the body knows its `channel`. */
  channels?: number;
  /** The computation of one result. */
  body: KernelBody;
  /**
   * The gradient: per input a body that returns `dy`·∂y/∂input (over the same names, `dy` and `y`; over channels it is
   * summed), or a function of tensors, or 'straight-through' (one input, no channels: `dy` itself). Without it the
   * kernel refuses to be differentiated.
   */
  gradient?: Partial<Record<I, KernelBody>> | GradientFunction<I> | 'straight-through';
  /** Range of the inputs on which executors are compared and timed. Default [-1, 1]. */
  domain?: readonly [number, number];
}

/** How {@link ElementwiseKernel.ready} chooses. */
export interface ReadyKernelOptions {
  /** 'auto' (default) takes the fastest that is present and agrees; 'loop' and 'gpu.js' insist. */
  executor?: 'auto' | 'loop' | 'gpu.js';
  /** How gpu.js is loaded. Default: `import('gpu.js')`; a bundled page gives its own copy. */
  load?: () => Promise<unknown>;
  /** gpu.js modes to try, first come first served. Default: WebGL 2 in a page, WebAssembly. */
  modes?: readonly string[];
}

/** A differentiable function of tensors, made by {@link defineElementwiseKernel}. */
export interface ElementwiseKernel<I extends string = string> {
  /** Applies the kernel; tensors in the order of the definition's inputs. */
  (...inputs: tf.Tensor[]): tf.Tensor;
  readonly definition: Readonly<ElementwiseKernelDefinition<I>>;
  /** What runs large tensors now: 'loop' or 'gpu.js:<mode>'. */
  readonly executor: string;
  /** Why gpu.js was not taken at the last {@link ready}, if it was not. */
  readonly reason: string | undefined;
  /** Loads gpu.js where it is installed, checks that it agrees with the plain loop, and takes the faster of the two. */
  ready(options?: ReadyKernelOptions): Promise<ElementwiseKernel<I>>;
  /** Gives back what gpu.js holds; the plain loop goes on. */
  dispose(): void;
}

/** Below this many results a call of gpu.js costs more than the loop. */
const SMALLEST_FOR_GPU = 8192;
const SAMPLE = 1 << 16;
/** Results may differ by this much relative to 1 + |y|: float32 with other roundings. */
const AGREEMENT = 1e-4;

/**
 * Makes an element-wise or table kernel from a scripted body: a function of tensors with a gradient, for models and
 * training on every backend. It works at once on a plain loop compiled from the body; after `await kernel.ready()` large
 * tensors run through gpu.js where that is installed and faster.
 *
 * Worth it for what tfjs needs many ops or gathers for (splines, look-up tables, fixed-point emulation); short chains
 * and anything like a matrix product are better left to tfjs.
 *
 * ```ts
 * const cube = defineElementwiseKernel({
 *   name: 'cube', inputs: ['x'], body: 'x * x * x', gradient: { x: '3 * x * x * dy' },
 * });
 * const y = cube(x);
 * ```
 *
 * @throws MatforgeError when a name is taken or unfit, or the body does not compile or refers to what is not there.
 */
export function defineElementwiseKernel<const I extends string>(
  definition: ElementwiseKernelDefinition<I>,
): ElementwiseKernel<I> {
  const { name, inputs, gradient, channels } = definition;
  const forward = new Program(kernelSource(definition), definition.domain);
  const backward = gradientPrograms(definition);
  if (gradient === 'straight-through')
    ensure(
      inputs.length === 1 && channels === undefined,
      `${name}.gradient`,
      () =>
        `'straight-through' is for one input without channels; here are ${inputs.length} inputs and ${channels ?? 'no'} channels`,
    );

  const differentiate = (dy: tf.Tensor, saved: tf.Tensor[]): Record<string, () => tf.Tensor> => {
    const y = saved[inputs.length];
    const named = Object.fromEntries(inputs.map((input, i) => [input, saved[i]])) as Record<I, tf.Tensor>;
    let computed: Partial<Record<I, tf.Tensor>> | undefined;
    const of = (input: I, i: number): tf.Tensor => {
      if (gradient === 'straight-through') return tf.clone(dy);
      if (typeof gradient === 'function') {
        computed ??= gradient(dy, named, y);
        return computed[input] ?? refuse(`${name}.gradient`, `gives nothing for the input '${input}'`);
      }
      const program = backward.get(input);
      if (!program)
        refuse(`${name}.gradient`, `is not defined for the input '${input}'; define it or stop the gradient before it`);
      const offered: Record<string, tf.Tensor> = { dy, y, ...named };
      const product = program.apply(
        program.source.inputs.map((key) => offered[key]),
        y.shape,
      );
      return channels === undefined ? product : tf.reshape(tf.sum(product, -1), saved[i].shape);
    };
    // A function of tensors computes all gradients at once, outside the tidy that tfjs puts around each.
    if (typeof gradient === 'function') computed = gradient(dy, named, y);
    return Object.fromEntries(inputs.map((input, i) => [`x${i}`, () => of(input, i)]));
  };
  const program: ElementwiseProgram = { forward, channels, differentiate };

  const call = (...tensors: tf.Tensor[]): tf.Tensor => {
    ensure(
      tensors.length === inputs.length,
      name,
      () => `takes ${inputs.length} tensors (${inputs.join(', ')}), given were ${tensors.length}`,
    );
    let shape: number[] = [];
    tensors.forEach((tensor, i) => {
      shape =
        broadcastShape(shape, tensor.shape) ??
        refuse(`${name}.${inputs[i]}`, `has shape [${tensor.shape}], which does not broadcast against [${shape}]`);
    });
    return tf.tidy(() => {
      const lifted = tensors.map((tensor) => {
        const float = tensor.dtype === 'float32' ? tensor : tf.cast(tensor, 'float32');
        return sameShape(float.shape, shape) ? float : tf.mul(float, tf.ones(shape));
      });
      return elementwiseOp(inputs.length)(Object.fromEntries(lifted.map((x, i) => [`x${i}`, x])), { program })[0];
    });
  };
  const programs = [forward, ...backward.values()];
  const kernel = Object.assign(call, {
    definition,
    async ready(options: ReadyKernelOptions = {}) {
      for (const each of programs) await each.choose(options);
      return kernel;
    },
    dispose: () => {
      for (const each of programs) each.release();
    },
  }) as unknown as ElementwiseKernel<I>;
  Object.defineProperties(kernel, {
    executor: { get: () => forward.executor, enumerable: true },
    reason: { get: () => forward.reason, enumerable: true },
  });
  return kernel;
}

function gradientPrograms<I extends string>(definition: ElementwiseKernelDefinition<I>): Map<I, Program> {
  const { name, inputs, gradient, domain, channels } = definition;
  const programs = new Map<I, Program>();
  if (typeof gradient !== 'object') return programs;
  for (const [input, body] of Object.entries(gradient) as [I, KernelBody][]) {
    ensure(
      inputs.includes(input),
      `${name}.gradient.${input}`,
      () => `is for no input; inputs are ${inputs.join(', ')}`,
    );
    const used = ['dy', 'y'].filter((key) => mentions(body, key) && !(inputs as readonly string[]).includes(key));
    const source = kernelSource({
      ...definition,
      name: `${name}.gradient.${input}`,
      inputs: [...inputs, ...used],
      wide: channels === undefined ? [] : used,
      body,
    });
    programs.set(input, new Program(source, domain));
  }
  return programs;
}

/** One body with the executor that was chosen for it. */
class Program {
  readonly source: KernelSource;
  executor = 'loop';
  reason: string | undefined;
  private readonly loop: Run;
  private readonly domain: readonly [number, number];
  private accelerated: { run: Run; dispose(): void } | undefined;

  constructor(source: KernelSource, domain: readonly [number, number] = [-1, 1]) {
    this.source = source;
    this.domain = domain;
    this.loop = compileLoop(source);
    try {
      this.loop(this.sample(1), 1);
    } catch (error) {
      refuse(`${source.name}.body`, `fails: ${(error as Error).message}; it may use ${this.names()}`, { cause: error });
    }
  }

  private names(): string {
    const { inputs, tables, constants } = this.source;
    return [...inputs, ...Object.keys(tables), ...Object.keys(constants), 'channel', 'Math'].join(', ');
  }

  run(arrays: Float32Array[], n: number): Float32Array {
    const large = n * this.source.channels >= SMALLEST_FOR_GPU;
    return (large && this.accelerated ? this.accelerated.run : this.loop)(arrays, n);
  }

  apply(tensors: tf.Tensor[], shape: number[]): tf.Tensor {
    const n = sizeOf(shape) / this.source.channels;
    return tf.tensor(
      this.run(
        tensors.map((t) => t.dataSync() as Float32Array),
        n,
      ),
      shape,
      'float32',
    );
  }

  async choose({ executor = 'auto', load = loadGpu, modes = defaultModes() }: ReadyKernelOptions): Promise<void> {
    this.release();
    if (executor === 'loop') return;
    const failures: string[] = [];
    let Gpu: ReturnType<typeof gpuConstructor>;
    try {
      Gpu = gpuConstructor(await load());
      if (!Gpu) failures.push('the module that was loaded as gpu.js has no GPU class');
    } catch (error) {
      failures.push((error as Error).message.split('\n')[0]);
    }
    for (const mode of Gpu ? modes : []) {
      let compiled: { run: Run; dispose(): void } | undefined;
      try {
        compiled = compileGpu(this.source, Gpu!, mode);
        const failure = this.compare(compiled.run, executor === 'auto');
        if (!failure) {
          this.accelerated = compiled;
          this.executor = `gpu.js:${mode}`;
          return;
        }
        failures.push(`${mode}: ${failure}`);
      } catch (error) {
        failures.push(`${mode}: ${(error as Error).message.split('\n')[0]}`);
      }
      compiled?.dispose();
    }
    this.reason = failures.join('; ');
    if (executor === 'gpu.js') refuse(`${this.source.name}.executor`, `gpu.js cannot be used: ${this.reason}`);
  }

  /** Why `run` should not replace the loop, or undefined. */
  private compare(run: Run, timed: boolean): string | undefined {
    const inputs = this.sample(SAMPLE);
    const expected = this.loop(inputs, SAMPLE);
    const got = run(inputs, SAMPLE);
    for (let i = 0; i < expected.length; i++)
      if (
        !(Math.abs(got[i] - expected[i]) <= AGREEMENT * (1 + Math.abs(expected[i]))) &&
        !Object.is(got[i], expected[i])
      )
        return `gives ${got[i]} where the plain loop gives ${expected[i]}`;
    if (!timed) return undefined;
    const [theirs, ours] = [bestTime(() => run(inputs, SAMPLE)), bestTime(() => this.loop(inputs, SAMPLE))];
    return theirs < ours ? undefined : `takes ${theirs.toFixed(2)} ms where the plain loop takes ${ours.toFixed(2)} ms`;
  }

  /** Values spread over the domain by the golden ratio: no ties with the steps of a table, no randomness. */
  private sample(n: number): Float32Array[] {
    const [low, high] = this.domain;
    return this.source.inputs.map((input, which) => {
      const size = this.source.wide.has(input) ? n * this.source.channels : n;
      return Float32Array.from(
        { length: size },
        (_, i) => low + (high - low) * (((i + 1) * (0.618034 + which / 7)) % 1),
      );
    });
  }

  release(): void {
    this.accelerated?.dispose();
    this.accelerated = undefined;
    this.executor = 'loop';
    this.reason = undefined;
  }
}

function bestTime(f: () => unknown): number {
  let best = Number.POSITIVE_INFINITY;
  for (let repeat = 0; repeat < 5; repeat++) {
    const start = performance.now();
    f();
    best = Math.min(best, performance.now() - start);
  }
  return best;
}

const defaultModes = (): string[] => ('document' in globalThis ? ['webgl2', 'webasm'] : ['webasm']);

async function loadGpu(): Promise<unknown> {
  // Caught here so that a bundler takes the absent optional package for a warning.
  try {
    return await import('gpu.js');
  } catch (error) {
    throw new Error(`gpu.js is not installed (npm install gpu.js): ${(error as Error).message}`, { cause: error });
  }
}

interface ElementwiseProgram {
  forward: Program;
  channels: number | undefined;
  differentiate(dy: tf.Tensor, saved: tf.Tensor[]): Record<string, () => tf.Tensor>;
}
interface ElementwiseAttributes extends Attributes {
  program: ElementwiseProgram;
}

const ops = new Map<number, Op<ElementwiseAttributes>>();

/** One op per number of inputs serves all kernels: the program travels as an attribute. */
function elementwiseOp(arity: number): Op<ElementwiseAttributes> {
  const names = Array.from({ length: arity }, (_, i) => `x${i}`);
  const op =
    ops.get(arity) ??
    defineOp<ElementwiseAttributes>({
      name: `MatforgeElementwise${arity}`,
      saveInputs: names,
      saveOutputs: [true],
      forward(inputs, { program: { forward, channels } }) {
        const shape = inputs['x0'].shape;
        return [
          forward.apply(
            names.map((name) => inputs[name]),
            channels === undefined ? shape : [...shape, channels],
          ),
        ];
      },
      pullback: ([dy], saved, { program }) => program.differentiate(dy, saved),
    });
  ops.set(arity, op);
  return op;
}
