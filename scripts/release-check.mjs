// The release, end to end, against a registry on this machine: versions every package by its changesets, publishes all,
// installs one method alone in an empty project, runs the README's example in Node and type-checks it.
import { execFileSync, spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { root, workspacePackages } from './workspace.mjs';

const NODE = '24.21.0';
const VERDACCIO = '6.10.4';
const method = process.argv[2] ?? 'lora';
const tools = join(root, '.tools', 'release');
const work = mkdtempSync(join(tmpdir(), 'matforge-release-'));

// Verdaccio and changesets need a newer Node than the packages do.
const major = Number(process.versions.node.split('.')[0]);
const node =
  major >= 22
    ? process.execPath
    : join(tools, 'node_modules', `node-${process.platform}-${process.arch}`, 'bin', 'node');
const path = `${dirname(node)}:${process.env.PATH}`;
if (!existsSync(join(tools, 'node_modules', 'verdaccio'))) {
  mkdirSync(tools, { recursive: true });
  writeFileSync(join(tools, 'package.json'), JSON.stringify({ private: true, overrides: { 'node-fetch': '2.7.0' } }));
  const wanted = [
    `verdaccio@${VERDACCIO}`,
    ...(major >= 22 ? [] : [`node-${process.platform}-${process.arch}@${NODE}`]),
  ];
  run('npm', ['install', '--prefix', tools, '--no-audit', '--no-fund', '--ignore-scripts', '--force', ...wanted], root);
}

const port = await freePort();
const registry = `http://127.0.0.1:${port}/`;
const upstream = run('npm', ['config', 'get', 'registry'], root).trim();
const config = join(work, 'verdaccio.yaml');
writeFileSync(
  config,
  `storage: ${join(work, 'storage')}
max_body_size: 200mb
uplinks: { upstream: { url: '${upstream}', cache: true } }
packages:
  '@matforge/*': { access: $all, publish: $all }
  matforge: { access: $all, publish: $all }
  '**': { access: $all, proxy: upstream }
log: { type: stdout, level: error }
`,
);
const server = spawn(
  node,
  [join(tools, 'node_modules', 'verdaccio', 'bin', 'verdaccio'), '--config', config, '--listen', `127.0.0.1:${port}`],
  {
    stdio: 'inherit',
  },
);
try {
  await answers(registry);
  const npmrc = `registry=${registry}\n//127.0.0.1:${port}/:_authToken=local\n`;

  const copy = join(work, 'workspace');
  copyWorkspace(copy);
  writeFileSync(join(copy, '.npmrc'), npmrc);
  run(node, [join(root, 'node_modules', '@changesets', 'cli', 'bin.js'), 'version'], copy);
  const versions = Object.fromEntries(readVersions(copy));
  run('pnpm', ['install', '--no-frozen-lockfile', '--ignore-scripts', '--prefer-offline'], copy);

  // What the generator makes must pass the checks and be publishable as it stands.
  run(
    process.execPath,
    ['scripts/new-method.mjs', 'lora-family', 'generated-method', '--title', 'Generated', '--year', '2024'],
    copy,
  );
  run(
    join(copy, 'node_modules', '.bin', 'biome'),
    [
      'check',
      '--vcs-enabled=false',
      ...['src', 'test', 'package.json', 'tsconfig.json'].map(
        (entry) => `packages/lora-family/generated-method/${entry}`,
      ),
    ],
    copy,
  );
  const tests = run(
    join(copy, 'node_modules', '.bin', 'jest'),
    ['--ci', 'packages/lora-family/generated-method'],
    copy,
  );
  console.log(`a generated package passes its tests ${tests}`.trim());

  run('pnpm', ['-r', 'publish', '--registry', registry, '--no-git-checks', '--ignore-scripts'], copy);
  console.log(`published ${Object.keys(versions).length} packages`);

  const project = join(work, 'project');
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{ "private": true, "type": "module" }\n');
  writeFileSync(join(project, '.npmrc'), npmrc);
  const wanted = ['@matforge/core', `@matforge/${method}`, '@tensorflow/tfjs', '@tensorflow/tfjs-backend-wasm'];
  run('npm', ['install', '--no-audit', '--no-fund', ...wanted], project);
  const installed = JSON.parse(
    readFileSync(join(project, 'node_modules', '@matforge', method, 'package.json'), 'utf8'),
  );
  if (JSON.stringify(installed).includes('workspace:'))
    throw new Error('the published manifest still says "workspace:"');

  const readme = readFileSync(join(project, 'node_modules', '@matforge', method, 'README.md'), 'utf8');
  const example = [...readme.matchAll(/^```ts\n([\s\S]*?)^```/gm)].map(([, code]) => code).join('\n');
  writeFileSync(join(project, 'example.mjs'), example);
  const printed = run(process.execPath, ['example.mjs'], project);
  for (const [, expected] of example.matchAll(/\/\/ prints (.*)$/gm)) {
    if (!printed.includes(expected.trim()))
      throw new Error(`the example printed "${printed.trim()}", the README says "${expected}"`);
  }
  writeFileSync(join(project, 'example.ts'), example);
  writeFileSync(
    join(project, 'tsconfig.json'),
    JSON.stringify({
      compilerOptions: {
        module: 'NodeNext',
        target: 'ES2022',
        strict: true,
        noEmit: true,
        skipLibCheck: true,
        types: [],
      },
      files: ['example.ts'],
    }),
  );
  run(join(root, 'node_modules', '.bin', 'tsc'), ['-p', '.'], project);
  console.log(`@matforge/${method}@${installed.version} installs alone, its example runs and type-checks`);
} finally {
  server.kill();
  rmSync(work, { recursive: true, force: true });
}

function copyWorkspace(target) {
  const skip = new Set(['node_modules', '.git', '.nx', '.tools', 'runs', 'test', 'bench']);
  cpSync(root, target, {
    recursive: true,
    filter: (source) =>
      !relative(root, source)
        .split('/')
        .some((part) => skip.has(part)) && !source.endsWith('.tsbuildinfo'),
  });
}

function* readVersions(directory) {
  for (const { directory: place, manifest } of workspacePackages()) {
    if (manifest.private) continue;
    const { name, version } = JSON.parse(readFileSync(join(directory, relative(root, place), 'package.json'), 'utf8'));
    yield [name, version];
  }
}

function run(command, args, cwd) {
  try {
    return execFileSync(command, args, {
      cwd,
      env: { ...process.env, PATH: path, CI: 'true' },
      stdio: ['ignore', 'pipe', 'pipe'],
      maxBuffer: 1e8,
    }).toString();
  } catch (error) {
    throw new Error(`${command} ${args.join(' ')}\n${error.stdout}\n${error.stderr}`);
  }
}

async function answers(url) {
  for (let attempt = 0; attempt < 120; attempt++) {
    const ok = await fetch(`${url}-/ping`).then(
      (response) => response.ok,
      () => false,
    );
    if (ok) return;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  throw new Error('the registry did not start');
}

function freePort() {
  return new Promise((resolve) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const { port: free } = probe.address();
      probe.close(() => resolve(free));
    });
  });
}
