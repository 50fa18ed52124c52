// The transformers in float64 loops, from the papers and from what Hugging Face configurations mean. It knows checkpoint
// keys and PyTorch's orientation ([out, in]; GPT-2's Conv1D [in, out]) and shares no code with the package.

export interface Stored {
  shape: number[];
  data: Float64Array;
}
export type Weights = Record<string, Stored>;
type Rows = Float64Array[];

const dot = (a: Float64Array, b: Float64Array, from = 0, length = a.length): number => {
  let sum = 0;
  for (let i = 0; i < length; i++) sum += a[i] * b[from + i];
  return sum;
};
const addRows = (a: Rows, b: Rows): Rows => a.map((row, t) => row.map((value, i) => value + b[t][i]));
const mapRows = (a: Rows, f: (value: number) => number): Rows => a.map((row) => row.map(f));

/** y = x Wᵀ + b with W [out, in]. */
function linear(w: Weights, name: string, x: Rows): Rows {
  const [out, width] = w[`${name}.weight`].shape;
  const bias = w[`${name}.bias`]?.data;
  return x.map((row) =>
    Float64Array.from(
      { length: out },
      (_, o) => dot(row, w[`${name}.weight`].data, o * width, width) + (bias?.[o] ?? 0),
    ),
  );
}

/** y = x W + b with W [in, out]. */
function conv1d(w: Weights, name: string, x: Rows): Rows {
  const { shape, data } = w[`${name}.weight`];
  const [width, out] = shape;
  return x.map((row) =>
    Float64Array.from({ length: out }, (_, o) => {
      let sum = w[`${name}.bias`].data[o];
      for (let i = 0; i < width; i++) sum += row[i] * data[i * out + o];
      return sum;
    }),
  );
}

function look(w: Weights, name: string, ids: number[]): Rows {
  const { shape, data } = w[`${name}.weight`];
  return ids.map((id) => data.slice(id * shape[1], (id + 1) * shape[1]));
}

function layerNorm(w: Weights, name: string, x: Rows, epsilon: number): Rows {
  return x.map((row) => {
    const mean = row.reduce((a, b) => a + b, 0) / row.length;
    const variance = row.reduce((a, b) => a + (b - mean) ** 2, 0) / row.length;
    return row.map(
      (v, i) => ((v - mean) / Math.sqrt(variance + epsilon)) * w[`${name}.weight`].data[i] + w[`${name}.bias`].data[i],
    );
  });
}

function rmsNorm(w: Weights, name: string, x: Rows, epsilon: number): Rows {
  return x.map((row) => {
    const meanSquare = row.reduce((a, b) => a + b * b, 0) / row.length;
    return row.map((v, i) => (v / Math.sqrt(meanSquare + epsilon)) * w[`${name}.weight`].data[i]);
  });
}

