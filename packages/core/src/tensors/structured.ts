import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { during } from '../blocking.ts';
import { type ConfigSchema, parseConfig } from '../contracts/config.ts';
import {
  defineLinearMethod,
  type Group,
  type Initializer,
  type LinearMethod,
  type LinearMethodDefinition,
  type Site,
  type TensorSpec,
  trainable,
  type Widths,
} from '../contracts/linear-method.ts';
import { ensure, refuse } from '../errors.ts';
import { declared, makeSite } from '../host/attach.ts';
import { linalg } from '../linalg/index.ts';
import type { Matrix } from '../linalg/matrix.ts';
import { kaimingUniform, normal, zeros } from './initializers.ts';
import { type Random, random } from './random.ts';

/** How the factors of a structured kernel start. */
export type StructuredInit = 'project' | 'official' | 'muP' | 'dense';

/** Options of every structured method: `z.object({ ...structuredOptions, … })`. */
export const structuredOptions = {
  /**
   * `project`: the nearest structured kernel to the layer's own. `official`: the paper's random start. `muP`: the random
   * start whose outputs and updates do not depend on the width. `dense`: a new Kaiming-uniform kernel, projected.
   */
  init: z.enum(['project', 'official', 'muP', 'dense']).default('project'),
  /** The last factor starts at 0: for the last layer of a residual branch, with a random `init`. */
  zeroInit: z.boolean().default(false),
};

/** Options of {@link structuredOptions}, validated. */
export interface StructuredConfig {
  init: StructuredInit;
  zeroInit: boolean;
}

/** A kernel's size and the method's options for it. */
export interface StructuredShape<C> {
  readonly inDim: number;
  readonly outDim: number;
  readonly config: C;
}

/** What a structured method says: its factors, their product with x, and the nearest kernel of its form. */
export interface StructuredDefinition<S extends ConfigSchema, K extends string>
  extends Omit<LinearMethodDefinition<S, K>, 'init' | 'forward' | 'kernel' | 'trains' | 'rowwise' | 'lookup'> {
  /** x `[..., in]` → x·W `[..., out]` without forming W; differentiable in x and in the factors. */
  readonly apply: (
    x: tf.Tensor,
    tensors: Record<NoInfer<K>, tf.Tensor>,
    shape: StructuredShape<z.output<S>>,
  ) => tf.Tensor;
  /** W `[in, out]`. Default: apply of the identity. */
  readonly dense?: (tensors: Record<NoInfer<K>, tf.Tensor>, shape: StructuredShape<z.output<S>>) => tf.Tensor2D;
  /** Factors of a structured kernel near W `[in, out]`; tensors left out start from their declaration. */
  readonly project: (
    W: tf.Tensor2D,
    context: StructuredShape<z.output<S>> & { readonly random: Random },
  ) => Partial<Record<NoInfer<K>, tf.Tensor>>;
  /** True where `project` finds the nearest kernel of all. Default always. */
  readonly exact?: (config: z.output<S>) => boolean;
  /** Floating-point operations per row of x. Default 2 for each number of the factors. */
  readonly flops?: (shape: StructuredShape<z.output<S>>) => number;
  /** Options that give kernels of every size of the form: what `fitBudget` chooses from. */
  readonly ladder: (shape: StructuredShape<z.output<S>>) => Iterable<Partial<z.output<S>>>;
  /** Start of a new layer's bias with the official start. Default 0. */
  readonly officialBias?: Initializer;
}

/** A structured method: a linear method that also stands for its family of kernels. */
export type StructuredMethod<S extends ConfigSchema = ConfigSchema, K extends string = string> = LinearMethod<S, K> & {
  readonly structure: StructuredDefinition<S, K>;
};

// biome-ignore lint/suspicious/noExplicitAny: layers and families handle methods of every configuration alike.
export type AnyStructuredMethod = StructuredMethod<any, any>;

/**
 * Defines a structured form of a dense kernel. Attached to a layer it takes the place of the kernel, the layer keeps its
 * bias, and the whole model trains.
 */
