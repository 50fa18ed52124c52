export { type ReadyOptions, ready } from './ready.ts';
