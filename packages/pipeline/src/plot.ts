/** What {@link lineChart} draws. */
export interface LineChart {
  readonly title: string;
  readonly x: string;
  readonly y: string;
  /** Logarithmic y axis; values that are not positive are left out. */
  readonly logY?: boolean;
  /** Values by name; each curve spans the whole width. */
  readonly series: Readonly<Record<string, readonly number[]>>;
  /** Every two curves belong together: one colour, the first of them dashed. */
  readonly pairs?: boolean;
}

const COLOURS = [
  '#4269d0',
  '#efb118',
  '#ff725c',
  '#6cc5b0',
  '#3ca951',
  '#ff8ab7',
  '#a463f2',
  '#97bbf5',
  '#9c6b4e',
  '#9498a0',
];
const [WIDTH, HEIGHT, LEFT, TOP, BOTTOM] = [860, 420, 64, 44, 48];

/** A line chart as an SVG document. */
export function lineChart({ title, x, y, logY = false, series, pairs = false }: LineChart): string {
  const scale = (value: number) => (logY ? Math.log10(value) : value);
  const usable = (value: number) => Number.isFinite(value) && (!logY || value > 0);
  const all = Object.values(series).flat().filter(usable).map(scale);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const right = WIDTH - 230;
  const toY = (value: number) => TOP + ((high - scale(value)) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
  const ticks = Array.from({ length: 5 }, (_, i) => low + ((high - low) * i) / 4).map((tick) =>
    logY ? 10 ** tick : tick,
  );
  const grid = ticks.map(
    (tick) =>
      `<line x1="${LEFT}" x2="${right}" y1="${fix(toY(tick))}" y2="${fix(toY(tick))}" stroke="#ddd"/>` +
      `<text x="${LEFT - 8}" y="${fix(toY(tick) + 4)}" text-anchor="end">${tick.toPrecision(3)}</text>`,
  );
  const curves = Object.entries(series).map(([name, values], i) => {
    const step = (right - LEFT) / Math.max(1, values.length - 1);
    const points = values.flatMap((value, j) => (usable(value) ? [`${fix(LEFT + j * step)},${fix(toY(value))}`] : []));
    const colour = COLOURS[(pairs ? i >> 1 : i) % COLOURS.length];
    const dash = pairs && i % 2 === 0 ? ' stroke-dasharray="5 4"' : '';
    const row = TOP + 16 * i;
    return (
      `<polyline fill="none" stroke="${colour}" stroke-width="1.5"${dash} points="${points.join(' ')}"/>` +
      `<line x1="${right + 14}" x2="${right + 34}" y1="${row}" y2="${row}" stroke="${colour}" stroke-width="3"${dash}/>` +
      `<text x="${right + 40}" y="${row + 4}">${escapeText(name)}</text>`
    );
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="white"/>`,
    `<text x="${LEFT}" y="22" font-size="16">${escapeText(title)}</text>`,
    ...grid,
    ...curves,
    `<text x="${(LEFT + right) / 2}" y="${HEIGHT - 14}" text-anchor="middle">${escapeText(x)}</text>`,
    `<text x="14" y="${HEIGHT / 2}" transform="rotate(-90 14 ${HEIGHT / 2})" text-anchor="middle">${escapeText(y)}</text>`,
    '</svg>',
    '',
  ].join('\n');
}

function fix(value: number): string {
  return value.toFixed(1);
}

function escapeText(text: string): string {
  return text.replace(/[&<>]/g, (character) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[character] as string);
}
