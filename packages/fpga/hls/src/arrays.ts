import { type FixedType, fractionBits, isMac, type MacNode, type RawTensor, rawBigints } from '@matforge/qfx';
import { averageProduct } from './c99.ts';
import type { Flavour } from './options.ts';
import { describe, type LayerPlan, type Plan } from './plan.ts';
import { comment as blockComment, decimal, lines, literalTable } from './text.ts';

/** One constant array in a file of its own. */
export interface ArrayFile {
  /** Below firmware/. */
  readonly path: string;
  readonly text: string;
}

/** Weights, biases, scales, softmax tables and reciprocals of all layers. */
export function arrayFiles(plan: Plan, flavours: readonly Flavour[]): ArrayFile[] {
  return plan.layers.flatMap((layer) => {
    const { node, id } = layer;
    if (isMac(node)) return macFiles(plan, layer, node, flavours);
    if (node.op === 'softmax') {
      const table = (name: string, tensor: RawTensor, words: string): ArrayFile =>
        file(
          plan,
          `tables/${name}.h`,
          `Layer ${id}, ${node.name}: ${words}; raw integers, value = raw * 2^-16`,
          {
            c: () => array('int32_t', name, tensor.data.length, tensor.data.map(String)),
            hls: () => array('ap_uint<17>', name, tensor.data.length, tensor.data.map(String)),
          },
          flavours,
        );
      return [
        table(
          `exp_table${id}`,
          node.expTable,
          `exp(-(k << ${node.expShift}) * 2^${-fractionBits(layer.sources[0].type)})`,
        ),
        table(`inv_table${id}`, node.invTable, `65536 / (65536 + (k << ${node.invShift}))`),
      ];
    }
    if (node.op === 'avgPool2d') {
      const { scaled } = averageProduct(layer.sources[0].type, node);
      const grid = Math.max(...node.reciprocals.map((r) => r.fraction));
      const byCount = Array.from({ length: scaled.length > 1 ? scaled[scaled.length - 1].count + 1 : 1 }, (_, n) =>
        String(scaled.length > 1 ? (scaled.find(({ count }) => count === n)?.raw ?? 0) : scaled[0].raw),
      );
      return [
        file(
          plan,
          `tables/recip${id}.h`,
          `Layer ${id}, ${node.name}: reciprocals of ${scaled.map(({ count }) => count).join(', ')} cells; ` +
            (scaled.length > 1 ? `C indexes by the count, value = raw * 2^-${grid}` : `value = raw * 2^-${grid}`),
          {
            c: () => array('int64_t', `recip${id}`, byCount.length, byCount),
            hls: () =>
              lines(
                ...node.reciprocals.map(({ count, raw, fraction }) => {
                  const W = node.reciprocalBits + 2;
                  return `static const ap_ufixed<${W}, ${W - fraction}> recip${id}_${count} = ${decimal(raw, fraction)};`;
                }),
              ),
          },
          flavours,
        ),
      ];
    }
    return [];
  });
}

function macFiles(plan: Plan, layer: LayerPlan, node: MacNode, flavours: readonly Flavour[]): ArrayFile[] {
  const { id } = layer;
  const scale = node.op === 'batchNorm';
  const out: ArrayFile[] = [];
  if (node.multiplierFree) {
    out.push(termFile(plan, layer, node, flavours));
  } else {
    // The scale of a batch norm is kept in a file of its own name; in the code it is the layer's weight.
    out.push(
      tensorFile(
        plan,
        layer,
        `${scale ? 's' : 'w'}${id}`,
        `w${id}`,
        `weight${id}_t`,
        node.weights,
        node.weightType,
        scale ? 'scale' : 'weights',
        flavours,
      ),
    );
  }
  if (node.bias && node.biasType) {
    out.push(
      tensorFile(
        plan,
        layer,
        `b${id}`,
        `b${id}`,
        `bias${id}_t`,
        node.bias,
        node.biasType,
        scale ? 'offset' : 'bias',
        flavours,
      ),
    );
  }
  return out;
}

