const { TestEnvironment } = require('jest-environment-node');

// TensorFlow.js costs 0.3 s to load. It is loaded once per worker and lent to every test file, which is why the
// typed arrays of the outer realm come along: a tensor's data must be an instance of the test's own Float32Array.
const TYPED_ARRAYS = [
  'ArrayBuffer',
  'SharedArrayBuffer',
  'DataView',
  'Int8Array',
  'Uint8Array',
  'Uint8ClampedArray',
  'Int16Array',
  'Uint16Array',
  'Int32Array',
  'Uint32Array',
  'Float32Array',
  'Float64Array',
  'BigInt64Array',
  'BigUint64Array',
];
const outer = { tf: undefined, wasm: undefined };

class TfjsEnvironment extends TestEnvironment {
  async setup() {
    await super.setup();
    for (const name of TYPED_ARRAYS) this.global[name] = globalThis[name];
    // What a test parses and hands to tfjs must hold arrays that tfjs knows as arrays.
    this.global.JSON = JSON;
    // The engine looks on while the wasm backend compiles itself.
    this.global.WebAssembly = WebAssembly;
    outer.tf ??= require('@tensorflow/tfjs');
    outer.wasm ??= require('@tensorflow/tfjs-backend-wasm');
    this.global.__matforgeTf = outer.tf;
    this.global.__matforgeTfWasm = outer.wasm;
  }
}

module.exports = TfjsEnvironment;
