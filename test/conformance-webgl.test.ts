import { testInBrowser } from './conformance.ts';

// A software renderer compiles every shader on the CPU.
jest.setTimeout(120_000);

testInBrowser({ place: { backend: 'webgl', files: 'memory', small: true } });
