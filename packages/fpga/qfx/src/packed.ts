/**
 * Settings as the hexadecimal character codes of their JSON text. TensorFlow.js turns every key and every string of a
 * saved configuration into snake_case and back, which loses capitals; lower-case letters and digits pass untouched.
 */
export function packed(settings: object): string {
  return JSON.stringify(settings)
    .split('')
    .map((character) => character.charCodeAt(0).toString(16).padStart(4, '0'))
    .join('');
}

/** What {@link packed} wrote. */
export function unpacked(text: unknown): object {
  const codes = (text as string).match(/.{4}/g) ?? [];
  return JSON.parse(String.fromCharCode(...codes.map((code) => Number.parseInt(code, 16))));
}
