import {
  type ActivationNode,
  type AddNode,
  type AvgPool2dNode,
  type BatchNormNode,
  type ConcatNode,
  type Conv2dNode,
  type DenseNode,
  type DepthwiseConv2dNode,
  isMac,
  type MacNode,
  type MaxPool2dNode,
  matrixSize,
  type QfxNode,
  sizeOf,
  type Window2d,
  type ZeroPad2dNode,
} from '@matforge/qfx';
import type { ClonePlan, LayerPlan } from './plan.ts';
import { describe } from './plan.ts';
import { block, comment, indent, lines, loop, wrapCall } from './text.ts';

/**
 * What C99 on plain integers and C++ on ap_fixed types say differently. The loops and the pragmas are the same, and the
 * type names are too: `layer2_t` is an ap_fixed type in C++ and its container in C.
 */
export interface Dialect {
  /** Statements in front of a layer's function: casts on integers (C only). */
  prelude(layer: LayerPlan): string | undefined;
  /** Makes uninitialised reads impossible where the language does not. */
  readonly zeroed: string;
  /** Declares the sums of a layer, and sets them to the bias. */
  accumulators(layer: LayerPlan, node: MacNode): [declaration: string, start: string];
  /** One product is added to sum `j`. */
  multiplyAdd(layer: LayerPlan, node: MacNode, j: string, x: string, k: string): string;
  /** Activation and the one cast: sum `j` goes to `target`. */
  finish(layer: LayerPlan, node: MacNode, j: string, target: string): string;
  add(layer: LayerPlan, node: AddNode, terms: readonly string[], target: string): string;
  activate(layer: LayerPlan, node: ActivationNode, x: string, target: string): string;
  /** sum over n cells times the reciprocal of n, cast. */
  average(layer: LayerPlan, node: AvgPool2dNode, sum: string, count: string, target: string): string;
  softmax(layer: LayerPlan): string;
}

/** C type of a node's result: `input_t` or `layerN_t`. */
export const typeName = (node: QfxNode): string => (node.op === 'input' ? 'input_t' : `layer${node.id}_t`);
/** Macro with the number of elements of a node's result: `N_INPUT` or `N_LAYER_N`. */
export const sizeName = (node: QfxNode): string => (node.op === 'input' ? 'N_INPUT' : `N_LAYER_${node.id}`);
/** Name of a constant of one layer: `LAYERN_NAME`. */
export const constant = (layer: LayerPlan, name: string): string => `LAYER${layer.id}_${name}`;

/** The parameters of a layer's function: one array for each input, one for the result. */
export function parameters(layer: LayerPlan): string[] {
  const many = layer.sources.length > 1;
  return [
    ...layer.sources.map((node, i) => `const ${typeName(node)} in${many ? i + 1 : ''}[${sizeName(node)}]`),
    `${typeName(layer.node)} out[${sizeName(layer.node)}]`,
  ];
}

/** The whole text of one layer: comment, casts, function. */
export function layerFunction(layer: LayerPlan, dialect: Dialect): string {
  return lines(
    dialect.prelude(layer),
    comment(title(layer)),
    wrapCall(`static void ${layer.fn}(`, parameters(layer), ')'),
    '{',
    indent(body(layer, dialect)),
    '}',
  );
}

/** The whole text of the function that copies the result of `source` to each of its readers. */
export function cloneFunction(clone: ClonePlan, source: QfxNode): string {
  const type = typeName(source);
  const size = sizeName(source);
  const outs = clone.to.map((_, i) => `out${i + 1}`);
  return lines(
    `/* Under DATAFLOW an array has one reader: ${clone.to.length} readers get their own copy. */`,
    wrapCall(
      `static void clone_${clone.from.layer}(`,
      [`const ${type} in[${size}]`, ...outs.map((out) => `${type} ${out}[${size}]`)],
      ')',
    ),
    '{',
    indent(loop('i', size, '#pragma HLS PIPELINE II=1', ...outs.map((out) => `${out}[i] = in[i];`))),
    '}',
  );
}

