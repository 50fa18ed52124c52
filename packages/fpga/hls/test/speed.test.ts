import { spawnSync } from 'node:child_process';
import { buildGraph, type NodeSpec } from '@matforge/qfx';
import { emitC, emitHls } from '../src/index.ts';
import { random } from './graphs.ts';
import { compileAll, removeTemporary } from './units.ts';

const gcc = spawnSync('gcc', ['--version']).status === 0;

afterAll(removeTemporary);

const next = random(3);
const mac = (shape: number[], channels: number) => ({
  weights: {
    shape,
    data: Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => Math.floor(next() * 255) - 127),
  },
  weightType: 'ap_fixed<8,1,AP_RND,AP_SAT>',
  bias: { shape: [channels], data: Array.from({ length: channels }, () => Math.floor(next() * 8000) - 4000) },
  biasType: 'ap_fixed<16,4,AP_RND,AP_SAT>',
  activation: 'relu' as const,
  type: 'ap_ufixed<8,3,AP_RND,AP_SAT>',
});
const image = (shape: number[]): NodeSpec => ({ op: 'input', shape, type: 'ap_ufixed<8,0,AP_RND,AP_SAT>' });
const dense = (a: number, b: number): NodeSpec => ({ op: 'dense', ...mac([a, b], b) });
const conv = (a: number, b: number): NodeSpec => ({ op: 'conv2d', ...mac([3, 3, a, b], b), padding: 'same' });

test('a model with a million weights is emitted in less than 10 seconds', () => {
  const graph = buildGraph({ nodes: [image([784]), dense(784, 800), dense(800, 480), dense(480, 10)] });
  const start = performance.now();
  const c = emitC(graph);
  const hls = emitHls(graph);
  expect(performance.now() - start).toBeLessThan(10_000);
  for (const files of [c, hls]) expect(files['firmware/weights/w2.h'].split(',').length).toBeGreaterThan(784 * 800);
}, 60_000);

(gcc ? test : test.skip)(
  `compiled C99 makes 500 million multiply-accumulates a second${gcc ? '' : ' (skipped: no gcc)'}`,
  async () => {
    const mlp = buildGraph({ nodes: [image([784]), dense(784, 128), dense(128, 64), dense(64, 10)] });
    const pool: NodeSpec = { op: 'maxPool2d', size: 2 };
    const cnn = buildGraph({
      nodes: [image([28, 28, 1]), conv(1, 16), pool, conv(16, 32), pool, { op: 'flatten' }, dense(1568, 10)],
    });
    const programs = [
      { graph: mlp, options: { name: 'mlp' } },
      { graph: cnn, options: { name: 'cnn' } },
      { graph: mlp, options: { name: 'mlp_folded', strategy: 'resource' as const, reuseFactor: 784 } },
    ];
    for (const sim of await compileAll(programs, 'c', ['-O3', '-march=native'])) {
      let best = 0;
      for (let i = 0; i < 3; i++) best = Math.max(best, (await sim.benchmark(0.2)).macsPerSecond);
      expect(best).toBeGreaterThan(500e6);
    }
  },
  60_000,
);
