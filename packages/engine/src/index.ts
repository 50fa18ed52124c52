export { type ReadyOptions, ready } from './ready.ts';
export * from './linalg.ts';
