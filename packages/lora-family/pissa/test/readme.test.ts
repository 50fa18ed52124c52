import { testReadme } from '@matforge/testkit';

testReadme(__dirname, require);
