// A small BERT encoder: T token ids -> one vector [d]. Matrices are [out, in], row by row.

class Bert {
  constructor(packed) {
    Object.assign(this, packed);
    const read = (part) => Object.fromEntries(
      Object.entries(part).map(([name, array]) => [name, numbers(array)]));
    this.embeddings = read(packed.embeddings);
    this.layers = packed.layers.map(read);
    this.width = this.embeddings.scale.length;
  }

  /** [CLS] and [SEP] are part of `ids`. */
  encode(ids) {
    let x = this.embed(ids);
    for (const layer of this.layers) x = this.layer(x, layer, ids.length);
    return this.pool(x, ids.length);
  }

  embed(ids) {
    const { width: d, embeddings: e } = this;
    const x = new Float32Array(ids.length * d);
    ids.forEach((id, t) => {
      for (let j = 0; j < d; j += 1) {
        x[t * d + j] = e.words[id * d + j] + e.positions[t * d + j] + e.type[j];
      }
    });
    return normalised(x, e.scale, e.shift, this.eps);
  }

  layer(x, w, length) {
    const [q, k, v] = ["q", "k", "v"].map((n) => linear(x, w[n], w[`${n}_bias`]));
    const mixed = linear(this.attend(q, k, v, length), w.mix, w.mix_bias);
    const middle = normalised(add(mixed, x), w.mix_scale, w.mix_shift, this.eps);
    const inner = linear(middle, w.inner, w.inner_bias).map(gelu);
    const outer = linear(inner, w.outer, w.outer_bias);
    return normalised(add(outer, middle), w.outer_scale, w.outer_shift, this.eps);
  }

  /** softmax(q k' / sqrt(d / heads)) v, a head at a time. */
  attend(q, k, v, length) {
    const { width: d, heads } = this;
    const size = d / heads;
    const mixed = new Float32Array(q.length);
    const weights = new Float64Array(length);
    for (let first = 0; first < d; first += size) {
      for (let i = 0; i < length; i += 1) {
        for (let j = 0; j < length; j += 1) {
          let dot = 0;
          for (let n = first; n < first + size; n += 1) dot += q[i * d + n] * k[j * d + n];
          weights[j] = dot / Math.sqrt(size);
        }
        const largest = Math.max(...weights);
        let total = 0;
        for (let j = 0; j < length; j += 1) total += weights[j] = Math.exp(weights[j] - largest);
        for (let j = 0; j < length; j += 1) {
          const share = weights[j] / total;
          for (let n = first; n < first + size; n += 1) mixed[i * d + n] += share * v[j * d + n];
        }
      }
    }
    return mixed;
  }

  pool(x, length) {
    const d = this.width;
    const counted = this.pooling === "cls" ? 1 : length;
    const mean = new Float32Array(d);
    for (let i = 0; i < counted * d; i += 1) mean[i % d] += x[i] / counted;
    if (!this.unit) return mean;
    const norm = Math.hypot(...mean) || 1;
    return mean.map((value) => value / norm);
  }
}

function linear(x, weight, bias) {
  const out = bias.length;
  const width = weight.length / out;
  const y = new Float32Array((x.length / width) * out);
  for (let t = 0; t < x.length / width; t += 1) {
    for (let i = 0; i < out; i += 1) {
      let dot = bias[i];
      for (let j = 0; j < width; j += 1) dot += x[t * width + j] * weight[i * width + j];
      y[t * out + i] = dot;
    }
  }
  return y;
}

function normalised(x, scale, shift, eps) {
  const d = scale.length;
  for (let start = 0; start < x.length; start += d) {
    const row = x.subarray(start, start + d);
    const mean = row.reduce((sum, value) => sum + value, 0) / d;
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / d;
    for (let j = 0; j < d; j += 1) {
      row[j] = ((row[j] - mean) / Math.sqrt(variance + eps)) * scale[j] + shift[j];
    }
  }
  return x;
}

const add = (a, b) => a.map((value, i) => value + b[i]);
const gelu = (x) => 0.5 * x * (1 + erf(x / Math.SQRT2));

/** To 1.5e-7: Abramowitz and Stegun, 7.1.26. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const poly = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t +
    0.254829592) * t;
  return Math.sign(x) * (1 - poly * Math.exp(-x * x));
}
