import { testConformance } from '@matforge/testkit';
import { suites } from './suite.ts';

testConformance(suites);
