import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { attach, load, openCheckpoint, save, writeSafetensors } from '@matforge/core';
import { lora } from '@matforge/lora';
import { imports, loadModel, saveModel } from '@matforge/pipeline';
import * as tf from '@tensorflow/tfjs';
import { main } from '../src/index.ts';

const root = join(__dirname, '..', '..', '..');
const examples = join(root, 'examples');

interface Outcome {
  code: number;
  out: string;
  err: string;
}

async function matforge(...args: string[]): Promise<Outcome> {
  const outcome: Outcome = { code: -1, out: '', err: '' };
  const out = jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
    outcome.out += String(text);
    return true;
  });
  const err = jest.spyOn(process.stderr, 'write').mockImplementation((text) => {
    outcome.err += String(text);
    return true;
  });
  const cwd = jest.spyOn(process, 'cwd').mockReturnValue(examples);
  try {
    outcome.code = await main(args);
  } finally {
    for (const spy of [out, err, cwd]) spy.mockRestore();
  }
  return outcome;
}

let work: string;
beforeAll(async () => {
  imports.load = (id) => require(id);
  await tf.setBackend('cpu');
});
beforeEach(() => {
  work = mkdtempSync(join(tmpdir(), 'matforge-cli-'));
});
afterEach(() => {
  rmSync(work, { recursive: true, force: true });
});

const model = () =>
  tf.sequential({
    layers: [tf.layers.dense({ name: 'map', units: 4, inputShape: [6] }), tf.layers.dense({ name: 'head', units: 2 })],
  });

test('--help names every command in plain words', async () => {
  const { code, out } = await matforge('--help');
  expect(code).toBe(0);
  for (const command of ['run', 'methods', 'inspect', 'convert', 'merge', 'reproduce', 'emit']) {
    expect(out).toMatch(new RegExp(`^  ${command} .*\\w+`, 'm'));
  }
});

test('--version prints the package version', async () => {
  const { version } = JSON.parse(readFileSync(join(__dirname, '..', 'package.json'), 'utf8'));
  expect((await matforge('--version')).out.trim()).toBe(version);
});

test('an unknown command is a wrong usage with a suggestion', async () => {
  const { code, err } = await matforge('inspekt');
  expect(code).toBe(2);
  expect(err).toMatch(/unknown command 'inspekt'[\s\S]*Did you mean inspect\?/);
});

describe('methods', () => {
  test('lists what is installed with its paper', async () => {
    const { code, out } = await matforge('methods');
    expect(code).toBe(0);
    expect(out).toMatch(/^pissa +adapter +lora-family +@matforge\/pissa@\d.*arXiv 2404\.02948, 2024/m);
  });

  test('shows the options of one, from its schema', async () => {
    const { options, title } = JSON.parse((await matforge('methods', 'lora', '--json')).out);
    expect(title).toBe('LoRA');
    expect(options.properties.rank).toMatchObject({ type: 'integer', default: 8 });
    expect(options.properties.init.enum).toEqual(['default', 'gaussian']);
  });

  test('suggests the nearest name', async () => {
    const { code, err } = await matforge('methods', 'pisa');
    expect(code).toBe(1);
    expect(err).toMatch(/error: method: "pisa" is not installed; did you mean "pissa"\?/);
  });
});

describe('run', () => {
  test('--check checks and writes nothing', async () => {
    const { code, out } = await matforge('run', join(examples, 'fashion-to-fpga.yaml'), '--check');
    expect(code).toBe(0);
    expect(out).toMatch(/fashion-to-fpga: data -> data -> model -> train -> compare -> watermark/);
  });

  test('a fault in the file names file and line, as text and as JSON', async () => {
    const file = join(work, 'p.yaml');
    writeFileSync(file, 'name: x\nstages:\n  - trian: {}\n');
    const { code, err } = await matforge('run', file);
    expect(code).toBe(1);
    expect(err).toContain(`error: ${file}:3: unknown stage "trian"; did you mean "train"?`);
    const json = JSON.parse((await matforge('run', file, '--json')).out);
    expect(json.field).toBe(`${file}:3`);
  });

  test('a file that does not exist', async () => {
    const { code, err } = await matforge('run', join(work, 'none.yaml'));
    expect(code).toBe(1);
    expect(err).toMatch(/none\.yaml/);
  });
});

