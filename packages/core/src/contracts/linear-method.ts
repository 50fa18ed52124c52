import type * as tf from '@tensorflow/tfjs';
import type { z } from 'zod';
import type { Random } from '../tensors/random.ts';
import { type ConfigSchema, parseConfig } from './config.ts';
import type { MethodInfo } from './info.ts';

/**
 * What a tensor of a method is:
 * `trainable` is learned and stored, `frozen` is stored, `seeded` is drawn again from the seed instead of being stored.
 */
export type Role = 'trainable' | 'frozen' | 'seeded';

/** Makes the start value of a tensor. */
export type Initializer = (shape: number[], random: Random) => tf.Tensor;

/**
 * How wide the small products are that a factor of a kernel takes part in: numbers that one of them sums (`in`) and
 * makes (`out`). The start value and the learning rate that suit every width follow from these.
 */
export interface Widths {
  readonly in: number;
  readonly out: number;
  /** Factors that are applied one after the other share a branch; parallel ones name theirs. */
  readonly branch?: string;
}

/** Declaration of one named tensor: core counts, allocates, checks, saves and loads from it. */
export interface TensorSpec {
  readonly shape: number[];
  readonly role: Role;
  /** Start value; a tensor without one must come from the method's `init`. */
  readonly initializer?: Initializer;
  /** Sites whose declarations carry the same key hold one and the same tensor. */
  readonly shared?: string;
  /** Declared by the factors of a structured kernel. */
  readonly widths?: Widths;
}

/** Where a method is applied: one dense kernel of a model. */
export interface Site {
  /** Dotted name of the layer inside the model. */
  readonly name: string;
  readonly kind: 'dense' | 'conv2d' | 'embedding' | 'layer';
  /** Rows of the kernel. For conv2d kh·kw·cin, for an embedding the size of the vocabulary. */
  readonly inDim: number;
  /** Columns of the kernel. */
  readonly outDim: number;
}

/** A site before anything is attached, with its weights: what `plan` sees. */
export interface PlannedSite extends Site {
  /** `[inDim, outDim]`. */
  readonly kernel: tf.Tensor2D;
  readonly bias: tf.Tensor1D | null;
  readonly activations?: tf.Tensor2D;
  readonly gradients?: tf.Tensor2D;
}

/** What `plan` decides for one site. */
export interface SitePlan<C> {
  /** Options that differ from the common configuration at this site (a rank, a bit budget). */
  readonly config?: Partial<C>;
  /** Data prepared across sites (selected columns, a pair's common factor); handed to `init`. */
  readonly data?: Record<string, tf.Tensor>;
  /** Sites with the same unit are treated as one (q, k, v and o of one attention). */
  readonly unit?: string;
}

/** Every site that the method is attached to, so that shared tensors can be sized by the largest. */
export interface Group {
  readonly sites: readonly Site[];
  readonly maxIn: number;
  readonly maxOut: number;
}

/** An adapter's configuration and where it is attached. */
export interface Placement<C> {
  readonly config: C;
  readonly group: Group;
}

/** The map that a method builds on: the layer itself, or the layer with the adapters listed before this one. */
export interface Base {
  /** `[inDim, outDim]`. */
  readonly kernel: tf.Tensor2D;
  /** `[outDim]`, or null where the layer has none. */
  readonly bias: tf.Tensor1D | null;
  /** x `[..., inDim]` → x·kernel + bias. */
  apply(x: tf.Tensor): tf.Tensor;
  /** x `[..., inDim]` → x·kernel. */
  linear(x: tf.Tensor): tf.Tensor;
  /** indices `[n]` → rows of the kernel `[n, outDim]`. */
  lookup(indices: tf.Tensor1D): tf.Tensor;
}

/** What `forward`, `kernel` and `lookup` know besides the tensors. */
export interface ForwardContext<C> {
  readonly config: C;
  readonly base: Base;
  readonly site: Site;
  /** True inside a training step. */
  readonly training: boolean;
  /** Applies `config.dropout` to the adapter's input while training; the identity otherwise. */
  dropout(x: tf.Tensor): tf.Tensor;
}

/** What `init` knows. */
export interface InitContext<C> {
  readonly kernel: tf.Tensor2D;
  readonly bias: tf.Tensor1D | null;
  readonly config: C;
  readonly site: Site;
  readonly group: Group;
  readonly random: Random;
  /** Mean over calibration batches of the method's `statistic` (default XᵀX), `[inDim, inDim]`. */
  readonly activations?: tf.Tensor2D;
  /** Sum over calibration batches of dLoss/dKernel, `[inDim, outDim]`. */
  readonly gradients?: tf.Tensor2D;
  /** From the site's plan. */
  readonly data: Record<string, tf.Tensor>;
}

