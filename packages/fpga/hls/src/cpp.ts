import { ensure } from '@matforge/core';
import { ceilLog2, type FixedType, formatType, isMac, mulType } from '@matforge/qfx';
import { termWidth } from './c99.ts';
import { constant, type Dialect, typeName } from './layers.ts';
import { formatExact, type LayerPlan, type Plan } from './plan.ts';
import { indent, lines, loop } from './text.ts';

/**
 * Refuses what the vendor's headers compute differently from the standard, or not at all.
 * @throws MatforgeError naming the layer and the type.
 */
export function checkHls(plan: Plan): void {
  const check = (type: FixedType, field: string): void => {
    ensure(
      type.O !== 'AP_WRAP_SM' || type.Q === 'AP_TRN',
      field,
      () =>
        `${formatType(type)}: the vendor's headers take the lost bit of AP_WRAP_SM before rounding; use AP_TRN with it, ` +
        'or another overflow mode, or the c flavour alone',
    );
  };
  const wide = (bits: number, name: string, what: string, limit = 64): void =>
    ensure(bits <= limit, name, () => `${what} needs ${bits} bits, at most ${limit} are supported; use fewer bits`);
  for (const { name, type } of plan.graph.nodes) check(type, `${name}.type`);
  for (const layer of plan.layers) {
    const { node } = layer;
    if (isMac(node)) {
      wide(node.accumulator.W, node.name, 'the accumulator');
      wide(mulType(layer.sources[0].type, node.weightType).W, node.name, 'a product', 124);
      wide(node.weightType.W, node.name, 'a weight (a decimal literal)', 53);
      if (node.biasType) wide(node.biasType.W, node.name, 'a bias (a decimal literal)', 53);
      if (node.multiplierFree) wide(termWidth(layer, node), node.name, 'a multiplier-free product');
    } else if (node.op === 'add' || node.op === 'avgPool2d') {
      wide(node.accumulator.W, node.name, 'the accumulator');
    }
  }
}

/** Typedefs of defines.h for the C++ flavour. */
export function cppTypedefs(plan: Plan): string {
  const out = [`typedef ${formatType(plan.input.type)} input_t;`];
  for (const layer of plan.layers) {
    const { node, id } = layer;
    if (isMac(node)) {
      // Weights arrive cast: their literals are exact, and a mode could only change them (-hi for lo under AP_SAT_SYM).
      out.push(`typedef ${formatExact(node.weightType)} weight${id}_t;`);
      if (node.biasType) out.push(`typedef ${formatExact(node.biasType)} bias${id}_t;`);
      out.push(`typedef ${formatExact(node.accumulator)} accum${id}_t;`);
      if (node.multiplierFree) {
        out.push(
          `typedef ${rawType(node.accumulator)} sum${id}_t;`,
          `typedef ap_int<${termWidth(layer, node)}> term${id}_t;`,
        );
      }
    } else if (node.op === 'add' || node.op === 'avgPool2d') {
      out.push(`typedef ${formatExact(node.accumulator)} accum${id}_t;`);
    }
    // A concatenation copies from types that may differ in their modes.
    const result = node.op === 'concat' ? formatExact(node.type) : formatType(node.type);
    out.push(`typedef ${result} ${typeName(node)};`);
  }
  out.push(`typedef ${typeName(plan.outputRoot)} result_t;`);
  return out.join('\n');
}

/** The integer type with the bits of a fixed-point type. */
export function rawType({ W, signed }: Pick<FixedType, 'W' | 'signed'>): string {
  return `ap_${signed ? '' : 'u'}int<${W}>`;
}

const copyBits = (to: string, from: string, W: number): string => `${to}(${W - 1}, 0) = ${from}(${W - 1}, 0);`;

