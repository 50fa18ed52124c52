import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import {
  decodeSafetensors,
  encodeSafetensors,
  fromBfloat16,
  fromFloat16,
  MatforgeError,
  openCheckpoint,
  openSafetensors,
  readSafetensors,
  toBfloat16,
  toFloat16,
  writeCheckpoint,
  writeSafetensors,
} from '../src/index.ts';

let directory: string;
beforeAll(() => tf.setBackend('cpu'));
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'matforge-files-'));
});
afterEach(() => {
  rmSync(directory, { recursive: true });
});

/** A safetensors file put together by hand. */
function file(header: unknown, data: ArrayLike<number> = [], pad = ''): Uint8Array {
  const json = typeof header === 'string' ? header : JSON.stringify(header);
  const text = Buffer.from(json + pad);
  const bytes = new Uint8Array(8 + text.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  bytes.set(data, 8 + text.length);
  return bytes;
}

const one = (dtype: string, shape: number[], data: number[]) =>
  file({ x: { dtype, shape, data_offsets: [0, data.length] } }, data);

function headerOf(
  bytes: Uint8Array,
): Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }> {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  return JSON.parse(Buffer.from(bytes.subarray(8, 8 + length)).toString());
}

describe('16-bit floats', () => {
  // IEEE 754 binary16 patterns and what they stand for.
  const halves: [number, number][] = [
    [0x0000, 0],
    [0x8000, -0],
    [0x3c00, 1],
    [0xc000, -2],
    [0x7bff, 65504],
    [0x0400, 2 ** -14],
    [0x03ff, 1023 * 2 ** -24],
    [0x0001, 2 ** -24],
    [0x3555, 0.333251953125],
    [0x7c00, Infinity],
    [0xfc00, -Infinity],
  ];
  test.each(halves)('binary16 %i is %d', (pattern, value) => {
    expect(fromFloat16(Uint16Array.of(pattern))[0]).toBe(value);
    expect(toFloat16([value])[0]).toBe(pattern);
  });

  test('every binary16 and bfloat16 pattern survives reading and writing', () => {
    const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const isNaN16 = (x: number) => (x & 0x7fff) > 0x7c00;
    const isNaNB = (x: number) => (x & 0x7fff) > 0x7f80;
    const back = toFloat16(fromFloat16(all));
    const backB = toBfloat16(fromBfloat16(all));
    // Signalling NaNs become quiet ones; every other pattern is itself again.
    expect(all.every((x) => (isNaN16(x) ? back[x] === (x | 0x200) : back[x] === x))).toBe(true);
    expect(all.every((x) => (isNaNB(x) ? backB[x] === (x | 0x40) : backB[x] === x))).toBe(true);
  });

  test('the middle between two values goes to the even one, a hair more goes up', () => {
    // binary16 has steps of 2^-10 at 1, and of 2^-24 below 2^-14.
    expect([...toFloat16([1 + 2 ** -11, 1 + 3 * 2 ** -11, 1 + 2 ** -11 + 2 ** -23])]).toEqual([0x3c00, 0x3c02, 0x3c01]);
    expect([...toFloat16([2 ** -25, 3 * 2 ** -25, 2 ** -25 * (1 + 2 ** -20), 2 ** -26])]).toEqual([0, 2, 1, 0]);
    expect([...toFloat16([65519, 65520, -1e9])]).toEqual([0x7bff, 0x7c00, 0xfc00]);
    // bfloat16 has steps of 2^-7 at 1.
    expect([...toBfloat16([1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -8 + 2 ** -23])]).toEqual([0x3f80, 0x3f82, 0x3f81]);
    expect([...toBfloat16([2 ** -133, 2 ** -134, 3 * 2 ** -134])]).toEqual([1, 0, 2]);
  });

  test('float64 numbers are rounded once, not first to float32', () => {
    // 1 + 2^-11 + 2^-40 lies above the middle; rounded to float32 first it would be the middle and go down to 1.
    expect(toFloat16([1 + 2 ** -11 + 2 ** -40, 1 + 2 ** -11 - 2 ** -40])).toEqual(Uint16Array.of(0x3c01, 0x3c00));
    expect(toFloat16([-1 - 3 * 2 ** -11 + 2 ** -40])).toEqual(Uint16Array.of(0xbc01));
    expect(toBfloat16([1 + 2 ** -8 + 2 ** -40, 1 + 3 * 2 ** -8 - 2 ** -40])).toEqual(Uint16Array.of(0x3f81, 0x3f81));
  });
});