export function defineStructuredMethod<S extends ConfigSchema, K extends string>(
  definition: StructuredDefinition<S, K>,
): StructuredMethod<S, K> {
  type Tensors = Record<K, tf.Tensor>;
  const { apply, dense, project, exact, flops, ladder, officialBias, ...common } = definition;
  const method = defineLinearMethod<S, K>({
    ...common,
    trains: 'model',
    validate(site, config) {
      const { init, zeroInit } = config as StructuredConfig;
      ensure(
        !(zeroInit && init === 'project'),
        `${site.name}.zeroInit`,
        () => 'would drop the kernel that init "project" keeps; use init "official" or "muP"',
      );
      definition.validate?.(site, config);
    },
    tensors(context) {
      const { init, zeroInit } = context.config as StructuredConfig;
      return started(definition.tensors(context), init, zeroInit) as Partial<Record<K, TensorSpec>>;
    },
    init(context) {
      const { config, random } = context;
      const { inDim, outDim } = context.site;
      const { init, zeroInit } = config as StructuredConfig;
      if (init !== 'project' && init !== 'dense') return {};
      const fresh = () => kaimingUniform([inDim, outDim], random.fork('dense')) as tf.Tensor2D;
      const factors = project(init === 'project' ? context.kernel : fresh(), { inDim, outDim, config, random });
      if (!zeroInit) return factors;
      const ends = lastFactors(
        declared(definition.tensors({ inDim, outDim, config, site: context.site, group: context.group })),
      );
      return Object.fromEntries(Object.entries(factors).filter(([key]) => !ends.includes(key))) as typeof factors;
    },
    forward(x, tensors, { base, site: { inDim, outDim }, config }) {
      const y = apply(x, tensors as Tensors, { inDim, outDim, config });
      return base.bias ? tf.add(y, base.bias) : y;
    },
    kernel: (tensors, { site: { inDim, outDim }, config }) =>
      denseOf(definition, tensors as Tensors, { inDim, outDim, config }),
  });
  return Object.assign(method, { structure: definition });
}

function denseOf<S extends ConfigSchema, K extends string>(
  definition: StructuredDefinition<S, K>,
  tensors: Record<K, tf.Tensor>,
  shape: StructuredShape<z.output<S>>,
): tf.Tensor2D {
  return definition.dense?.(tensors, shape) ?? (definition.apply(tf.eye(shape.inDim), tensors, shape) as tf.Tensor2D);
}

/** The declarations with the start values that `init` asks for. */
function started(
  given: Partial<Record<string, TensorSpec>>,
  init: StructuredInit,
  zeroInit: boolean,
): Record<string, TensorSpec> {
  const specs = declared(given);
  const ends = zeroInit ? lastFactors(specs) : [];
  return Object.fromEntries(
    Object.entries(specs).map(([key, spec]) => {
      if (!spec.widths) return [key, spec];
      if (ends.includes(key)) return [key, { ...spec, initializer: zeros }];
      return [key, init === 'muP' ? { ...spec, initializer: muP(spec.widths) } : spec];
    }),
  );
}

/** The last factor of each branch. */
function lastFactors(specs: Record<string, TensorSpec>): string[] {
  const last = new Map<string, string>();
  for (const [key, { widths }] of Object.entries(specs)) if (widths) last.set(widths.branch ?? '', key);
  return [...last.values()];
}

/**
 * Declares a trained factor.
 *
 * @param initializer the paper's start; default {@link muP}.
 */
export function factor(shape: number[], widths: Widths, initializer: Initializer = muP(widths)): TensorSpec {
  return { ...trainable(shape, initializer), widths };
}

/** Standard deviation √(1/d)·min(1, √(e/d)) of the maximal-update start for in-width d and out-width e. */
export function muPDeviation({ in: d, out: e }: Widths): number {
  return Math.sqrt(1 / d) * Math.min(1, Math.sqrt(e / d));
}

/** The maximal-update start (Yang & Hu 2021; for structured kernels Qiu et al. 2024, arXiv 2406.06248, section 3.2). */
export function muP(widths: Widths): Initializer {
  return normal(muPDeviation(widths));
}

/**
 * Learning rate of each tensor relative to that of a dense layer of input width `baseInDim`, for Adam and its kin:
 * baseInDim/(d·L), d the factor's in-width and L the number of trained factors of its branch; 1 for tensors that declare no
 * widths, such as gates and gains.
 */
export function learningRateMultipliers(
  specs: Partial<Record<string, TensorSpec>>,
  baseInDim: number,
): Record<string, number> {
  const entries = Object.entries(declared(specs)).filter(([, { role }]) => role === 'trainable');
  const branchOf = ({ widths }: TensorSpec) => widths && (widths.branch ?? '');
  return Object.fromEntries(
    entries.map(([key, spec]) => {
      if (!spec.widths) return [key, 1];
      const length = entries.filter(([, other]) => branchOf(other) === branchOf(spec)).length;
      return [key, baseInDim / (spec.widths.in * length)];
    }),
  );
}

