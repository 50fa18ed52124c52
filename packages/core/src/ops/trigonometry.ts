import * as tf from '@tensorflow/tfjs';

// π/2 in three parts. The first two have so few bits that their products with a whole number below 2¹⁴ are exact.
const [FIRST, SECOND] = [Math.round((Math.PI / 2) * 2 ** 7) / 2 ** 7, 2 ** -22];
const MIDDLE = Math.round((Math.PI / 2 - FIRST) / SECOND) * SECOND;
const LAST = Math.PI / 2 - FIRST - MIDDLE;

/** Terms of the series from the highest down; on |r| <= π/4 what is left out is below 3e-8. */
const SINE = [1 / 362880, -1 / 5040, 1 / 120, -1 / 6];
const COSINE = [1 / 40320, -1 / 720, 1 / 24, -1 / 2];

/** c₀·zⁿ + c₁·zⁿ⁻¹ + … + cₙ₋₁·z. */
const series = (coefficients: readonly number[], z: tf.Tensor): tf.Tensor =>
  coefficients.reduce((sum: tf.Tensor, c) => tf.mul(tf.add(sum, c), z), tf.zerosLike(z));

/**
 * sin(x + quarters·π/2) from sums and products alone, with an error near float32's rounding while |x| < 25,000. Shading
 * languages allow their own sine an error of 2⁻¹¹ (WGSL) or any (GLSL), which is too much to train with.
 */
function sineOf(x: tf.Tensor, quarters: number): tf.Tensor {
  const angle = tf.cast(x, 'float32');
  const turns = tf.round(tf.mul(angle, 2 / Math.PI));
  const r = [FIRST, MIDDLE, LAST].reduce((rest: tf.Tensor, part) => tf.sub(rest, tf.mul(turns, part)), angle);
  const z = tf.square(r);
  const sine = tf.add(r, tf.mul(r, series(SINE, z)));
  const cosine = tf.add(1, series(COSINE, z));
  const place = tf.add(turns, quarters);
  const half = tf.floor(tf.mul(place, 0.5));
  const odd = tf.sub(place, tf.mul(half, 2));
  const sign = tf.sub(1, tf.mul(2, tf.sub(half, tf.mul(2, tf.floor(tf.mul(half, 0.5))))));
  return tf.mul(sign, tf.add(sine, tf.mul(odd, tf.sub(cosine, sine))));
}

const KERNELS = { Sin: 0, Cos: 1 };

/** Angles of both signs, small, large and near multiples of π/2. */
const PROBES = Array.from({ length: 64 }, (_, i) => (i - 31.5) * 0.37);

const settled = new Set<string>();

/** Gives a current backend whose sine or cosine is coarser than 4e-6 exact ones, made of its other kernels. */
export async function refineTrigonometry(backendName: string): Promise<void> {
  if (settled.has(backendName)) return;
  settled.add(backendName);
  const probes = tf.tensor1d(PROBES);
  const own = { Sin: tf.sin(probes), Cos: tf.cos(probes) };
  for (const kernelName of ['Sin', 'Cos'] as const) {
    const values = await own[kernelName].data();
    const worst = PROBES.reduce((most, x, i) => {
      const exact = kernelName === 'Sin' ? Math.sin(Math.fround(x)) : Math.cos(Math.fround(x));
      return Math.max(most, Math.abs(values[i] - exact));
    }, 0);
    if (worst <= 4e-6) continue;
    tf.unregisterKernel(kernelName, backendName);
    tf.registerKernel({
      kernelName,
      backendName,
      kernelFunc: ({ inputs }) => tf.tidy(() => sineOf(inputs['x'] as tf.Tensor, KERNELS[kernelName])),
    });
  }
  tf.dispose([probes, own.Sin, own.Cos]);
}
