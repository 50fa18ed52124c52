import * as tf from '@tensorflow/tfjs';
import { ready } from '../src/index.ts';

test('ready takes the options of wasm alone, too', async () => {
  await ready('cpu');
  expect(await ready({})).toBe('wasm');
  expect(tf.getBackend()).toBe('wasm');
  await expect(ready({ threads: 0 })).rejects.toThrow(/threads of ready is 0; give a whole number from 1 on/);
});

test('ready refuses a backend that nobody registered, with the ones there are', async () => {
  await expect(ready('gpu')).rejects.toThrow(
    /^backend: TensorFlow\.js knows no backend "gpu"; import the package that registers it first, or use one of .*cpu/,
  );
});