/** A rank-limited piece of a kernel with both sides of equal norm: left `[rows, rank]`, right `[rank, cols]`. */
export interface BalancedFactors {
  readonly left: Matrix;
  readonly right: Matrix;
  /** Sum of the squares of the singular values that were left out. */
  readonly discarded: number;
}

/** The nearest matrix of a rank, as U·√Σ and √Σ·Vᵀ, in float64. Ranks beyond the matrix' own are filled with zeros. */
export function balancedFactors(block: Matrix, rank: number): BalancedFactors {
  const { u, s, v } = linalg.svd(block);
  const left = { rows: block.rows, cols: rank, data: new Float64Array(block.rows * rank) };
  const right = { rows: rank, cols: block.cols, data: new Float64Array(rank * block.cols) };
  for (let t = 0; t < Math.min(rank, s.length); t++) {
    const root = Math.sqrt(s[t]);
    for (let i = 0; i < block.rows; i++) left.data[i * rank + t] = root * u.data[i * u.cols + t];
    for (let j = 0; j < block.cols; j++) right.data[t * block.cols + j] = root * v.data[j * v.cols + t];
  }
  return { left, right, discarded: s.subarray(rank).reduce((sum, value) => sum + value * value, 0) };
}

/** ‖W − P‖_F and ‖W − P‖_F/‖W‖_F (0 for W = 0), summed in float64. */
export function projectionError(W: tf.Tensor, P: tf.Tensor): { error: number; relError: number } {
  const [w, p] = during('projection', () => [W.dataSync(), P.dataSync()]);
  let [difference, norm] = [0, 0];
  for (let i = 0; i < w.length; i++) {
    difference += (w[i] - p[i]) ** 2;
    norm += w[i] ** 2;
  }
  return { error: Math.sqrt(difference), relError: norm === 0 ? 0 : Math.sqrt(difference / norm) };
}

/** Refuses x whose last axis is not `inDim`. */
export function ensureInput(x: tf.Tensor, inDim: number): void {
  ensure(
    x.rank >= 1 && x.shape[x.rank - 1] === inDim,
    'x',
    () => `expected inDim ${inDim} on the last axis, got ${x.shape[x.rank - 1]} (shape [${x.shape}])`,
  );
}

/** Refuses a factor whose shape is not the one that the configuration gives it. */
export function ensureFactor(name: string, tensor: tf.Tensor, shape: readonly number[]): void {
  ensure(
    tensor.rank === shape.length && shape.every((size, axis) => tensor.shape[axis] === size),
    name,
    () => `has shape [${tensor.shape}]; expected [${shape}]`,
  );
}

/** Refuses a kernel that is no finite `[inDim, outDim]` matrix. */
export function ensureKernel(W: tf.Tensor2D): void {
  ensure(W.rank === 2, 'W', () => `must be a matrix [in, out], got shape [${W.shape}]`);
  const whole = during('projection', () => W.dataSync().every(Number.isFinite));
  ensure(whole, 'W', () => 'has non-finite entries; repair the kernel first');
}

/** Size of a kernel and options of its method. */
export type StructuredSize<I> = { readonly inDim: number; readonly outDim: number } & I;

/** One structured kernel outside of any layer. */
export interface StructuredKernel {
  readonly inDim: number;
  readonly outDim: number;
  readonly kind: string;
  /** Trained, named as the method names them. */
  readonly factors: Record<string, tf.Variable>;
  /** Structure that does not train. */
  readonly buffers: Record<string, tf.Tensor>;
  /** x `[..., in]` → `[..., out]`, no bias; differentiable. */
  apply(x: tf.Tensor): tf.Tensor;
  /** g `[..., out]` → g·Wᵀ `[..., in]`. */
  applyTranspose(g: tf.Tensor): tf.Tensor;
  toDense(): tf.Tensor2D;
  /** Trained numbers, no bias. */
  paramCount(): number;
  /** Floating-point operations for that many rows of x. */
  flops(rows: number): number;
  /** In-width of each factor. */
  factorInDims(): Record<string, number>;
  /** See {@link learningRateMultipliers}; default base width: this kernel's own. */
  lrMultipliers(baseInDim?: number): Record<string, number>;
  /** Copies of factors and buffers; the caller disposes them. */
  state(): Record<string, tf.Tensor>;
  /** Takes over the values of {@link state}; throws MatforgeError for a tensor that is missing or of another shape. */
  load(state: Record<string, tf.Tensor>): void;
  dispose(): void;
}

