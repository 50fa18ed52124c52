import { testReproduction } from '@matforge/testkit';
import { reproduce } from '../src/reproduce.ts';

// The thresholds hold for each seed by itself: one is enough for a test.
testReproduction('galore', () => reproduce({ seeds: [0] }));
