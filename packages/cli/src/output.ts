import { type Bar, SingleBar } from 'cli-progress';
import pc from 'picocolors';

/** A row of a table. */
export type Row = Readonly<Record<string, string | number | boolean | null>>;

/** Where a command writes: text for people, or one JSON document. */
export class Output {
  readonly json: boolean;
  private readonly terminal: boolean;
  private readonly colours: ReturnType<typeof pc.createColors>;
  private bar: SingleBar | undefined;
  private label = '';

  constructor({ json = false }: { json?: boolean } = {}) {
    this.json = json;
    this.terminal = Boolean(process.stdout.isTTY) && !json;
    this.colours = pc.createColors(this.terminal && pc.isColorSupported);
  }

  /** A line for people. */
  line(text = ''): void {
    this.endBar();
    if (!this.json) process.stdout.write(`${text}\n`);
  }

  /** A heading. */
  heading(text: string): void {
    this.line(this.colours.bold(text));
  }

  /** A remark that is not the result. */
  note(text: string): void {
    this.endBar();
    process.stderr.write(`${this.colours.dim(text)}\n`);
  }

  /** The result of the command: printed by `print`, or as JSON. */
  result(value: unknown, print: () => void): void {
    this.endBar();
    if (this.json) process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
    else print();
  }

  /** Rows with aligned columns. */
  table(rows: readonly Row[]): void {
    if (rows.length === 0) return;
    const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    const cells = [columns, ...rows.map((row) => columns.map((column) => cell(row[column])))];
    const widths = columns.map((_, i) => Math.max(...cells.map((line) => line[i].length)));
    const numeric = columns.map((column) => rows.every((row) => typeof row[column] === 'number'));
    cells.forEach((line, index) => {
      const text = line
        .map((value, i) => (numeric[i] ? value.padStart(widths[i]) : value.padEnd(widths[i])))
        .join('  ');
      this.line(index === 0 ? this.colours.bold(text.trimEnd()) : text.trimEnd());
    });
  }

  /** Progress: a bar on a terminal, a plain line every tenth elsewhere. */
  progress(label: string, step: number, total: number | undefined, text: string): void {
    if (this.json) return;
    if (!this.terminal) {
      const tenth = Math.max(1, Math.floor((total ?? 100) / 10));
      const due = step === total || Math.floor(step / tenth) > Math.floor((this.lastStep[label] ?? 0) / tenth);
      this.lastStep[label] = step;
      if (due) this.line(`  ${label}  ${step}${total ? `/${total}` : ''}  ${text}`);
      return;
    }
    if (!this.bar || this.label !== label) {
      this.endBar();
      this.bar = new SingleBar({
        format: '  {label} {bar} {value}/{total}  {eta_formatted}  {text}',
        hideCursor: true,
        clearOnComplete: false,
        barsize: 24,
      });
      this.bar.start(total ?? step, 0, { label, text });
      this.label = label;
    }
    this.bar.update(step, { label, text });
    if (step === total) this.endBar();
  }

  private readonly lastStep: Record<string, number> = {};

  private endBar(): void {
    this.bar?.stop();
    this.bar = undefined;
  }
}

function cell(value: Row[string] | undefined): string {
  return value === undefined || value === null ? '' : String(value);
}

export type { Bar };