/** The kernels of one form: made, projected to, counted, sized. */
export interface StructuredFamily<I> {
  /** A kernel at random. */
  init(size: StructuredSize<I>, how?: Exclude<StructuredInit, 'project'>, seed?: number): StructuredKernel;
  /**
   * A kernel near W `[in, out]` with the Frobenius norm of the difference. `exact` where no kernel of the form is nearer.
   *
   * @throws MatforgeError for a W that is not finite or does not fit.
   */
  fromDense(
    W: tf.Tensor2D,
    options?: I,
    seed?: number,
  ): { kernel: StructuredKernel; error: number; relError: number; exact: boolean };
  /** A kernel of given factors, which stay the caller's. */
  of(size: StructuredSize<I>, tensors: Record<string, tf.Tensor>): StructuredKernel;
  /** Trained numbers, no bias. */
  paramCount(size: StructuredSize<I>): number;
  /** Floating-point operations for that many rows of x. */
  flops(size: StructuredSize<I>, rows?: number): number;
  /**
   * The largest kernel of at most `fraction`·in·out trained numbers.
   *
   * @throws MatforgeError when even the smallest is larger.
   */
  fitBudget(inDim: number, outDim: number, fraction: number, options?: I): StructuredSize<I>;
}

/** The family of kernels behind a structured method. */
export function structuredFamily<S extends ConfigSchema, K extends string>(
  method: StructuredMethod<S, K>,
): StructuredFamily<z.input<S>> {
  const { id } = method.info;
  const { structure } = method;
  const parse = (size: StructuredSize<z.input<S>>, change: object = {}) => {
    const { inDim, outDim, ...options } = size as { inDim: number; outDim: number };
    for (const [name, value] of Object.entries({ inDim, outDim })) {
      ensure(Number.isInteger(value) && value >= 1, `${id}.${name}`, () => `must be a positive integer, got ${value}`);
    }
    const config = { ...parseConfig(id, method.config, { ...options, ...change }) };
    const site = kernelSite(inDim, outDim);
    method.validate?.(site, config);
    return { inDim, outDim, config, site };
  };
  type Parsed = ReturnType<typeof parse>;
  const specsOf = ({ inDim, outDim, config, site }: Parsed) =>
    declared(method.tensors({ inDim, outDim, config, site, group: alone(inDim, outDim) }));
  const countOf = (specs: Record<string, TensorSpec>) =>
    Object.values(specs).reduce(
      (sum, { role, shape }) => sum + (role === 'trainable' ? tf.util.sizeFromShape(shape) : 0),
      0,
    );
  const flopsOf = (parsed: Parsed) =>
    structure.flops?.(parsed) ??
    2 * countOf(Object.fromEntries(Object.entries(specsOf(parsed)).filter(([, { widths }]) => widths)));

  const wrap = (parsed: Parsed, tensors: Record<string, tf.Tensor>): StructuredKernel => {
    const specs = specsOf(parsed);
    const pick = (wanted: boolean) => Object.keys(specs).filter((key) => (specs[key].role === 'trainable') === wanted);
    const factors = Object.fromEntries(pick(true).map((key) => [key, tf.variable(tensors[key])]));
    const buffers = Object.fromEntries(pick(false).map((key) => [key, tf.keep(tf.clone(tensors[key]))]));
    const all = { ...factors, ...buffers } as Record<K, tf.Tensor>;
    const apply = (x: tf.Tensor) => tf.tidy(() => structure.apply(x, all, parsed));
    return {
      inDim: parsed.inDim,
      outDim: parsed.outDim,
      kind: id,
      factors,
      buffers,
      apply,
      applyTranspose: (g) =>
        // The map is linear, so its gradient is its transpose wherever it is taken.
        tf.tidy(() => tf.grad(apply)(tf.zeros([...g.shape.slice(0, -1), parsed.inDim]), g)),
      toDense: () => tf.tidy(() => tf.clone(denseOf(structure, all, parsed))),
      paramCount: () => countOf(specs),
      flops: (rows) => rows * flopsOf(parsed),
      factorInDims: () =>
        Object.fromEntries(Object.entries(specs).flatMap(([key, { widths }]) => (widths ? [[key, widths.in]] : []))),
      lrMultipliers: (baseInDim = parsed.inDim) => learningRateMultipliers(specs, baseInDim),
      state: () => Object.fromEntries(Object.entries<tf.Tensor>(all).map(([key, value]) => [key, tf.clone(value)])),
      load(state) {
        for (const key of Object.keys(specs)) {
          ensureFactor(
            key,
            state[key] ?? refuse(key, `is missing; the state holds ${Object.keys(state).join(', ')}`),
            specs[key].shape,
          );
        }
        for (const key of Object.keys(factors)) factors[key].assign(state[key]);
        for (const key of Object.keys(buffers)) {
          buffers[key].dispose();
          (all as Record<string, tf.Tensor>)[key] = buffers[key] = tf.keep(tf.clone(state[key]));
        }
      },
      dispose: () => tf.dispose(Object.values(all)),
    };
  };
  const make = (parsed: Parsed, kernel: tf.Tensor2D | undefined, seed: number): StructuredKernel => {
    const tensors = tf.tidy(() => startTensors(method, parsed.config, parsed.site, kernel, seed));
    const made = wrap(parsed, tensors);
    tf.dispose(Object.values(tensors));
    return made;
  };
  const project = (W: tf.Tensor2D, options: z.input<S> | undefined, seed: number) => {
    ensureKernel(W);
    const [inDim, outDim] = W.shape;
    const parsed = parse({ ...(options as object), inDim, outDim } as StructuredSize<z.input<S>>, {
      init: 'project',
      zeroInit: false,
    });
    const kernel = make(parsed, W, seed);
    const P = kernel.toDense();
    const errors = projectionError(W, P);
    P.dispose();
    return { kernel, ...errors, exact: structure.exact?.(parsed.config) ?? true };
  };
  return {
    init: (size, how = 'official', seed = 0) => make(parse(size, { init: how }), undefined, seed),
    fromDense(W, options, seed = 0) {
      return during(`${id} from a dense kernel`, () => project(W, options, seed));
    },
    of(size, tensors) {
      const parsed = parse(size);
      for (const [key, { shape }] of Object.entries(specsOf(parsed))) {
        ensureFactor(
          key,
          tensors[key] ?? refuse(key, `is missing; given were ${Object.keys(tensors).join(', ')}`),
          shape,
        );
      }
      return wrap(parsed, tensors);
    },
    paramCount: (size) => countOf(specsOf(parse(size))),
    flops: (size, rows = 1) => rows * flopsOf(parse(size)),
    fitBudget(inDim, outDim, fraction, options) {
      ensure(fraction > 0, `${id}.fraction`, () => `must be > 0, got ${fraction}`);
      const size = { ...(options as object), inDim, outDim } as StructuredSize<z.input<S>>;
      const parsed = parse(size);
      const budget = fraction * inDim * outDim;
      let best: { change: object; count: number } | undefined;
      let smallest = Number.POSITIVE_INFINITY;
      for (const change of structure.ladder(parsed)) {
        const count = countOf(specsOf({ ...parsed, config: { ...parsed.config, ...change } }));
        smallest = Math.min(smallest, count);
        if (count <= budget && !(best && best.count >= count)) best = { change, count };
      }
      if (!best) {
        refuse(
          `${id}.fraction`,
          `${fraction} of [${inDim}, ${outDim}] is ${Math.floor(budget)} numbers; the smallest kernel has ${smallest}`,
        );
      }
      return { ...size, ...best.change };
    },
  };
}

