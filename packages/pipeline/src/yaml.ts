import { didYouMean, MatforgeError, readTextFile, refuse } from '@matforge/core';
import { isMap, isScalar, isSeq, LineCounter, type Node, parseDocument } from 'yaml';
import { type At, type Pipeline, pipeline, validate } from './pipeline.ts';
import type { Stage, StageFactory } from './stage.ts';
import { stages } from './stages/index.ts';

/** A pipeline from a YAML file. */
export interface PipelineFile {
  readonly pipeline: Pipeline;
  /** The text of the file. */
  readonly source: string;
}

/**
 * Reads and checks a pipeline file: `name`, `seed`, and `stages`, a list of entries `stage: { options }`.
 *
 * @param from directory that packages are looked up from.
 * @throws MatforgeError that names the file and the line.
 */
export async function readPipeline(path: string, from: string): Promise<PipelineFile> {
  const source = await readTextFile(path);
  return { pipeline: await parsePipeline(source, path, from), source };
}

/** {@link readPipeline} of a text; `path` is for messages. */
export async function parsePipeline(source: string, path: string, from: string): Promise<Pipeline> {
  const lines = new LineCounter();
  const document = parseDocument(source, { lineCounter: lines });
  const lineOf = (node: unknown): string => {
    const offset = (node as Node | null)?.range?.[0];
    return offset === undefined ? path : `${path}:${lines.linePos(offset).line}`;
  };
  const fault = document.errors[0];
  if (fault) refuse(`${path}:${lines.linePos(fault.pos[0]).line}`, fault.message.split('\n')[0]);
  const root = document.contents;
  if (!isMap(root)) return refuse(path, 'must be a map with "name", "seed" and "stages"');
  const known = ['name', 'seed', 'stages'];
  for (const { key } of root.items) {
    const name = String(isScalar(key) ? key.value : key);
    if (known.includes(name)) continue;
    const near = didYouMean(name, known);
    refuse(
      lineOf(key),
      `unknown key "${name}"${near ? `; did you mean "${near}"?` : `; known keys: ${known.join(', ')}`}`,
    );
  }
  const list = root.get('stages', true);
  if (!isSeq(list)) return refuse(lineOf(list ?? root), '"stages" must be a list');
  const made: Stage[] = list.items.map((item) => {
    const [entry] = isMap(item) ? item.items : [];
    if (!isMap(item) || item.items.length !== 1 || !isScalar(entry.key)) {
      return refuse(lineOf(item), 'a stage is one entry "name: { options }"');
    }
    const name = String(entry.key.value);
    const factory = (stages as unknown as Record<string, StageFactory<never> | undefined>)[name];
    if (!factory) {
      const near = didYouMean(name, Object.keys(stages));
      return refuse(
        lineOf(entry.key),
        `unknown stage "${name}"${near ? `; did you mean "${near}"?` : `; stages: ${Object.keys(stages).join(', ')}`}`,
      );
    }
    try {
      return factory((isMap(entry.value) ? entry.value.toJSON() : {}) as never);
    } catch (error) {
      if (!(error instanceof MatforgeError)) throw error;
      const path_ = error.field.split('.').slice(1);
      return refuse(
        lineOf(document.getIn(['stages', list.items.indexOf(item), name, ...path_], true) ?? entry.key),
        error.message,
        { cause: error },
      );
    }
  });
  const at: At = (index, below = []) => {
    const name = made[index].definition.name;
    const full = ['stages', index, name, ...below];
    for (let length = full.length; length > 1; length--) {
      const node = document.getIn(full.slice(0, length), true);
      if (node) return lineOf(node);
    }
    return path;
  };
  const name = root.get('name');
  const seed = root.get('seed') ?? 0;
  if (typeof name !== 'string') refuse(lineOf(root.get('name', true) ?? root), '"name" must be a text');
  if (typeof seed !== 'number' || !Number.isInteger(seed))
    refuse(lineOf(root.get('seed', true)), `"seed" must be an integer, got ${String(seed)}`);
  const result = pipeline({ name: name as string, seed: seed as number }, ...made);
  await validate(result, from, at);
  return result;
}