describe('reading', () => {
  test.each<[string, number[], number[], string, number[]]>([
    ['F64', [1], [0, 0, 0, 0, 0, 0, 0xf8, 0x3f], 'float32', [1.5]],
    ['F32', [2], [0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0], 'float32', [1, -2.5]],
    ['F16', [2, 1], [0, 0x3c, 0, 0xc0], 'float32', [1, -2]],
    ['BF16', [1, 2], [0x80, 0x3f, 0x20, 0xc0], 'float32', [1, -2.5]],
    ['I64', [2], [1, 0, 0, 0, 0, 0, 0, 0, ...Array(8).fill(255)], 'int32', [1, -1]],
    ['I32', [1], [0, 0, 0, 0x80], 'int32', [-(2 ** 31)]],
    ['I16', [2], [0, 0x80, 255, 0x7f], 'int32', [-32768, 32767]],
    ['I8', [3], [0x80, 255, 127], 'int32', [-128, -1, 127]],
    ['U8', [2], [0, 255], 'int32', [0, 255]],
    ['BOOL', [2], [0, 1], 'bool', [0, 1]],
    ['F32', [], [0, 0, 0x80, 0x3f], 'float32', [1]],
    ['F32', [0, 3], [], 'float32', []],
  ])('%s of shape %j', async (dtype, shape, bytes, tensorType, values) => {
    const { tensors } = decodeSafetensors(one(dtype, shape, bytes));
    expect(tensors.x.dtype).toBe(tensorType);
    expect(tensors.x.shape).toEqual(shape);
    expect([...(await tensors.x.data())]).toEqual(values);
    tf.dispose(tensors);
  });

  test('data at an odd address, entries out of order, header padding and metadata', async () => {
    const header = {
      __metadata__: { format: 'pt', note: 'ä' },
      b: { dtype: 'F32', shape: [1], data_offsets: [1, 5] },
      a: { dtype: 'U8', shape: [1], data_offsets: [0, 1] },
      empty: { dtype: 'F32', shape: [0], data_offsets: [1, 1] },
    };
    const path = join(directory, 'odd.safetensors');
    writeFileSync(path, file(header, [7, 0, 0, 0x80, 0x3f], '   '));
    const { metadata, tensors } = await readSafetensors(path);
    expect(metadata).toEqual({ format: 'pt', note: 'ä' });
    expect(Object.keys(tensors).sort()).toEqual(['a', 'b', 'empty']);
    expect(tensors.a.dataSync()[0]).toBe(7);
    expect(tensors.b.dataSync()[0]).toBe(1);
    tf.dispose(tensors);
  });

  test('one tensor of an open file, by range; a wrong name is met with the right one', async () => {
    const path = join(directory, 'w.safetensors');
    const data = Array.from(new Uint8Array(Float32Array.of(1, 2, 3, 4).buffer));
    writeFileSync(
      path,
      file(
        {
          'layer.weight': { dtype: 'F32', shape: [1, 2], data_offsets: [0, 8] },
          'layer.bias': { dtype: 'F32', shape: [2], data_offsets: [8, 16] },
        },
        data,
      ),
    );
    const before = tf.memory().numTensors;
    const open = await openSafetensors(path);
    expect([...open.entries.keys()]).toEqual(['layer.weight', 'layer.bias']);
    expect(open.entries.get('layer.bias')).toMatchObject({ dtype: 'F32', shape: [2], byteLength: 8 });
    expect(tf.memory().numTensors).toBe(before);
    const bias = await open.read('layer.bias');
    expect([...bias.dataSync()]).toEqual([3, 4]);
    bias.dispose();
    await expect(open.read('layer.wieght')).rejects.toThrow(
      /w\.safetensors: tensor "layer\.wieght".*did you mean "layer\.weight"/,
    );
    // The file shrinks while it is open.
    truncateSync(path, readFileSync(path).length - 4);
    await expect(open.read('layer.bias')).rejects.toThrow(/truncated/);
    await open.close();
    expect(tf.memory().numTensors).toBe(before);
  });

  test('a Blob, as a browser gives it', async () => {
    const open = await openSafetensors(new Blob([one('I8', [2], [1, 255])]));
    expect([...(await open.readValues('x')).data]).toEqual([1, -1]);
    await open.close();
  });

  test('a file larger than memory should hold: 8 GiB, sparse, of which 16 bytes are read', async () => {
    const path = join(directory, 'large.safetensors');
    const large = 2 ** 33;
    const head = file({
      large: { dtype: 'U8', shape: [large], data_offsets: [0, large] },
      last: { dtype: 'F32', shape: [4], data_offsets: [large, large + 16] },
    });
    writeFileSync(path, head);
    truncateSync(path, head.length + large + 16);
    const open = await openSafetensors(path);
    const last = await open.read('last');
    expect([...last.dataSync()]).toEqual([0, 0, 0, 0]);
    last.dispose();
    await open.close();
  });

  test('I64 beyond int32 is refused as a tensor, kept as values; beyond 2^53 refused', async () => {
    const bytes = (value: bigint) => Array.from(new Uint8Array(BigInt64Array.of(value).buffer));
    expect(() => decodeSafetensors(one('I64', [1], bytes(2n ** 31n)))).toThrow(/"x".*2147483648.*int32/);
    const open = await openSafetensors(one('I64', [1], bytes(2n ** 40n)));
    expect((await open.readValues('x')).data).toEqual(Float64Array.of(2 ** 40));
    const beyond = await openSafetensors(one('I64', [1], bytes(2n ** 53n + 1n)));
    await expect(beyond.readValues('x')).rejects.toThrow(/9007199254740993.*2\^53/);
  });

  test('types known but not supported, damaged BOOLs and F64 beyond float32 are named', async () => {
    expect(() => decodeSafetensors(one('F8_E4M3', [1], [0]))).toThrow(/tensor "x".*F8_E4M3 is not supported/);
    expect(() => decodeSafetensors(one('BOOL', [2], [1, 3]))).toThrow(/"x".*3 at index 1/);
    const huge = Array.from(new Uint8Array(Float64Array.of(1e300).buffer));
    expect(() => decodeSafetensors(one('F64', [1], huge))).toThrow(/"x".*1e\+300.*float32/);
    const open = await openSafetensors(one('F8_E4M3', [1], [9]));
    expect([...(await open.readBytes('x'))]).toEqual([9]);
  });
});

