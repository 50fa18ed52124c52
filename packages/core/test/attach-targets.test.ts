import * as tf from '@tensorflow/tfjs';
import { z } from 'zod';
import {
  type AttachOptions,
  attach,
  detach,
  list,
  load,
  memoryStorage,
  parseConfig,
  selectSites,
  sitesOf,
  type Targets,
} from '../src/index.ts';
import { additive, bent, discard, failing, outputs, randomise, snapshot, watchLeaks } from './attach-methods.ts';

watchLeaks();

/** block.0.attn.q_proj, block.0.attn.k_proj, conv, words, lm_head. */
function transformer(): tf.LayersModel {
  const attention = tf.sequential({
    name: 'attn',
    layers: [
      tf.layers.dense({ name: 'q_proj', units: 4, inputShape: [3, 4] }),
      tf.layers.dense({ name: 'k_proj', units: 4 }),
    ],
  });
  const model = tf.sequential({
    layers: [
      tf.layers.embedding({ name: 'words', inputDim: 5, outputDim: 4, inputLength: 3 }),
      tf.sequential({ name: 'block', layers: [attention] }),
      tf.layers.dropout({ name: 'drop', rate: 0.1 }),
      tf.layers.reshape({ targetShape: [3, 4, 1] }),
      tf.layers.conv2d({ name: 'conv', filters: 2, kernelSize: 2 }),
      tf.layers.flatten(),
      tf.layers.dense({ name: 'lm_head', units: 5 }),
    ],
  });
  return randomise(model);
}

const [q, k] = ['block.attn.q_proj', 'block.attn.k_proj'];
const all = ['words', q, k, 'conv', 'lm_head'];

test.each<[string, Targets, Targets | undefined, string[]]>([
  ['full names', [q, 'conv'], undefined, [q, 'conv']],
  ['suffixes', ['q_proj', 'attn.k_proj'], undefined, [q, k]],
  ['the order of the model, not of the list', ['k_proj', 'q_proj'], undefined, [q, k]],
  ['a RegExp, anywhere in the name', /attn/, undefined, [q, k]],
  ['a RegExp with a memory', /_proj/g, undefined, [q, k]],
  ['a text that matches the full name', 'block\\.attn\\.(q|v)_proj', undefined, [q]],
  ['every dense layer but the head', 'all-linear', undefined, [q, k]],
  ['a predicate', ({ outDim }) => outDim === 4, undefined, ['words', q, k]],
  ['a list less a list', ['q_proj', 'k_proj'], ['k_proj'], [q]],
  ['all less a RegExp', () => true, /proj/y, ['words', 'conv', 'lm_head']],
  ['all less a text', () => true, '.*_proj|conv', ['words', 'lm_head']],
  ['all less a predicate', () => true, ({ kind }) => kind !== 'dense', [q, k, 'lm_head']],
])('targets: %s', (_, targets, exclude, expected) => {
  const model = transformer();
  expect(selectSites(model, targets, exclude).map(({ name }) => name)).toEqual(expected);
  discard(model);
});

test('sites know kind and size of their kernels', () => {
  const model = transformer();
  expect(selectSites(model, () => true).map(({ name, kind, inDim, outDim }) => [name, kind, inDim, outDim])).toEqual([
    ['words', 'embedding', 5, 4],
    [q, 'dense', 4, 4],
    [k, 'dense', 4, 4],
    ['conv', 'conv2d', 4, 2],
    ['lm_head', 'dense', 12, 5],
  ]);
  discard(model);
});

const candidates = `Candidates: ${all.join(', ')}`;

test.each<[string, AttachOptions, string]>([
  ['a slip', { targets: ['q_porj'] }, `targets: no layer is named "q_porj"; did you mean "q_proj"? ${candidates}`],
  ['an unknown name', { targets: ['q_proj', 'mlp_gate'] }, `targets: no layer is named "mlp_gate". ${candidates}`],
  ['part of a name', { targets: ['proj'] }, `targets: no layer is named "proj"; did you mean "q_proj"? ${candidates}`],
  ['a layer without kernel', { targets: ['drop'] }, `targets: "drop" is a Dropout, without a kernel. ${candidates}`],
  ['an empty list', { targets: [] }, `targets: [] matches no layer. ${candidates}`],
  ['a RegExp for nothing', { targets: /mlp/ }, `targets: /mlp/ matches no layer. ${candidates}`],
  [
    'a text for part of a name',
    { targets: 'q_proj' },
    `targets: "q_proj" matches no layer, because a text must match the full name; write ["q_proj"]. ${candidates}`,
  ],
  ['a predicate for nothing', { targets: () => false }, `targets: the predicate matches no layer. ${candidates}`],
  ['an impossible pattern', { targets: '(q_proj' }, 'targets: "(q_proj" is not a regular expression'],
  ['something else', { targets: 3 as unknown as string }, 'targets: is neither a list of names, a pattern'],
  [
    'nothing left',
    { targets: ['conv'], exclude: ['conv'] },
    'exclude: ["conv"] leaves out every layer that ["conv"] selects',
  ],
  ['only modules', { targets: ['conv'], modulesToSave: ['conv'] }, 'modulesToSave: holds every layer of targets'],
  [
    'an unknown module',
    { modulesToSave: ['lm_haed'] },
    'modulesToSave: no layer is named "lm_haed"; did you mean "lm_head"?',
  ],
  [
    'an option that is none',
    { target: ['conv'] } as AttachOptions,
    'attach.target: unknown option; did you mean "targets"?',
  ],
  ['a name that is no name', { name: 'a/b' }, 'name: "a/b" is not an adapter name'],
  ['the name of no adapter', { name: '__base__' }, 'name: "__base__" is not an adapter name'],
])('refused: %s', async (_, options, message) => {
  const model = transformer();
  const before = snapshot(model);
  await expect(attach(model, additive(), options)).rejects.toThrow(message);
  expect(snapshot(model)).toEqual(before);
  expect(() => list(model)).toThrow(/model: has no adapters; call attach/);
  discard(model);
});