/** Dense form of a method at one site; a bias only where the method changes it. */
export type DenseForm = tf.Tensor2D | { readonly kernel: tf.Tensor2D; readonly bias: tf.Tensor1D | null };

/** One attached site as a schedule sees it. */
export interface ScheduledSite<C, K extends string> {
  readonly site: Site;
  readonly config: C;
  readonly tensors: Record<K, tf.Tensor>;
}

/** What happens at one optimizer step. */
export interface StepInfo<K extends string> {
  /** Number of this step, from 1. */
  readonly step: number;
  readonly totalSteps?: number;
  /** Gradient of the loss for a trainable tensor of a site; null when frozen. */
  gradient(site: string, tensor: K): tf.Tensor | null;
}

/** What a schedule wants done at a step. */
export interface StepDecision<K extends string> {
  /** Tensors that must not move any more. One-way. */
  readonly freeze?: readonly { readonly site: string; readonly tensor: K }[];
  /** 0/1 masks: entries with 0 are put back after the update of this step. */
  readonly masks?: readonly { readonly site: string; readonly tensor: K; readonly mask: tf.Tensor }[];
  /** New values, e.g. after a re-allocation of rank. */
  readonly assign?: readonly { readonly site: string; readonly tensor: K; readonly value: tf.Tensor }[];
}

/** Runs between the backward pass and the optimizer. */
export interface TrainingSchedule<K extends string> {
  onStep(info: StepInfo<K>): StepDecision<K> | undefined;
  /** What it must remember for an exact resume: a tree of typed arrays, numbers, texts and tensors (copies). */
  state?(): unknown;
  /** Continues from what `state` returned; copies it. What it had frozen is core's to restore. */
  restore?(state: unknown): void;
  dispose?(): void;
}

/** How a tensor of a convolution is laid out in an adapter directory. */
export type ConvolutionLayout = 'patches' | 'pointwise' | 'channels';

/** How a method's tensors and options are spelled in an adapter directory (PEFT's format). */
export interface PeftFormat<C, K extends string> {
  readonly type: string;
  /** Tells two methods of the same `type` apart, e.g. by `use_dora`. */
  accepts?(json: Record<string, unknown>): boolean;
  /** Options as PEFT's fields. */
  toJson(config: C): Record<string, unknown>;
  fromJson(json: Record<string, unknown>): Record<string, unknown>;
  /** File suffix per tensor. Matrices are transposed to PyTorch's `[out, in]`. */
  keys(site: Site): { readonly [Name in K]?: string };
  /**
   * Shapes in the file where the site is a convolution of kernel h×w: `patches` `[h·w·cin, n]` as `[n, cin, h, w]`,
   * `pointwise` `[n, out]` as `[out, n, 1, 1]`, `channels` `[n]` as `[1, n, 1, 1]`. Others as for a dense layer.
   */
  readonly convolution?: { readonly [Name in K]?: ConvolutionLayout };
  /** Other types to read as this one. */
  readonly aliases?: readonly string[];
  /**
   * Replaces a site's tensors by those that the file holds, for methods that are stored as another method because
   * their start is not the base model. The file is then read back as that other method.
   */
  convert?(tensors: Record<K, tf.Tensor>, config: C): { readonly [Name in K]?: tf.Tensor };
}