function kernelSite(inDim: number, outDim: number): Site {
  return { name: 'kernel', kind: 'dense', inDim, outDim };
}

function alone(inDim: number, outDim: number): Group {
  return { sites: [kernelSite(inDim, outDim)], maxIn: inDim, maxOut: outDim };
}

/** Start values of every tensor of a method at a site that is in no model. */
export function startTensors(
  // biome-ignore lint/suspicious/noExplicitAny: every method has its own options and tensors.
  method: LinearMethod<any, any>,
  config: object,
  site: Site,
  kernel: tf.Tensor2D | undefined,
  seed: number,
): Record<string, tf.Tensor> {
  const { inDim, outDim } = site;
  const group: Group = { sites: [site], maxIn: inDim, maxOut: outDim };
  const specs = declared(method.tensors({ inDim, outDim, config, site, group }));
  const context = {
    get kernel() {
      return (
        kernel ?? refuse(`${site.name}.init`, 'needs a kernel; a new layer starts with "official", "muP" or "dense"')
      );
    },
    bias: null,
    config,
    site,
    group,
    random: random(seed).fork(site.name),
    data: {},
  };
  const given: Record<string, tf.Tensor | undefined> = method.init?.(context) ?? {};
  return makeSite(method, specs, { seed, shared: new Map() }, context, (key) => given[key]);
}