/** erf by its Taylor series (|x| < 3) and its continued fraction: good to 1e-14. */
export function erf(x: number): number {
  if (Math.abs(x) < 3) {
    let term = x;
    let sum = x;
    for (let n = 1; n < 200; n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = 0;
  for (let k = 60; k > 0; k--) fraction = k / 2 / (Math.abs(x) + fraction);
  const tail = Math.exp(-x * x) / Math.sqrt(Math.PI) / (Math.abs(x) + fraction);
  return Math.sign(x) * (1 - tail);
}
const gelu = (x: number): number => 0.5 * x * (1 + erf(x / Math.sqrt(2)));
const geluNew = (x: number): number => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
const silu = (x: number): number => x / (1 + Math.exp(-x));

interface AttentionSettings {
  heads: number;
  kvHeads: number;
  size: number;
  allowed: (query: number, key: number) => boolean;
}

function attend(q: Rows, k: Rows, v: Rows, { heads, kvHeads, size, allowed }: AttentionSettings): Rows {
  return q.map((query, t) => {
    const out = new Float64Array(heads * size);
    for (let head = 0; head < heads; head++) {
      const shared = Math.floor(head / (heads / kvHeads));
      const scores = k.map((key, s) => {
        if (!allowed(t, s)) return -Infinity;
        let sum = 0;
        for (let i = 0; i < size; i++) sum += query[head * size + i] * key[shared * size + i];
        return sum / Math.sqrt(size);
      });
      const top = Math.max(...scores);
      const weights = scores.map((score) => Math.exp(score - top));
      const total = weights.reduce((a, b) => a + b, 0);
      for (let i = 0; i < size; i++) {
        out[head * size + i] = weights.reduce((sum, weight, s) => sum + (weight / total) * v[s][shared * size + i], 0);
      }
    }
    return out;
  });
}

/** rotate_half: x · cos + concat(-second half, first half) · sin, angles t · θ^(-2i/d) repeated for both halves. */
function rotary(x: Rows, heads: number, size: number, frequency: (i: number) => number): Rows {
  return x.map((row, t) => {
    const out = new Float64Array(row.length);
    for (let head = 0; head < heads; head++) {
      for (let i = 0; i < size; i++) {
        const angle = t * frequency(i % (size / 2));
        const other = i < size / 2 ? -row[head * size + i + size / 2] : row[head * size + i - size / 2];
        out[head * size + i] = row[head * size + i] * Math.cos(angle) + other * Math.sin(angle);
      }
    }
    return out;
  });
}

// biome-ignore lint/suspicious/noExplicitAny: a config.json.
type Config = any;

export function referenceLlama(w: Weights, c: Config, ids: number[]): Rows {
  const size = c.head_dim ?? c.hidden_size / c.num_attention_heads;
  const kvHeads = c.num_key_value_heads;
  const frequency = (i: number): number => {
    const plain = c.rope_theta ** ((-2 * i) / size);
    const s = c.rope_scaling;
    if (!s) return plain;
    if (s.rope_type === 'linear') return plain / s.factor;
    const wavelength = (2 * Math.PI) / plain;
    const old = s.original_max_position_embeddings;
    if (wavelength < old / s.high_freq_factor) return plain;
    if (wavelength > old / s.low_freq_factor) return plain / s.factor;
    const smooth = (old / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    return ((1 - smooth) * plain) / s.factor + smooth * plain;
  };
  let x = look(w, 'model.embed_tokens', ids);
  for (let l = 0; l < c.num_hidden_layers; l++) {
    const p = `model.layers.${l}`;
    const h = rmsNorm(w, `${p}.input_layernorm`, x, c.rms_norm_eps);
    const q = rotary(linear(w, `${p}.self_attn.q_proj`, h), c.num_attention_heads, size, frequency);
    const k = rotary(linear(w, `${p}.self_attn.k_proj`, h), kvHeads, size, frequency);
    const v = linear(w, `${p}.self_attn.v_proj`, h);
    const window = c.sliding_window ?? Infinity;
    const allowed = (t: number, s: number) => s <= t && t - s < window;
    const mixed = attend(q, k, v, { heads: c.num_attention_heads, kvHeads, size, allowed });
    x = addRows(x, linear(w, `${p}.self_attn.o_proj`, mixed));
    const m = rmsNorm(w, `${p}.post_attention_layernorm`, x, c.rms_norm_eps);
    const gate = mapRows(linear(w, `${p}.mlp.gate_proj`, m), silu);
    const up = linear(w, `${p}.mlp.up_proj`, m);
    x = addRows(
      x,
      linear(
        w,
        `${p}.mlp.down_proj`,
        gate.map((row, t) => row.map((g, i) => g * up[t][i])),
      ),
    );
  }
  x = rmsNorm(w, 'model.norm', x, c.rms_norm_eps);
  return linear(w, c.tie_word_embeddings ? 'model.embed_tokens' : 'lm_head', x);
}

export function referenceGpt2(w: Weights, c: Config, ids: number[]): Rows {
  const size = c.n_embd / c.n_head;
  const eps = c.layer_norm_epsilon;
  let x = addRows(
    look(w, 'transformer.wte', ids),
    look(
      w,
      'transformer.wpe',
      ids.map((_, t) => t),
    ),
  );
  for (let l = 0; l < c.n_layer; l++) {
    const p = `transformer.h.${l}`;
    const qkv = conv1d(w, `${p}.attn.c_attn`, layerNorm(w, `${p}.ln_1`, x, eps));
    const part = (n: number) => qkv.map((row) => row.slice(n * c.n_embd, (n + 1) * c.n_embd));
    const settings = { heads: c.n_head, kvHeads: c.n_head, size, allowed: (t: number, s: number) => s <= t };
    x = addRows(x, conv1d(w, `${p}.attn.c_proj`, attend(part(0), part(1), part(2), settings)));
    const wide = mapRows(conv1d(w, `${p}.mlp.c_fc`, layerNorm(w, `${p}.ln_2`, x, eps)), geluNew);
    x = addRows(x, conv1d(w, `${p}.mlp.c_proj`, wide));
  }
  return linear(w, 'transformer.wte', layerNorm(w, 'transformer.ln_f', x, eps));
}

export function referenceBertEncoder(
  w: Weights,
  c: Config,
  base: string,
  ids: number[],
  mask: number[],
  types: number[],
): Rows {
  const size = c.hidden_size / c.num_attention_heads;
  const eps = c.layer_norm_eps;
  const e = `${base}embeddings`;
  const positions = look(
    w,
    `${e}.position_embeddings`,
    ids.map((_, t) => t),
  );
  const words = addRows(look(w, `${e}.word_embeddings`, ids), look(w, `${e}.token_type_embeddings`, types));
  let x = layerNorm(w, `${e}.LayerNorm`, addRows(words, positions), eps);
  for (let l = 0; l < c.num_hidden_layers; l++) {
    const p = `${base}encoder.layer.${l}`;
    const [q, k, v] = ['query', 'key', 'value'].map((n) => linear(w, `${p}.attention.self.${n}`, x));
    const heads = c.num_attention_heads;
    const mixed = attend(q, k, v, { heads, kvHeads: heads, size, allowed: (_, s) => mask[s] === 1 });
    x = layerNorm(
      w,
      `${p}.attention.output.LayerNorm`,
      addRows(linear(w, `${p}.attention.output.dense`, mixed), x),
      eps,
    );
    const wide = mapRows(linear(w, `${p}.intermediate.dense`, x), gelu);
    x = layerNorm(w, `${p}.output.LayerNorm`, addRows(linear(w, `${p}.output.dense`, wide), x), eps);
  }
  return x;
}

export function referenceBertMaskedLm(w: Weights, c: Config, ids: number[], mask: number[], types: number[]): Rows {
  const x = referenceBertEncoder(w, c, 'bert.', ids, mask, types);
  const hidden = mapRows(linear(w, 'cls.predictions.transform.dense', x), gelu);
  const normed = layerNorm(w, 'cls.predictions.transform.LayerNorm', hidden, c.layer_norm_eps);
  const scores = linear(w, 'bert.embeddings.word_embeddings', normed);
  return scores.map((row) => row.map((score, i) => score + w['cls.predictions.bias'].data[i]));
}

export function referenceBertPooled(w: Weights, base: string, x: Rows): Rows {
  return mapRows(linear(w, `${base}pooler.dense`, [x[0]]), Math.tanh);
}

export function referenceBertClassifier(w: Weights, c: Config, ids: number[], mask: number[], types: number[]): Rows {
  return linear(
    w,
    'classifier',
    referenceBertPooled(w, 'bert.', referenceBertEncoder(w, c, 'bert.', ids, mask, types)),
  );
}

/** image[row][column][channel] */
export function referenceVit(w: Weights, c: Config, image: number[][][]): Rows {
  const { patch_size: p, num_channels: channels, hidden_size: width, layer_norm_eps: eps } = c;
  const side = c.image_size / p;
  const kernel = w['vit.embeddings.patch_embeddings.projection.weight'].data;
  const bias = w['vit.embeddings.patch_embeddings.projection.bias'].data;
  const patches: Rows = [];
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      patches.push(
        Float64Array.from({ length: width }, (_, o) => {
          let sum = bias[o];
          for (let ch = 0; ch < channels; ch++)
            for (let i = 0; i < p; i++)
              for (let j = 0; j < p; j++)
                sum += kernel[((o * channels + ch) * p + i) * p + j] * image[row * p + i][column * p + j][ch];
          return sum;
        }),
      );
    }
  }
  const positions = w['vit.embeddings.position_embeddings'].data;
  let x: Rows = [w['vit.embeddings.cls_token'].data, ...patches].map((row, t) =>
    row.map((v, i) => v + positions[t * width + i]),
  );
  for (let l = 0; l < c.num_hidden_layers; l++) {
    const b = `vit.encoder.layer.${l}`;
    const h = layerNorm(w, `${b}.layernorm_before`, x, eps);
    const [q, k, v] = ['query', 'key', 'value'].map((n) => linear(w, `${b}.attention.attention.${n}`, h));
    const heads = c.num_attention_heads;
    const mixed = attend(q, k, v, { heads, kvHeads: heads, size: width / heads, allowed: () => true });
    x = addRows(linear(w, `${b}.attention.output.dense`, mixed), x);
    const wide = mapRows(linear(w, `${b}.intermediate.dense`, layerNorm(w, `${b}.layernorm_after`, x, eps)), gelu);
    x = addRows(linear(w, `${b}.output.dense`, wide), x);
  }
  return linear(w, 'classifier', [layerNorm(w, 'vit.layernorm', x, eps)[0]]);
}