describe('inspect', () => {
  test('shows shapes, norms and spectra, and draws them', async () => {
    const file = join(work, 'w.safetensors');
    const w = tf.tensor2d([
      [3, 0],
      [0, 4],
      [0, 0],
    ]);
    await writeSafetensors(file, { w, b: tf.tensor1d([1, 2]) });
    const { tensors, parameters, spectra } = JSON.parse(
      (await matforge('inspect', file, '--spectra', '--plot', join(work, 's.svg'), '--json')).out,
    );
    expect(parameters).toBe(8);
    expect(tensors.find((row: { tensor: string }) => row.tensor === 'w')).toMatchObject({
      dtype: 'F32',
      shape: '[3, 2]',
      norm: 5,
      min: 0,
      max: 4,
    });
    expect(spectra.w.map((value: number) => Math.round(value))).toEqual([4, 3]);
    expect(readFileSync(join(work, 's.svg'), 'utf8')).toMatch(/^<svg [\s\S]*polyline/);
  });

  test('shows the model that run and merge write', async () => {
    await saveModel(model(), join(work, 'model'));
    const { tensors, parameters, spectra } = JSON.parse(
      (await matforge('inspect', join(work, 'model'), '--spectra', '--json')).out,
    );
    expect(parameters).toBe(6 * 4 + 4 + 4 * 2 + 2);
    expect(tensors.map(({ tensor, shape }: Record<string, string>) => [tensor, shape])).toEqual([
      ['map/kernel', '[6, 4]'],
      ['map/bias', '[4]'],
      ['head/kernel', '[4, 2]'],
      ['head/bias', '[2]'],
    ]);
    expect(spectra['head/kernel']).toHaveLength(2);
  });

  test('a damaged checkpoint is refused by name', async () => {
    const file = join(work, 'bad.safetensors');
    writeFileSync(file, 'not a checkpoint at all');
    const { code, err } = await matforge('inspect', file);
    expect(code).toBe(1);
    expect(err).toContain('bad.safetensors');
  });
});

test('convert halves a checkpoint, and the numbers stay', async () => {
  const [from, to] = [join(work, 'a.safetensors'), join(work, 'b.safetensors')];
  await writeSafetensors(from, {
    w: tf.tensor2d([
      [1, -2.5],
      [0.5, 3],
    ]),
  });
  expect((await matforge('convert', from, to, '--dtype', 'F16')).code).toBe(0);
  const file = await openCheckpoint(to);
  expect(file.entries.get('w')?.dtype).toBe('F16');
  expect(Array.from((await file.read('w')).dataSync())).toEqual([1, -2.5, 0.5, 3]);
  await file.close();
  expect((await matforge('convert', from, to)).err).toMatch(/exist/);
  expect((await matforge('convert', from, to, '--dtype', 'F8')).code).toBe(2);
});

test('merge writes an adapter into a model', async () => {
  const base = model();
  await saveModel(base, join(work, 'model'));
  await attach(base, lora({ rank: 2 }), { targets: ['map'] });
  for (const weight of base.layers[0].weights) if (weight.originalName.endsWith('/B')) weight.write(tf.ones([2, 4]));
  await save(base, join(work, 'adapter'));
  const x = tf.ones([1, 6]);
  const expected = Array.from((base.predict(x) as tf.Tensor).dataSync());
  const { code, err } = await matforge('merge', join(work, 'model'), join(work, 'adapter'), join(work, 'merged'));
  expect({ code, err }).toEqual({ code: 0, err: '' });
  const merged = await loadModel(join(work, 'merged'));
  const got = Array.from((merged.predict(x) as tf.Tensor).dataSync());
  expect(got).toEqual(expected.map((value) => expect.closeTo(value, 4)));
  const plain = await load(await loadModel(join(work, 'model')), join(work, 'adapter'), { methods: [lora] });
  expect(Array.from((plain.predict(x) as tf.Tensor).dataSync())).toEqual(
    expected.map((value) => expect.closeTo(value, 4)),
  );
});

