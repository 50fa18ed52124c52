export { configOf, type HuggingFaceConfig } from './architecture.ts';
export { type BertOptions, bert } from './bert.ts';
export { KeyValueCache } from './cache.ts';
export { type CnnOptions, cnn } from './cnn.ts';
export { type FromConfigOptions, fromConfig } from './from-config.ts';
export type { ActivationName, RopeScaling } from './functions.ts';
export { type GenerateOptions, generate } from './generate.ts';
export { type Gpt2Options, gpt2 } from './gpt2.ts';
export * from './layers.ts';
export { type LlamaOptions, llama } from './llama.ts';
export {
  classificationLoss,
  compileLanguageModel,
  type LanguageModelLossOptions,
  languageModelLoss,
  type PerplexityOptions,
  perplexity,
} from './losses.ts';
export { type MlpOptions, mlp } from './mlp.ts';
export {
  type LoadPretrainedOptions,
  loadPretrained,
  type SavePretrainedOptions,
  savePretrained,
} from './pretrained.ts';
export {
  createTokenizer,
  loadTokenizer,
  saveTokenizer,
  type Tokenizer,
  type TokenizerJson,
  type TrainTokenizerOptions,
  trainTokenizer,
} from './tokenizer.ts';
export { type VitOptions, vit } from './vit.ts';