test('refused: something that is no method, a method without its options', async () => {
  const model = transformer();
  for (const wrong of [undefined, {}, additive, { method: {}, config: {} }]) {
    await expect(attach(model, wrong as never)).rejects.toThrow(/method: is not a configured linear method/);
  }
  discard(model);
});

test.each([
  [undefined, 'undefined'],
  [Promise.resolve(), 'a promise; await it'],
  [new Map(), 'Map'],
])('refused: %s in place of a model', async (given, named) => {
  const message = `model: wanted is a tf.LayersModel (tf.sequential, tf.model, tf.loadLayersModel), given is ${named}`;
  await expect(attach(given as never, additive())).rejects.toThrow(message);
  await expect(load(given as never, memoryStorage(), { methods: [additive] })).rejects.toThrow(message);
});

test('refused: layers that are not built yet', () => {
  const layer = tf.layers.dense({ name: 'late', units: 2 });
  expect(() => sitesOf({ layers: [layer] })).toThrow(/late: the layer is not built yet/);
});

test.each([
  ['validate', 'block.attn.k_proj does not fit'],
  ['init', 'block.attn.k_proj cannot start'],
  ['shape', 'block.attn.k_proj.c: has shape [5], but [4] is needed'],
] as const)('an attach that fails midway (%s) leaves the model as it was', async (when, message) => {
  const model = transformer();
  model.compile({ optimizer: 'sgd', loss: 'meanSquaredError' });
  const x = tf.tensor2d([[0, 4, 2]]);
  const layers = model.layers.map((layer) => Object.keys(layer));
  const [before, y] = [snapshot(model), outputs(model, x)];
  await expect(attach(model, failing({ at: k, when }))).rejects.toThrow(message);
  expect(snapshot(model)).toEqual(before);
  expect(model.layers.map((layer) => Object.keys(layer))).toEqual(layers);
  expect(outputs(model, x)).toEqual(y);

  // Beside an adapter that works, that adapter stays as it was.
  await attach(model, additive(), { targets: ['q_proj'] });
  const [own, mine] = [snapshot(model), outputs(model, x)];
  await expect(attach(model, failing({ at: k, when }), { name: 'second' })).rejects.toThrow(message);
  await expect(attach(model, additive())).rejects.toThrow(/name: an adapter "default" is attached already/);
  expect(snapshot(model)).toEqual(own);
  expect(outputs(model, x)).toEqual(mine);
  expect(list(model).map(({ name, active }) => [name, active])).toEqual([['default', true]]);
  x.dispose();
  detach(model);
  discard(model);
});

test('a method that cannot look up leaves a model with an embedding alone', async () => {
  const model = transformer();
  const before = snapshot(model);
  await expect(attach(model, bent(), { targets: () => true })).rejects.toThrow(/words: bent cannot be applied/);
  expect(snapshot(model)).toEqual(before);
  discard(model);
});

test('an infinite kernel is refused by name', async () => {
  const model = transformer();
  const layer = model.getLayer('lm_head');
  const [, bias] = layer.getWeights();
  const infinite = tf.fill([12, 5], Number.NEGATIVE_INFINITY);
  layer.setWeights([infinite, bias]);
  await expect(attach(model, additive(), { targets: ['lm_head'] })).rejects.toThrow(/lm_head: the kernel has values/);
  infinite.dispose();
  discard(model);
});

describe('options', () => {
  const schema = z.object({
    rank: z.number(),
    mode: z.enum(['a', 'b']).default('a'),
    deep: z.object({ n: z.number() }).optional(),
  });

  test.each([
    [{ rnak: 3 }, 'method.rnak: unknown option; did you mean "rank"?'],
    [{ mode: 'c', colour: 1 }, 'method.colour: unknown option; known options: rank, mode, deep'],
    [{ mode: 'c', rank: 1 }, 'method.mode: must be one of "a", "b", got "c"'],
    [{ rank: 1, deep: { n: 'x' } }, 'method.deep.n: '],
    [{}, 'method.rank: '],
    [undefined, 'method.rank: '],
    [null, 'method.rank: '],
    [3, 'method: '],
  ])('%j is refused', (given, message) => {
    expect(() => parseConfig('method', schema, given)).toThrow(message);
  });

  test('defaults are filled in', () => {
    expect(parseConfig('method', schema, { rank: 2 })).toEqual({ rank: 2, mode: 'a' });
  });
});
