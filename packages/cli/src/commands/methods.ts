import { didYouMean, refuse } from '@matforge/core';
import { installedMethods } from '@matforge/pipeline';
import * as z from 'zod';
import { EXIT, type Session } from '../program.ts';

/** `matforge methods [method]` */
export async function listMethods({ output, from }: Session, wanted: string | undefined): Promise<number> {
  const listed = await installedMethods(from);
  if (wanted === undefined) {
    const rows = listed.map(({ name, version, method: { info } }) => ({
      method: info.id,
      kind: info.kind,
      family: info.family,
      package: `${name}@${version}`,
      paper: `${info.paper.title} (${info.paper.arxiv ? `arXiv ${info.paper.arxiv}, ` : ''}${info.paper.year})`,
    }));
    output.result(rows, () => {
      if (rows.length === 0) output.line('no methods are installed here; try: npm i @matforge/core @matforge/lora');
      else output.table(rows);
    });
    return EXIT.done;
  }
  const found = listed.find(({ method }) => method.info.id === wanted);
  if (!found) {
    const near = didYouMean(
      wanted,
      listed.map(({ method }) => method.info.id),
    );
    return refuse(
      'method',
      `"${wanted}" is not installed${near ? `; did you mean "${near}"?` : `. Install it: npm i @matforge/${wanted}`}`,
    );
  }
  const schema = z.toJSONSchema(found.method.config as unknown as z.ZodType, { unrepresentable: 'any', io: 'input' });
  output.result({ ...found.method.info, package: found.name, options: schema }, () => {
    const { info } = found.method;
    output.heading(`${info.title} (${found.name})`);
    output.line(`${info.paper.title}${info.paper.arxiv ? `, arXiv ${info.paper.arxiv}` : ''}, ${info.paper.year}`);
    output.line();
    output.table(
      Object.entries((schema.properties ?? {}) as Record<string, OptionSchema>).map(([option, accepted]) => ({
        option,
        accepts: accepts(accepted),
        default: accepted.default === undefined ? '' : JSON.stringify(accepted.default),
      })),
    );
  });
  return EXIT.done;
}

interface OptionSchema {
  type?: string;
  enum?: unknown[];
  const?: unknown;
  anyOf?: OptionSchema[];
  default?: unknown;
}

function accepts({ type, enum: values, const: constant, anyOf }: OptionSchema): string {
  if (anyOf) return anyOf.map(accepts).join(' | ');
  if (constant !== undefined) return JSON.stringify(constant);
  return values ? values.map((value) => JSON.stringify(value)).join(' | ') : (type ?? '');
}
