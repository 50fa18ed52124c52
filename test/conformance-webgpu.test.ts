import { type Refusal, testInBrowser } from './conformance.ts';

// A software renderer compiles every shader on the CPU.
jest.setTimeout(60_000);

/** What a refusal says of the step that asked for values, and what to do. */
const refusal = (step: string): RegExp =>
  new RegExp(
    `MatforgeError: webgpu: ${step}: a \\w+ tensor of shape \\[[\\d,]*\\] is on the device and cannot be read at once; ` +
      "await its data\\(\\) first, or do this step .* after await ready\\('wasm'\\)",
  );

// A page cannot wait for the device. What these decide in the middle of a step, from values that the step computes, would
// be decided from zeros.
const refusals: Refusal[] = [
  {
    tests: /^conformance of aflora › training moves/,
    why: 'it freezes by the values of gradients',
    message: refusal('aflora.onStep'),
  },
  {
    tests: /^conformance of dct-projection › (update|memory|reduces|a variable|a restored|agrees)/,
    why: 'it chooses columns by their norms',
    message: refusal('dct-projection.update'),
  },
  {
    tests: /^conformance of trion › (update|memory|reduces|a variable|a restored|agrees)/,
    why: 'it chooses columns by their norms',
    message: refusal('trion.update'),
  },
  {
    tests: /^conformance of galore › (memory|reduces|a variable|a restored|agrees)/,
    why: 'it decomposes gradients',
    message: refusal('galore.update'),
  },
  {
    tests: /^conformance of galore, moments in bytes › (update|memory|reduces|a variable|a restored|agrees)/,
    why: 'it packs its moments into bytes',
    message: refusal('galore.(init|update)'),
  },
  {
    tests: /^golden cases of (denselora › (forward|gradients)|lora › patterns|road › mixedBatch|vera › sharedInit)/,
    why: 'it attaches on the device',
    message: refusal('attach\\([\\w-]+\\)'),
  },
  {
    tests: /^golden cases of (corda › (covariance|truncate)|dora › (forward|decomposition)|lora-sb › (init|equiv))/,
    why: 'it decides by the values of a matrix',
    message: refusal('[\\w.: -]+'),
  },
  {
    tests:
      /^golden cases of (pissa › (init|quantised)|dct-projection › (project|adam)|galore › project|seal › (att|forge))/,
    why: 'it decides by the values of a matrix',
    message: refusal('[\\w.: -]+'),
  },
  {
    tests: /^golden cases of (btt|monarch) › project/,
    why: 'it projects on the device',
    message: refusal('projection'),
  },
  {
    tests: /^conformance of seal › saving/,
    why: 'its files hold a product of what was trained',
    message: refusal('save: toMatrix'),
  },
];

testInBrowser({ place: { backend: 'webgpu', files: 'memory', small: true }, refusals });
