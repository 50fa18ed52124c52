import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type AnyLinearMethod, load, mergeAndUnload, ready, refuse } from '@matforge/core';
import { savePretrained } from '@matforge/models';
import { installedMethods, isLinear, loadModel, saveModel } from '@matforge/pipeline';
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
  const methods = (await installedMethods(from)).map(({ method }) => method).filter(isLinear);
  if (methods.length === 0)
    refuse('methods', 'no method packages are installed; install the one of the adapter, e.g. npm i @matforge/lora');
  return methods;
}
