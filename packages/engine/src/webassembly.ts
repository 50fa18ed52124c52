// The WebAssembly types of TypeScript come with lib.dom only, which a library for Node must not ask for.

/** A WebAssembly.Memory. */
export interface WasmMemory {
  readonly buffer: ArrayBufferLike;
}

/** A compiled WebAssembly.Module. */
export type WasmModule = object & { readonly wasmModule?: never };

/** The exports of an instance: functions of numbers, and mutable globals. */
export type WasmExports = Record<string, ((...args: number[]) => number) & { value: number }>;

interface WebAssemblyApi {
  validate(bytes: Uint8Array): boolean;
  compile(bytes: Uint8Array): Promise<WasmModule>;
  Module: new (bytes: Uint8Array) => WasmModule;
  Instance: new (module: WasmModule, imports: object) => { exports: object };
  instantiate(module: WasmModule, imports: object): Promise<{ exports: object }>;
}

/** The host's WebAssembly, or undefined where there is none. */
export const webAssembly: WebAssemblyApi | undefined = (globalThis as unknown as { WebAssembly?: WebAssemblyApi })
  .WebAssembly;

/** Whether a value is a WebAssembly.Memory, of whichever JavaScript realm. */
export function isMemory(value: unknown): value is WasmMemory {
  return Object.prototype.toString.call(value) === '[object WebAssembly.Memory]';
}
