import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type AnyLinearMethod, load, mergeAndUnload, ready, refuse } from '@matforge/core';
import { savePretrained } from '@matforge/models';
import { importPackage, installedPackages, isLinear, loadModel, methodsOf, saveModel } from '@matforge/pipeline';
import { EXIT, type Session } from '../program.ts';

/** `matforge merge <model> <adapter> <to>` */
export async function mergeAdapter(
  { output, from }: Session,
  model: string,
  adapter: string,
  to: string,
  { overwrite }: { overwrite?: boolean },
): Promise<number> {
  await ready();
  const base = await loadModel(model);
  await load(base, adapter, { methods: await installedLinear(from) });
  mergeAndUnload(base);
  const huggingFace = await stat(join(model, 'config.json')).then(
    () => true,
    () => false,
  );
  if (huggingFace) await savePretrained(base, to, { overwrite });
  else await saveModel(base, to, { overwrite });
  base.dispose();
  output.result({ model, adapter, to }, () => output.line(`${adapter} merged into ${model}: ${to}`));
  return EXIT.done;
}

async function installedLinear(from: string): Promise<AnyLinearMethod[]> {
  const methods: AnyLinearMethod[] = [];
  for (const { name } of installedPackages(from)) {
    const short = name.slice('@matforge/'.length);
    if (['core', 'engine', 'engine-native', 'testkit', 'pipeline'].includes(short)) continue;
    methods.push(...methodsOf(await importPackage<Record<string, unknown>>(short, from)).filter(isLinear));
  }
  if (methods.length === 0)
    refuse('methods', 'no method packages are installed; install the one of the adapter, e.g. npm i @matforge/lora');
  return methods;
}
