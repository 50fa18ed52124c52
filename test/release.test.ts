import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

const root = join(__dirname, '..');
const isBuilt = existsSync(join(root, 'packages/cli/dist/bin.js'));
const whenBuilt = isBuilt ? test : test.skip;

whenBuilt(
  `all packages are versioned and published, and one method installs alone and works${isBuilt ? '' : ' (skipped: run pnpm build first)'}`,
  () => {
    const output = execFileSync(process.execPath, [join(root, 'scripts/release-check.mjs'), 'lora'], {
      cwd: root,
      stdio: 'pipe',
    }).toString();
    expect(output).toMatch(/a generated package passes its tests/);
    expect(output).toMatch(/published \d{2,} packages/);
    expect(output).toMatch(/@matforge\/lora@\d+\.\d+\.\d+ installs alone, its example runs and type-checks/);
  },
  600_000,
);