function title({ node, sources, id }: LayerPlan): string {
  const shape = (n: QfxNode): string => n.shape.join(' x ');
  const details = [`${node.op} ${sources.map(shape).join(' + ')} -> ${shape(node)}`];
  if (isMac(node)) {
    details.push(`weights ${describe(node.weightType)}`);
    if (node.biasType) details.push(`bias ${describe(node.biasType)}`);
    details.push(`sums ${describe(node.accumulator)}`);
  }
  if ('activation' in node && node.activation !== 'linear') details.push(node.activation);
  details.push(`result ${describe(node.type)}`);
  return `Layer ${id}, ${node.name}: ${details.join(', ')}`;
}

function body(layer: LayerPlan, dialect: Dialect): string {
  const { node } = layer;
  switch (node.op) {
    case 'dense':
      return dense(layer, node, dialect);
    case 'conv2d':
    case 'depthwiseConv2d':
      return layer.parallel > 1 || isPointwise(node.window)
        ? gatheredConvolution(layer, node, dialect)
        : streamedConvolution(layer, node, dialect);
    case 'batchNorm':
      return batchNorm(layer, node, dialect);
    case 'activation':
      return elementwise(layer, dialect.activate(layer, node, 'in[i]', 'out[i]'));
    case 'add':
      return elementwise(
        layer,
        dialect.add(
          layer,
          node,
          layer.sources.map((_, i) => `in${i + 1}[i]`),
          'out[i]',
        ),
      );
    case 'maxPool2d':
      return maxPool(layer, node);
    case 'avgPool2d':
      return averagePool(layer, node, dialect);
    case 'softmax':
      return dialect.softmax(layer);
    case 'argmax':
      return argmax(layer);
    case 'zeroPad2d':
      return zeroPad(layer, node);
    case 'concat':
      return concat(node);
    default:
      throw new Error(`${node.op} has no function of its own`);
  }
}

/** Arrays beyond this size are split over their channels: complete partitioning would take HLS hours. */
const COMPLETE_LIMIT = 1024;

/** How an array between two layers is partitioned; the same wherever it is named. */
export function partition(variable: string, node: QfxNode): string {
  const size = sizeOf(node.shape);
  const how = size <= COMPLETE_LIMIT ? 'complete' : `cyclic factor=${node.shape[node.shape.length - 1]}`;
  return `#pragma HLS ARRAY_PARTITION variable=${variable} ${how}`;
}

/** Pragmas on the weights of a layer and on the number of its multipliers. */
function foldingPragmas(layer: LayerPlan, node: MacNode): string[] {
  const { id, reuse, strategy, parallel } = layer;
  const arrays = node.multiplierFree ? [`w${id}_sign`, `w${id}_shift`] : [`w${id}`];
  const out: string[] = [];
  const perPosition = layer.multipliers / parallel;
  if (!node.multiplierFree) out.push(`#pragma HLS ALLOCATION operation instances=mul limit=${layer.multipliers}`);
  if (strategy === 'resource') {
    for (const array of arrays) {
      const dim = node.multiplierFree ? ' dim=2' : '';
      out.push(`#pragma HLS ARRAY_RESHAPE variable=${array} block factor=${perPosition}${dim}`);
      if (reuse > 1) {
        out.push(`#pragma HLS BIND_STORAGE variable=${array} type=rom_1p impl=${reuse > 64 ? 'bram' : 'lutram'}`);
      }
    }
  } else {
    for (const array of arrays) {
      out.push(
        reuse === 1
          ? `#pragma HLS ARRAY_PARTITION variable=${array} complete dim=0`
          : `#pragma HLS ARRAY_PARTITION variable=${array} cyclic factor=${perPosition}${node.multiplierFree ? ' dim=2' : ''}`,
      );
    }
  }
  if (node.bias) out.push(`#pragma HLS ARRAY_PARTITION variable=b${id} complete`);
  return out;
}

/** The declaration of the sums, with what HLS must know about them. */
function accumulators(layer: LayerPlan, node: MacNode, dialect: Dialect): string {
  const [declaration, ...start] = dialect.accumulators(layer, node);
  return lines(
    declaration,
    '#pragma HLS ARRAY_PARTITION variable=acc complete',
    node.multiplierFree && '#pragma HLS BIND_OP variable=acc op=mul impl=fabric',
    ...start,
  );
}

