import { copyFile, readdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { openCheckpoint, ready, refuse, writeCheckpoint, writeDirectoryAtomic, writeSafetensors } from '@matforge/core';
import * as tf from '@tensorflow/tfjs';
import { EXIT, type Session } from '../program.ts';

interface ConvertOptions {
  dtype: 'F32' | 'F16' | 'BF16';
  maxShard?: number;
  overwrite?: boolean;
}

/** `matforge convert <from> <to>` */
export async function convert(
  { output }: Session,
  from: string,
  to: string,
  { dtype, maxShard, overwrite }: ConvertOptions,
): Promise<number> {
  const isDirectory = await stat(from).then(
    (entry) => entry.isDirectory(),
    () => refuse(from, 'does not exist'),
  );
  await ready();
  const names = isDirectory ? await readdir(from) : [];
  const adapter = names.includes('adapter_model.safetensors');
  const file = await openCheckpoint(adapter ? join(from, 'adapter_model.safetensors') : from);
  const tensors: Record<string, tf.Tensor> = {};
  try {
    for (const name of file.entries.keys()) tensors[name] = await file.read(name);
    if (to.endsWith('.safetensors')) {
      await writeSafetensors(to, tensors, { dtype, overwrite, metadata: file.metadata });
    } else {
      await writeDirectoryAtomic(
        to,
        async (temporary) => {
          for (const name of names) {
            if (!name.endsWith('.safetensors') && !name.endsWith('.safetensors.index.json'))
              await copyPlain(join(from, name), join(temporary, name));
          }
          if (adapter)
            await writeSafetensors(join(temporary, 'adapter_model.safetensors'), tensors, {
              dtype,
              metadata: file.metadata,
            });
          else await writeCheckpoint(temporary, tensors, { dtype, maxShardBytes: maxShard, metadata: file.metadata });
        },
        { overwrite },
      );
    }
  } finally {
    tf.dispose(Object.values(tensors));
    await file.close();
  }
  const count = file.entries.size;
  output.result({ from, to, dtype, tensors: count }, () =>
    output.line(`${count} tensors of ${basename(from)} written to ${to} as ${dtype}`),
  );
  return EXIT.done;
}

async function copyPlain(from: string, to: string): Promise<void> {
  if ((await stat(from)).isFile()) await copyFile(from, to);
}
