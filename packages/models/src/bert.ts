import { ensure, option, parseConfig, refuse } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import {
  add,
  apply,
  dense,
  embedding,
  type HuggingFaceConfig,
  initialize,
  type Node,
  rememberConfig,
  tokenInput,
} from './architecture.ts';
import { activationNames } from './functions.ts';
import {
  MatforgeActivation,
  MatforgeAttention,
  MatforgeFirstToken,
  MatforgeLayerNorm,
  MatforgePositions,
  MatforgeTiedHead,
} from './layers.ts';

/** Options of {@link bert}. */
export const bertOptions = z.object({
  /** Number of tokens. */
  vocabSize: option.count(),
  hiddenSize: option.count(),
  /** Width of the feed-forward part. Default 4 · hiddenSize. */
  intermediateSize: option.count().optional(),
  /** Number of blocks. */
  layers: option.count(),
  /** Heads; must divide `hiddenSize`. */
  heads: option.count(),
  /** Rows of the position table: the longest text. */
  maxPositions: option.count().default(512),
  /** Number of token types (segments). */
  typeVocabSize: option.count().default(2),
  layerNormEps: option.positive().default(1e-12),
  activation: z.enum(activationNames).default('gelu'),
  /** `none`: hidden states and pooled output; `masked-lm`: token scores; `classification`: class scores. */
  head: z.enum(['none', 'masked-lm', 'classification']).default('masked-lm'),
  /** Classes of the classification head. */
  classes: option.count().default(2),
  /** Standard deviation of the initial weights. */
  initializerRange: option.positive().default(0.02),
  seed: option.seed().default(0),
});

/** Options of {@link bert}, as given. */
export type BertOptions = z.input<typeof bertOptions>;

type Parsed = z.output<typeof bertOptions>;

/**
 * BERT (Devlin et al. 2019): attention in both directions, LayerNorm after each part, learned positions, token types.
 *
 * Inputs `input_ids`, `attention_mask` (1 token, 0 padding) and `token_type_ids`, each [batch, positions] int32. Outputs:
 * logits [batch, positions, vocabSize] (`masked-lm`), logits [batch, classes] (`classification`), or hidden states
 * [batch, positions, hiddenSize] and pooled output [batch, hiddenSize] (`none`). Layers are named like the checkpoint's
 * modules: `bert.encoder.layer.0.attention.self.query`, …; without a head they have no `bert.`, as in its checkpoints.
 *
 * @throws MatforgeError naming the option that is wrong.
 */
export function bert(options: BertOptions): tf.LayersModel {
  const parsed = parseConfig('bert', bertOptions, options);
  return buildBert(parsed, bertConfig(parsed));
}

/** Builds the model; `config` is what it remembers and writes as config.json. */
export function buildBert(options: Parsed, given: HuggingFaceConfig, fill = true): tf.LayersModel {
  const { hiddenSize, heads, head, vocabSize } = options;
  ensure(hiddenSize % heads === 0, 'bert.heads', () => `must divide hiddenSize ${hiddenSize}, got ${heads}`);
  const config = { ...given, architectures: [architectures[head]] };
  const base = head === 'none' ? '' : 'bert.';
  const norm = (name: string, x: Node, extra = {}) =>
    apply(new MatforgeLayerNorm({ name, epsilon: options.layerNormEps, ...extra }), x);
  const activation = (name: string, x: Node) =>
    apply(new MatforgeActivation({ name, activation: options.activation }), x);
  const inputs = ['input_ids', 'attention_mask', 'token_type_ids'].map(tokenInput);
  const [tokens, mask, types] = inputs;
  const embeddings = `${base}embeddings`;
  const words = apply(embedding(`${embeddings}.word_embeddings`, vocabSize, hiddenSize), tokens);
  const positions = apply(
    new MatforgePositions({ name: `${embeddings}.positions`, maxPositions: options.maxPositions }),
    tokens,
  );
  let x = add(
    `${embeddings}.sum`,
    words,
    apply(embedding(`${embeddings}.position_embeddings`, options.maxPositions, hiddenSize), positions),
    apply(embedding(`${embeddings}.token_type_embeddings`, options.typeVocabSize, hiddenSize), types),
  );
  x = norm(`${embeddings}.LayerNorm`, x, { architecture: JSON.stringify(config) });

  for (let i = 0; i < options.layers; i++) {
    const block = `${base}encoder.layer.${i}`;
    const project = (name: string, from: Node, width: number) => apply(dense(`${block}.${name}`, width, true), from);
    const attention = new MatforgeAttention({
      name: `${block}.attention.self`,
      heads,
      kvHeads: heads,
      headDim: hiddenSize / heads,
      causal: false,
      masked: true,
    });
    const [q, k, v] = ['query', 'key', 'value'].map((part) => project(`attention.self.${part}`, x, hiddenSize));
    const attended = project('attention.output.dense', apply(attention, q, k, v, mask), hiddenSize);
    x = norm(`${block}.attention.output.LayerNorm`, add(`${block}.attention.output.residual`, attended, x));
    const wide = project('intermediate.dense', x, options.intermediateSize ?? 4 * hiddenSize);
    const narrow = project('output.dense', activation(`${block}.intermediate.activation`, wide), hiddenSize);
    x = norm(`${block}.output.LayerNorm`, add(`${block}.output.residual`, narrow, x));
  }

  const pooled = () => {
    const first = apply(new MatforgeFirstToken({ name: `${base}pooler.first_token` }), x);
    const projected = apply(dense(`${base}pooler.dense`, hiddenSize, true), first);
    return apply(new MatforgeActivation({ name: `${base}pooler.activation`, activation: 'tanh' }), projected);
  };
  const outputs: Record<Parsed['head'], () => Node | Node[]> = {
    none: () => [x, pooled()],
    classification: () => apply(dense('classifier', options.classes, true), pooled()),
    'masked-lm': () => {
      const transform = 'cls.predictions.transform';
      const hidden = activation(`${transform}.activation`, apply(dense(`${transform}.dense`, hiddenSize, true), x));
      const tied = new MatforgeTiedHead({ name: 'cls.predictions', vocabSize, useBias: true });
      return apply(tied, norm(`${transform}.LayerNorm`, hidden), words);
    },
  };
  const model = tf.model({ inputs, outputs: outputs[head](), name: 'bert' });
  if (fill) initialize(model, options.seed, options.initializerRange);
  return rememberConfig(model, config);
}

