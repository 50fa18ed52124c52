import { ensure } from '@matforge/core';
import {
  type AvgPool2dNode,
  type FixedType,
  formatType,
  fractionBits,
  isMac,
  type MacNode,
  type QfxNode,
} from '@matforge/qfx';
import { castFunction, container, int64, rawRange, wrapStatement } from './casts.ts';
import { constant, type Dialect, typeName } from './layers.ts';
import { describe, exactSumWidth, type LayerPlan, type Plan } from './plan.ts';
import { indent, lines, loop } from './text.ts';

/** What a layer computes in before its cast: the C container of its sums. */
export function accumulatorContainer(layer: LayerPlan): string | undefined {
  const { node } = layer;
  if (isMac(node)) {
    const x = layer.sources[0].type;
    const product = x.W + node.weightType.W + node.productShift;
    const width = node.accumulatorRule === 'explicit' ? exactSumWidth(node, x) : node.accumulator.W;
    const signed = node.accumulatorRule === 'explicit' || node.accumulator.signed;
    // A single product may be wider than a tight sum, and is computed in the same container.
    const fits = (limit: number): boolean =>
      width <= limit - (signed ? 0 : 1) &&
      product <= limit - 1 &&
      (!node.multiplierFree || termWidth(layer, node) <= limit);
    return fits(32) ? 'int32_t' : 'int64_t';
  }
  if (node.op === 'add' || node.op === 'avgPool2d') {
    const { W, signed } = node.accumulator;
    return W <= (signed ? 32 : 31) ? 'int32_t' : 'int64_t';
  }
  return undefined;
}

/** Bits of the signed temporary in which the k shifted terms of a multiplier-free product are added. */
export function termWidth(layer: LayerPlan, node: MacNode): number {
  return layer.sources[0].type.W + node.weightType.W + 1 + node.productShift;
}

/** Range of a layer's sums. */
function sumRange(type: FixedType, relu: boolean): [bigint, bigint] {
  const [low, high] = rawRange(type);
  return [relu && low < 0n ? 0n : low, high];
}

/**
 * Refuses what 64-bit integers cannot compute.
 * @throws MatforgeError naming the layer and the number of bits that it would need.
 */
export function checkC(plan: Plan): void {
  for (const layer of plan.layers) {
    const { node } = layer;
    const limit = (bits: number, what: string): void =>
      ensure(
        bits <= 63,
        node.name,
        () => `${what} needs ${bits} bits, C99 has 63; use fewer bits, a tight accumulator, or the hls flavour alone`,
      );
    const castRoom = (W: number, fraction: number): void => {
      limit(W, 'the accumulator');
      limit(W + Math.max(0, fractionBits(node.type) - fraction), `the cast to ${formatType(node.type)}`);
    };
    if (isMac(node)) {
      castRoom(node.accumulator.W, node.accFraction);
      if (node.accumulatorRule === 'explicit') limit(exactSumWidth(node, layer.sources[0].type), 'the exact sum');
      if (node.accumulatorRule === 'tight') {
        limit(layer.sources[0].type.W + node.weightType.W + node.productShift, 'a product');
      }
      if (node.multiplierFree) limit(termWidth(layer, node) - 1, 'a multiplier-free product');
    } else if (node.op === 'activation') {
      castRoom(layer.sources[0].type.W, fractionBits(layer.sources[0].type));
    } else if (node.op === 'add') {
      castRoom(node.accumulator.W, node.accFraction);
    } else if (node.op === 'avgPool2d') {
      const { fraction, range } = averageProduct(layer.sources[0].type, node);
      const bits = bitsOf(range);
      limit(bits, 'the product of sum and reciprocal');
      limit(bits + Math.max(0, fractionBits(node.type) - fraction), `the cast to ${formatType(node.type)}`);
    } else if (node.op === 'softmax') {
      limit(layer.sources[0].type.W + 1, 'the difference of two logits');
      limit(34 + Math.max(0, fractionBits(node.type) - 32), `the cast to ${formatType(node.type)}`);
    }
  }
}

function bitsOf([low, high]: [bigint, bigint]): number {
  let bits = 1;
  while (-(1n << BigInt(bits - 1)) > low || high > (1n << BigInt(bits - 1)) - 1n) bits++;
  return bits;
}

