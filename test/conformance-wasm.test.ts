import { testInBrowser } from './conformance.ts';

jest.setTimeout(60_000);

// Isolated, the page could share memory: matforge's kernels must be as right there as anywhere.
testInBrowser({
  place: { backend: 'wasm', files: 'memory', small: true },
  ready: { wasmPaths: '/wasm/' },
  isolated: true,
});
