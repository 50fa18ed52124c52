import { ensure } from '../errors.ts';
import { defineElementwiseKernel, type ElementwiseKernel } from './elementwise.ts';

/** A uniform grid over [low, high]. */
export interface SplineGrid {
  low: number;
  high: number;
  /** Number of intervals between low and high. */
  intervals: number;
}

function checkGrid(name: string, { low, high, intervals }: SplineGrid): void {
  ensure(
    Number.isFinite(low) && Number.isFinite(high) && low < high,
    `${name}.low`,
    () => `[${low}, ${high}] is not a range; low < high, both finite, is needed`,
  );
  ensure(
    Number.isInteger(intervals) && intervals > 0,
    `${name}.intervals`,
    () => `is ${intervals}; a positive integer is needed`,
  );
}

/**
 * The intervals+3 uniform cubic B-splines that are not zero on [low, high], at each entry of x: `[...]` to
 * `[..., intervals + 3]`. They add up to 1 inside the range and fade to 0 outside. A spline with trainable coefficients is
 * `linear(basis(x), coefficients)`.
 */
export function cubicBSplineBasis(grid: SplineGrid): ElementwiseKernel<'x'> {
  checkGrid('cubicBSplineBasis', grid);
  const { low, high, intervals } = grid;
  const perUnit = intervals / (high - low);
  const margin = 3.5 / perUnit;
  // u: how far x is into the support [0, 4) of the spline number `channel`; beyond 2 by symmetry.
  const locate = 'const u = (x - low) * perUnit + 3 - channel; const v = Math.min(u, 4 - u);';
  return defineElementwiseKernel({
    name: 'cubicBSplineBasis',
    inputs: ['x'],
    constants: { low, perUnit },
    channels: intervals + 3,
    domain: [low - margin, high + margin],
    body: `${locate}
      let b = 0;
      if (v > 0) {
        if (v < 1) { b = v * v * v / 6; } else { b = ((12 - 3 * v) * v * v - 12 * v + 4) / 6; }
      }
      return b;`,
    gradient: {
      x: `${locate}
      let slope = 0;
      if (v > 0) {
        if (v < 1) { slope = v * v / 2; } else { slope = ((8 - 3 * v) * v - 4) / 2; }
      }
      if (u > 2) { slope = -slope; }
      return dy * slope * perUnit;`,
    },
  });
}

/** How {@link tableKernel} reads between the entries. */
export interface TableKernelOptions {
  /** For messages. Default 'table'. */
  name?: string;
  /** Position of the first and of the last entry ('linear'); the range that the control points span ('b-spline'). */
  low: number;
  high: number;
  /**
   * 'linear' (default) joins the entries; 'b-spline' takes them as control points of a uniform cubic B-spline (intervals + 3
   * of them), twice differentiable.
   */
  interpolation?: 'linear' | 'b-spline';
}

/**
 * A function of one variable given by a table, with a gradient. Outside [low, high] it keeps its value at the border, with
 * gradient 0.
 *
 * @param values at least 2 entries, 4 for 'b-spline'
 * @throws MatforgeError on fewer entries or an empty range.
 */
export function tableKernel(values: ArrayLike<number>, options: TableKernelOptions): ElementwiseKernel<'x'> {
  const { name = 'table', low, high, interpolation = 'linear' } = options;
  const linear = interpolation === 'linear';
  const intervals = values.length - (linear ? 1 : 3);
  ensure(
    intervals > 0,
    `${name}.values`,
    () => `has ${values.length} entries; ${interpolation} needs ${linear ? 2 : 4}`,
  );
  checkGrid(name, { low, high, intervals });
  const perUnit = intervals / (high - low);
  const locate = `
    const u = Math.min(Math.max((x - low) * perUnit, 0), intervals);
    const i = Math.min(Math.floor(u), last);
    const f = u - i;
    const g = 1 - f;`;
  const inside = '(x > low && x < high)';
  return defineElementwiseKernel({
    name,
    inputs: ['x'],
    constants: { low, high, perUnit, intervals, last: intervals - 1 },
    tables: { values },
    domain: [low - 0.1 * (high - low), high + 0.1 * (high - low)],
    body: linear
      ? `${locate} return g * values[i] + f * values[i + 1];`
      : `${locate}
    const f2 = f * f;
    const g2 = g * g;
    return (g2 * g * values[i] + (3 * f2 * f - 6 * f2 + 4) * values[i + 1]
      + (3 * g2 * g - 6 * g2 + 4) * values[i + 2] + f2 * f * values[i + 3]) / 6;`,
    gradient: {
      x: linear
        ? `${locate}
    let slope = 0;
    if ${inside} { slope = (values[i + 1] - values[i]) * perUnit; }
    return dy * slope;`
        : `${locate}
    let slope = 0;
    if ${inside} {
      slope = perUnit * (f * f * values[i + 3] - g * g * values[i] + (3 * f * f - 4 * f) * values[i + 1]
        - (3 * g * g - 4 * g) * values[i + 2]) / 2;
    }
    return dy * slope;`,
    },
  });
}
