import type * as tf from '@tensorflow/tfjs';
import type { Site } from '../contracts/linear-method.ts';
import { didYouMean, refuse } from '../errors.ts';

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
  call(inputs: tf.Tensor | tf.Tensor[], kwargs: Record<string, unknown>): tf.Tensor | tf.Tensor[];
  invokeCallHook(inputs: tf.Tensor | tf.Tensor[], kwargs: Record<string, unknown>): void;
  addWeight(name: string, shape: number[], dtype: 'float32', initializer: { apply(): tf.Tensor }): LayerVariable;
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

/** Which layers: exact names or dotted suffixes, a full-match pattern, every dense layer, or a predicate. */
export type Targets = readonly string[] | RegExp | 'all-linear' | (string & {}) | ((site: Site) => boolean);

interface Nested {
  readonly layers?: HostLayer[];
  readonly layer?: HostLayer;
}

/** Every layer of the model, nested models and wrappers included, with its dotted name. */
export function namedLayers(model: object, prefix = ''): { name: string; layer: HostLayer }[] {
  const inner = (model as Nested).layers ?? [];
  return inner.flatMap((layer) => {
    const name = prefix + layer.name;
    const nested = layer as Nested;
    if (nested.layers) return namedLayers(layer, `${name}.`);
    if (nested.layer) return [{ name: `${name}.${nested.layer.name}`, layer: nested.layer }];
    return [{ name, layer }];
  });
}

/** Models inside the model, itself included: their own `trainable` flag gates their layers'. */
export function containers(model: object): { trainable_: boolean }[] {
  const inner = (model as Nested).layers;
  return inner ? [model as { trainable_: boolean }, ...inner.flatMap(containers)] : [];
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
  if (Array.isArray(targets)) {
    const missing = (targets as readonly string[]).find((target) => !names.some((name) => matchesName(name, target)));
    if (missing !== undefined) {
      const suffixes = names.flatMap((name) => [name, name.slice(name.lastIndexOf('.') + 1)]);
      const near = didYouMean(missing, suffixes);
      refuse(
        'targets',
        `no layer is named "${missing}"${near ? `; did you mean "${near}"?` : ''} Candidates: ${names.join(', ') || 'none'}`,
      );
    }
  }
  const selected = sites.filter((site) => selects(targets, site) && !(exclude && selects(exclude, site)));
  if (selected.length === 0) {
    refuse('targets', `${String(targets)} matches no layer. Candidates: ${names.join(', ') || 'none'}`);
  }
  return selected;
}

function selects(targets: Targets, site: Site): boolean {
  if (targets === 'all-linear') return site.kind === 'dense' && !matchesName(site.name, 'lm_head');
  if (typeof targets === 'function') return targets(site);
  if (targets instanceof RegExp) return targets.test(site.name);
  if (typeof targets === 'string') return new RegExp(`^(?:${targets})$`).test(site.name);
  return targets.some((target) => matchesName(site.name, target));
}
