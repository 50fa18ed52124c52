import * as tf from '@tensorflow/tfjs';
import { ensure, refuse } from '../errors.ts';
import { sizeOf } from './shapes.ts';

interface Operand {
  tensor: tf.Tensor;
  labels: string[];
}

/**
 * Sum of products over labelled axes, e.g. `einsum('bqhd,bkhd->bhqk', q, k)`, differentiable on every backend.
 *
 * Any number of operands; a label repeated inside an operand takes the diagonal; a label missing from the output is summed;
 * `...` stands for further axes, which broadcast. Without `->` the output has the labels that occur once, in
 * alphabetical order. Pairs are contracted as matrix products, the pair with the smallest result first.
 *
 * @throws MatforgeError when the equation does not parse or does not fit the operands.
 */
export function einsum(equation: string, ...tensors: tf.Tensor[]): tf.Tensor {
  const { inputs, output } = parseEinsum(
    equation,
    tensors.map((t) => t.shape),
  );
  return tf.tidy(() => {
    const operands = tensors.map((tensor, i) => dropBroadcast(tensor, inputs[i]));
    checkSizes(equation, operands);
    let work = operands.map(takeDiagonals);
    while (work.length > 1) {
      const [i, j] = cheapestPair(work, output);
      const rest = work.filter((_, index) => index !== i && index !== j);
      const kept = new Set([...output, ...rest.flatMap((operand) => operand.labels)]);
      work = [...rest, contract(sumUnused(work[i], kept, work[j]), sumUnused(work[j], kept, work[i]), kept)];
    }
    const last = sumUnused(work[0], new Set(output));
    const missing = output.filter((label) => !last.labels.includes(label));
    // A broadcast axis whose every operand has size 1.
    const lifted = {
      tensor:
        missing.length > 0 ? tf.reshape(last.tensor, [...missing.map(() => 1), ...last.tensor.shape]) : last.tensor,
      labels: [...missing, ...last.labels],
    };
    return tf.clone(permute(lifted, output));
  });
}

/** Labels of each operand and of the output; axes under an ellipsis are named `.0`, `.1`, … counted from the right. */
export function parseEinsum(equation: string, shapes: number[][]): { inputs: string[][]; output: string[] } {
  const text = equation.replace(/\s+/g, '');
  const match = /^((?:[A-Za-z.]*,)*[A-Za-z.]*)(?:->([A-Za-z.]*))?$/.exec(text);
  if (!match) refuse('equation', `'${equation}' is not of the form 'ij,jk->ik'`);
  const terms = match[1].split(',');
  ensure(
    terms.length === shapes.length,
    'equation',
    () => `'${equation}' names ${terms.length} operands, given were ${shapes.length}`,
  );

  const split = (term: string): { before: string[]; after: string[]; ellipsis: boolean } => {
    const parts = term.split('...');
    if (parts.length > 2 || parts.some((part) => part.includes('.')))
      refuse('equation', `'${term}' in '${equation}': one '...' per operand is accepted`);
    return { before: [...parts[0]], after: [...(parts[1] ?? '')], ellipsis: parts.length === 2 };
  };
  let depth = 0;
  const inputs = terms.map((term, i) => {
    const { before, after, ellipsis } = split(term);
    const extra = shapes[i].length - before.length - after.length;
    if (extra < 0 || (extra > 0 && !ellipsis))
      refuse(
        `operand ${i}`,
        `has shape [${shapes[i]}], but '${term}' in '${equation}' names ${before.length + after.length} axes`,
      );
    depth = Math.max(depth, extra);
    return [...before, ...broadcastLabels(extra), ...after];
  });
  const all = inputs.flat();
  let output: string[];
  if (match[2] === undefined) {
    const once = [...new Set(all)].filter((l) => !l.startsWith('.') && all.indexOf(l) === all.lastIndexOf(l));
    output = [...broadcastLabels(depth), ...once.sort()];
  } else {
    const { before, after, ellipsis } = split(match[2]);
    output = [...before, ...broadcastLabels(ellipsis ? depth : 0), ...after];
  }
  const unknown = output.find((label) => !all.includes(label));
  if (unknown) refuse('equation', `output label '${unknown}' of '${equation}' occurs in no operand`);
  if (new Set(output).size < output.length) refuse('equation', `'${equation}' repeats a label in its output`);
  return { inputs, output };
}

const broadcastLabels = (depth: number): string[] => Array.from({ length: depth }, (_, i) => `.${depth - 1 - i}`);

/** An axis of size 1 under an ellipsis broadcasts, which is to say that the operand does not depend on it. */
function dropBroadcast(tensor: tf.Tensor, labels: string[]): Operand {
  const keep = labels.map((label, i) => !(label.startsWith('.') && tensor.shape[i] === 1));
  if (keep.every(Boolean)) return { tensor, labels };
  return {
    tensor: tf.reshape(
      tensor,
      tensor.shape.filter((_, i) => keep[i]),
    ),
    labels: labels.filter((_, i) => keep[i]),
  };
}