/** All sums of one output position: matrix (or depthwise) times the vector `x`, then activation and cast. */
function matrixVector(
  layer: LayerPlan,
  node: MacNode,
  dialect: Dialect,
  x: string,
  target: (j: string) => string,
): string {
  const nIn = constant(layer, 'N_IN');
  const nOut = constant(layer, 'N_OUT');
  const depthwise = node.op === 'depthwiseConv2d' ? node : undefined;
  const multiplier = constant(layer, 'MULTIPLIER');
  let products: string;
  if (layer.strategy === 'resource') {
    const element = depthwise ? `${x}[k / ${multiplier}]` : `${x}[k / ${nOut}]`;
    products = loop(
      'r',
      constant(layer, 'REUSE_FACTOR'),
      '#pragma HLS PIPELINE II=1',
      loop(
        'm',
        constant(layer, 'MULTIPLIERS'),
        '#pragma HLS UNROLL',
        `const int k = m * ${constant(layer, 'REUSE_FACTOR')} + r; /* word r of block m */`,
        dialect.multiplyAdd(layer, node, `k % ${nOut}`, element, 'k'),
      ),
    );
  } else if (depthwise && depthwise.depthMultiplier > 1) {
    const channels = constant(layer, 'IN_C');
    products = loop(
      'i',
      nIn,
      loop(
        'c',
        channels,
        loop(
          'm',
          multiplier,
          dialect.multiplyAdd(
            layer,
            node,
            `c * ${multiplier} + m`,
            `${x}[i * ${channels} + c]`,
            `(i * ${channels} + c) * ${multiplier} + m`,
          ),
        ),
      ),
    );
  } else if (depthwise) {
    products = loop(
      'i',
      nIn,
      loop('c', nOut, dialect.multiplyAdd(layer, node, 'c', `${x}[i * ${nOut} + c]`, `i * ${nOut} + c`)),
    );
  } else {
    products = loop('i', nIn, loop('j', nOut, dialect.multiplyAdd(layer, node, 'j', `${x}[i]`, `i * ${nOut} + j`)));
  }
  const order = depthwise ? '[kernel position, channel, multiplier]' : '[in, out]';
  return lines(
    accumulators(layer, node, dialect),
    `/* weights are row-major ${order} */`,
    products,
    loop('j', nOut, dialect.finish(layer, node, 'j', target('j'))),
  );
}

function pipeline(layer: LayerPlan): string | false {
  return layer.strategy === 'latency' && `#pragma HLS PIPELINE II=${layer.reuse}`;
}

function dense(layer: LayerPlan, node: DenseNode, dialect: Dialect): string {
  const nIn = constant(layer, 'N_IN');
  const nOut = constant(layer, 'N_OUT');
  const split = layer.strategy === 'latency' && layer.parallelIo && partition('in', layer.sources[0]);
  const pragmas = foldingPragmas(layer, node);
  if (node.rows === 1) {
    return lines(
      pipeline(layer),
      split,
      ...pragmas,
      matrixVector(layer, node, dialect, 'in', (j) => `out[${j}]`),
    );
  }
  const row = `${typeName(layer.sources[0])} x[${nIn}]`;
  return lines(
    ...pragmas,
    loop(
      'row',
      constant(layer, 'ROWS'),
      pipeline(layer),
      `${row};`,
      '#pragma HLS ARRAY_PARTITION variable=x complete',
      loop('i', nIn, `x[i] = in[row * ${nIn} + i];`),
      matrixVector(layer, node, dialect, 'x', (j) => `out[row * ${nOut} + ${j}]`),
    ),
  );
}

function isPointwise({ kernelH, kernelW }: Window2d): boolean {
  return kernelH === 1 && kernelW === 1;
}

const isPadded = ({ padTop, padBottom, padLeft, padRight }: Window2d): boolean =>
  padTop + padBottom + padLeft + padRight > 0;