const architectures = {
  none: 'BertModel',
  'masked-lm': 'BertForMaskedLM',
  classification: 'BertForSequenceClassification',
} as const;

/** The config.json of these options. */
export function bertConfig(options: Parsed): HuggingFaceConfig {
  return {
    architectures: [architectures[options.head]],
    model_type: 'bert',
    vocab_size: options.vocabSize,
    hidden_size: options.hiddenSize,
    intermediate_size: options.intermediateSize ?? 4 * options.hiddenSize,
    num_hidden_layers: options.layers,
    num_attention_heads: options.heads,
    max_position_embeddings: options.maxPositions,
    type_vocab_size: options.typeVocabSize,
    hidden_act: options.activation,
    layer_norm_eps: options.layerNormEps,
    position_embedding_type: 'absolute',
    initializer_range: options.initializerRange,
    ...(options.head === 'classification' && labels(options.classes)),
  };
}

/** The label tables from which transformers takes the number of classes. */
export function labels(classes: number): { id2label: Record<string, string>; label2id: Record<string, number> } {
  const ids = Array.from({ length: classes }, (_, i) => i);
  return {
    id2label: Object.fromEntries(ids.map((i) => [i, `LABEL_${i}`])),
    label2id: Object.fromEntries(ids.map((i) => [`LABEL_${i}`, i])),
  };
}

/** Number of classes of a config.json; 2 where it says nothing, as in transformers. */
export function classesOf(config: HuggingFaceConfig): number {
  if (config.id2label) return Object.keys(config.id2label).length;
  return (config.num_labels as number | undefined) ?? 2;
}

/** The options that a config.json of model_type bert stands for. */
export function bertFromConfig(config: HuggingFaceConfig, extra: { seed?: number; head?: Parsed['head'] }): Parsed {
  const kind = config.position_embedding_type ?? 'absolute';
  if (kind !== 'absolute') refuse('config.position_embedding_type', `${kind} is not supported; absolute is`);
  if (config.is_decoder === true) refuse('config.is_decoder', 'true is not supported');
  const name = config.architectures?.[0] ?? 'BertModel';
  const known = (Object.keys(architectures) as Parsed['head'][]).find((head) => architectures[head] === name);
  const head = extra.head ?? known;
  if (!head) {
    refuse(
      'config.architectures',
      `${name} is not supported; give the option head or one of ${Object.values(architectures).join(', ')}`,
    );
  }
  return parseConfig('config', bertOptions, {
    vocabSize: config.vocab_size,
    hiddenSize: config.hidden_size,
    intermediateSize: config.intermediate_size,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    maxPositions: config.max_position_embeddings,
    typeVocabSize: config.type_vocab_size,
    layerNormEps: config.layer_norm_eps,
    activation: config.hidden_act,
    head,
    classes: classesOf(config),
    initializerRange: config.initializer_range,
    seed: extra.seed,
  });
}
