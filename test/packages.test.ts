import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { type BuildOptions, build } from 'esbuild';

interface Manifest {
  name: string;
  private?: boolean;
  version: string;
  type: string;
  license: string;
  sideEffects: boolean | string[];
  exports: Record<string, unknown>;
  dependencies?: Record<string, string>;
  peerDependencies?: Record<string, string>;
}

interface Package {
  name: string;
  directory: string;
  manifest: Manifest;
}

const root = join(__dirname, '..');
const packages: Package[] = JSON.parse(
  execFileSync(process.execPath, [
    '--input-type=module',
    '-e',
    `import { workspacePackages } from ${JSON.stringify(join(root, 'scripts/workspace.mjs'))}; console.log(JSON.stringify(workspacePackages()))`,
  ]).toString(),
);
const published = packages.filter(({ manifest }) => !manifest.private);
const isBuilt = published.every(({ directory }) => existsSync(join(directory, 'dist', 'index.js')));
const whenBuilt = isBuilt ? test : test.skip;
const unbuilt = isBuilt ? '' : ' (skipped: run pnpm build first)';

/** What registers a class with tfjs while its module is loaded. */
const REGISTERS =
  /^(?:(?:export )?const [\w{},: ]+ = )?(?:tf\.serialization\.registerClass|defineOptimizerClass|structuredFamily)\(/m;

test.each(published.map((each) => [each.name, each] as const))(
  '%s is laid out like the others',
  (_, { manifest, directory }) => {
    expect(manifest).toMatchObject({
      type: 'module',
      license: 'Apache-2.0',
      engines: { node: '>=20' },
    });
    // Modules that register layers with tfjs when they are loaded are listed; all others can be left out by a bundler.
    expect(manifest.sideEffects === false || Array.isArray(manifest.sideEffects)).toBe(true);
    const listed = Array.isArray(manifest.sideEffects) ? manifest.sideEffects : [];
    const registering = sources(join(directory, 'src')).filter((path) => REGISTERS.test(readFileSync(path, 'utf8')));
    for (const path of registering) expect(listed).toContain(`./src/${relative(join(directory, 'src'), path)}`);
    if (registering.length > 0) expect(listed).toContain('./src/index.ts');
    for (const path of listed.filter((each) => each.startsWith('./src/'))) {
      expect(listed).toContain(path.replace('./src/', './dist/').replace(/\.ts$/, '.js'));
    }
    expect(manifest.exports['./package.json']).toBe('./package.json');
    expect(Object.keys(manifest.exports)[0]).toBe('.');
    expect(existsSync(join(directory, 'README.md'))).toBe(true);
    const allowed = [
      'README.md',
      'package.json',
      'tsconfig.json',
      'src',
      'c',
      'test',
      'dist',
      'node_modules',
      'CHANGELOG.md',
    ];
    const extra = readdirSync(directory).filter((entry) => !allowed.includes(entry) && !entry.endsWith('.tsbuildinfo'));
    // The engine packages hold C sources and the scripts that build them.
    if (!/engine/.test(manifest.name)) expect(extra).toEqual([]);
  },
);

test.each(published.map((each) => [each.name, each] as const))(
  '%s imports only what it declares',
  (_, { manifest, directory }) => {
    const declared = new Set([
      manifest.name,
      ...Object.keys({ ...manifest.dependencies, ...manifest.peerDependencies }),
    ]);
    const undeclared = sources(join(directory, 'src')).flatMap((file) => {
      const text = readFileSync(file, 'utf8');
      const imports = [...text.matchAll(/(?:^|\n)(?:import|export)[^'";]*?from '([^']+)'|import\('([^']+)'\)/g)].map(
        (m) => m[1] ?? m[2],
      );
      return imports
        .filter((id) => !id.startsWith('.') && !id.startsWith('node:'))
        .map((id) =>
          id
            .split('/')
            .slice(0, id.startsWith('@') ? 2 : 1)
            .join('/'),
        )
        .filter((id) => !declared.has(id));
    });
    expect([...new Set(undeclared)]).toEqual([]);
  },
);

test.each(
  published
    .filter(({ directory }) => !existsSync(join(directory, 'CHANGELOG.md')))
    .map((each) => [each.name, each] as const),
)('%s has a changeset', (name) => {
  const changesets = readdirSync(join(root, '.changeset')).filter((file) => file.endsWith('.md'));
  const mentioned = changesets.some((file) =>
    readFileSync(join(root, '.changeset', file), 'utf8').includes(`"${name}"`),
  );
  expect({ name, mentioned }).toEqual({ name, mentioned: true });
});

whenBuilt(
  `publint finds nothing in any package${unbuilt}`,
  () => {
    const script = `
    import { publint } from 'publint';
    const found = [];
    for (const directory of ${JSON.stringify(published.map(({ directory }) => directory))}) {
      const { messages } = await publint({ pkgDir: directory, level: 'warning', pack: false });
      for (const { code, path } of messages) found.push(directory + ': ' + code + ' at ' + path.join('.'));
    }
    console.log(JSON.stringify(found));`;
    const output = execFileSync(process.execPath, ['--input-type=module', '-e', script], { cwd: root }).toString();
    expect(JSON.parse(output.trim().split('\n').at(-1) as string)).toEqual([]);
  },
  120_000,
);

whenBuilt(
  `are-the-types-wrong finds nothing in core and in one method${unbuilt}`,
  () => {
    for (const name of ['@matforge/core', '@matforge/lora']) {
      const { directory } = packages.find((each) => each.name === name) as Package;
      // Throws with the report when the exit status is not 0.
      execFileSync(join(root, 'node_modules/.bin/attw'), ['--pack', directory, '--profile', 'esm-only'], {
        cwd: root,
        stdio: 'pipe',
      });
    }
  },
  120_000,
);

const REGISTERED: Record<string, string[]> = {
  '@matforge/monarch': ['MonarchDense'],
  '@matforge/btt': ['BTTDense'],
  '@matforge/blast': ['BlastDense'],
  '@matforge/galore': ['GaLoreAdam'],
  '@matforge/dct-projection': ['DctAdamW'],
  '@matforge/qfx': ['QfxDense', 'QfxModel'],
  '@matforge/models': ['MatforgeAttention'],
};

whenBuilt(
  `a bundler leaves out what a page does not use, and nothing that registers itself${unbuilt}`,
  async () => {
    const options: BuildOptions = {
      bundle: true,
      minify: true,
      format: 'esm',
      external: ['@tensorflow/*', 'gpu.js', 'node:*'],
      logLevel: 'error',
    };
    const directoryOf = (name: string) => (packages.find((each) => each.name === name) as Package).directory;
    const bytes = async (name: string, contents: string) => {
      const stdin = { contents, resolveDir: directoryOf(name) };
      return (await build({ ...options, stdin, write: false })).outputFiles[0].contents.length;
    };
    const text = async (name: string) => {
      const stdin = { contents: "import './dist/index.js'", resolveDir: directoryOf(name) };
      return (await build({ ...options, stdin, write: false })).outputFiles[0].text;
    };
    // What tfjs finds by its name when it loads a model must be there when the package is imported for that alone.
    for (const [name, classes] of Object.entries(REGISTERED)) {
      const found = await text(name);
      expect([name, classes.filter((each) => !found.includes(`"${each}"`))]).toEqual([name, []]);
    }
    expect(await bytes('@matforge/core', "import './dist/index.js'")).toBeLessThan(100);
    expect(await bytes('@matforge/core', "export { random } from './dist/index.js'")).toBeLessThan(3_000);
    expect(await bytes('@matforge/core', "export { einsum } from './dist/index.js'")).toBeLessThan(10_000);
    // Most of it is zod. By the name z, and not as a namespace, it comes with all its translations: 450 kB.
    expect(await bytes('@matforge/lora', "export { lora } from './dist/index.js'")).toBeLessThan(130_000);
  },
  60_000,
);

whenBuilt(`docs/methods.md says what the packages say${unbuilt}`, () => {
  execFileSync(process.execPath, [join(root, 'scripts/methods-table.mjs'), '--check'], { cwd: root });
});

function sources(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) return sources(path);
    return entry.name.endsWith('.ts') ? [path] : [];
  });
}
