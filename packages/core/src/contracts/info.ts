/** What every method says about itself: shown by the command line, written into run records and the methods table. */
export interface MethodInfo {
  /** Package-unique short name, lower case with hyphens: `galore`. */
  id: string;
  /** The method's name as its paper writes it. */
  title: string;
  /** Folder of the package: `lora-family`, `structured`, `optim`, … */
  family: string;
  /** The contract the method fulfils: `linear-method`, `gradient-transformation`, `layer`, … */
  kind: string;
  paper: { title: string; arxiv?: string; year: number };
}
