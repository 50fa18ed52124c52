/** What @matforge/engine-native gives: some or all kernels as machine code on the same heap. */
export interface NativeKernels {
  kernels: Record<string, (...numbers: number[]) => number>;
  isa: string;
}

interface Addon {
  openNative(heap: () => Uint8Array, reference: object): NativeKernels | null;
  whyNot(): string | undefined;
}

const ADDON = '@matforge/engine-native';
let told = false;

/**
 * Binds the optional addon to a heap: null in browsers, where it is not installed, and where its binary does not work. Of
 * its kernels those are taken that `reference`, the WebAssembly exports, has with the same number of arguments.
 */
export async function openAddon(heap: () => Uint8Array, reference: object): Promise<NativeKernels | null> {
  if (typeof process === 'undefined' || !process.versions?.node || process.env.MATFORGE_NATIVE === '0') return null;
  let addon: Addon;
  try {
    // The name is not spelled out in the call, so that bundlers do not look for a package that may be absent.
    addon = (await import(/* webpackIgnore: true */ /* @vite-ignore */ ADDON)) as unknown as Addon;
  } catch {
    return null;
  }
  const opened = addon.openNative(heap, reference);
  if (!opened && !told) {
    told = true;
    console.warn(
      `engine: ${ADDON} is installed and not in use: ${addon.whyNot()}. The WebAssembly kernels serve instead.`,
    );
  }
  return opened;
}
