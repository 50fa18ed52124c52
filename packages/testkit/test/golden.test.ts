import { ready } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { checkCase, type GoldenCase, type GoldenKind } from '../src/golden.ts';

beforeAll(async () => {
  await ready('cpu');
});

const double: GoldenCase = {
  name: 'double',
  kind: 'double',
  config: { factor: 2 },
  inputs: { x: { shape: [2], data: [1, 2] } },
  expected: { y: { shape: [2], data: [2, 4] }, count: 2, flags: [true, false], name: 'x' },
  tolerance: { rtol: 1e-4, atol: 1e-5 },
};
const right: GoldenKind = (inputs, { factor }) => ({
  y: tf.mul(inputs.tensor('x'), factor),
  count: 2,
  flags: [true, false],
  name: 'x',
});

const attempt = (change: Record<string, unknown>) =>
  checkCase(double, (inputs, config, test) => ({ ...(right(inputs, config, test) as object), ...change }));

test('what is right passes and leaves no tensor', async () => {
  await expect(checkCase(double, right)).resolves.toBeUndefined();
});

test.each([
  ['a number beyond the tolerance', { y: [2, 4.001] }, /y\[1\]: got 4.001, expected 4/],
  ['NaN', { y: [Number.NaN, 4] }, /y\[0\]: got NaN, expected 2/],
  ['too few numbers', { y: [2] }, /y: 1 numbers, expected 2/],
  ['a wrong flag', { flags: [true, true] }, /flags\[1\]: got true, expected false/],
  ['a wrong text', { name: 'y' }, /name: got y, expected x/],
])('%s fails', async (_, change, message) => {
  const { y = [2, 4], ...rest } = change as { y?: number[] };
  await expect(checkCase(double, () => ({ y, count: 2, flags: [true, false], name: 'x', ...rest }))).rejects.toThrow(
    message,
  );
});

test('a tensor of another shape, a missing field, an absent input and a leak fail', async () => {
  const shaped = tf.tensor2d([[2, 4]]);
  await expect(
    checkCase(double, () => ({ y: tf.clone(shaped), count: 2, flags: [true, false], name: 'x' })),
  ).rejects.toThrow(/y: shape \[1,2\], expected \[2\]/);
  await expect(checkCase(double, () => ({ y: [2, 4] }))).rejects.toThrow(/count: not computed/);
  await expect(checkCase(double, (inputs) => ({ y: inputs.tensor('z') }))).rejects.toThrow(
    /has no input tensor "z"; it has x/,
  );
  const left: tf.Tensor[] = [];
  const leaking: GoldenKind = (inputs, config, given) => {
    left.push(tf.ones([3]));
    return right(inputs, config, given);
  };
  await expect(checkCase(double, leaking)).rejects.toThrow();
  tf.dispose([shaped, ...left]);
});

test('every field must agree, each on its own', async () => {
  await expect(attempt({ count: 3 })).rejects.toThrow(/count\[0\]: got 3, expected 2/);
});
