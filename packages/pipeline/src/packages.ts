import { readdirSync, readFileSync, realpathSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import {
  type AnyConfiguredMethod,
  type AnyLinearMethod,
  didYouMean,
  type GradientTransformation,
  MatforgeError,
  type MethodInfo,
  type Reproduction,
  refuse,
} from '@matforge/core';

/** A method that is not a linear method: an optimizer. */
export interface OptimizerMethod {
  (options?: Record<string, unknown>): GradientTransformation;
  readonly info: MethodInfo;
  readonly config: { readonly shape: Record<string, unknown> };
}

/** A method found in an installed package. */
export type InstalledMethod = AnyLinearMethod | OptimizerMethod;

/** An installed method package. */
export interface InstalledPackage {
  readonly name: string;
  readonly version: string;
  readonly directory: string;
}

/** Packages under `@matforge/` that can be imported from a directory, ordered by name. */
export function installedPackages(from: string): InstalledPackage[] {
  const found = new Map<string, InstalledPackage>();
  for (let directory = from; ; directory = dirname(directory)) {
    const scope = join(directory, 'node_modules', '@matforge');
    for (const entry of safeList(scope)) {
      try {
        const place = realpathSync(join(scope, entry));
        const { name, version } = JSON.parse(readFileSync(join(place, 'package.json'), 'utf8'));
        if (!found.has(name)) found.set(name, { name, version, directory: place });
      } catch {
        // Not a package: a broken link or a folder of something else.
      }
    }
    if (dirname(directory) === directory) break;
  }
  return [...found.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}

function safeList(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

/**
 * The installed package `@matforge/<name>`.
 *
 * @throws MatforgeError that says what to install.
 */
export function findPackage(name: string, from: string): InstalledPackage {
  const installed = installedPackages(from);
  const near = didYouMean(
    name,
    installed.map((entry) => entry.name.slice('@matforge/'.length)),
  );
  return (
    installed.find((entry) => entry.name === `@matforge/${name}`) ??
    refuse(
      `@matforge/${name}`,
      `is not installed${near ? `; did you mean "${near}"?` : '.'} Install it: npm i @matforge/${name}`,
    )
  );
}

/**
 * Imports an installed `@matforge/` package, or a part of it.
 *
 * @throws MatforgeError that says what to install.
 */
export async function importPackage<T>(name: string, from: string): Promise<T> {
  const id = `@matforge/${name}`;
  const [short, part] = name.split('/');
  const found = findPackage(short, from);
  try {
    return (await importFrom(id, part, found, from)) as T;
  } catch (error) {
    if (error instanceof MatforgeError) throw error;
    return refuse(id, `cannot be loaded: ${(error as Error).message}`, { cause: error });
  }
}

/** Set by tests, which run from source. */
export const imports: { load?: (id: string) => unknown } = {};

async function importFrom(
  id: string,
  part: string | undefined,
  { directory }: InstalledPackage,
  from: string,
): Promise<unknown> {
  if (imports.load) return imports.load(id);
  // The package's own manifest decides where its entry is; `from` decides which copy of it is meant.
  const { exports } = JSON.parse(readFileSync(join(directory, 'package.json'), 'utf8'));
  const entry = exports?.[part ? `./${part}` : '.'];
  const file = typeof entry === 'string' ? entry : entry?.default;
  if (!file) return import(pathToFileURL(createRequire(join(from, 'index.js')).resolve(id)).href);
  return import(pathToFileURL(join(directory, file)).href);
}

/** The method of an installed package. */
export async function loadMethod(name: string, from: string): Promise<InstalledMethod> {
  const exported = await importPackage<Record<string, unknown>>(name, from);
  const methods = methodsOf(exported);
  return (
    methods.find(({ info }) => info.id === name) ??
    refuse(`@matforge/${name}`, 'exports no method of that name that a pipeline can use')
  );
}

/** The methods among a package's exports. */
function methodsOf(exported: Record<string, unknown>): InstalledMethod[] {
  return Object.values(exported).filter((value): value is InstalledMethod => {
    const candidate = value as Partial<InstalledMethod> | undefined;
    return typeof value === 'function' && typeof candidate?.info?.id === 'string' && candidate.config !== undefined;
  });
}

/** Packages that hold no methods. */
const INFRASTRUCTURE = ['core', 'engine', 'engine-native', 'models', 'datasets', 'pipeline', 'testkit'];

/** Every method of the installed packages, with its package. */
export async function installedMethods(
  from: string,
): Promise<(InstalledPackage & { readonly method: InstalledMethod })[]> {
  const listed: (InstalledPackage & { readonly method: InstalledMethod })[] = [];
  for (const found of installedPackages(from)) {
    const short = found.name.slice('@matforge/'.length);
    if (INFRASTRUCTURE.includes(short)) continue;
    const exported = await importPackage<Record<string, unknown>>(short, from);
    for (const method of methodsOf(exported)) listed.push({ ...found, method });
  }
  return listed;
}

/** True for methods that {@link attach} takes. */
export function isLinear(method: InstalledMethod): method is AnyLinearMethod {
  return (method as Partial<AnyLinearMethod>).contract === 'linear';
}

/**
 * A linear method of an installed package with its options.
 *
 * @throws MatforgeError when it is not installed, not a linear method, or refuses the options.
 */
export async function configuredMethod(
  name: string,
  options: Record<string, unknown>,
  from: string,
): Promise<AnyConfiguredMethod> {
  const method = await loadMethod(name, from);
  if (!isLinear(method)) refuse(name, `is ${method.info.kind}, not a method for kernels; use it as an optimizer`);
  return method(options);
}

/** Runs a method's claim. */
export async function reproduction(name: string, from: string): Promise<Reproduction> {
  const { reproduce } = await importPackage<{ reproduce: () => Promise<Reproduction> }>(`${name}/reproduce`, from);
  return reproduce();
}
