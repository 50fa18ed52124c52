import { testInBrowser } from './conformance.ts';

jest.setTimeout(40_000);

testInBrowser({ place: { backend: 'webgpu', files: 'memory', small: true } });
