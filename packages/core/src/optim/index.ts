export * from './define.ts';
export * from './optimizer.ts';
export * from './optimizer-class.ts';
export { type NumberOrSchedule, type ScalarSchedule, schedules, valueAt } from './schedules.ts';
export * from './transformation.ts';
export * from './transformations.ts';
export * from './tree.ts';