/** `pixel` at row ih and column iw, zero in the padding. */
function readPixel(layer: LayerPlan, node: { window: Window2d }, target: string): string {
  const at = `in[(ih * ${constant(layer, 'IN_W')} + iw) * ${constant(layer, 'IN_C')} + c]`;
  const type = typeName(layer.sources[0]);
  return isPadded(node.window)
    ? lines(`${type} ${target} = 0;`, `if (inside) ${target} = ${at};`)
    : `const ${type} ${target} = ${at};`;
}

function insideTest(layer: LayerPlan, window: Window2d): string | false {
  if (!isPadded(window)) return false;
  const tests: string[] = [];
  if (window.padTop + window.padBottom > 0) tests.push(`ih >= 0 && ih < ${constant(layer, 'IN_H')}`);
  if (window.padLeft + window.padRight > 0) tests.push(`iw >= 0 && iw < ${constant(layer, 'IN_W')}`);
  return `const int inside = ${tests.join(' && ')};`;
}

const minus = (a: string, b: string, n: number): string => (n > 0 ? `${a} - ${b}` : a);
const times = (a: string, b: string, n: number): string => (n > 1 ? `${a} * ${b}` : a);

/** Reads every pixel once: the rows above come from a line buffer, the columns to the left from the window itself. */
function streamedConvolution(layer: LayerPlan, node: Conv2dNode | DepthwiseConv2dNode, dialect: Dialect): string {
  const c = (name: string): string => constant(layer, name);
  const { window } = node;
  const { kernelH, kernelW, strideH, strideW } = window;
  const type = typeName(layer.sources[0]);
  const tall = kernelH > 1;
  const wide = kernelW > 1;
  const last = `${tall ? `(${c('KERNEL_H')} - 1) * ${c('KERNEL_W')} + ` : ''}${c('KERNEL_W')} - 1`;
  const skip = [
    tall && 'top < 0',
    wide && 'left < 0',
    strideH > 1 && `top % ${c('STRIDE_H')} != 0`,
    strideW > 1 && `left % ${c('STRIDE_W')} != 0`,
  ].filter((test) => test !== false);
  const position = `${strideH > 1 ? `(top / ${c('STRIDE_H')})` : 'top'} * ${c('OUT_W')} + ${strideW > 1 ? `left / ${c('STRIDE_W')}` : 'left'}`;
  return lines(
    tall && `${type} line[${c('KERNEL_H')} - 1][${c('PADDED_W')} * ${c('IN_C')}]${dialect.zeroed};`,
    tall && '#pragma HLS ARRAY_PARTITION variable=line complete dim=1',
    `${type} window[${c('KERNEL_H')} * ${c('KERNEL_W')} * ${c('IN_C')}]${dialect.zeroed};`,
    '#pragma HLS ARRAY_PARTITION variable=window complete',
    ...foldingPragmas(layer, node),
    loop(
      'row',
      c('PADDED_H'),
      loop(
        'col',
        c('PADDED_W'),
        pipeline(layer),
        `const int ih = ${minus('row', c('PAD_TOP'), window.padTop)};`,
        `const int iw = ${minus('col', c('PAD_LEFT'), window.padLeft)};`,
        insideTest(layer, window),
        wide && '/* The window moves one column to the right. */',
        wide &&
          loop(
            'kh',
            c('KERNEL_H'),
            loop(
              'i',
              `(${c('KERNEL_W')} - 1) * ${c('IN_C')}`,
              `window[kh * ${c('KERNEL_W')} * ${c('IN_C')} + i] = window[(kh * ${c('KERNEL_W')} + 1) * ${c('IN_C')} + i];`,
            ),
          ),
        loop(
          'c',
          c('IN_C'),
          readPixel(layer, node, 'pixel'),
          tall &&
            loop(
              'kh',
              `${c('KERNEL_H')} - 1`,
              `window[(kh * ${c('KERNEL_W')} + ${c('KERNEL_W')} - 1) * ${c('IN_C')} + c] = line[kh][col * ${c('IN_C')} + c];`,
            ),
          `window[(${last}) * ${c('IN_C')} + c] = pixel;`,
          kernelH > 2 &&
            loop(
              'kh',
              `${c('KERNEL_H')} - 2`,
              `line[kh][col * ${c('IN_C')} + c] = line[kh + 1][col * ${c('IN_C')} + c];`,
            ),
          tall && `line[${c('KERNEL_H')} - 2][col * ${c('IN_C')} + c] = pixel;`,
        ),
        `const int top = ${minus('row', `(${c('KERNEL_H')} - 1)`, kernelH - 1)};`,
        `const int left = ${minus('col', `(${c('KERNEL_W')} - 1)`, kernelW - 1)};`,
        skip.length > 0 && `if (${skip.join(' || ')}) continue;`,
        `const int position = ${position};`,
        matrixVector(layer, node, dialect, 'window', (j) => `out[position * ${c('N_OUT')} + ${j}]`),
      ),
    ),
  );
}

