import { ensure } from '@matforge/core';
import * as z from 'zod';

const fraction = () => z.number('must be in [0, 1)').min(0, 'must be in [0, 1)').lt(1, 'must be in [0, 1)');

/** Options of the freezing rule. */
export const freezerOptions = {
  /** Smoothing of the sensitivity Ē. */
  beta1: fraction().default(0.85),
  /** Smoothing of the uncertainty Ū. */
  beta2: fraction().default(0.95),
  /** Steps over which |g| is averaged, and between decisions. */
  window: z
    .number('must be a positive integer')
    .int('must be a positive integer')
    .min(1, 'must be a positive integer')
    .default(10),
  /** `count`: freeze that share of the matrices (the paper's wording); `elements`: by a threshold over all scores (the code). */
  rule: z.enum(['count', 'elements']).default('count'),
};

/** Configuration of {@link AdaptiveFreezer}. */
export interface FreezerConfig {
  readonly beta1: number;
  readonly beta2: number;
  readonly window: number;
  readonly rule: 'count' | 'elements';
  readonly totalSteps: number;
  /** t_i: nothing is frozen up to here. */
  readonly warmupSteps: number;
  /** t_f: everything is frozen for the last t_f steps. */
  readonly finalSteps: number;
}

/** ρ(t): the share of the projection matrices that is frozen at a step, rising from 0 to 1 along a cubic (eq. 5). */
export function cubicFraction(step: number, total: number, warmup: number, final: number): number {
  if (step <= warmup) return 0;
  if (step > total - final) return 1;
  return 1 - (1 - (step - warmup) / (total - final - warmup)) ** 3;
}

interface Scores {
  /** |g| averaged over the running window. */
  readonly importance: Float64Array;
  /** Ē. */
  readonly sensitivity: Float64Array;
  /** Ū. */
  readonly uncertainty: Float64Array;
}

/** What an {@link AdaptiveFreezer} has seen and done so far. */
export interface FreezerState {
  readonly updates: number;
  readonly frozen: readonly string[];
  readonly scores: Record<string, { importance: Float64Array; sensitivity: Float64Array; uncertainty: Float64Array }>;
}

/** Scores projection matrices by the sensitivity and uncertainty of their gradients, and says which to freeze. */
export class AdaptiveFreezer {
  private readonly scored: Map<string, Scores>;
  private readonly config: FreezerConfig;
  private readonly frozen = new Set<string>();
  private updates = 0;

  /** @param sizes number of entries of each matrix, by name. */
  constructor(sizes: Record<string, number>, config: FreezerConfig) {
    const empty = (size: number) => new Float64Array(size);
    this.config = config;
    this.scored = new Map(
      Object.entries(sizes).map(([name, size]) => [
        name,
        { importance: empty(size), sensitivity: empty(size), uncertainty: empty(size) },
      ]),
    );
  }

  /**
   * Takes the gradients of step t = 1, 2, …: at the end of a window Ē ← β₁Ē + (1−β₁)I, Ū ← β₂Ū + (1−β₂)|I − Ē| and
   * I ← |g|; within it I is the running mean of |g| (eq. 3, 4).
   *
   * @throws MatforgeError for a gradient of another size (names the matrix).
   */
  update(step: number, gradients: Record<string, Float64Array>): void {
    const { beta1, beta2, window } = this.config;
    const k = step % window;
    for (const [name, gradient] of Object.entries(gradients)) {
      const scores = this.scored.get(name);
      ensure(
        scores?.importance.length === gradient.length,
        name,
        () => `gradient has ${gradient.length} entries, the matrix ${scores?.importance.length ?? 'is unknown'}`,
      );
      const { importance: I, sensitivity: E, uncertainty: U } = scores as Scores;
      for (let i = 0; i < gradient.length; i++) {
        const size = Math.abs(gradient[i]);
        if (k === 0) {
          E[i] = beta1 * E[i] + (1 - beta1) * I[i];
          U[i] = beta2 * U[i] + (1 - beta2) * Math.abs(I[i] - E[i]);
          I[i] = size;
        } else {
          I[i] = (I[i] * k + size) / (k + 1);
        }
      }
    }
    this.updates++;
  }

