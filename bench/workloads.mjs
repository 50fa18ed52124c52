// The training steps that are timed, written once for every TensorFlow.js variant. `lib` holds the functions that a
// variant may have fused: layerNorm, gelu, causalSoftmax, crossEntropy, adam.
import * as tf from '@tensorflow/tfjs';

/** Sizes, shared with torch_peer.py. */
export const SIZES = {
  transformer: { d: 256, heads: 4, seq: 64, batch: 8, ffn: 1024, vocab: 512, layers: 2 },
  lora: { d: 512, heads: 8, seq: 64, batch: 8, ffn: 2048, vocab: 512, layers: 4, rank: 8 },
  cnn: { batch: 64, size: 28, filters: [16, 32], hidden: 64, classes: 10 },
  matmul: [256, 512, 1024],
  adam: 1 << 20,
  structured: { rows: 512, widths: [256, 512, 1024, 2048] },
  pissa: { kernel: [1024, 768], rank: 32 },
  optimizers: 1024,
};

let seed = 1;
const weight = (...shape) => tf.variable(tf.randomNormal(shape, 0, 0.02, 'float32', seed++));
const constant = (...shape) => tf.keep(tf.randomNormal(shape, 0, 0.02, 'float32', seed++));
const zeros = (...shape) => tf.variable(tf.zeros(shape));
const ones = (...shape) => tf.variable(tf.ones(shape));

const affine = (x, w, bias) => tf.fused.matMul({ a: x, b: w, bias });

function attention(qkv, { d, heads, seq, batch }, lib) {
  const split = tf.transpose(tf.reshape(qkv, [batch, seq, 3, heads, d / heads]), [2, 0, 3, 1, 4]);
  const [q, k, v] = tf.unstack(split);
  const weights = lib.causalSoftmax(tf.matMul(q, k, false, true), 1 / Math.sqrt(d / heads));
  return tf.reshape(tf.transpose(tf.matMul(weights, v), [0, 2, 1, 3]), [batch * seq, d]);
}

const tokens = ({ batch, seq, vocab }, shift) =>
  tf.tensor1d(
    Int32Array.from({ length: batch * seq }, (_, i) => (i * 7919 + shift) % vocab),
    'int32',
  );

/** A decoder-only transformer trained with Adam. */
export function transformer(lib) {
  const size = SIZES.transformer;
  const { d, ffn, seq, batch, vocab, layers } = size;
  const [embedding, places, head] = [weight(vocab, d), weight(seq, d), weight(d, vocab)];
  const blocks = Array.from({ length: layers }, () => ({
    norm1: [ones(d), zeros(d)],
    qkv: [weight(d, 3 * d), zeros(3 * d)],
    out: [weight(d, d), zeros(d)],
    norm2: [ones(d), zeros(d)],
    up: [weight(d, ffn), zeros(ffn)],
    down: [weight(ffn, d), zeros(d)],
  }));
  const norm = [ones(d), zeros(d)];
  const variables = [embedding, places, head, ...norm, ...blocks.flatMap((block) => Object.values(block).flat())];
  const [x, y] = [tokens(size, 0), tokens(size, 1)];
  const loss = () => {
    const embedded = tf.reshape(tf.gather(embedding, x), [batch, seq, d]);
    let h = tf.reshape(tf.add(embedded, places), [batch * seq, d]);
    for (const block of blocks) {
      const qkv = affine(lib.layerNorm(h, ...block.norm1), ...block.qkv);
      h = tf.add(h, affine(attention(qkv, size, lib), ...block.out));
      const up = lib.gelu(affine(lib.layerNorm(h, ...block.norm2), ...block.up));
      h = tf.add(h, affine(up, ...block.down));
    }
    return tf.mean(lib.crossEntropy(tf.matMul(lib.layerNorm(h, ...norm), head), y));
  };
  return trainer(loss, variables, lib);
}