/** Collects each window from the input array, for several positions at once or where there is nothing to keep. */
function gatheredConvolution(layer: LayerPlan, node: Conv2dNode | DepthwiseConv2dNode, dialect: Dialect): string {
  const c = (name: string): string => constant(layer, name);
  const { window } = node;
  const { strideH, strideW, kernelH, kernelW } = window;
  const type = typeName(layer.sources[0]);
  const single = kernelH * kernelW === 1;
  const gather = lines(
    `const int ih = ${minus(times('oh', c('STRIDE_H'), strideH) + (single ? '' : ' + kh'), c('PAD_TOP'), window.padTop)};`,
    `const int iw = ${minus(times('ow', c('STRIDE_W'), strideW) + (single ? '' : ' + kw'), c('PAD_LEFT'), window.padLeft)};`,
    insideTest(layer, window),
    loop(
      'c',
      c('IN_C'),
      readPixel(layer, node, 'pixel'),
      `window[${single ? '' : `(kh * ${c('KERNEL_W')} + kw) * ${c('IN_C')} + `}c] = pixel;`,
    ),
  );
  return lines(
    layer.parallel > 1 && partition('in', layer.sources[0]),
    ...foldingPragmas(layer, node),
    loop(
      'position',
      `${c('OUT_H')} * ${c('OUT_W')}`,
      pipeline(layer),
      layer.parallel > 1 && `#pragma HLS UNROLL factor=${layer.parallel}`,
      `const int oh = position / ${c('OUT_W')};`,
      `const int ow = position % ${c('OUT_W')};`,
      `${type} window[${c('KERNEL_H')} * ${c('KERNEL_W')} * ${c('IN_C')}];`,
      '#pragma HLS ARRAY_PARTITION variable=window complete',
      single ? gather : loop('kh', c('KERNEL_H'), loop('kw', c('KERNEL_W'), gather)),
      matrixVector(layer, node, dialect, 'window', (j) => `out[position * ${c('N_OUT')} + ${j}]`),
    ),
  );
}

function batchNorm(layer: LayerPlan, node: BatchNormNode, dialect: Dialect): string {
  const nOut = constant(layer, 'N_OUT');
  const positions = matrixSize(node).positions;
  const at = positions > 1 ? (j: string) => `position * ${nOut} + ${j}` : (j: string) => j;
  const work = lines(
    accumulators(layer, node, dialect),
    loop(
      'j',
      nOut,
      '#pragma HLS UNROLL',
      dialect.multiplyAdd(layer, node, 'j', `in[${at('j')}]`, 'j'),
      dialect.finish(layer, node, 'j', `out[${at('j')}]`),
    ),
  );
  return lines(
    ...foldingPragmas(layer, node),
    positions > 1 ? loop('position', constant(layer, 'POSITIONS'), '#pragma HLS PIPELINE II=1', work) : work,
  );
}

/** How many elements an element-wise layer handles in one clock: its channels. */
function elementwise(layer: LayerPlan, statement: string): string {
  const channels = layer.node.shape[layer.node.shape.length - 1];
  return loop(
    'i',
    sizeName(layer.node),
    '#pragma HLS PIPELINE II=1',
    channels > 1 && `#pragma HLS UNROLL factor=${channels}`,
    statement,
  );
}