/** Reciprocals on one grid (that of the largest count), and the range of sum times reciprocal. */
export function averageProduct(x: FixedType, node: AvgPool2dNode) {
  const fraction = Math.max(...node.reciprocals.map((r) => r.fraction));
  const [low, high] = rawRange(x);
  const scaled = node.reciprocals.map(({ raw, fraction: own, count }) => ({
    count,
    raw: BigInt(raw) << BigInt(fraction - own),
  }));
  const range: [bigint, bigint] = [0n, 0n];
  for (const { raw, count } of scaled) {
    const [a, b] = [low * raw * BigInt(count), high * raw * BigInt(count)];
    if (a < range[0]) range[0] = a;
    if (b > range[1]) range[1] = b;
  }
  return { scaled, range, fraction: fraction + fractionBits(x) };
}

/** Typedefs of defines.h for the C flavour. */
export function cTypedefs(plan: Plan): string {
  const typedef = (type: string, name: string, comment: string): string =>
    `${`typedef ${type} ${name};`.padEnd(36)}/* ${comment} */`;
  const value = (type: FixedType): string => `${describe(type)}, value = raw * 2^${-fractionBits(type)}`;
  const of = (node: QfxNode): string =>
    typedef(container(node.type.W, node.type.signed), typeName(node), value(node.type));
  const out = [of(plan.input)];
  for (const layer of plan.layers) {
    const { node, id } = layer;
    if (isMac(node)) {
      const { weightType, biasType, bias } = node;
      const bits = container(weightType.W, weightType.signed);
      out.push(typedef(bits, `weight${id}_t`, value(weightType)));
      if (bias && biasType) out.push(typedef(container(biasType.W, biasType.signed), `bias${id}_t`, value(biasType)));
      const exact = node.accumulatorRule === 'explicit' ? 'the exact sum of ' : '';
      out.push(typedef(accumulatorContainer(layer)!, `accum${id}_t`, `${exact}${value(node.accumulator)}`));
    } else if (node.op === 'add' || node.op === 'avgPool2d') {
      out.push(typedef(accumulatorContainer(layer)!, `accum${id}_t`, value(node.accumulator)));
    }
    out.push(of(node));
  }
  out.push(typedef(container(plan.output.type.W, plan.output.type.signed), 'result_t', value(plan.output.type)));
  return out.join('\n');
}

const scaled = (text: string, shift: number): string => (shift > 0 ? `${text} * ${int64(1n << BigInt(shift))}` : text);
const castName = (layer: LayerPlan): string => `layer${layer.id}_cast`;