/** Low-rank adapters on every linear layer of a frozen decoder. */
export function lora(lib) {
  const size = SIZES.lora;
  const { d, ffn, seq, batch, vocab, layers, rank } = size;
  const [variables, kernels] = [[], []];
  const linear = (n, m) => {
    const [w, a, b] = [constant(n, m), weight(n, rank), zeros(rank, m)];
    variables.push(a, b);
    kernels.push(w);
    return (x) => tf.add(tf.matMul(x, w), tf.matMul(tf.matMul(x, a), b));
  };
  const norms = [tf.keep(tf.ones([d])), tf.keep(tf.zeros([d]))];
  const [embedding, head] = [constant(vocab, d), constant(d, vocab)];
  const blocks = Array.from({ length: layers }, () => ({
    qkv: linear(d, 3 * d),
    out: linear(d, d),
    up: linear(d, ffn),
    down: linear(ffn, d),
  }));
  const [x, y] = [tokens(size, 0), tokens(size, 1)];
  const loss = () => {
    let h = tf.reshape(tf.gather(embedding, x), [batch * seq, d]);
    for (const block of blocks) {
      h = tf.add(h, block.out(attention(block.qkv(lib.layerNorm(h, ...norms)), size, lib)));
      h = tf.add(h, block.down(lib.gelu(block.up(lib.layerNorm(h, ...norms)))));
    }
    return tf.mean(lib.crossEntropy(tf.matMul(lib.layerNorm(h, ...norms), head), y));
  };
  return trainer(loss, variables, lib, [embedding, head, ...kernels]);
}

/** The small image classifier of the demo. */
export function cnn(lib) {
  const { batch, size, filters, hidden, classes } = SIZES.cnn;
  const image = tf.keep(tf.randomNormal([batch, size, size, 1], 0, 1, 'float32', 5));
  const labels = tf.tensor1d(
    Int32Array.from({ length: batch }, (_, i) => i % classes),
    'int32',
  );
  const flat = (size / 4) ** 2 * filters[1];
  const convs = [weight(3, 3, 1, filters[0]), weight(3, 3, filters[0], filters[1])];
  const biases = filters.map((n) => zeros(n));
  const [w1, b1, w2, b2] = [weight(flat, hidden), zeros(hidden), weight(hidden, classes), zeros(classes)];
  const loss = () => {
    let h = image;
    convs.forEach((filter, i) => {
      h = tf.maxPool(tf.relu(tf.add(tf.conv2d(h, filter, 1, 'same'), biases[i])), 2, 2, 'valid');
    });
    const dense = tf.relu(affine(tf.reshape(h, [batch, flat]), w1, b1));
    return tf.mean(lib.crossEntropy(affine(dense, w2, b2), labels));
  };
  return trainer(loss, [...convs, ...biases, w1, b1, w2, b2], lib);
}

/** One Adam step alone. */
export function adam(lib) {
  const w = weight(SIZES.adam);
  const gradient = constant(SIZES.adam);
  const update = lib.adam([w]);
  return () => {
    update({ [w.name]: gradient });
    return w.dataSync()[0];
  };
}

/** A step, with what a peer needs to do the same: the variables in order, and what is frozen. */
function trainer(loss, variables, lib, frozen = []) {
  const update = lib.adam(variables);
  const step = () => {
    const { value, grads } = tf.variableGrads(loss, variables);
    update(grads);
    const [number] = value.dataSync();
    tf.dispose([value, grads]);
    return number;
  };
  return Object.assign(step, { loss, variables, frozen });
}

/** op(A)·op(B) of order n. */
export function product(n, transposeA, transposeB) {
  const [a, b] = [constant(n, n), constant(n, n)];
  // Kernels of this backend are done when they return; the peers do not copy their results either.
  const multiply = () => tf.matMul(a, b, transposeA, transposeB).dispose();
  return Object.assign(multiply, { factors: [a, b] });
}
