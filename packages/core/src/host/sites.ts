import type * as tf from '@tensorflow/tfjs';
import type { Site } from '../contracts/linear-method.ts';
import { didYouMean, ensure, MatforgeError, refuse } from '../errors.ts';

/** A weight of a tfjs layer. tfjs does not export the type. */
export interface LayerVariable {
  readonly originalName: string;
  readonly name: string;
  trainable: boolean;
  read(): tf.Variable;
  write(value: tf.Tensor): LayerVariable;
  dispose(): void;
}

/** The parts of a tfjs layer that hosting needs; tfjs marks some of them private. */
export interface HostLayer {
  readonly name: string;
  trainable_: boolean;
  _trainableWeights: LayerVariable[];
  _nonTrainableWeights: LayerVariable[];
  _addedWeightNames: string[];
  _losses: (() => tf.Scalar)[];
  /** All weights, those of cells inside the layer included. */
  readonly weights: LayerVariable[];
  call(inputs: tf.Tensor | tf.Tensor[], kwargs: Record<string, unknown>): tf.Tensor | tf.Tensor[];
  invokeCallHook(inputs: tf.Tensor | tf.Tensor[], kwargs: Record<string, unknown>): void;
  addWeight(name: string, shape: number[], dtype: 'float32', initializer: { apply(): tf.Tensor }): LayerVariable;
  setFastWeightInitDuringBuild(fast: boolean): void;
  getClassName(): string;
  readonly built: boolean;
  readonly kernel?: LayerVariable;
  readonly embeddings?: LayerVariable;
  readonly bias?: LayerVariable | null;
  readonly activation?: { apply(x: tf.Tensor): tf.Tensor } | null;
  readonly strides?: [number, number];
  readonly padding?: 'same' | 'valid';
  readonly dataFormat?: 'channelsLast' | 'channelsFirst';
  readonly dilationRate?: [number, number];
}

/** Writes a value into a layer's weight and disposes the value. */
export function assign(weight: LayerVariable, value: tf.Tensor): void {
  weight.write(value);
  value.dispose();
}

/** A layer that can carry methods. */
export interface LayerSite extends Site {
  readonly layer: HostLayer;
  /** The layer's own weight, in the layer's own shape. */
  readonly weight: LayerVariable;
}

/**
 * Which layers: exact names or dotted suffixes, a pattern that matches the full name (a string) or anywhere in it (a
 * RegExp), every dense layer, or a predicate.
 */
export type Targets = readonly string[] | RegExp | 'all-linear' | (string & {}) | ((site: Site) => boolean);

interface Nested {
  readonly layers?: HostLayer[];
  readonly layer?: HostLayer;
  /** The functional model inside a Sequential. */
  readonly model?: { trainable_: boolean } | null;
  /** A Bidirectional runs copies of its layer. */
  readonly forwardLayer?: HostLayer;
}

/**
 * Every layer of the model, nested models and wrappers included, with its dotted name. A layer that stands at several
 * places is listed once, at the first.
 */
export function namedLayers(model: object): { name: string; layer: HostLayer }[] {
  const seen = new Set<object>();
  const visit = (layer: HostLayer, prefix: string): { name: string; layer: HostLayer }[] => {
    if (seen.has(layer)) return [];
    seen.add(layer);
    const name = prefix + layer.name;
    const nested = layer as Nested;
    if (nested.layers) return nested.layers.flatMap((inner) => visit(inner, `${name}.`));
    if (nested.layer && !nested.forwardLayer) return visit(nested.layer, `${name}.`);
    return [{ name, layer }];
  };
  return ((model as Nested).layers ?? []).flatMap((layer) => visit(layer, ''));
}

/** Refuses what has no layers. */
export function ensureModel(model: unknown): void {
  if (Array.isArray((model as Nested | null | undefined)?.layers)) return;
  const isPromise = typeof (model as PromiseLike<unknown> | null | undefined)?.then === 'function';
  const given = isPromise ? 'a promise; await it' : ((model as object | null | undefined)?.constructor?.name ?? model);
  refuse('model', `wanted is a tf.LayersModel (tf.sequential, tf.model, tf.loadLayersModel), given is ${given}`);
}

/** Models inside the model, itself included: their own `trainable` flag gates their layers'. */
export function containers(model: object): { trainable_: boolean }[] {
  const { layers, layer, model: functional } = model as Nested;
  if (!layers) return layer ? containers(layer) : [];
  return [model as { trainable_: boolean }, ...(functional ? [functional] : []), ...layers.flatMap(containers)];
}

