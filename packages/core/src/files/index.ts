export {
  type FileContent,
  fileError,
  readJsonFile,
  readTextFile,
  refuseExisting,
  type WriteOptions,
  writeDirectoryAtomic,
  writeFileAtomic,
} from './atomic.ts';
export { type CheckpointOptions, openCheckpoint, writeCheckpoint } from './checkpoint.ts';
export type { SafetensorsDtype, TensorValues } from './dtypes.ts';
export { fromBfloat16, fromFloat16, toBfloat16, toFloat16 } from './half.ts';
export type { SafetensorsEntry } from './header.ts';
export {
  type Checkpoint,
  decodeSafetensors,
  encodeSafetensors,
  openSafetensors,
  type RawTensor,
  readSafetensors,
  type SafetensorsContent,
  type SafetensorsOptions,
  type TensorBytes,
  type WritableTensor,
  writeSafetensors,
} from './safetensors.ts';
export { type ByteSource, openSource } from './source.ts';
export { type CheckpointStorage, directoryStorage, memoryStorage } from './storage.ts';