function checkSizes(equation: string, operands: Operand[]): void {
  const sizes = new Map<string, number>();
  operands.forEach(({ tensor, labels }, i) => {
    labels.forEach((label, axis) => {
      const size = tensor.shape[axis];
      const known = sizes.get(label) ?? size;
      if (known !== size)
        refuse(`operand ${i}`, `axis '${label}' of '${equation}' has size ${size} here and ${known} elsewhere`);
      sizes.set(label, size);
    });
  });
}

function takeDiagonals({ tensor, labels }: Operand): Operand {
  for (let axis = 0; axis < labels.length; axis++) {
    const again = labels.indexOf(labels[axis], axis + 1);
    if (again < 0) continue;
    const n = tensor.shape[axis];
    const mask = tf.reshape(
      tf.eye(n),
      tensor.shape.map((_, i) => (i === axis || i === again ? n : 1)),
    );
    return takeDiagonals({ tensor: tf.sum(tf.mul(tensor, mask), again), labels: labels.filter((_, i) => i !== again) });
  }
  return { tensor, labels };
}

function cheapestPair(work: Operand[], output: string[]): [number, number] {
  if (work.length === 2) return [0, 1];
  let best: [number, number] = [0, 1];
  let bestCost = Number.POSITIVE_INFINITY;
  for (let i = 0; i < work.length; i++)
    for (let j = i + 1; j < work.length; j++) {
      const kept = new Set([...output, ...work.flatMap((operand, k) => (k === i || k === j ? [] : operand.labels))]);
      const sizes = new Map(
        [work[i], work[j]].flatMap((o) => o.labels.map((l, axis) => [l, o.tensor.shape[axis]] as const)),
      );
      const result = [...sizes].reduce((size, [label, n]) => (kept.has(label) ? size * n : size), 1);
      const cost = result - work[i].tensor.size - work[j].tensor.size;
      if (cost < bestCost) [best, bestCost] = [[i, j], cost];
    }
  return best;
}

function sumUnused({ tensor, labels }: Operand, kept: Set<string>, partner?: Operand): Operand {
  const axes = labels.flatMap((label, i) => (kept.has(label) || partner?.labels.includes(label) ? [] : [i]));
  if (axes.length === 0) return { tensor, labels };
  return { tensor: tf.sum(tensor, axes), labels: labels.filter((_, i) => !axes.includes(i)) };
}

/** One pair as a batched matrix product [batch, left, sum] · [batch, sum, right]. */
function contract(a: Operand, b: Operand, kept: Set<string>): Operand {
  const shared = a.labels.filter((label) => b.labels.includes(label));
  const batch = shared.filter((label) => kept.has(label));
  const summed = shared.filter((label) => !kept.has(label));
  const left = a.labels.filter((label) => !shared.includes(label));
  const right = b.labels.filter((label) => !shared.includes(label));
  const size = (operand: Operand, labels: string[]): number[] =>
    labels.map((l) => operand.tensor.shape[operand.labels.indexOf(l)]);
  const [nBatch, nLeft] = [sizeOf(size(a, batch)), sizeOf(size(a, left))];
  const [nSum, nRight] = [sizeOf(size(a, summed)), sizeOf(size(b, right))];
  const labels = [...batch, ...left, ...right];
  const shape = [...size(a, batch), ...size(a, left), ...size(b, right)];

  if (summed.length === 0 || (left.length === 0 && right.length === 0)) {
    const x = tf.reshape(permute(a, [...batch, ...left, ...summed]), [nBatch, nLeft, 1, nSum]);
    const y = tf.reshape(permute(b, [...batch, ...right, ...summed]), [nBatch, 1, nRight, nSum]);
    const product = tf.mul(x, y);
    return { tensor: tf.reshape(summed.length > 0 ? tf.sum(product, 3) : product, shape), labels };
  }
  const transposeA = left.length > 0 && inOrder(a, [...batch, ...summed, ...left]);
  const transposeB = right.length > 0 && inOrder(b, [...batch, ...right, ...summed]);
  const x = transposeA ? a.tensor : permute(a, [...batch, ...left, ...summed]);
  const y = transposeB ? b.tensor : permute(b, [...batch, ...summed, ...right]);
  const lead = batch.length > 0 ? [nBatch] : [];
  const product = tf.matMul(
    tf.reshape(x, [...lead, ...(transposeA ? [nSum, nLeft] : [nLeft, nSum])]),
    tf.reshape(y, [...lead, ...(transposeB ? [nRight, nSum] : [nSum, nRight])]),
    transposeA,
    transposeB,
  );
  return { tensor: tf.reshape(product, shape), labels };
}

const inOrder = (operand: Operand, labels: string[]): boolean =>
  operand.labels.every((label, i) => label === labels[i]);

function permute(operand: Operand, labels: string[]): tf.Tensor {
  if (inOrder(operand, labels)) return operand.tensor;
  return tf.transpose(
    operand.tensor,
    labels.map((label) => operand.labels.indexOf(label)),
  );
}
