import * as tf from '@tensorflow/tfjs';
import { MatforgeError } from '../src/errors.ts';
import { batchMatMul, einsum, linear, repairGradients } from '../src/ops/index.ts';
import { backends, deviation, gradientError, leaked, useBackend, values } from './backends.ts';

/** Σ over all labels outside the output, straight from the definition, in float64. */
function reference(equation: string, tensors: tf.Tensor[]): number[] {
  const [left, output] = equation.split('->');
  const terms = left.split(',');
  const sizes: Record<string, number> = {};
  terms.forEach((term, i) => {
    [...term].forEach((label, axis) => {
      sizes[label] = tensors[i].shape[axis];
    });
  });
  const labels = Object.keys(sizes);
  const result = new Array([...output].reduce((n, l) => n * sizes[l], 1)).fill(0);
  const data = tensors.map((t) => t.dataSync());
  const at: Record<string, number> = {};
  const visit = (depth: number): void => {
    if (depth < labels.length) {
      for (at[labels[depth]] = 0; at[labels[depth]] < sizes[labels[depth]]; at[labels[depth]]++) visit(depth + 1);
      return;
    }
    const offset = (term: string): number => [...term].reduce((o, l) => o * sizes[l] + at[l], 0);
    result[offset(output)] += terms.reduce((p, term, i) => p * data[i][offset(term)], 1);
  };
  visit(0);
  return result;
}

const EQUATIONS: [string, ...number[][]][] = [
  ['ij,jk->ik', [2, 3], [3, 4]],
  ['ij,kj->ki', [2, 3], [4, 3]],
  ['bsd,de->bse', [2, 3, 4], [4, 5]],
  ['bqhd,bkhd->bhqk', [2, 3, 2, 4], [2, 5, 2, 4]],
  ['bhqk,bkhd->bqhd', [2, 2, 3, 5], [2, 5, 2, 4]],
  ['ij->ji', [2, 3]],
  ['ij->', [2, 3]],
  ['ij->j', [2, 3]],
  ['ii->i', [3, 3]],
  ['ii->', [3, 3]],
  ['iij,jk->ki', [2, 2, 3], [3, 2]],
  ['i,j->ij', [3], [4]],
  ['i,i->', [4], [4]],
  ['bi,bi->b', [2, 3], [2, 3]],
  ['ij,ij->ij', [2, 3], [2, 3]],
  ['ij,k->i', [2, 3], [4]],
  ['ab,bc,cd->ad', [2, 3], [3, 4], [4, 2]],
  ['a,ab,b->', [2], [2, 3], [3]],
  ['ir,jr,kr->ijk', [2, 3], [3, 3], [4, 3]],
  ['abcdef,cf->abde', [2, 1, 2, 2, 1, 3], [2, 3]],
  ['pa,paqb,qb->pq', [2, 3], [2, 3, 2, 2], [2, 2]],
];

