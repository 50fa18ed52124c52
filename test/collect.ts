// A runner with jest's words, for pages: what is declared is collected, and run one test at a time.

type Body = () => unknown;

interface Scope {
  readonly name: string;
  readonly parent?: Scope;
  readonly beforeAll: Body[];
  readonly beforeEach: Body[];
  readonly afterEach: Body[];
  entered: boolean;
}

/** A declared test. */
export interface Collected {
  /** Names of its groups and its own. */
  readonly path: readonly string[];
  /** Runs it between its hooks; rejects when it fails. */
  run(): Promise<void>;
}

/** Collects the tests that `declare` declares by jest's globals. */
export function collect(declare: () => void): Collected[] {
  const found: Collected[] = [];
  let scope: Scope | undefined;
  const open = (name: string, parent?: Scope): Scope => ({
    ...{ name, parent, beforeAll: [], beforeEach: [], afterEach: [], entered: false },
  });
  const describe = (name: string, body: () => void): void => {
    const outer = scope;
    scope = open(name, outer);
    body();
    scope = outer;
  };
  const test = (name: string, body: Body): void => {
    const scopes = chain(scope);
    found.push({ path: [...scopes.map((each) => each.name), name], run: () => runTest(scopes, body) });
  };
  test.each = (rows: readonly unknown[]) => (name: string, body: (...row: unknown[]) => unknown) => {
    for (const row of rows) {
      const values = Array.isArray(row) ? row : [row];
      test(named(name, values), () => body(...values));
    }
  };
  const hook = (kind: 'beforeAll' | 'beforeEach' | 'afterEach') => (body: Body) => scope?.[kind].push(body);
  const words: Record<string, unknown> = { describe, test, it: test };
  for (const kind of ['beforeAll', 'beforeEach', 'afterEach'] as const) words[kind] = hook(kind);
  const global = globalThis as unknown as Record<string, unknown>;
  const before = Object.fromEntries(Object.keys(words).map((word) => [word, global[word]]));
  Object.assign(global, words);
  try {
    declare();
  } finally {
    Object.assign(global, before);
  }
  return found;
}

function chain(scope: Scope | undefined): Scope[] {
  return scope ? [...chain(scope.parent), scope] : [];
}

async function runTest(scopes: readonly Scope[], body: Body): Promise<void> {
  for (const scope of scopes) {
    if (!scope.entered) for (const hook of scope.beforeAll) await hook();
    scope.entered = true;
  }
  for (const scope of scopes) for (const hook of scope.beforeEach) await hook();
  await body();
  for (const scope of [...scopes].reverse()) for (const hook of scope.afterEach) await hook();
}

/** A name with the row's values in its placeholders, as `test.each` writes them. */
function named(name: string, values: readonly unknown[]): string {
  let at = 0;
  return name.replace(/%[sij]/g, (kind) => {
    const value = values[at++];
    return kind === '%j' ? JSON.stringify(value) : String(value);
  });
}