/** The layers of the model that have a dense kernel: dense, conv2d (over patches) and embedding layers. */
export function sitesOf(model: object): LayerSite[] {
  return namedLayers(model).flatMap(({ name, layer }) => {
    const kind = ({ Dense: 'dense', Conv2D: 'conv2d', Embedding: 'embedding' } as const)[layer.getClassName()];
    if (!kind) return [];
    const weight = kind === 'embedding' ? layer.embeddings : layer.kernel;
    if (!weight) refuse(name, 'the layer is not built yet; call model.build() or predict once before attaching');
    const shape = weight.read().shape;
    const outDim = shape[shape.length - 1];
    const inDim = shape.slice(0, -1).reduce((product, size) => product * size, 1);
    return [{ name, kind, inDim, outDim, layer, weight }];
  });
}

/** True when `name` is `target` or ends with `.target`. */
export function matchesName(name: string, target: string): boolean {
  return name === target || name.endsWith(`.${target}`);
}

/** First entry of an ordered pattern map whose key matches the name's trailing segments, as PEFT's rank_pattern does. */
export function matchPattern<T>(patterns: Record<string, T>, name: string): T | undefined {
  const key = Object.keys(patterns).find((pattern) => new RegExp(`^(.*\\.)?(${pattern})$`).test(name));
  return key === undefined ? undefined : patterns[key];
}

/**
 * The sites that `targets` selects and `exclude` does not.
 *
 * `'all-linear'` is every dense layer except an output head named `lm_head`, as in PEFT.
 *
 * @throws MatforgeError listing the candidate names when nothing matches or when a listed name matches nothing.
 */
export function selectSites(model: object, targets: Targets, exclude?: Targets): LayerSite[] {
  const sites = sitesOf(model);
  const names = sites.map(({ name }) => name);
  const candidates = `Candidates: ${names.join(', ') || 'none'}`;
  if (Array.isArray(targets)) {
    const missing = (targets as readonly string[]).find((target) => !names.some((name) => matchesName(name, target)));
    if (missing !== undefined) {
      const other = namedLayers(model).find(({ name }) => matchesName(name, missing));
      if (other) refuse('targets', `"${missing}" is a ${other.layer.getClassName()}, without a kernel. ${candidates}`);
      refuse('targets', `no layer is named "${missing}"${nearest(missing, names)} ${candidates}`);
    }
  }
  const [wanted, unwanted] = [selector(targets, 'targets'), exclude && selector(exclude, 'exclude')];
  const matching = sites.filter(wanted);
  if (matching.length === 0) {
    const isEnding = typeof targets === 'string' && names.some((name) => matchesName(name, targets));
    const hint = isEnding
      ? `, because a text must match the full name; write ["${targets}"].`
      : typeof targets === 'string'
        ? nearest(targets, names)
        : '.';
    refuse('targets', `${show(targets)} matches no layer${hint} ${candidates}`);
  }
  const selected = matching.filter((site) => !unwanted?.(site));
  if (selected.length === 0) refuse('exclude', `${show(exclude)} leaves out every layer that ${show(targets)} selects`);
  return selected;
}

/** How a message about an unknown name ends: with a question where a name is near. */
export function nearest(given: string, names: readonly string[]): string {
  const near = didYouMean(
    given,
    names.flatMap((name) => [name, name.slice(name.lastIndexOf('.') + 1)]),
  );
  return near ? `; did you mean "${near}"?` : '.';
}

function show(targets: Targets | undefined): string {
  if (typeof targets === 'function') return 'the predicate';
  return targets instanceof RegExp ? String(targets) : JSON.stringify(targets);
}

function selector(targets: Targets, field: string): (site: Site) => boolean {
  if (targets === 'all-linear') return ({ kind, name }) => kind === 'dense' && !matchesName(name, 'lm_head');
  if (typeof targets === 'function') return targets;
  // A pattern with a g or y flag would go on where it last matched.
  if (targets instanceof RegExp) {
    const pattern = new RegExp(targets, targets.flags.replace(/[gy]/g, ''));
    return ({ name }) => pattern.test(name);
  }
  if (typeof targets === 'string') {
    const pattern = fullMatch(targets, field);
    return ({ name }) => pattern.test(name);
  }
  ensure(
    Array.isArray(targets),
    field,
    () => 'is neither a list of names, a pattern, "all-linear" nor a predicate (site) => boolean',
  );
  return ({ name }) => targets.some((target) => matchesName(name, target));
}

/** The pattern as one that must match all of a name. */
export function fullMatch(pattern: string, field: string): RegExp {
  try {
    return new RegExp(`^(?:${pattern})$`);
  } catch (cause) {
    throw new MatforgeError(field, `"${pattern}" is not a regular expression: ${(cause as Error).message}`, { cause });
  }
}
