/** Columns of the emitted sources, as far as names allow. */
const WIDTH = 116;

/** Prefixes every non-empty line with `levels` steps of four blanks. Pragmas stay in column 0, as HLS code has them. */
export function indent(text: string, levels = 1): string {
  const blanks = '    '.repeat(levels);
  return text.replace(/^(?=[^\n#])/gm, blanks);
}

/** Joins the parts that are there, one per line. */
export function lines(...parts: (string | false | undefined)[]): string {
  return parts.filter((part) => typeof part === 'string').join('\n');
}

/** `for (int i = 0; i < bound; i++)` around a body, with braces where the body has more than one statement. */
export function loop(index: string, bound: string | number, ...body: (string | false | undefined)[]): string {
  return block(`for (int ${index} = 0; ${index} < ${bound}; ${index}++)`, ...body);
}

/** A head and its body, indented; braces where the body has more than one line. */
export function block(head: string, ...body: (string | false | undefined)[]): string {
  const text = lines(...body);
  return /[\n]/.test(text) ? `${head} {\n${indent(text)}\n}` : `${head}\n${indent(text)}`;
}

/** The number raw * 2^-fraction with all its digits; it is a dyadic rational, so the digits end. */
export function decimal(raw: number | bigint | string, fraction: number): string {
  let n = BigInt(raw);
  const sign = n < 0n ? '-' : '';
  if (n < 0n) n = -n;
  if (fraction <= 0) return `${sign}${n << BigInt(-fraction)}.0`;
  const digits = (n * 5n ** BigInt(fraction)).toString().padStart(fraction + 1, '0');
  const point = digits.length - fraction;
  const tail = digits.slice(point).replace(/0+$/, '');
  return `${sign}${digits.slice(0, point)}.${tail === '' ? '0' : tail}`;
}

/** A C identifier made from a layer's name. */
export function identifier(name: string): string {
  return name.replace(/[^A-Za-z0-9_]/g, '_');
}

/** A table of literals, as many to a line as fit. Written for millions of them: no string grows by pieces. */
export function literalTable(items: readonly string[]): string {
  let longest = 1;
  for (const item of items) if (item.length > longest) longest = item.length;
  const perRow = Math.max(1, Math.floor(WIDTH / (longest + 2)) - 1);
  const rows: string[] = [];
  for (let i = 0; i < items.length; i += perRow) rows.push(items.slice(i, i + perRow).join(', '));
  return `    ${rows.join(',\n    ')}`;
}

/** A block comment, broken into lines. The text of the user cannot end it. */
export function comment(text: string): string {
  const words = text.replace(/\/\*|\*\//g, ' ').split(/\s+/);
  const rows: string[] = [];
  for (const word of words) {
    const row = rows[rows.length - 1];
    if (row !== undefined && row.length + word.length + 1 <= WIDTH) rows[rows.length - 1] = `${row} ${word}`;
    else rows.push(word);
  }
  return rows.length === 1 ? `/* ${rows[0]} */` : `/* ${rows.join('\n * ')} */`;
}

/** `head a, b, c tail`, with arguments on lines of their own where the line would be too long. */
export function wrapCall(head: string, args: readonly string[], tail: string): string {
  const single = `${head}${args.join(', ')}${tail}`;
  return single.length <= WIDTH ? single : `${head}\n${args.map((arg) => `    ${arg}`).join(',\n')}${tail}`;
}
