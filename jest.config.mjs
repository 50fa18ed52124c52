import { workspacePackages } from './scripts/workspace.mjs';

// Tests run from source: every workspace package resolves to its src, so no build comes before a test.
const sources = Object.fromEntries(
  workspacePackages().flatMap(({ name, directory }) => [
    [`^${name}$`, `${directory}/src/index.ts`],
    [`^${name}/([a-z-]+)$`, `${directory}/src/$1.ts`],
  ]),
);

// Tests run on the WebAssembly kernels that every user has; MATFORGE_NATIVE=1 runs them on the optional addon.
process.env.MATFORGE_NATIVE ??= '0';
// Two test files at a time have the processors busy; MATFORGE_THREADS=2 runs them on a shared heap.
process.env.MATFORGE_THREADS ??= '1';

export default {
  testEnvironment: '<rootDir>/scripts/jest-environment.cjs',
  testMatch: ['<rootDir>/packages/**/*.test.ts', '<rootDir>/examples/**/*.test.ts', '<rootDir>/test/**/*.test.ts'],
  testPathIgnorePatterns: ['/node_modules/', '/dist/'],
  modulePathIgnorePatterns: ['/dist/', '<rootDir>/.nx/', '<rootDir>/.tools/'],
  moduleNameMapper: {
    '^@tensorflow/tfjs$': '<rootDir>/scripts/jest-tfjs.cjs',
    '^@tensorflow/tfjs-backend-wasm$': '<rootDir>/scripts/jest-tfjs-wasm.cjs',
    ...sources,
  },
  transform: {
    '^.+\\.[cm]?tsx?$': [
      '@swc/jest',
      {
        jsc: { target: 'es2022', parser: { syntax: 'typescript' } },
        module: { type: 'commonjs' },
        sourceMaps: 'inline',
      },
    ],
  },
  maxWorkers: 2,
  testTimeout: 60_000,
};