/** ap_fixed types: growth, rounding and overflow are the types' own; one assignment to layerN_t is the cast. */
export const cpp: Dialect = {
  zeroed: '',

  prelude(layer) {
    const { node } = layer;
    return isMac(node) && node.multiplierFree ? termFunction(layer) : undefined;
  },

  accumulators(layer, node) {
    const { id } = layer;
    const nOut = constant(layer, 'N_OUT');
    if (!node.multiplierFree) {
      return [`accum${id}_t acc[${nOut}];`, loop('j', nOut, `acc[j] = ${node.bias ? `b${id}[j]` : '0'};`)];
    }
    // Sums of shifted terms are plain integers: the bias enters by its bits.
    const { bias, biasType, biasShift } = node;
    const start =
      bias && biasType
        ? lines(
            `${rawType(biasType)} bits;`,
            copyBits('bits', `b${id}[j]`, biasType.W),
            'acc[j] = bits;',
            biasShift > 0 && `acc[j] <<= ${biasShift};`,
          )
        : 'acc[j] = 0;';
    return [`sum${id}_t acc[${nOut}];`, loop('j', nOut, start)];
  },

  multiplyAdd(layer, node, j, x, k) {
    const { id } = layer;
    if (!node.multiplierFree) return `acc[${j}] += ${x} * w${id}[${k}];`;
    const xType = layer.sources[0].type;
    return lines(
      `${rawType(xType)} bits;`,
      copyBits('bits', x, xType.W),
      `term${id}_t product = 0;`,
      ...Array.from(
        { length: node.multiplierFree.k },
        (_, t) => `layer${id}_add_term(product, bits, w${id}_sign[${t}][${k}], w${id}_shift[${t}][${k}]);`,
      ),
      `acc[${j}] += product;`,
    );
  },

  finish(layer, node, j, target) {
    const { id } = layer;
    const relu = node.activation === 'relu';
    if (!node.multiplierFree) {
      return lines(
        relu && `const accum${id}_t zero = 0;`,
        relu && `if (acc[${j}] < zero) acc[${j}] = zero;`,
        `${target} = acc[${j}];`,
      );
    }
    return lines(
      `accum${id}_t sum;`,
      copyBits('sum', `acc[${j}]`, node.accumulator.W),
      relu && `const accum${id}_t zero = 0;`,
      relu && 'if (sum < zero) sum = zero;',
      `${target} = sum;`,
    );
  },

  add(layer, node, terms, target) {
    const { id } = layer;
    return lines(
      `accum${id}_t sum = ${terms.join(' + ')};`,
      node.activation === 'relu' && `const accum${id}_t zero = 0;`,
      node.activation === 'relu' && 'if (sum < zero) sum = zero;',
      `${target} = sum;`,
    );
  },

  activate(layer, node, x, target) {
    const type = typeName(layer.sources[0]);
    if (node.activation === 'linear') return `${target} = ${x};`;
    return lines(
      `${type} value = ${x};`,
      `const ${type} zero = 0;`,
      'if (value < zero) value = zero;',
      `${target} = value;`,
    );
  },

  average(layer, node, sum, count, target) {
    const { id } = layer;
    const { reciprocals } = node;
    if (reciprocals.length === 1) return `${target} = ${sum} * recip${id}_${reciprocals[0].count};`;
    const cases = reciprocals.map((r, i) => {
      const guard = i === reciprocals.length - 1 ? 'else' : `${i > 0 ? 'else ' : ''}if (${count} == ${r.count})`;
      return `${guard} ${target} = ${sum} * recip${id}_${r.count};`;
    });
    return cases.join('\n');
  },

  softmax(layer) {
    const { node, id } = layer;
    if (node.op !== 'softmax') throw new Error('softmax');
    const x = layer.sources[0].type;
    const raw = rawType(x);
    const c = (name: string): string => constant(layer, name);
    const Z = 17 + ceilLog2(node.length);
    const at = `in[row * ${c('LENGTH')} + i]`;
    return loop(
      'row',
      c('ROWS'),
      '#pragma HLS PIPELINE',
      `${typeName(layer.sources[0])} best = in[row * ${c('LENGTH')}];`,
      loop('i', c('LENGTH'), `if (${at} > best) best = ${at};`),
      `${raw} top;`,
      copyBits('top', 'best', x.W),
      `ap_uint<17> e[${c('LENGTH')}];`,
      `ap_uint<${Z}> total = 0;`,
      loop(
        'i',
        c('LENGTH'),
        `const ${typeName(layer.sources[0])} logit = ${at};`,
        `${raw} bits;`,
        copyBits('bits', 'logit', x.W),
        `const ap_uint<${x.W}> distance = top - bits;`,
        `e[i] = exp_table${id}[(distance >> ${c('EXP_SHIFT')}).to_int()];`,
        'total += e[i];',
      ),
      '/* the largest logit adds 65536 (1.0), so that the total is never less */',
      `const ap_uint<${Z}> one = 65536;`,
      `const ap_uint<${Z}> rest = total - one;`,
      `const ap_uint<17> inverse = inv_table${id}[(rest >> ${c('INV_SHIFT')}).to_int()];`,
      loop(
        'i',
        c('LENGTH'),
        'const ap_uint<34> product = e[i] * inverse;',
        'ap_ufixed<34, 2> share;',
        copyBits('share', 'product', 34),
        `out[row * ${c('LENGTH')} + i] = share;`,
      ),
    );
  },
};

function termFunction(layer: LayerPlan): string {
  const { id } = layer;
  const xType = layer.sources[0].type;
  return lines(
    `/* product += sign * x * 2^shift without a multiplier */`,
    `static void layer${id}_add_term(term${id}_t &product, ${rawType(xType)} x, int sign, int shift)`,
    '{',
    '#pragma HLS INLINE',
    indent(
      lines(
        `term${id}_t term = x;`,
        'term <<= shift;',
        'if (sign > 0)',
        '    product += term;',
        'else if (sign < 0)',
        '    product -= term;',
      ),
    ),
    '}',
    '',
  );
}
