export { mobyDick, stateOfTheUnion } from './books.ts';
export { type CsvOptions, csv } from './csv.ts';
export {
  type ArraysOptions,
  arrays,
  type Batch,
  type BatchOptions,
  createDataset,
  type Dataset,
  type Feature,
  type Features,
  type RowSource,
  type RowValues,
} from './dataset.ts';
export type { FileSource } from './files.ts';
export { type IdxArray, type IdxOptions, idx, readIdx } from './idx.ts';
export { fashionMnist, mnist, type TrainTest } from './images.ts';
export { type JsonLinesOptions, jsonLines, readJsonLines } from './json-lines.ts';
export type { RecordOptions } from './records.ts';
export { type TextOptions, text, textFile } from './text.ts';
