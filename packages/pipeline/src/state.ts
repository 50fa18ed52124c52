import type { Dataset } from '@matforge/datasets';
import type { Tokenizer } from '@matforge/models';
import type * as tf from '@tensorflow/tfjs';

/** A named set of data. */
export interface NamedData {
  readonly task: 'classification' | 'language';
  readonly train: Dataset;
  readonly test: Dataset;
  /** Token ids of the test text, for perplexity. */
  readonly testTokens?: Int32Array;
}

/** What flows from stage to stage. */
export interface State {
  /** Data by name. */
  readonly data: Readonly<Record<string, NamedData>>;
  readonly model?: tf.LayersModel;
  readonly tokenizer?: Tokenizer;
  /** Name of the adapter that later stages work on. */
  readonly adapter?: string;
  /** What the owner of a watermark keeps. Never written into a published directory. */
  readonly watermark?: unknown;
  /** The frozen integer graph. */
  readonly graph?: unknown;
  /** Directory of the emitted C project. */
  readonly project?: string;
}

/** The state before the first stage. */
export const emptyState: State = { data: {} };