test('emit writes a project from a saved model and compares it bit by bit', async () => {
  const float = model();
  await saveModel(float, join(work, 'model'));
  const x = tf.randomUniform([16, 6], -1, 1, 'float32', 5);
  await writeSafetensors(join(work, 'x.safetensors'), { x });
  const { code, out } = await matforge(
    'emit',
    join(work, 'model'),
    join(work, 'firmware'),
    '--samples',
    join(work, 'x.safetensors'),
    '--json',
  );
  const result = JSON.parse(out);
  expect(code).toBe(0);
  expect(existsSync(join(work, 'firmware', 'Makefile'))).toBe(true);
  if (result.skipped) expect(result.skipped).toMatch(/compiler/);
  else expect(result.report).toMatchObject({ mismatches: 0, passed: true, samples: 16 });
});

const bin = join(root, 'packages/cli/dist/bin.js');
const whenBuilt = existsSync(bin) ? test : test.skip;

whenBuilt(
  `inspect and convert start what they need${existsSync(bin) ? '' : ' (skipped: run pnpm build first)'}`,
  async () => {
    const base = model();
    await attach(base, lora({ rank: 2 }), { targets: ['map'] });
    await save(base, join(work, 'adapter'));
    await saveModel(base, join(work, 'model'));
    for (const args of [
      ['inspect', join(work, 'adapter'), '--spectra'],
      ['inspect', join(work, 'model')],
      ['convert', join(work, 'adapter'), join(work, 'half'), '--dtype', 'BF16'],
    ]) {
      const { status, stderr } = spawnSync(process.execPath, [bin, ...args], { encoding: 'utf8' });
      expect({ args, status, stderr }).toEqual({ args, status: 0, stderr: '' });
    }
  },
  60_000,
);

whenBuilt(
  `Ctrl-C leaves a run that --resume finishes${existsSync(bin) ? '' : ' (skipped: run pnpm build first)'}`,
  async () => {
    const file = join(work, 'interrupted.yaml');
    writeFileSync(
      file,
      [
        'name: interrupted',
        'stages:',
        '  - data: { name: d, dataset: mnist, train: 2000, test: 100 }',
        '  - model: { kind: mlp, options: { hidden: [16] } }',
        '  - train: { data: d, steps: 4000, batchSize: 8 }',
        '',
      ].join('\n'),
    );
    const start = (...more: string[]) =>
      spawn(process.execPath, [bin, 'run', file, '--out', join(work, 'run'), ...more], { cwd: examples });
    const ended = (child: ReturnType<typeof spawn>) =>
      new Promise<number | null>((resolve) => child.on('close', resolve));
    const first = start();
    let out = '';
    first.stdout.on('data', (chunk) => {
      out += chunk;
      // Once: a second Ctrl-C means to stop at once.
      if (!first.killed && /train on d {2}\d/.test(out)) first.kill('SIGINT');
    });
    expect(await ended(first)).toBe(130);
    expect(out).toMatch(/stopped; go on with: matforge run .*--resume/);
    const second = start('--resume', '--json');
    let json = '';
    second.stdout.on('data', (chunk) => {
      json += chunk;
    });
    expect(await ended(second)).toBe(0);
    expect(JSON.parse(json)).toMatchObject({ finished: true, report: { 'train on d': { steps: 4000 } } });
  },
  180_000,
);
