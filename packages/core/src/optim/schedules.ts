import { ensure } from '../errors.ts';

/** A value that depends on the number of updates already made: `schedule(0)` is used for the first update. */
export type ScalarSchedule = (step: number) => number;

/** A number, or one that changes with the step. */
export type NumberOrSchedule = number | ScalarSchedule;

/** `value` at `step`, whether it is scheduled or not. */
export function valueAt(value: NumberOrSchedule, step: number): number {
  return typeof value === 'function' ? value(step) : value;
}

/** The same value at every step. */
export function constant(value: number): ScalarSchedule {
  return () => value;
}

/**
 * A straight line from `from` at step 0 to `to` at step `steps`, level afterwards.
 *
 * @throws MatforgeError when `steps` is not a positive integer.
 */
export function linear({ from, to, steps }: { from: number; to: number; steps: number }): ScalarSchedule {
  checkSteps('linear.steps', steps);
  return (step) => from + (to - from) * Math.min(1, step / steps);
}

/**
 * Rises linearly to `peak` within `steps` updates and stays there: `peak · (step + 1) / steps`, so that the first
 * update is not wasted on a rate of zero.
 *
 * @throws MatforgeError when `steps` is not a positive integer.
 */
export function warmup({ peak, steps }: { peak: number; steps: number }): ScalarSchedule {
  checkSteps('warmup.steps', steps);
  return (step) => peak * Math.min(1, (step + 1) / steps);
}

/**
 * Half a cosine from `peak` at step 0 to `end` (default 0) at step `steps`, level afterwards.
 *
 * @throws MatforgeError when `steps` is not a positive integer.
 */
export function cosine({ peak, steps, end = 0 }: { peak: number; steps: number; end?: number }): ScalarSchedule {
  checkSteps('cosine.steps', steps);
  return (step) => end + (peak - end) * 0.5 * (1 + Math.cos(Math.PI * Math.min(1, step / steps)));
}

/**
 * {@link warmup} to `peak` over `warmup` updates, then {@link cosine} to `end` (default 0) at update `steps`.
 *
 * @throws MatforgeError when `steps` is not an integer above `warmup`.
 */
export function warmupCosine(options: { peak: number; warmup: number; steps: number; end?: number }): ScalarSchedule {
  const { peak, warmup: rise, steps, end = 0 } = options;
  ensure(
    Number.isInteger(rise) && rise >= 0 && Number.isInteger(steps) && steps > rise,
    'warmupCosine.steps',
    () => `${steps} with warmup ${rise}; accepted are integers with 0 <= warmup < steps`,
  );
  const fall = cosine({ peak, end, steps: steps - rise });
  return (step) => (step < rise ? (peak * (step + 1)) / rise : fall(step - rise));
}

/** The schedules under one name, for look-ups by name. */
export const schedules = { constant, linear, warmup, cosine, warmupCosine };

function checkSteps(field: string, steps: number): void {
  ensure(Number.isInteger(steps) && steps >= 1, field, () => `${steps} given; accepted is an integer >= 1`);
}
