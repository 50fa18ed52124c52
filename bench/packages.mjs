// Workloads of the method packages, each with its time budget in milliseconds. A package that is not built is left out.
import * as tf from '@tensorflow/tfjs';
import { SIZES } from './workloads.mjs';

const built = (path) => import(`../packages/${path}/dist/index.js`).catch(() => undefined);
let seed = 100;
const normal = (...shape) => tf.keep(tf.randomNormal(shape, 0, 1 / Math.sqrt(shape.at(-2) ?? 1), 'float32', seed++));

/** Product with a batch of rows and its gradients, for a square kernel of each form. */
export async function* structured() {
  const [monarch, btt, blast] = await Promise.all(
    ['monarch', 'btt', 'blast'].map((name) => built(`structured/${name}`)),
  );
  const { rows, widths } = SIZES.structured;
  for (const n of widths) {
    const [x, dy] = [normal(rows, n), normal(rows, n)];
    const blocks = 2 ** Math.round(Math.log2(n) / 2);
    const forms = { dense: [[normal(n, n)], (input, [w]) => tf.matMul(input, w)] };
    if (monarch) {
      const { p, r, s } = monarch.monarchBlocks(n, n, blocks);
      const size = { inDim: n, outDim: n };
      forms.monarch = [
        [normal(blocks, p, r), normal(blocks, r, s)],
        (input, [a, b]) => monarch.monarchApply(input, a, b, size),
      ];
    }
    if (btt) {
      const [one, two] = btt.factorize(n, 2);
      const shape = { inFactors: [one, two], outFactors: [one, two], rank: 1 };
      forms.btt = [[normal(two, one, one), normal(one, two, two)], (input, cores) => btt.bttApply(input, cores, shape)];
    }
    if (blast) {
      const rank = n / 8;
      forms.blast = [
        [normal(4, n / 4, rank), normal(4, 4, rank), normal(4, rank, n / 4)],
        (input, [inBasis, coupling, outBasis]) => blast.blastApply(input, { inBasis, coupling, outBasis }),
      ];
    }
    for (const [name, [factors, apply]] of Object.entries(forms)) {
      const gradients = tf.grads((input, ...rest) => apply(input, rest));
      const step = () => {
        const all = gradients([x, ...factors], dy);
        const [number] = all[0].dataSync();
        tf.dispose(all);
        return number;
      };
      yield [`${name} ${n}`, step, 300];
      tf.dispose(factors);
    }
    tf.dispose([x, dy]);
  }
}

/** Singular value decompositions and the start of PiSSA that rests on them. */
export async function* factors() {
  const [core, pissa] = await Promise.all([built('core'), built('lora-family/pissa')]);
  const [n, m] = SIZES.pissa.kernel;
  const { rank } = SIZES.pissa;
  const [square, kernel] = [normal(512, 512), normal(n, m)];
  const freed = (run) => () => tf.dispose(run());
  if (core) {
    yield ['svd 512', freed(() => core.thinSvd(square)), 800];
    yield [`svd ${n}x${m}`, freed(() => core.thinSvd(kernel)), 800];
    yield [`randomized svd ${n}x${m}`, freed(() => core.randomizedSvd(kernel, rank, { iterations: 4 })), 500];
  }
  if (pissa) {
    yield [`pissa ${n}x${m}, exact`, freed(() => pissa.pissaInit(kernel, { rank })), 800];
    yield [`pissa ${n}x${m}, 4 iterations`, freed(() => pissa.pissaInit(kernel, { rank, iterations: 4 })), 500];
  }
}

/** One step on a square weight: the optimizers of core and of the packages. */
export async function* optimizers() {
  const [core, galore, dct] = await Promise.all(['core', 'optim/galore', 'optim/dct-projection'].map(built));
  const n = SIZES.optimizers;
  const make = {
    'tf.train.adam': () => tf.train.adam(1e-3),
    ...(core && { adam: () => core.toOptimizer(core.adam()), adamw: () => core.toOptimizer(core.adamw()) }),
    ...(galore && { galore: () => core.toOptimizer(galore.galore({ rank: 64, updateProjGap: 1_000_000 })) }),
    ...(dct && { 'dct-adamw': () => core.toOptimizer(dct.dctAdamW({ rank: 64 })) }),
  };
  for (const [name, create] of Object.entries(make)) {
    const weight = tf.variable(normal(n, n));
    const gradient = normal(n, n);
    const optimizer = create();
    const step = () => optimizer.applyGradients({ [weight.name]: gradient });
    yield [`${name} ${n}x${n}`, step, 500];
    optimizer.dispose();
    tf.dispose([weight, gradient]);
  }
}
