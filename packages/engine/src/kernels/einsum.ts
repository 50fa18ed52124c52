import type * as tf from '@tensorflow/tfjs';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { call, type OwnKernel } from '../backend.ts';

interface Operand {
  labels: string[];
  tensor: tf.TensorInfo;
}

/**
 * Einstein summation by transposition and batched matrix multiplication.
 *
 * Each pair of operands is brought to [batch, rows, inner] · [batch, inner, columns]; labels that occur in one operand
 * only and not in the result are summed first. Repeated labels in one operand (traces) go to the cpu backend.
 */
export const einsum: OwnKernel = ({ inputs, attrs, backend }) => {
  const equation = (attrs.equation as string).replace(/\s/g, '');
  const [left, right] = equation.split('->');
  const tensors = Object.values(inputs);
  const terms = left.split(',');
  if (right === undefined || /[^a-zA-Z,]/.test(left + right) || terms.length !== tensors.length) return null;
  const result = [...right];
  const operands = terms.map((term, i): Operand => ({ labels: [...term], tensor: tensors[i] }));
  for (const { labels, tensor } of operands) {
    if (new Set(labels).size !== labels.length || labels.length !== tensor.shape.length) return null;
    if (tensor.dtype !== 'float32') return null;
  }
  if (new Set(result).size !== result.length || result.some((label) => !left.includes(label))) return null;
  const sizes = new Map<string, number>();
  for (const { labels, tensor } of operands) {
    for (const [axis, label] of labels.entries()) {
      if ((sizes.get(label) ?? tensor.shape[axis]) !== tensor.shape[axis]) return null;
      sizes.set(label, tensor.shape[axis]);
    }
  }
  const scratch = new Scratch(backend);
  let product = operands[0];
  for (let next = 1; next < operands.length; next++) {
    const later = new Set([...result, ...operands.slice(next + 1).flatMap(({ labels }) => labels)]);
    product = contract(product, operands[next], later, sizes, scratch);
  }
  const kept = sumAway(product, new Set(result), scratch);
  const ordered = permute(kept, result, scratch);
  const out = call(backend, 'Identity', { x: ordered.tensor });
  scratch.dispose();
  return out;
};

/** Intermediate tensors of one kernel call. */
class Scratch {
  private readonly tensors: tf.TensorInfo[] = [];
  readonly backend: BackendWasm;

  constructor(backend: BackendWasm) {
    this.backend = backend;
  }

  run(name: string, inputs: Record<string, tf.TensorInfo>, attrs: Record<string, unknown>): tf.TensorInfo {
    const tensor = call(this.backend, name, inputs, attrs);
    this.tensors.push(tensor);
    return tensor;
  }

  dispose(): void {
    for (const { dataId } of this.tensors) this.backend.disposeData(dataId);
  }
}

function contract(
  one: Operand,
  two: Operand,
  needed: Set<string>,
  sizes: Map<string, number>,
  scratch: Scratch,
): Operand {
  const a = sumAway(one, new Set([...needed, ...two.labels]), scratch);
  const b = sumAway(two, new Set([...needed, ...one.labels]), scratch);
  const shared = a.labels.filter((label) => b.labels.includes(label));
  const batch = shared.filter((label) => needed.has(label));
  const inner = shared.filter((label) => !needed.has(label));
  const rows = a.labels.filter((label) => !shared.includes(label));
  const columns = b.labels.filter((label) => !shared.includes(label));
  const size = (labels: string[]): number => labels.reduce((total, label) => total * sizes.get(label)!, 1);
  const shape = (labels: string[][]): { shape: number[] } => ({ shape: labels.map(size) });
  const x = permute(a, [...batch, ...rows, ...inner], scratch).tensor;
  const y = permute(b, [...batch, ...inner, ...columns], scratch).tensor;
  const product = scratch.run(
    'BatchMatMul',
    {
      a: scratch.run('Reshape', { x }, shape([batch, rows, inner])),
      b: scratch.run('Reshape', { x: y }, shape([batch, inner, columns])),
    },
    { transposeA: false, transposeB: false },
  );
  const labels = [...batch, ...rows, ...columns];
  const full = { shape: labels.map((label) => sizes.get(label)!) };
  return { labels, tensor: scratch.run('Reshape', { x: product }, full) };
}

function sumAway(operand: Operand, kept: Set<string>, scratch: Scratch): Operand {
  const axis = operand.labels.flatMap((label, i) => (kept.has(label) ? [] : [i]));
  if (axis.length === 0) return operand;
  const tensor = scratch.run('Sum', { x: operand.tensor }, { axis, keepDims: false });
  return { labels: operand.labels.filter((label) => kept.has(label)), tensor };
}

function permute(operand: Operand, labels: string[], scratch: Scratch): Operand {
  const perm = labels.map((label) => operand.labels.indexOf(label));
  if (perm.every((axis, i) => axis === i)) return operand;
  return { labels, tensor: scratch.run('Transpose', { x: operand.tensor }, { perm }) };
}