describe('malformed files are refused', () => {
  const entry = (data_offsets: unknown, shape: unknown = [1], dtype: unknown = 'F32') => ({
    dtype,
    shape,
    data_offsets,
  });
  const eight = new Uint8Array(8);
  const longHeader = (length: bigint) => {
    const bytes = file({});
    new DataView(bytes.buffer).setBigUint64(0, length, true);
    return bytes;
  };
  const cases: [string, Uint8Array, RegExp][] = [
    ['empty', new Uint8Array(0), /0 bytes are too few/],
    ['seven bytes', new Uint8Array(7), /too few/],
    ['a header beyond 100 MB', longHeader(100_000_001n), /100000001 bytes.*limit of 100000000/],
    ['an absurd header size', longHeader(2n ** 64n - 1n), /18446744073709551615 bytes.*limit/],
    ['a header longer than the file', longHeader(3n), /3 bytes long.*10 bytes.*truncated/],
    ['an empty header', longHeader(0n), /0 bytes long/],
    [
      'a pickle',
      Buffer.concat([Buffer.from([2, 0, 0, 0, 0, 0, 0, 0]), Buffer.from('\x80\x02')]),
      /does not start with "\{"/,
    ],
    ['a header that is a list', file('[]'), /does not start with "\{"/],
    ['space before the header', file(' {}'), /does not start with "\{"/],
    ['broken JSON', file('{"x":'), /not JSON/],
    [
      'text that is not UTF-8',
      (() => {
        const b = file('{"x":1}');
        b[10] = 0xff;
        return b;
      })(),
      /not JSON in UTF-8/,
    ],
    [
      'duplicate names',
      file(
        '{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        eight,
      ),
      /names "x" twice/,
    ],
    [
      'duplicate names, one escaped',
      file(
        '{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"\\u0078":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        eight,
      ),
      /names "x" twice/,
    ],
    [
      'a duplicate field',
      file('{"x":{"dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,8]}}', eight),
      /names "shape" twice/,
    ],
    ['metadata that is not text', file({ __metadata__: { n: 1 } }), /__metadata__\.n.*must be a text/],
    ['metadata that is a list', file({ __metadata__: [] }), /__metadata__.*texts to texts/],
    ['an entry that is no object', file({ x: 3 }), /tensor "x".*dtype, shape and data_offsets/],
    ['an unknown dtype', file({ x: entry([0, 4], [1], 'F33') }, eight), /tensor "x".*unknown dtype "F33"/],
    ['a missing dtype', file({ x: { shape: [1], data_offsets: [0, 4] } }, eight), /tensor "x".*dtype must be a text/],
    ['a negative extent', file({ x: entry([0, 4], [-1]) }, eight), /tensor "x".*shape/],
    ['a fractional extent', file({ x: entry([0, 6], [1.5]) }, eight), /tensor "x".*shape/],
    ['offsets backwards', file({ x: entry([4, 0]) }, eight), /tensor "x".*begin ≤ end/],
    ['negative offsets', file({ x: entry([-4, 0]) }, eight), /tensor "x".*data_offsets/],
    ['three offsets', file({ x: entry([0, 4, 8]) }, eight), /tensor "x".*data_offsets/],
    ['offsets beyond the file', file({ x: entry([0, 16], [4]) }, eight), /tensor "x".*\[0,16\].*8 data bytes/],
    [
      'offsets beyond 2^53',
      file('{"x":{"dtype":"U8","shape":[1],"data_offsets":[9007199254740993,9007199254740994]}}', eight),
      /data_offsets/,
    ],
    ['shape and bytes that disagree', file({ x: entry([0, 8], [3]) }, eight), /tensor "x".*8 bytes.*\[3\].*12/],
    ['an overflowing shape', file({ x: entry([0, 8], [2 ** 40, 2 ** 40]) }, eight), /tensor "x".*8 bytes do not hold/],
    ['overlap', file({ a: entry([0, 8], [2]), b: entry([4, 8]) }, eight), /tensor "b".*overlaps.*4.*8/],
    ['the same bytes twice', file({ a: entry([0, 8], [2]), b: entry([0, 8], [2]) }, eight), /tensor "b".*overlaps/],
    ['a hole', file({ a: entry([0, 4]), b: entry([8, 12]) }, new Uint8Array(12)), /tensor "b".*hole/],
    ['a hole at the start', file({ a: entry([4, 8]) }, eight), /tensor "a".*hole/],
    ['bytes after the last tensor', file({ a: entry([0, 4]) }, eight), /4 bytes after the last tensor/],
  ];
  test.each(cases)('%s', async (_, bytes, message) => {
    const before = tf.memory().numTensors;
    expect(() => decodeSafetensors(new Uint8Array(bytes))).toThrow(message);
    const path = join(directory, 'bad.safetensors');
    writeFileSync(path, bytes);
    const opened = openSafetensors(path);
    await expect(opened).rejects.toThrow(message);
    await expect(opened).rejects.toThrow(MatforgeError);
    await expect(opened).rejects.toThrow(/bad\.safetensors/);
    expect(tf.memory().numTensors).toBe(before);
  });

  test('a file cut at any length', async () => {
    const whole = await encodeSafetensors({ a: { dtype: 'F32', shape: [3], data: [1, 2, 3] } });
    for (let length = 0; length < whole.length; length++) {
      expect(() => decodeSafetensors(whole.slice(0, length))).toThrow(MatforgeError);
    }
  });

  test('a missing file and a directory', async () => {
    await expect(readSafetensors(join(directory, 'none'))).rejects.toThrow(/none: could not be read: .*does not exist/);
    await expect(readSafetensors(directory)).rejects.toThrow(/directory, not a file/);
  });
});