/** Loops over the windows of a pooling layer; `cell` runs for every valid cell and channel. */
function pooling(
  layer: LayerPlan,
  node: MaxPool2dNode | AvgPool2dNode,
  start: (first: string) => string,
  cell: (element: string) => string,
  end: string,
  counted: boolean,
): string {
  const c = (name: string): string => constant(layer, name);
  const { window } = node;
  const padded = isPadded(window);
  const ih = minus(`${times('oh', c('STRIDE_H'), window.strideH)} + kh`, c('PAD_TOP'), window.padTop);
  const iw = minus(`${times('ow', c('STRIDE_W'), window.strideW)} + kw`, c('PAD_LEFT'), window.padLeft);
  // The first valid cell: rows and columns before the image are clipped.
  const clip = (text: string, pad: number): string => (pad > 0 ? `(${text} > 0 ? ${text} : 0)` : text);
  const row0 = clip(minus(times('oh', c('STRIDE_H'), window.strideH), c('PAD_TOP'), window.padTop), window.padTop);
  const column0 = clip(
    minus(times('ow', c('STRIDE_W'), window.strideW), c('PAD_LEFT'), window.padLeft),
    window.padLeft,
  );
  const inside = insideTest(layer, window);
  return loop(
    'oh',
    c('OUT_H'),
    loop(
      'ow',
      c('OUT_W'),
      '#pragma HLS PIPELINE II=1',
      start(`in[(${row0} * ${c('IN_W')} + ${column0}) * ${c('IN_C')} + c]`),
      loop(
        'kh',
        c('KERNEL_H'),
        '#pragma HLS UNROLL',
        loop(
          'kw',
          c('KERNEL_W'),
          '#pragma HLS UNROLL',
          `const int ih = ${ih};`,
          `const int iw = ${iw};`,
          inside,
          padded && 'if (!inside) continue;',
          counted && 'count++;',
          loop('c', c('IN_C'), cell(`in[(ih * ${c('IN_W')} + iw) * ${c('IN_C')} + c]`)),
        ),
      ),
      end,
    ),
  );
}

function maxPool(layer: LayerPlan, node: MaxPool2dNode): string {
  const c = (name: string): string => constant(layer, name);
  const type = typeName(layer.node);
  return pooling(
    layer,
    node,
    (first) =>
      lines(
        `${type} best[${c('IN_C')}];`,
        '#pragma HLS ARRAY_PARTITION variable=best complete',
        loop('c', c('IN_C'), `best[c] = ${first};`),
      ),
    (element) => lines(`const ${type} x = ${element};`, 'if (x > best[c]) best[c] = x;'),
    loop('c', c('IN_C'), `out[(oh * ${c('OUT_W')} + ow) * ${c('IN_C')} + c] = best[c];`),
    false,
  );
}

function averagePool(layer: LayerPlan, node: AvgPool2dNode, dialect: Dialect): string {
  const c = (name: string): string => constant(layer, name);
  const counted = node.reciprocals.length > 1;
  return pooling(
    layer,
    node,
    () =>
      lines(
        counted && 'int count = 0;',
        `accum${layer.id}_t sum[${c('IN_C')}];`,
        '#pragma HLS ARRAY_PARTITION variable=sum complete',
        loop('c', c('IN_C'), 'sum[c] = 0;'),
      ),
    (element) => `sum[c] += ${element};`,
    loop(
      'c',
      c('IN_C'),
      dialect.average(layer, node, 'sum[c]', 'count', `out[(oh * ${c('OUT_W')} + ow) * ${c('IN_C')} + c]`),
    ),
    counted,
  );
}

function argmax(layer: LayerPlan): string {
  const length = constant(layer, 'LENGTH');
  return loop(
    'row',
    constant(layer, 'ROWS'),
    '#pragma HLS PIPELINE II=1',
    'int best = 0;',
    loop('i', length, block(`if (in[row * ${length} + i] > in[row * ${length} + best])`, 'best = i;')),
    `out[row] = best;`,
  );
}