describe.each(backends)('products on %s', (backend) => {
  beforeAll(() => useBackend(backend));
  beforeEach(() => tf.engine().startScope());
  afterEach(() => tf.engine().endScope());

  test.each(EQUATIONS)('einsum %s equals its definition and differentiates', (equation, ...shapes) => {
    const xs = shapes.map((shape, i) => values(shape, i + 1));
    expect(deviation(einsum(equation, ...xs), reference(equation, xs))).toBeLessThan(1e-5);
    expect(gradientError((...ts) => einsum(equation, ...ts), xs)).toBeLessThan(2e-3);
    expect(leaked((...ts) => einsum(equation, ...ts), xs)).toBe(0);
  });

  test('einsum: ellipsis broadcasts, implicit output is alphabetical', () => {
    const a = values([2, 1, 3, 4]);
    const b = values([5, 4, 2], 2);
    const y = einsum('...ij,...jk->...ik', a, b);
    expect(y.shape).toEqual([2, 5, 3, 2]);
    const tiled = einsum(
      'pqij,pqjk->pqik',
      tf.tile(a, [1, 5, 1, 1]),
      tf.tile(tf.reshape(b, [1, 5, 4, 2]), [2, 1, 1, 1]),
    );
    expect(deviation(y, tiled)).toBeLessThan(1e-6);
    expect(gradientError((s, t) => einsum('...ij,...jk->...ik', s, t), [a, b])).toBeLessThan(2e-3);
    expect(einsum('...i->...', values([2, 1, 3])).shape).toEqual([2, 1]);
    const m = values([2, 3], 4);
    const n = values([3, 4], 5);
    expect(deviation(einsum('ba,ac', m, n), reference('ba,ac->bc', [m, n]))).toBeLessThan(1e-5);
    expect(einsum(' zij , jk ', values([2, 3, 4]), values([4, 5])).shape).toEqual([3, 5, 2]);
  });

  test('einsum refuses what does not fit, naming it', () => {
    expect(() => einsum('ij,jk->ik', values([2, 3]), values([4, 5]))).toThrow(/operand 1: axis 'j' .* 4 here and 3/);
    expect(() => einsum('ij->ij', values([2]))).toThrow(/operand 0: has shape \[2\]/);
    expect(() => einsum('ij,jk->ik', values([2, 3]))).toThrow(/names 2 operands, given were 1/);
    expect(() => einsum('ij->iz', values([2, 3]))).toThrow(/output label 'z'/);
    expect(() => einsum('ij->ii', values([2, 2]))).toThrow(/repeats a label/);
    expect(() => einsum('i-j', values([2, 2]))).toThrow(MatforgeError);
  });

  test.each([
    ['ij,jk->ik', [2, 3], [3, 4]],
    ['bij,bjk->bik', [2, 3, 2], [2, 2, 4]],
    ['bsd,de->bse', [2, 3, 4], [4, 5]],
    ['bij,bi->bj', [2, 3, 4], [2, 3]],
  ] as [string, number[], number[]][])('plain tf.einsum %s trains after the repair', (equation, a, b) => {
    repairGradients();
    expect(gradientError((s, t) => tf.einsum(equation, s, t), [values(a), values(b, 2)])).toBeLessThan(2e-3);
  });

  const BATCHES: [number[], number[]][] = [
    [[], []],
    [[2], [2]],
    [[2], [1]],
    [[1], [3]],
    [[3], []],
    [[], [3]],
    [
      [2, 1],
      [1, 3],
    ],
    [
      [2, 3],
      [2, 1],
    ],
    [
      [2, 1],
      [2, 3],
    ],
    [[2, 3], [3]],
  ];
  const FLAGS = [
    [false, false],
    [true, false],
    [false, true],
    [true, true],
  ];
  test.each(BATCHES)('batchMatMul broadcasts batches [%p] and [%p]', (batchA, batchB) => {
    for (const [transposeA, transposeB] of FLAGS) {
      const a = values([...batchA, ...(transposeA ? [4, 2] : [2, 4])]);
      const b = values([...batchB, ...(transposeB ? [3, 4] : [4, 3])], 2);
      const equation = `...${transposeA ? 'ki' : 'ik'},...${transposeB ? 'jk' : 'kj'}->...ij`;
      const f = (s: tf.Tensor, t: tf.Tensor): tf.Tensor => batchMatMul(s, t, transposeA, transposeB);
      expect(f(a, b).shape).toEqual(einsum(equation, a, b).shape);
      expect(deviation(f(a, b), einsum(equation, a, b))).toBeLessThan(1e-5);
      expect(gradientError(f, [a, b])).toBeLessThan(2e-3);
      expect(leaked(f, [a, b])).toBe(0);
    }
  });

  test.each([
    [[3], [1]],
    [[1], [3]],
    [[3], []],
    [[2, 3], [3]],
    [[2, 3], []],
    [[3], [1, 1]],
  ] as [number[], number[]][])(
    'plain tf.matMul with batches [%p] and [%p] has right gradients after the repair',
    (batchA, batchB) => {
      repairGradients();
      for (const [transposeA, transposeB] of FLAGS) {
        const a = values([...batchA, ...(transposeA ? [4, 2] : [2, 4])]);
        const b = values([...batchB, ...(transposeB ? [3, 4] : [4, 3])], 2);
        expect(gradientError((s, t) => tf.matMul(s, t, transposeA, transposeB), [a, b])).toBeLessThan(2e-3);
      }
    },
  );

  test.each([[[4]], [[2, 4]], [[2, 3, 4]], [[0, 4]], [[2, 1, 3, 4]]])('linear maps the last axis of %p', (shape) => {
    const [x, w, b] = [values(shape), values([4, 3], 2), values([3], 3)];
    expect(linear(x, w, b).shape).toEqual([...shape.slice(0, -1), 3]);
    if (x.size === 0) return;
    const expected = reference('ij,jk->ik', [tf.reshape(x, [-1, 4]), w]).map((y, i) => y + b.dataSync()[i % 3]);
    expect(deviation(linear(x, w, b), expected)).toBeLessThan(1e-5);
    expect(gradientError((s, t, u) => linear(s, t, u), [x, w, b])).toBeLessThan(2e-3);
    expect(leaked((s, t) => linear(s, t), [x, w])).toBe(0);
  });

  test('a frozen kernel costs no product in the backward pass', async () => {
    const [x, w] = [values([2, 3, 4]), values([4, 5], 2)];
    const { kernels } = await tf.profile(() => tf.grad((t) => tf.sum(linear(t, w)))(x));
    expect(kernels.filter(({ name }) => name === 'BatchMatMul')).toHaveLength(2);
  });

  test.each([
    ['exp', tf.exp],
    ['tanh', tf.tanh],
    ['sigmoid', tf.sigmoid],
    ['softmax', (t: tf.Tensor) => tf.softmax(t)],
  ] as [string, (t: tf.Tensor) => tf.Tensor][])('the gradient of %s has right gradients', (_, f) => {
    repairGradients();
    const first = (x: tf.Tensor, dy: tf.Tensor): tf.Tensor => tf.grad(f)(x, dy);
    expect(gradientError(first, [values([2, 5]), values([2, 5], 3)])).toBeLessThan(1e-3);
  });

  test('repairing again, also from another copy of the module, leaves right gradients', async () => {
    repairGradients();
    jest.isolateModules(() =>
      jest.requireActual<typeof import('../src/ops/index.ts')>('../src/ops/index.ts').repairGradients(),
    );
    repairGradients();
    expect(gradientError((s, t) => tf.matMul(s, t), [values([3, 2, 4]), values([1, 4, 2], 2)])).toBeLessThan(2e-3);
    expect(gradientError((s, t) => tf.matMul(s, t), [values([3, 2, 4]), values([3, 4, 2], 2)])).toBeLessThan(2e-3);
    const wrapped = tf.getGradient('GatherV2') as { matforgeOriginal?: { matforgeOriginal?: unknown } };
    expect(wrapped.matforgeOriginal?.matforgeOriginal).toBeUndefined();
  });

  test('linear and batchMatMul name the misfit', () => {
    expect(() => linear(values([2, 3]), values([4, 5]))).toThrow('x: has shape [2,3]; its last axis must be');
    expect(() => linear(values([2, 4]), values([4]))).toThrow('kernel: has shape [4]');
    expect(() => linear(values([2, 4]), values([4, 5]), values([4]))).toThrow('bias: has shape [4]');
    expect(() => batchMatMul(values([2, 3, 4]), values([3, 4, 5]))).toThrow('batch axes [3] do not broadcast');
    expect(() => batchMatMul(values([3, 4]), values([3, 4]))).toThrow('contracts 3 entries, a contracts 4');
  });
});
