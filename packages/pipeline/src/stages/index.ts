import { data, text } from './data.ts';
import { model } from './model.ts';
import { emit, merge, plot, quantize, save } from './ship.ts';
import { adapt, compare, evaluate, sample, train } from './train.ts';
import { verify, watermark } from './watermark.ts';

/** Every stage by its name. */
export const stages = {
  data,
  text,
  model,
  train,
  adapt,
  compare,
  evaluate,
  sample,
  watermark,
  verify,
  merge,
  save,
  quantize,
  emit,
  plot,
};