function zeroPad(layer: LayerPlan, node: ZeroPad2dNode): string {
  const c = (name: string): string => constant(layer, name);
  return loop(
    'row',
    c('OUT_H'),
    loop(
      'col',
      c('OUT_W'),
      '#pragma HLS PIPELINE II=1',
      `const int ih = ${minus('row', c('PAD_TOP'), node.padTop)};`,
      `const int iw = ${minus('col', c('PAD_LEFT'), node.padLeft)};`,
      `const int inside = ih >= 0 && ih < ${c('IN_H')} && iw >= 0 && iw < ${c('IN_W')};`,
      loop(
        'c',
        c('IN_C'),
        '#pragma HLS UNROLL',
        `${typeName(node)} pixel = 0;`,
        `if (inside) pixel = in[(ih * ${c('IN_W')} + iw) * ${c('IN_C')} + c];`,
        `out[(row * ${c('OUT_W')} + col) * ${c('IN_C')} + c] = pixel;`,
      ),
    ),
  );
}

function concat(node: ConcatNode): string {
  const total = node.chunks.reduce((a, b) => a + b, 0);
  let offset = 0;
  const copies = node.chunks.map((chunk, i) => {
    const copy = loop(
      'i',
      chunk,
      '#pragma HLS PIPELINE II=1',
      node.outer > 1
        ? `out[block * ${total} + ${offset} + i] = in${i + 1}[block * ${chunk} + i];`
        : `out[${offset} + i] = in${i + 1}[i];`,
    );
    offset += chunk;
    return copy;
  });
  return node.outer > 1 ? loop('block', node.outer, ...copies) : lines(...copies);
}

/** Constants of a layer for parameters.h: sizes, folding, shifts. */
export function layerConstants(layer: LayerPlan): [string, number | string][] {
  const { node } = layer;
  const out: [string, number | string][] = [];
  if ('window' in node) {
    const w = node.window;
    out.push(['IN_H', w.inH], ['IN_W', w.inW], ['IN_C', w.inC], ['OUT_H', w.outH], ['OUT_W', w.outW]);
    out.push(['KERNEL_H', w.kernelH], ['KERNEL_W', w.kernelW], ['STRIDE_H', w.strideH], ['STRIDE_W', w.strideW]);
    out.push(['PAD_TOP', w.padTop], ['PAD_LEFT', w.padLeft]);
    if (isMac(node)) {
      out.push(['PADDED_H', w.inH + w.padTop + w.padBottom], ['PADDED_W', w.inW + w.padLeft + w.padRight]);
    }
  }
  if (node.op === 'depthwiseConv2d') out.push(['MULTIPLIER', node.depthMultiplier]);
  if (node.op === 'zeroPad2d') {
    const [inH, inW, inC] = inputImage(node);
    out.push(['IN_H', inH], ['IN_W', inW], ['IN_C', inC], ['OUT_H', node.shape[0]], ['OUT_W', node.shape[1]]);
    out.push(['PAD_TOP', node.padTop], ['PAD_LEFT', node.padLeft]);
  }
  if (isMac(node)) {
    const { nIn, nOut, positions } = matrixSize(node);
    out.push(['N_IN', nIn], ['N_OUT', nOut]);
    if (node.op === 'dense') out.push(['ROWS', node.rows]);
    if (node.op === 'batchNorm') out.push(['POSITIONS', positions]);
    out.push(['REUSE_FACTOR', layer.reuse], ['MULTIPLIERS', layer.multipliers / layer.parallel]);
    out.push(['PARALLELIZATION_FACTOR', layer.parallel], ['STRATEGY', `STRATEGY_${layer.strategy.toUpperCase()}`]);
    out.push(['PRODUCT_SHIFT', node.productShift], ['BIAS_SHIFT', node.biasShift]);
    if (node.multiplierFree) out.push(['TERMS', node.multiplierFree.k]);
  }
  if (node.op === 'softmax' || node.op === 'argmax') out.push(['ROWS', node.rows], ['LENGTH', node.length]);
  if (node.op === 'softmax') out.push(['EXP_SHIFT', node.expShift], ['INV_SHIFT', node.invShift]);
  return out;
}

/** The image before padding; its node may be a reshape, of which `sources` knows nothing. */
function inputImage(node: ZeroPad2dNode): number[] {
  return [node.shape[0] - node.padTop - node.padBottom, node.shape[1] - node.padLeft - node.padRight, node.shape[2]];
}
