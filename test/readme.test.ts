import { join } from 'node:path';
import { testReadme } from '../packages/testkit/src/index.ts';

// core cannot depend on the testkit, which depends on it.
testReadme(join(__dirname, '../packages/core/test'), require);