describe('writing', () => {
  test('layout: wide types first, names in order, data at a multiple of 8, nothing between', async () => {
    const tensors = {
      flag: tf.tensor([1, 0, 1], [3], 'bool'),
      w: tf.tensor2d([[1, -2.5]]),
      count: tf.tensor1d([7], 'int32'),
      double: { dtype: 'F64' as const, shape: [1], data: [1.5] },
    };
    const bytes = await encodeSafetensors(tensors, { metadata: { made: 'here' } });
    expect(headerOf(bytes)).toEqual({
      __metadata__: { made: 'here' },
      double: { dtype: 'F64', shape: [1], data_offsets: [0, 8] },
      count: { dtype: 'I32', shape: [1], data_offsets: [8, 12] },
      w: { dtype: 'F32', shape: [1, 2], data_offsets: [12, 20] },
      flag: { dtype: 'BOOL', shape: [3], data_offsets: [20, 23] },
    });
    expect(Object.keys(headerOf(bytes)).slice(1)).toEqual(['double', 'count', 'w', 'flag']);
    expect((bytes.length - 23) % 8).toBe(0);
    expect([...bytes.slice(-23)]).toEqual([
      ...[0, 0, 0, 0, 0, 0, 0xf8, 0x3f],
      ...[7, 0, 0, 0],
      ...[0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0],
      ...[1, 0, 1],
    ]);
    tf.dispose([tensors.flag, tensors.w, tensors.count]);
  });

  test.each(['F16', 'BF16'] as const)('float32 tensors as %s, other types untouched', async (dtype) => {
    const path = join(directory, 'half.safetensors');
    const w = tf.tensor1d([1 + 2 ** -12, 3.1401, NaN, -Infinity]);
    const ids = tf.tensor1d([70000], 'int32');
    await writeSafetensors(path, { w, ids }, { dtype });
    const { tensors } = await readSafetensors(path);
    expect(headerOf(readFileSync(path)).w.dtype).toBe(dtype);
    expect([...tensors.w.dataSync()]).toEqual([1, 3.140625, NaN, -Infinity]);
    expect([...tensors.ids.dataSync()]).toEqual([70000]);
    tf.dispose([w, ids, tensors]);
  });

  test('every bit of float32 comes back', async () => {
    const bits = Uint32Array.of(1, 0x80000000, 0x7f7fffff, 0x00800001, 0xff800000, 0x7fc00001);
    const bytes = await encodeSafetensors({ w: { dtype: 'F32', shape: [6], data: new Float32Array(bits.buffer) } });
    const open = await openSafetensors(bytes);
    expect(new Uint32Array((await open.readValues('w')).data.buffer)).toEqual(bits);
  });

  test.each<[string, unknown, RegExp]>([
    ['too large for F16', { dtype: 'F16', shape: [2], data: [1, 70000] }, /tensor "t".*70000 at index 1.*F16/],
    ['too large for F32', { dtype: 'F32', shape: [1], data: [1e39] }, /tensor "t".*1e\+39/],
    ['not an integer', { dtype: 'I32', shape: [1], data: [0.5] }, /tensor "t".*0\.5 at index 0/],
    ['out of range', { dtype: 'U8', shape: [1], data: [256] }, /tensor "t".*256.*0 … 255/],
    ['too few values', { dtype: 'F32', shape: [2, 2], data: [1, 2, 3] }, /tensor "t".*3 values.*\[2,2\].*4/],
    ['too few bytes', { dtype: 'F32', shape: [2], bytes: new Uint8Array(7) }, /tensor "t".*7 bytes.*8/],
    ['unknown dtype', { dtype: 'F33', shape: [1], bytes: new Uint8Array(7) }, /tensor "t".*F33/],
    ['bad shape', { dtype: 'F32', shape: [-1], data: [] }, /tensor "t".*shape/],
  ])('%s is refused and leaves nothing behind', async (_, tensor, message) => {
    const path = join(directory, 'out.safetensors');
    await expect(writeSafetensors(path, { t: tensor as never })).rejects.toThrow(message);
    await expect(writeSafetensors(path, { t: tensor as never })).rejects.toThrow(/out\.safetensors/);
    expect(readdirSync(directory)).toEqual([]);
  });

  test('disposed tensors, strings, the reserved name and metadata that is not text are refused', async () => {
    const gone = tf.scalar(1);
    gone.dispose();
    await expect(encodeSafetensors({ gone })).rejects.toThrow(/tensor "gone".*disposed/);
    const text = tf.tensor(['a']);
    await expect(encodeSafetensors({ text })).rejects.toThrow(/tensor "text".*string/);
    text.dispose();
    const t = { dtype: 'U8' as const, shape: [1], data: [1] };
    await expect(encodeSafetensors({ __metadata__: t })).rejects.toThrow(/reserved/);
    await expect(encodeSafetensors({ t }, { metadata: { n: 1 as never } })).rejects.toThrow(/metadata\.n/);
    await expect(encodeSafetensors({ t }, { dtype: 'F8' as never })).rejects.toThrow(/F32, F16 and BF16/);
  });

  test('names that are dangerous or strange come back as they were', async () => {
    const names = ['__proto__', 'constructor', 'a"b\\c', 'ü.😀', '7', ''];
    const tensors = Object.fromEntries(names.map((name, i) => [name, { dtype: 'U8' as const, shape: [1], data: [i] }]));
    const { tensors: read } = decodeSafetensors(await encodeSafetensors(tensors));
    expect(Object.keys(read).sort()).toEqual([...names].sort());
    for (const [i, name] of names.entries()) {
      const tensor = Object.getOwnPropertyDescriptor(read, name)!.value as tf.Tensor;
      expect(tensor.dataSync()[0]).toBe(i);
      tensor.dispose();
    }
  });

  test('an existing file is refused, and replaced only when asked', async () => {
    const path = join(directory, 'w.safetensors');
    const t = (value: number) => ({ t: { dtype: 'U8' as const, shape: [1], data: [value] } });
    await writeSafetensors(path, t(1));
    await expect(writeSafetensors(path, t(2))).rejects.toThrow(/w\.safetensors: exists already.*overwrite/);
    expect(readFileSync(path).at(-1)).toBe(1);
    await writeSafetensors(path, t(2), { overwrite: true });
    expect(readFileSync(path).at(-1)).toBe(2);
    expect(readdirSync(directory)).toEqual(['w.safetensors']);
  });
});

