import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parsePipeline } from '../src/index.ts';
import { examples, importFromSource } from './setup.ts';

beforeAll(importFromSource);

const parse = (text: string) => parsePipeline(text, 'p.yaml', examples);
const head = 'name: x\nseed: 1\nstages:\n  - data: { name: d, dataset: mnist }\n';

test.each(readdirSync(examples).filter((file) => file.endsWith('.yaml')))('the example %s is valid', async (file) => {
  const { stages, seed } = await parsePipeline(readFileSync(join(examples, file), 'utf8'), file, examples);
  expect(stages.length).toBeGreaterThan(5);
  expect(seed).toBe(1);
});

test('a file and its composition in TypeScript are the same', async () => {
  const { stages } = await parse(`${head}  - model:\n      kind: mlp\n`);
  expect(stages.map(({ definition }) => definition.name)).toEqual(['data', 'model']);
  expect(stages[0].options).toEqual({ name: 'd', dataset: 'mnist' });
});

test.each([
  ['broken YAML', 'name: x\nstages: [', /p\.yaml:\d+: /],
  ['not a map', '- 1\n', /p\.yaml: must be a map/],
  ['an unknown key', 'name: x\nstage: []\n', /p\.yaml:2: unknown key "stage"; did you mean "stages"\?/],
  ['stages that are no list', 'name: x\nstages: 1\n', /p\.yaml:2: "stages" must be a list/],
  ['a stage that is no entry', `${head}  - model\n`, /p\.yaml:5: a stage is one entry/],
  ['an unknown stage', `${head}  - modell: {}\n`, /p\.yaml:5: unknown stage "modell"; did you mean "model"\?/],
  [
    'an unknown option',
    `${head}  - model:\n      kind: mlp\n      kinds: 1\n`,
    /p\.yaml:7: model\.kinds: unknown option; did you mean "kind"\?/,
  ],
  ['a bad value', `${head}  - model:\n      kind: mpl\n`, /p\.yaml:6: model\.kind: must be one of "mlp", .*got "mpl"/],
  ['stages in the wrong order', `${head}  - train: { data: d }\n`, /p\.yaml:5: "train" needs a model/],
  [
    "a method's option",
    `${head}  - model: { kind: mlp }\n  - adapt:\n      data: d\n      method: lora\n      options:\n        rank: -1\n`,
    /p\.yaml:\d+: lora\.rank: must be a positive integer, got -1/,
  ],
  [
    'a method that is not installed',
    `${head}  - model: { kind: mlp }\n  - adapt: { data: d, method: nothing }\n`,
    /p\.yaml:6: @matforge\/nothing: is not installed/,
  ],
  [
    'a seed that is no integer',
    'name: x\nseed: a\nstages:\n  - plot: {}\n',
    /p\.yaml:2: "seed" must be an integer, got a/,
  ],
  ['no name', 'stages:\n  - plot: {}\n', /"name" must be a text/],
])('%s is refused with its line', async (_, text, message) => {
  await expect(parse(text)).rejects.toThrow(message);
});
