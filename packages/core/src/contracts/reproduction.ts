/** The outcome of running a paper's headline claim at small scale. */
export interface Reproduction {
  /** The claim in one sentence, with its threshold. */
  claim: string;
  /** One row per method or setting compared; every row has the same columns. */
  rows: Record<string, string | number>[];
  /** True when every threshold of the claim was met. */
  held: boolean;
  /** What was run: data, sizes, seeds, steps; and by how much the thresholds were met or missed. */
  details: string;
}