describe('sharded checkpoints', () => {
  const values = (from: number) => ({ dtype: 'F32' as const, shape: [4], data: [from, from + 1, from + 2, from + 3] });
  const tensors = {
    a: values(0),
    b: values(4),
    c: values(8),
    d: values(12),
    e: { dtype: 'U8' as const, shape: [1], data: [9] },
  };

  test('are written with an index and read as one', async () => {
    const target = join(directory, 'model');
    const names = await writeCheckpoint(target, tensors, { maxShardBytes: 32 });
    expect(names).toEqual([
      'model-00001-of-00003.safetensors',
      'model-00002-of-00003.safetensors',
      'model-00003-of-00003.safetensors',
      'model.safetensors.index.json',
    ]);
    expect(readdirSync(target).sort()).toEqual([...names].sort());
    expect(JSON.parse(readFileSync(join(target, 'model.safetensors.index.json'), 'utf8'))).toEqual({
      metadata: { total_size: 65 },
      weight_map: {
        a: 'model-00001-of-00003.safetensors',
        b: 'model-00001-of-00003.safetensors',
        c: 'model-00002-of-00003.safetensors',
        d: 'model-00002-of-00003.safetensors',
        e: 'model-00003-of-00003.safetensors',
      },
    });
    for (const path of [target, join(target, 'model.safetensors.index.json')]) {
      const open = await openCheckpoint(path);
      expect(open.metadata).toEqual({ format: 'pt' });
      expect([...open.entries.keys()]).toEqual(['a', 'b', 'c', 'd', 'e']);
      expect([...(await open.readValues('d')).data]).toEqual([12, 13, 14, 15]);
      await expect(open.read('f')).rejects.toThrow(/tensor "f"/);
      await open.close();
    }
  });

  test('a small one is a single file; a single foreign file is found by its directory', async () => {
    expect(await writeCheckpoint(join(directory, 'm'), tensors)).toEqual(['model.safetensors']);
    const adapter = join(directory, 'adapter');
    await writeCheckpoint(adapter, tensors);
    const { renameSync } = await import('node:fs');
    renameSync(join(adapter, 'model.safetensors'), join(adapter, 'adapter_model.safetensors'));
    const open = await openCheckpoint(adapter);
    expect(open.entries.size).toBe(5);
    await open.close();
    await expect(openCheckpoint(directory)).rejects.toThrow(/holds no model\.safetensors\.index\.json.*adapter, m/);
  });

  test('an older checkpoint is refused, replaced only when asked, and other files stay', async () => {
    const target = join(directory, 'model');
    await writeCheckpoint(target, tensors, { maxShardBytes: 32 });
    writeFileSync(join(target, 'config.json'), '{}');
    await expect(writeCheckpoint(target, { a: tensors.a })).rejects.toThrow(/exists already/);
    expect(readdirSync(target)).toHaveLength(5);
    await writeCheckpoint(target, { a: tensors.b }, { overwrite: true });
    expect(readdirSync(target).sort()).toEqual(['config.json', 'model.safetensors']);
    await expect(writeCheckpoint(target, { a: { ...tensors.a, data: [1] } }, { overwrite: true })).rejects.toThrow(
      /1 values/,
    );
    const failing = { a: { dtype: 'F32', shape: [1], bytes: () => Promise.reject(new Error('source lost')) } };
    await expect(writeCheckpoint(target, failing, { overwrite: true })).rejects.toThrow('source lost');
    expect(readdirSync(target).sort()).toEqual(['config.json', 'model.safetensors']);
  });

  test('index and shards that disagree are refused', async () => {
    const target = join(directory, 'model');
    await writeCheckpoint(target, tensors, { maxShardBytes: 32 });
    const index = join(target, 'model.safetensors.index.json');
    const good = JSON.parse(readFileSync(index, 'utf8')).weight_map;
    const tryIndex = async (weight_map: unknown) => {
      writeFileSync(index, JSON.stringify({ weight_map }));
      await (await openCheckpoint(target)).close();
    };
    await tryIndex(good);
    await expect(tryIndex({ ...good, a: good.e })).rejects.toThrow(/tensor "a".*not in the file/);
    await expect(tryIndex({ ...good, z: good.a })).rejects.toThrow(/tensor "z"/);
    const { b: _, ...without } = good;
    await expect(tryIndex(without)).rejects.toThrow(/tensor "b".*places it nowhere/);
    await expect(tryIndex({ ...good, a: '../other.safetensors' })).rejects.toThrow(/same directory/);
    await expect(tryIndex({ ...good, a: '/etc/passwd' })).rejects.toThrow(/same directory/);
    await expect(tryIndex({ ...good, a: 'model-00009-of-00003.safetensors' })).rejects.toThrow(/00009.*does not exist/);
    await expect(tryIndex([])).rejects.toThrow(/weight_map/);
    writeFileSync(index, '{');
    await expect(openCheckpoint(target)).rejects.toThrow(/index\.json: is not JSON/);
  });
});