/** The definition of a parametrised dense kernel: what a method package writes. */
export interface LinearMethodDefinition<S extends ConfigSchema, K extends string> {
  readonly info: MethodInfo;
  /** zod object; core refuses unknown keys and reports `<method>.<option>`. */
  readonly config: S;
  /** Statistics that `init` or `plan` need; `attach` then asks for calibration data. */
  readonly needs?: readonly ('activations' | 'gradients')[];
  /**
   * One calibration batch of a site's inputs `[rows, inDim]` (for a convolution, the patches) → `[inDim, inDim]`; averaged
   * over batches. Default XᵀX.
   */
  readonly statistic?: (x: tf.Tensor2D, config: z.output<S>, site: Site) => tf.Tensor2D;
  /** `model`: the rest of the model trains as well (structured layers). Default `adapter`: only the method's tensors. */
  readonly trains?: 'adapter' | 'model';
  /** Refuses a site that the configuration does not fit, before anything is made. */
  readonly validate?: (site: Site, config: z.output<S>) => void;
  /** Refuses to stand beside another adapter of the same method on one model, for methods that share tensors. */
  readonly coexist?: (mine: Placement<z.output<S>>, other: Placement<z.output<S>>) => void;
  /** Names, shapes, roles and start values. */
  readonly tensors: (context: {
    inDim: number;
    outDim: number;
    config: z.output<S>;
    site: Site;
    group: Group;
  }) => Partial<Record<K, TensorSpec>>;
  /** Sees all sites before any is initialised. */
  readonly plan?: (
    sites: readonly PlannedSite[],
    config: z.output<S>,
    random: Random,
  ) => Record<string, SitePlan<z.output<S>>>;
  /** Start values that depend on the kernel or on data; tensors left out start from their declaration. */
  readonly init?: (context: InitContext<z.output<S>>) => Partial<Record<NoInfer<K>, tf.Tensor>>;
  /** x `[..., inDim]` → y `[..., outDim]`, bias included, differentiable in x and in the trainable tensors. */
  readonly forward: (
    x: tf.Tensor,
    tensors: Record<NoInfer<K>, tf.Tensor>,
    context: ForwardContext<z.output<S>>,
  ) => tf.Tensor;
  /** The dense kernel, when there is one. */
  readonly kernel?: (tensors: Record<NoInfer<K>, tf.Tensor>, context: ForwardContext<z.output<S>>) => DenseForm;
  /** False where `kernel` exists for some configurations only. */
  readonly mergeable?: (config: z.output<S>) => boolean;
  /** Rows of the kernel by index, for embeddings: indices `[n]` → `[n, outDim]`. */
  readonly lookup?: (
    indices: tf.Tensor1D,
    tensors: Record<NoInfer<K>, tf.Tensor>,
    context: ForwardContext<z.output<S>>,
  ) => tf.Tensor;
  /** Set when `forward` also takes tensors with a leading batch axis, one adapter per row. */
  readonly rowwise?: boolean;
  /** Added to the training loss, per site. */
  readonly penalty?: (tensors: Record<NoInfer<K>, tf.Tensor>, context: ForwardContext<z.output<S>>) => tf.Scalar;
  /** Freezing, masks, re-allocation while training. */
  readonly schedule?: (
    sites: readonly ScheduledSite<z.output<S>, NoInfer<K>>[],
    config: z.output<S>,
  ) => TrainingSchedule<NoInfer<K>>;
  readonly peft?: PeftFormat<z.output<S>, NoInfer<K>>;
}

/** A method with a validated configuration: what {@link attach} takes. */
export interface ConfiguredLinearMethod<S extends ConfigSchema = ConfigSchema, K extends string = string> {
  readonly method: LinearMethod<S, K>;
  readonly config: z.output<S>;
}

/** A method: callable with its options, and carrying its definition. */
export interface LinearMethod<S extends ConfigSchema = ConfigSchema, K extends string = string>
  extends LinearMethodDefinition<S, K> {
  readonly contract: 'linear';
  (config?: z.input<S>): ConfiguredLinearMethod<S, K>;
}

/** Any linear method, whatever its options and tensors. */
// biome-ignore lint/suspicious/noExplicitAny: the host handles methods of every configuration alike.
export type AnyLinearMethod = LinearMethod<any, any>;
/** A configured method of any options: what `attach` takes. */
// biome-ignore lint/suspicious/noExplicitAny: see AnyLinearMethod.
export type AnyConfiguredMethod = ConfiguredLinearMethod<any, any>;

/**
 * Defines a parametrisation of a dense kernel: an adapter, a structured matrix, a reparametrised or marked layer.
 *
 * @returns the method: call it with options to configure it, e.g. `lora({ rank: 8 })`.
 * @throws MatforgeError when called with an unknown or unacceptable option.
 */
export function defineLinearMethod<S extends ConfigSchema, K extends string>(
  definition: LinearMethodDefinition<S, K>,
): LinearMethod<S, K> {
  const method = (config?: z.input<S>) => ({
    method,
    config: parseConfig(definition.info.id, definition.config, config),
  });
  return Object.assign(method, definition, { contract: 'linear' as const }) as LinearMethod<S, K>;
}

/** A learned, stored tensor. */
export function trainable(shape: number[], initializer?: Initializer, shared?: string): TensorSpec {
  return { shape, role: 'trainable', initializer, shared };
}

/** A stored tensor that training does not move. */
export function frozen(shape: number[], initializer?: Initializer, shared?: string): TensorSpec {
  return { shape, role: 'frozen', initializer, shared };
}

/** A tensor that is drawn again from the seed instead of being stored. */
export function seeded(shape: number[], initializer: Initializer, shared?: string): TensorSpec {
  return { shape, role: 'seeded', initializer, shared };
}