/** Integers only: every value is its raw integer, a cast is a function on int64_t. */
export const c99: Dialect = {
  zeroed: ' = {0}',

  prelude(layer) {
    const { node, id } = layer;
    const x = layer.sources[0]?.type;
    const cast = (fraction: number, range: [bigint, bigint]): string =>
      castFunction(castName(layer), typeName(node), fraction, range, node.type);
    if (isMac(node)) {
      const relu = node.activation === 'relu';
      return lines(
        node.multiplierFree && termFunction(layer, node),
        node.accumulatorRule === 'explicit' && wrapFunction(id, node.accumulator),
        cast(node.accFraction, sumRange(node.accumulator, relu)),
      );
    }
    if (node.op === 'activation') return cast(fractionBits(x), sumRange(x, node.activation === 'relu'));
    if (node.op === 'add') return cast(node.accFraction, sumRange(node.accumulator, node.activation === 'relu'));
    if (node.op === 'avgPool2d') {
      const { fraction, range } = averageProduct(layer.sources[0].type, node);
      return cast(fraction, range);
    }
    if (node.op === 'softmax') return cast(32, [0n, 1n << 32n]);
    return undefined;
  },

  accumulators(layer, node) {
    const { id } = layer;
    const nOut = constant(layer, 'N_OUT');
    const start = node.bias ? scaled(`(accum${id}_t)b${id}[j]`, node.biasShift) : '0';
    return [`accum${id}_t acc[${nOut}];`, loop('j', nOut, `acc[j] = ${start};`)];
  },

  multiplyAdd(layer, node, j, x, k) {
    const { id } = layer;
    if (!node.multiplierFree) return `acc[${j}] += ${scaled(`(accum${id}_t)${x} * w${id}[${k}]`, node.productShift)};`;
    const terms = Array.from(
      { length: node.multiplierFree.k },
      (_, t) => `layer${id}_term(${x}, w${id}_sign[${t}][${k}], w${id}_shift[${t}][${k}])`,
    );
    return `acc[${j}] += ${terms.join('\n    + ')};`;
  },

  finish(layer, node, j, target) {
    const { id } = layer;
    const sum = node.accumulatorRule === 'explicit' ? `layer${id}_wrap(acc[${j}])` : `acc[${j}]`;
    if (node.activation === 'linear') return `${target} = ${castName(layer)}(${sum});`;
    if (node.accumulatorRule !== 'explicit') return `${target} = ${castName(layer)}(${sum} > 0 ? ${sum} : 0);`;
    return lines(`const int64_t sum = ${sum};`, `${target} = ${castName(layer)}(sum > 0 ? sum : 0);`);
  },

  add(layer, node, terms, target) {
    const sum = terms.map((term, i) => scaled(`(accum${layer.id}_t)${term}`, node.inputShifts[i])).join(' + ');
    return lines(
      `const accum${layer.id}_t sum = ${sum};`,
      `${target} = ${castName(layer)}(${node.activation === 'relu' ? 'sum > 0 ? sum : 0' : 'sum'});`,
    );
  },

  activate(layer, node, x, target) {
    return `${target} = ${castName(layer)}(${node.activation === 'relu' ? `${x} > 0 ? ${x} : 0` : x});`;
  },

  average(layer, node, sum, count, target) {
    const { id } = layer;
    const reciprocal = node.reciprocals.length > 1 ? `recip${id}[${count}]` : `recip${id}[0]`;
    return `${target} = ${castName(layer)}((int64_t)${sum} * ${reciprocal});`;
  },

  softmax(layer) {
    const { id } = layer;
    const c = (name: string): string => constant(layer, name);
    const at = `in[row * ${c('LENGTH')} + i]`;
    return loop(
      'row',
      c('ROWS'),
      '#pragma HLS PIPELINE',
      `int64_t best = in[row * ${c('LENGTH')}];`,
      `int64_t e[${c('LENGTH')}];`,
      'int64_t total = 0;',
      loop('i', c('LENGTH'), `if (${at} > best) best = ${at};`),
      loop('i', c('LENGTH'), `e[i] = exp_table${id}[(best - ${at}) >> ${c('EXP_SHIFT')}];`, 'total += e[i];'),
      '/* the largest logit adds 65536 (1.0), so that the total is never less */',
      `const int64_t inverse = inv_table${id}[(total - 65536) >> ${c('INV_SHIFT')}];`,
      loop('i', c('LENGTH'), `out[row * ${c('LENGTH')} + i] = ${castName(layer)}(e[i] * inverse);`),
    );
  },
};

/** One shifted term of a multiplier-free product. The shift runs on unsigned integers, where C defines it. */
function termFunction(layer: LayerPlan, node: MacNode): string {
  const { id } = layer;
  const wide = accumulatorContainer(layer) === 'int64_t';
  const [signedType, unsignedType] = wide ? ['int64_t', 'uint64_t'] : ['int32_t', 'uint32_t'];
  return lines(
    `/* sign * x * 2^shift without a multiplier, in ${termWidth(layer, node)} bits */`,
    `static ${signedType} layer${id}_term(${signedType} x, int sign, int shift)`,
    '{',
    indent(
      lines(
        `const ${signedType} term = (${signedType})((${unsignedType})x << shift);`,
        'return sign > 0 ? term : sign < 0 ? -term : 0;',
      ),
    ),
    '}',
    '',
  );
}

function wrapFunction(id: number, accumulator: FixedType): string {
  return lines(
    `/* the low ${accumulator.W} bits of an exact sum */`,
    `static int64_t layer${id}_wrap(int64_t v)`,
    '{',
    indent(wrapStatement(accumulator)),
    '    return v;',
    '}',
    '',
  );
}
