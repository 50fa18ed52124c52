import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  adapterTensors,
  attach,
  count,
  detach,
  functional,
  linalg,
  load,
  random,
  readSafetensors,
  ready,
  save,
  setAdapterTensors,
  toMatrix,
} from '@matforge/core';
import { lora } from '@matforge/lora';
import { denseModel, lossAndGradients, testGolden, testLinearMethod } from '@matforge/testkit';
import * as tf from '@tensorflow/tfjs';
import {
  attacks,
  extract,
  judge,
  release,
  seal,
  setPassport,
  trainStepPassport,
  watermarkStats,
} from '../src/index.ts';

testLinearMethod({
  configured: seal({ rank: 2, alpha: 4, secret: 5 }),
  parameters: (inDim, outDim) => 2 * (inDim + outDim),
  readers: [lora],
  refused: [
    [{ rank: 1 }, /seal\.rank: must be an integer >= 2, got 1/],
    [{ secret: 0.5 }, /seal\.secret: must be an integer, got 0\.5/],
    [{ secret: undefined }, /seal\.secret: must be an integer, got undefined/],
    [{ schedule: 'sometimes' }, /seal\.schedule: must be one of "random", "alternate", got "sometimes"/],
    [{ alpha: 0 }, /seal\.alpha: must be a finite number > 0, got 0/],
  ],
});

const matrices = <K extends string>(inputs: { matrix(name: string): tf.Tensor2D }, ...names: K[]) =>
  Object.fromEntries(names.map((name) => [name, inputs.matrix(name)])) as Record<K, tf.Tensor2D>;

const product = (...factors: tf.Tensor2D[]) => factors.reduce((left, right) => tf.matMul(left, right));

testGolden('seal', __dirname, {
  forward: (inputs, { rank, scale, passport }) =>
    tf.tidy(() => {
      const own = matrices(inputs, 'A', 'B', 'C', 'Cp');
      const method = functional(seal({ rank, alpha: scale * rank, secret: 0 }), { kernel: inputs.matrix('W') });
      const fixed = { C: own.C, Cp: own.Cp, passport: tf.scalar(passport) };
      const { y, gradients } = lossAndGradients(
        ({ x, ...trained }) => method.forward(x, { ...trained, ...fixed }),
        { x: inputs.tensor('x'), A: own.A, B: own.B },
        inputs.tensor('dy'),
      );
      return { y, dA: gradients.A, dB: gradients.B, dx: gradients.x };
    }),
  release: (inputs, { scale }) =>
    tf.tidy(() => {
      const marked = matrices(inputs, 'A', 'B', 'C');
      const { A, B } = release({ ...marked, scale });
      return {
        delta: tf.mul(product(A, B), scale),
        singularValues: tf.tensor1d(Float32Array.from(linalg.singularValues(toMatrix(marked.C)))),
        gramA: tf.matMul(A, A, false, true),
        gramB: tf.matMul(B, B, true),
      };
    }),
  extract: (inputs, { scale }) =>
    tf.tidy(() => {
      const { A, B, C, Cp, delta } = matrices(inputs, 'A', 'B', 'C', 'Cp', 'delta');
      const extracted = extract({ A, B, scale }, delta);
      const other = watermarkStats(extracted, Cp);
      return {
        extracted,
        ...watermarkStats(extracted, C),
        otherMatched: other.matched,
        otherCosine: other.cosine,
        otherLog10p: other.log10p,
      };
    }),
  attack: (inputs, { scale, pruneFraction, quantBits }) =>
    tf.tidy(() => {
      const { A, B, C, R, releasedA, releasedB } = matrices(inputs, 'A', 'B', 'C', 'R', 'releasedA', 'releasedB');
      const D = tf.mul(product(A, C, B), scale) as tf.Tensor2D;
      const refactored = attacks.refactor({ A: releasedA, B: releasedB, scale }, R);
      const found = (delta: tf.Tensor2D) => {
        const X = extract({ A, B, scale }, delta);
        return { X, ...watermarkStats(X, C) };
      };
      const pruned = attacks.prune(D, pruneFraction);
      const quantized = attacks.quantize(D, quantBits);
      const refactoredDelta = tf.mul(product(refactored.A, refactored.B), scale) as tf.Tensor2D;
      const [afterPruning, afterQuantizing, afterRefactoring] = [pruned, quantized, refactoredDelta].map(found);
      return {
        pruned,
        prunedExtracted: afterPruning.X,
        prunedMatched: afterPruning.matched,
        prunedLog10p: afterPruning.log10p,
        quantized,
        quantizedExtracted: afterQuantizing.X,
        quantizedMatched: afterQuantizing.matched,
        refactoredDelta,
        refactoredExtracted: afterRefactoring.X,
        refactoredMatched: afterRefactoring.matched,
      };
    }),
  forge: (inputs, { scale }) =>
    tf.tidy(() => {
      const { releasedA, releasedB, F, F2, x } = matrices(inputs, 'releasedA', 'releasedB', 'F', 'F2', 'x');
      const forged = attacks.forge({ A: releasedA, B: releasedB, scale }, F);
      const extracted = extract(forged, tf.mul(product(releasedA, releasedB), scale) as tf.Tensor2D);
      const y = product(x, releasedA, releasedB);
      const error = (passport: tf.Tensor2D) =>
        tf.div(tf.norm(tf.sub(product(x, forged.A, passport, forged.B), y)), tf.norm(y));
      return {
        forgedB: forged.B,
        extracted,
        matched: watermarkStats(extracted, F).matched,
        reconstructionError: error(F),
        secondPassportError: error(F2),
      };
    }),
  verify: (inputs, { alpha, maxFidelityGap, maxPassportCosine }) => {
    const keys = ['matched', 'total', 'fidelityC', 'fidelityCp', 'passportCosine'] as const;
    const columns = keys.map((key) => inputs.values(key).data);
    const verdicts = Array.from(columns[0], (_, i) => {
      const claim = Object.fromEntries(keys.map((key, column) => [key, columns[column][i]]));
      return judge(claim as Record<(typeof keys)[number], number>, {
        alphaLevel: alpha,
        maxFidelityGap,
        maxPassportCosine,
      });
    });
    const fields = ['log10p', 'z', 'bitsPass', 'fidelityPass', 'distancePass', 'accepted'] as const;
    return Object.fromEntries(fields.map((field) => [field, { data: verdicts.map((verdict) => +verdict[field]) }]));
  },
});

