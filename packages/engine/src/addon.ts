import { SOURCES } from './shares.ts';

/** Some or all kernels as machine code on the same heap. */
export interface NativeKernels {
  kernels: Record<string, (...numbers: number[]) => number>;
  isa: string;
}

/** What the package exports. */
export interface Addon {
  openNative(heap: () => Uint8Array, reference: object): NativeKernels | null;
  nativeThreads(count?: number): number;
  whyNot(engine: string): string | undefined;
}

const ADDON = '@matforge/engine-native';
let told = false;

/**
 * The optional addon: null in browsers, where it is not installed or switched off, and where its binary does not work. Bun
 * and Deno pass for Node, and end the process when the addon calls a function of libuv, which they lack.
 */
export async function findAddon(): Promise<Addon | null> {
  if (typeof process === 'undefined' || !process.versions?.node || process.env.MATFORGE_NATIVE === '0') return null;
  if (process.versions.bun || process.versions.deno) return null;
  let addon: Addon;
  try {
    // The name is not spelled out in the call, so that bundlers do not look for a package that may be absent.
    addon = (await import(/* webpackIgnore: true */ /* @vite-ignore */ ADDON)) as unknown as Addon;
  } catch {
    return null;
  }
  const problem = addon.whyNot(SOURCES);
  if (problem === undefined) return addon;
  if (!told) {
    told = true;
    console.warn(`engine: ${ADDON} is installed and not in use: ${problem}. The WebAssembly kernels serve instead.`);
  }
  return null;
}
