// Times float64 linear algebra, the least of several runs each; ml-matrix beside it where it can be resolved.
// Build first (`pnpm build`), then: node bench/linalg.mjs [--json]
import * as tf from '@tensorflow/tfjs';
import { linalg, matrix, random, randomizedSvd, thinSvd, toTensor } from '../packages/core/dist/index.js';
import { engineInfo, ready } from '../packages/engine/dist/index.js';

const peer = await import('ml-matrix').catch(() => undefined);
await ready();
const { kernels, native } = engineInfo();
if (!process.argv.includes('--json')) console.log(`matrix products of tensors: ${native ?? kernels}`);

/** Least milliseconds of up to `runs` calls, within about two seconds. */
function least(run, runs = 7) {
  let best = Number.POSITIVE_INFINITY;
  const end = performance.now() + 2000;
  for (let i = 0; i < runs && (i < 2 || performance.now() < end); i++) {
    const start = performance.now();
    run();
    best = Math.min(best, performance.now() - start);
  }
  return best;
}

const normal = (m, n, seed = 1) => {
  const stream = random(seed);
  return matrix(m, n, () => stream.gaussian());
};
const symmetric = (n) => {
  const a = normal(n, n);
  return linalg.add(a, linalg.transpose(a));
};
const positive = (n) =>
  linalg.add(linalg.matmul(normal(n, n), normal(n, n), { transposeA: true }), linalg.identity(n), n);
const foreign = (a) =>
  peer &&
  new peer.Matrix(Array.from({ length: a.rows }, (_, i) => Array.from(a.data.subarray(i * a.cols, (i + 1) * a.cols))));

const rows = [];
const table = (name, ours, theirs) => {
  const row = { name, ours: least(ours), mlMatrix: peer && theirs ? least(theirs, 1) : undefined };
  rows.push(row);
  if (process.argv.includes('--json')) return;
  const beside = row.mlMatrix
    ? `  ml-matrix ${row.mlMatrix.toFixed(0).padStart(6)} ms  ${(row.mlMatrix / row.ours).toFixed(1)}x`
    : '';
  console.log(`${name.padEnd(34)} ${row.ours.toFixed(1).padStart(7)} ms${beside}`);
};

for (const n of [128, 256, 512]) {
  const [a, s, p] = [normal(n, n), symmetric(n), positive(n)];
  const [fa, fs, fp] = [foreign(a), foreign(s), foreign(p)];
  table(
    `matmul ${n}`,
    () => linalg.matmul(a, a),
    () => fa.mmul(fa),
  );
  table(
    `eigh ${n}`,
    () => linalg.eigh(s),
    () => new peer.EigenvalueDecomposition(fs, { assumeSymmetric: true }),
  );
  table(`eigenvalues ${n}`, () => linalg.eigenvalues(s));
  table(
    `svd ${n}`,
    () => linalg.svd(a),
    () => new peer.SingularValueDecomposition(fa),
  );
  table(`svd ${n}, Gram`, () => linalg.svd(a, { accurate: false }));
  table(`singular values ${n}`, () => linalg.singularValues(a));
  table(
    `qr ${n}`,
    () => linalg.qr(a),
    () => new peer.QrDecomposition(fa).orthogonalMatrix,
  );
  table(`qr pivoted ${n}`, () => linalg.qrPivoted(a));
  table(
    `lu ${n}`,
    () => linalg.lu(a),
    () => new peer.LuDecomposition(fa),
  );
  table(
    `cholesky ${n}`,
    () => linalg.cholesky(p),
    () => new peer.CholeskyDecomposition(fp),
  );
  table(
    `inverse ${n}`,
    () => linalg.inverse(a),
    () => peer.inverse(fa),
  );
}
const tall = normal(1024, 768);
table('svd 1024 x 768', () => linalg.svd(tall));
table('svd 1024 x 768, Gram', () => linalg.svd(tall, { accurate: false }));
table('qr 1024 x 768', () => linalg.qr(tall));
const kernel = toTensor(tall);
const dispose = ({ u, s, v }) => tf.dispose([u, s, v]);
table('thinSvd 1024 x 768 (tensors)', () => dispose(thinSvd(kernel)));
for (const iterations of [2, 4]) {
  table(`randomizedSvd 32 of 1024 x 768, ${iterations}`, () =>
    dispose(randomizedSvd(kernel, 32, { oversampling: 8, iterations })),
  );
}
if (process.argv.includes('--json')) console.log(JSON.stringify(rows, undefined, 2));