describe('the method', () => {
  beforeAll(async () => {
    await ready();
  });
  let before: number;
  beforeEach(() => {
    before = tf.memory().numTensors;
  });
  afterEach(() => {
    expect(tf.memory().numTensors).toBe(before);
  });

  const targets = ['layer0', 'layer1'];
  const dims = [6, 8, 5];
  const marked = async (options: object = {}) =>
    attach(denseModel(dims), seal({ rank: 3, alpha: 6, secret: 11, ...options }), { targets, seed: 1 });
  const outputs = (model: tf.LayersModel, x: tf.Tensor, training = false) =>
    tf.tidy(() => Array.from((model.apply(x, { training }) as tf.Tensor).dataSync()));
  const fillB = (model: tf.LayersModel) => {
    for (const [layer, { B }] of Object.entries(adapterTensors(model, 'default'))) {
      const value = random(8).normal(B.shape, 0, 0.3);
      setAdapterTensors(model, 'default', { [layer]: { B: value } });
      value.dispose();
    }
  };
  const close = (model: tf.LayersModel, ...tensors: tf.Tensor[]) => {
    detach(model);
    model.dispose();
    tf.dispose(tensors);
  };
  const largest = (a: number[], b: number[]) => Math.max(...a.map((value, i) => Math.abs(value - b[i])));

  test('with the identity for a passport it is plain LoRA', async () => {
    const [model, plain] = [await marked(), denseModel(dims)];
    await attach(plain, lora({ rank: 3, alpha: 6 }), { targets });
    fillB(model);
    const eye = tf.eye(3);
    for (const layer of targets) {
      setAdapterTensors(model, 'default', { [layer]: { C: eye } });
      const { A, B } = adapterTensors(model, 'default')[layer];
      setAdapterTensors(plain, 'default', { [layer]: { A, B } });
    }
    const x = random(2).normal([4, 6]);
    expect(largest(outputs(model, x), outputs(plain, x))).toBeLessThan(1e-5);
    expect(count(model).trainable).toBe(count(plain).trainable);
    close(plain);
    close(model, x, eye);
  });

  test('layers have passports of their own, and training moves neither', async () => {
    const model = await marked();
    const passports = () =>
      targets.flatMap((layer) => {
        const { C, Cp } = adapterTensors(model, 'default')[layer];
        return [C, Cp].map((passport) => Array.from(passport.dataSync()));
      });
    const start = passports();
    expect(new Set(start.map(String)).size).toBe(4);
    const [x, y] = [random(2).normal([8, 6]), random(3).normal([8, 5])];
    model.compile({ optimizer: tf.train.sgd(0.1), loss: 'meanSquaredError' });
    await model.fit(x, y, { epochs: 3, verbose: 0 });
    expect(passports()).toEqual(start);
    model.optimizer.dispose();
    close(model, x, y);
  });

  test.each(['alternate', 'random'] as const)('schedule %s: a passport per step, for all layers', async (schedule) => {
    const model = await marked({ schedule });
    fillB(model);
    const [x, y] = [random(2).normal([8, 6]), random(3).normal([8, 5])];
    model.compile({ optimizer: tf.train.sgd(0), loss: 'meanSquaredError' });
    const [first, second] = ([0, 1] as const).map((passport) => {
      setPassport(model, 'default', passport);
      return outputs(model, x);
    });
    setPassport(model, 'default', 0);
    expect(largest(first, second)).toBeGreaterThan(0.01);
    const used: number[] = [];
    for (let step = 1; step <= 8; step++) {
      const training = outputs(model, x, true);
      const expected = trainStepPassport(step, { secret: 11, schedule });
      expect(training).toEqual(expected === 0 ? first : second);
      expect(outputs(model, x)).toEqual(first);
      used.push(expected);
      tf.dispose(await model.trainOnBatch(x, y));
    }
    if (schedule === 'alternate') expect(used).toEqual([0, 1, 0, 1, 0, 1, 0, 1]);
    else expect(new Set(used)).toEqual(new Set([0, 1]));
    model.optimizer.dispose();
    close(model, x, y);
  });

  test('the random schedule takes each passport half of the time', () => {
    const steps = Array.from({ length: 2000 }, (_, i) => trainStepPassport(i + 1, { secret: 3, schedule: 'random' }));
    const share = steps.reduce<number>((sum, passport) => sum + passport, 0) / steps.length;
    expect(Math.abs(share - 0.5)).toBeLessThan(0.04);
  });

  test('the saved directory is plain LoRA: no passport, no secret, no trace of the method', async () => {
    const directory = join(await mkdtemp(join(tmpdir(), 'seal-')), 'released');
    const model = await marked({ secret: 918273645, rankPattern: { layer1: 2 } });
    fillB(model);
    // The release holds C whatever evaluation uses.
    const x = random(2).normal([4, 6]);
    const y = outputs(model, x);
    setPassport(model, 'default', 1);
    await save(model, directory);
    const config = await readFile(join(directory, 'adapter_config.json'), 'utf8');
    expect(config).not.toMatch(/918273645|seal|secret|passport|schedule/i);
    expect(JSON.parse(config)).toMatchObject({ peft_type: 'LORA', r: 3, lora_alpha: 6, rank_pattern: { layer1: 2 } });
    expect((await readdir(directory)).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
    const { tensors } = await readSafetensors(join(directory, 'adapter_model.safetensors'));
    expect(
      Object.entries(tensors)
        .map(([key, { shape }]) => `${key} ${shape}`)
        .sort(),
    ).toEqual([
      'base_model.model.layer0.lora_A.weight 3,6',
      'base_model.model.layer0.lora_B.weight 8,3',
      'base_model.model.layer1.lora_A.weight 2,8',
      'base_model.model.layer1.lora_B.weight 5,2',
    ]);
    tf.dispose(Object.values(tensors));
    const other = denseModel(dims);
    await load(other, directory, { methods: [seal, lora] });
    expect(largest(outputs(other, x), y)).toBeLessThan(1e-5);
    await rm(join(directory, '..'), { recursive: true });
    close(other);
    close(model, x);
  });
});
