import * as tf from '@tensorflow/tfjs';
import { refuse } from '../errors.ts';

/** Tensors by variable name: parameters, gradients, updates. */
export type NamedTensors = Record<string, tf.Tensor>;

/** Typed arrays that a state may hold besides tensors: quantised moments, index lists. */
export type StateArray = Int8Array | Uint8Array | Int16Array | Int32Array | Float32Array | Float64Array;

/** What a state may be made of. */
export type StateTree =
  | tf.Tensor
  | StateArray
  | number
  | string
  | boolean
  | null
  | undefined
  | readonly StateTree[]
  | { readonly [key: string]: StateTree };

/** A leaf with its path; the path alone tells where the leaf belongs (see {@link flattenTree}). */
export type FlatTree = Map<string, tf.Tensor | StateArray | number | string | boolean | null>;

type Branch = Record<string, unknown>;

/** Whether a value is a tensor. */
export function isTensor(value: unknown): value is tf.Tensor {
  return value instanceof tf.Tensor;
}

function isStateArray(value: unknown): value is StateArray {
  return ArrayBuffer.isView(value);
}

function isBranch(value: unknown): value is Branch {
  return (
    typeof value === 'object' && value !== null && !isTensor(value) && !isStateArray(value) && !Array.isArray(value)
  );
}

/** Rebuilds the tree with every tensor replaced by `f(tensor)`. Everything else is shared with the original. */
export function mapTensors<T>(tree: T, f: (tensor: tf.Tensor) => tf.Tensor): T {
  const visit = (node: unknown): unknown => {
    if (isTensor(node)) return f(node);
    if (Array.isArray(node)) return node.map(visit);
    if (isBranch(node)) return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, visit(value)]));
    return node;
  };
  return visit(tree) as T;
}

/** A copy that shares no memory that could change: tensors are cloned, typed arrays copied. */
export function copyTree<T>(tree: T): T {
  const visit = (node: unknown): unknown => {
    if (isTensor(node)) return tf.keep(node.clone());
    if (isStateArray(node)) return node.slice();
    if (Array.isArray(node)) return node.map(visit);
    if (isBranch(node)) return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, visit(value)]));
    return node;
  };
  return visit(tree) as T;
}

/** All tensors of a tree, each once. `tf.tidy` would walk typed arrays entry by entry, hence a walker of our own. */
export function tensorsOf(tree: unknown): tf.Tensor[] {
  const found = new Set<tf.Tensor>();
  const visit = (node: unknown): void => {
    if (isTensor(node)) found.add(node);
    else if (Array.isArray(node)) node.forEach(visit);
    else if (isBranch(node)) Object.values(node).forEach(visit);
  };
  visit(tree);
  return [...found];
}

/** Disposes the tensors of `tree`, except those that `kept` holds as well. */
export function disposeTree(tree: unknown, kept?: unknown): void {
  const spared = new Set(tensorsOf(kept));
  for (const tensor of tensorsOf(tree)) if (!spared.has(tensor)) tensor.dispose();
}

/** Runs `f` in a `tf.tidy` whose result may hold typed arrays. */
export function tidyTree<T>(f: () => T): T {
  let result!: T;
  tf.tidy(() => {
    result = f();
    return tensorsOf(result);
  });
  return result;
}

/**
 * Adds to `tree` the entries of `other` whose key is one of `names` and which `tree` lacks, at whatever depth. This is
 * how the state of one variable is carried past a step that does not see it, and how a new variable's state comes in.
 */
export function graft<T>(tree: T, other: unknown, names: ReadonlySet<string>): T {
  const visit = (node: unknown, source: unknown): unknown => {
    if (Array.isArray(node) && Array.isArray(source)) return node.map((value, i) => visit(value, source[i]));
    if (!isBranch(node) || !isBranch(source)) return node;
    const result: Branch = {};
    for (const [key, value] of Object.entries(node)) result[key] = visit(value, source[key]);
    for (const [key, value] of Object.entries(source)) if (!(key in node) && names.has(key)) result[key] = value;
    return result;
  };
  return visit(tree, other) as T;
}

const escapeKey = (key: string): string => key.replace(/[%/[\]{}]/g, (c) => `%${c.charCodeAt(0).toString(16)}`);
const unescapeKey = (key: string): string =>
  key.replace(/%([0-9a-f]{2})/g, (_, code: string) => String.fromCharCode(Number.parseInt(code, 16)));

/**
 * Lists the leaves of a tree under paths such as `[0]/mu/dense%2fkernel`: `[i]` are array positions, everything else
 * keys, and `[]` and `{}` stand for an empty array or object. {@link unflattenTree} rebuilds the tree.
 */
export function flattenTree(tree: unknown): FlatTree {
  const flat: FlatTree = new Map();
  const visit = (node: unknown, path: string[]): void => {
    if (node === undefined) return;
    if (Array.isArray(node)) {
      if (node.length === 0) flat.set([...path, '[]'].join('/'), null);
      node.forEach((value, i) => {
        visit(value, [...path, `[${i}]`]);
      });
    } else if (isBranch(node)) {
      const entries = Object.entries(node).filter(([, value]) => value !== undefined);
      if (entries.length === 0) flat.set([...path, '{}'].join('/'), null);
      for (const [key, value] of entries) visit(value, [...path, escapeKey(key)]);
    } else if (
      isTensor(node) ||
      isStateArray(node) ||
      node === null ||
      ['number', 'string', 'boolean'].includes(typeof node)
    ) {
      flat.set(path.join('/'), node as tf.Tensor);
    } else {
      refuse(
        path.join('/') || 'state',
        `a state holds a ${typeof node}; accepted are tensors, typed arrays, numbers, strings, booleans, null, arrays and plain objects`,
      );
    }
  };
  visit(tree, []);
  return flat;
}

/** The inverse of {@link flattenTree}; the leaves are taken as they are. */
export function unflattenTree(flat: Iterable<readonly [string, unknown]>): unknown {
  const root: { value?: unknown } = {};
  for (const [path, leaf] of flat) {
    let holder = root as Record<string, unknown>;
    let slot = 'value';
    for (const segment of path === '' ? [] : path.split('/')) {
      const isArray = segment.startsWith('[');
      holder[slot] ??= isArray ? [] : {};
      holder = holder[slot] as Record<string, unknown>;
      slot = isArray ? segment.slice(1, -1) : segment === '{}' ? '' : unescapeKey(segment);
    }
    if (!path.endsWith('[]') && !path.endsWith('{}')) holder[slot] = leaf;
  }
  return root.value;
}
