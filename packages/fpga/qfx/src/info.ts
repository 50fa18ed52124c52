import type { MethodInfo } from '@matforge/core';

/** What QFX says about itself. */
export const info: MethodInfo = {
  id: 'qfx',
  title: 'QFX',
  family: 'fpga',
  kind: 'training-procedure',
  paper: {
    title: 'Trainable Fixed-Point Quantization for Deep Learning Acceleration on FPGAs',
    arxiv: '2401.17544',
    year: 2024,
  },
};
