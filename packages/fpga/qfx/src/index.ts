export * from './build.ts';
export * from './cast.ts';
export * from './digits.ts';
export * from './graph.ts';
export * from './raw.ts';
export * from './types.ts';
