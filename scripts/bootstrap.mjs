// `npm run demo` and `npm test` on a machine that has Node and npm only: gets pnpm, installs, builds, then runs.
// A second start finds everything in place and installs nothing.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { root } from './workspace.mjs';

const PNPM = '12.21.0';
const tools = join(root, '.tools');
const environment = {
  ...process.env,
  NX_DAEMON: 'false',
  NX_TUI: 'false',
  NX_NO_CLOUD: 'true',
  PATH: [join(tools, 'node_modules', '.bin'), join(root, 'node_modules', '.bin'), process.env.PATH].join(delimiter),
};

const [task, ...rest] = process.argv.slice(2);
const tasks = {
  demo: () =>
    run(process.execPath, [
      join(root, 'packages/cli/dist/bin.js'),
      'run',
      'examples/fashion-to-fpga.yaml',
      '--overwrite',
      ...rest,
    ]),
  test: () => {
    run('biome', ['check', '.']);
    run(process.execPath, [join(root, 'scripts/check-types.mjs')]);
    run('jest', ['--ci', ...rest]);
  },
};
if (!tasks[task]) {
  console.error(`usage: node scripts/bootstrap.mjs ${Object.keys(tasks).join(' | ')}`);
  process.exit(2);
}
install();
run('tsc', ['-b']);
tasks[task]();

function install() {
  if (!existsSync(join(tools, 'node_modules', '.bin', 'pnpm'))) {
    mkdirSync(tools, { recursive: true });
    writeFileSync(join(tools, 'package.json'), '{ "private": true }\n');
    run('npm', ['install', '--prefix', tools, '--no-audit', '--no-fund', `pnpm@${PNPM}`]);
  }
  const stamp = join(tools, 'installed');
  const lock = createHash('sha256')
    .update(readFileSync(join(root, 'pnpm-lock.yaml')))
    .digest('hex');
  if (
    existsSync(join(root, 'node_modules', '.modules.yaml')) &&
    existsSync(stamp) &&
    readFileSync(stamp, 'utf8') === lock
  )
    return;
  run('pnpm', ['install', '--frozen-lockfile']);
  writeFileSync(stamp, lock);
}

function run(command, args) {
  const { status, signal, error } = spawnSync(command, args, { cwd: root, env: environment, stdio: 'inherit' });
  if (error) {
    console.error(`${command}: ${error.message}`);
    process.exit(1);
  }
  if (status !== 0) process.exit(status ?? (signal === 'SIGINT' ? 130 : 1));
}
