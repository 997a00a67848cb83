// Numbers as `packing.py` wrote them: base64 of little-endian arrays.

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;

const READERS = {
  float32: (buffer) => new Float32Array(buffer),
  float16: (buffer) => Float32Array.from(new Uint16Array(buffer), half),
  int32: (buffer) => new Int32Array(buffer),
  uint16: (buffer) => new Uint16Array(buffer),
  int8: (buffer) => new Int8Array(buffer),
};

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** A typed array; rows of int8 with a scale each become float32. */
function numbers(packed) {
  const values = READERS[packed.type](bytesOf(packed.data));
  if (!packed.scales) return values;
  const scales = numbers(packed.scales);
  const width = values.length / scales.length;
  return Float32Array.from(values, (value, i) => value * scales[Math.floor(i / width)]);
}