/** `shape [3, 3, 1, 16], row-major; ap_fixed<8,1>; min -0.5, max 0.5, 12 zeros`. */
function statistics(tensor: RawTensor, type: FixedType): string {
  const F = fractionBits(type);
  let least: number | bigint;
  let most: number | bigint;
  let zeros = 0;
  if (typeof tensor.data[0] === 'number') {
    const data = tensor.data as readonly number[];
    [least, most] = [data[0], data[0]];
    for (const v of data) {
      if (v < least) least = v;
      if (v > most) most = v;
      if (v === 0) zeros++;
    }
  } else {
    const data = rawBigints(tensor);
    [least, most] = [data[0], data[0]];
    for (const v of data) {
      if (v < least) least = v;
      if (v > most) most = v;
      if (v === 0n) zeros++;
    }
  }
  return (
    `shape [${tensor.shape.join(', ')}], row-major; ${describe(type)}; ` +
    `min ${decimal(least, F)}, max ${decimal(most, F)}, ${zeros} of ${tensor.data.length} are zero`
  );
}

function tensorFile(
  plan: Plan,
  layer: LayerPlan,
  path: string,
  name: string,
  type: string,
  tensor: RawTensor,
  fixed: FixedType,
  role: string,
  flavours: readonly Flavour[],
): ArrayFile {
  return file(
    plan,
    `weights/${path}.h`,
    `Layer ${layer.id}, ${layer.node.name}: ${role}, ${statistics(tensor, fixed)}`,
    {
      c: () => array(type, name, tensor.data.length, integerLiterals(tensor, fixed)),
      hls: () =>
        array(
          type,
          name,
          tensor.data.length,
          literals(tensor, (raw) => decimal(raw, fractionBits(fixed))),
        ),
    },
    flavours,
  );
}

function integerLiterals(tensor: RawTensor, type: FixedType): string[] {
  if (type.W <= 31) return literals(tensor, String);
  const suffix = type.signed ? 'INT64_C' : 'UINT64_C';
  return literals(tensor, (raw) =>
    BigInt(raw) === -(1n << 63n) ? '(-INT64_C(9223372036854775807) - 1)' : `${suffix}(${raw})`,
  );
}

/** Text of every element; equal integers share one string. */
function literals(tensor: RawTensor, text: (raw: number | string) => string): string[] {
  const memo = new Map<number | string, string>();
  return (tensor.data as readonly (number | string)[]).map((raw) => {
    let literal = memo.get(raw);
    if (literal === undefined) {
      literal = text(raw);
      memo.set(raw, literal);
    }
    return literal;
  });
}

/** Signs and shifts of a multiplier-free layer, one row for each of the k terms; the shifts include the alignment. */
function termFile(plan: Plan, layer: LayerPlan, node: MacNode, flavours: readonly Flavour[]): ArrayFile {
  const { id } = layer;
  const { k, digits, signs, shifts } = node.multiplierFree!;
  const size = node.weights.data.length;
  const row = (values: readonly number[], term: number, add: number): string =>
    `    {\n${literalTable(Array.from({ length: size }, (_, i) => String(values[i * k + term] + add)))}\n    }`;
  const table = (type: string, name: string, values: readonly number[], add: number): string =>
    `static const ${type} ${name}[${k}][${size}] = {\n${Array.from({ length: k }, (_, t) => row(values, t, add)).join(',\n')}\n};`;
  const both = (sign: string, shift: string) => (): string =>
    lines(table(sign, `w${id}_sign`, signs, 0), table(shift, `w${id}_shift`, shifts, node.productShift));
  const aligned = node.productShift > 0 ? `, shifts include ${node.productShift} for alignment with the bias` : '';
  const comment =
    `Layer ${id}, ${node.name}: weights as ${k} ${digits} power${k > 1 ? 's' : ''} of two, sign * 2^shift (sign 0: no term)` +
    `${aligned}; ${statistics(node.weights, node.weightType)}`;
  return file(
    plan,
    `weights/w${id}.h`,
    comment,
    { c: both('int8_t', 'uint8_t'), hls: both('signed char', 'unsigned char') },
    flavours,
  );
}

function array(type: string, name: string, size: number, literals: readonly string[]): string {
  return `static const ${type} ${name}[${size}] = {\n${literalTable(literals)}\n};`;
}

/** A header that holds the array in the form of each flavour that was asked for. */
function file(
  plan: Plan,
  path: string,
  comment: string,
  forms: { c: () => string; hls: () => string },
  flavours: readonly Flavour[],
): ArrayFile {
  const guard = `${plan.settings.name}_${path}`.toUpperCase().replace(/[^A-Z0-9]/g, '_');
  const body =
    flavours.length === 2
      ? lines('#ifdef __cplusplus', forms.hls(), '#else', forms.c(), '#endif')
      : forms[flavours[0]]();
  return {
    path,
    text: `${lines(blockComment(comment), `#ifndef ${guard}`, `#define ${guard}`, '', body, '', '#endif')}\n`,
  };
}
