import { option, refuse } from '@matforge/core';
import * as models from '@matforge/models';
import type * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { loadModel } from '../model-files.ts';
import { defineStage } from '../stage.ts';
import type { State } from '../state.ts';

const BUILDERS = {
  mlp: models.mlp,
  cnn: models.cnn,
  vit: models.vit,
  llama: models.llama,
  gpt2: models.gpt2,
  bert: models.bert,
} as unknown as Record<string, (options: Record<string, unknown>) => tf.LayersModel>;

/** A new model, or one from a directory. */
export const model = defineStage({
  name: 'model',
  about: 'builds a model, or reads one from a directory',
  needs: ['data'],
  gives: ['model'],
  options: z.object({
    kind: z.enum(['mlp', 'cnn', 'vit', 'llama', 'gpt2', 'bert']).optional(),
    /** Options of the architecture; sizes of inputs, outputs and vocabulary come from the data. */
    options: z.record(z.string(), z.unknown()).default({}),
    /** Directory of a tfjs model (model.json) or a Hugging Face checkpoint (config.json). */
    from: z.string().optional(),
    seed: option.seed().optional(),
  }),
  async run(state, { kind, options, from, seed }, context) {
    if ((kind === undefined) === (from === undefined)) refuse('model', 'needs either "kind" or "from"');
    const made = from ? await loadModel(from) : build(kind as string, options, seed ?? context.seed, state);
    context.tell({ type: 'log', text: `${from ?? kind}: ${made.countParams()} parameters` });
    return { ...state, model: made };
  },
});

function build(kind: string, options: Record<string, unknown>, seed: number, state: State): tf.LayersModel {
  const [first] = Object.values(state.data);
  const { xs, ys } = first.train.features;
  const fromData: Record<string, unknown> =
    first.task === 'language'
      ? { vocabSize: state.tokenizer?.vocabSize }
      : ['cnn', 'mlp'].includes(kind)
        ? { input: xs.shape, outputs: ys.classes?.length }
        : {};
  return BUILDERS[kind]({ ...fromData, seed, ...options });
}