  /** Everything that an exact continuation needs, as copies. */
  state(): FreezerState {
    return {
      updates: this.updates,
      frozen: [...this.frozen],
      scores: Object.fromEntries([...this.scored].map(([name, scores]) => [name, copied(scores)])),
    };
  }

  /**
   * Continues from a {@link state} of a freezer of the same matrices.
   *
   * @throws MatforgeError when a matrix is missing or of another size (names it).
   */
  restore({ updates, frozen, scores }: FreezerState): void {
    for (const [name, { importance }] of this.scored) {
      const size = scores[name]?.importance.length;
      ensure(size === importance.length, name, () => `has ${importance.length} entries, the state ${size ?? 'none'}`);
    }
    for (const name of this.scored.keys()) this.scored.set(name, copied(scores[name]));
    this.frozen.clear();
    for (const name of frozen) this.frozen.add(name);
    this.updates = updates;
  }

  /** Ē, Ū and the mean of Ē∘Ū of every matrix. */
  scores(): Record<string, { sensitivity: Float64Array; uncertainty: Float64Array; mean: number }> {
    return Object.fromEntries(
      [...this.scored].map(([name, { sensitivity, uncertainty }]) => {
        const total = sensitivity.reduce((sum, value, i) => sum + value * uncertainty[i], 0);
        return [name, { sensitivity, uncertainty, mean: total / sensitivity.length }];
      }),
    );
  }

  /** The ⌊ρN⌋-th smallest of the N score elements of the matrices that still train; undefined when that is none. */
  threshold(step: number): number | undefined {
    const elements = [...this.scored]
      .filter(([name]) => !this.frozen.has(name))
      .flatMap(([, { sensitivity, uncertainty }]) => Array.from(sensitivity, (value, i) => value * uncertainty[i]))
      .sort((a, b) => a - b);
    return elements[Math.floor(this.fraction(step) * elements.length) - 1];
  }

  /** ρ at a step. */
  fraction(step: number): number {
    const { totalSteps, warmupSteps, finalSteps } = this.config;
    return cubicFraction(step, totalSteps, warmupSteps, finalSteps);
  }

  /**
   * Names of the matrices to freeze now; they never thaw. Decides at the ends of windows and at every step of the final
   * phase.
   *
   * @throws MatforgeError before the first update.
   */
  decide(step: number): string[] {
    ensure(
      this.updates > 0,
      'AdaptiveFreezer',
      () => 'cannot decide before the first update; call update(step, gradients) first',
    );
    const { window, totalSteps, finalSteps } = this.config;
    if (step % window !== 0 && step <= totalSteps - finalSteps) return [];
    const chosen = this.candidates(step);
    for (const name of chosen) this.frozen.add(name);
    return chosen;
  }

  /** What the rule freezes at a step, on top of what is frozen. */
  candidates(step: number, rule = this.config.rule): string[] {
    const scores = this.scores();
    const open = [...this.scored.keys()].filter((name) => !this.frozen.has(name));
    const fraction = this.fraction(step);
    if (fraction === 1) return open;
    if (rule === 'elements') {
      const limit = this.threshold(step);
      return limit === undefined ? [] : open.filter((name) => scores[name].mean < limit);
    }
    // The 1e-9 absorbs the rounding of ρ·M.
    const count = Math.floor(fraction * this.scored.size + 1e-9) - this.frozen.size;
    return open.sort((a, b) => scores[a].mean - scores[b].mean).slice(0, Math.max(0, count));
  }
}

function copied({ importance, sensitivity, uncertainty }: Scores): Scores {
  return { importance: importance.slice(), sensitivity: sensitivity.slice(), uncertainty: uncertainty.slice() };
}
