import { testReproduction } from '@matforge/testkit';
import { reproduce } from '../src/reproduce.ts';

testReproduction('lora-sb', reproduce);
