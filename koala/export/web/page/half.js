// Half precision, for browsers whose arrays do not know it: IEEE 754 binary16 in 16-bit words.

const single = new Float32Array(1), bits = new Uint32Array(single.buffer);

function toHalf(value) {
  single[0] = value;
  const sign = (bits[0] >>> 16) & 0x8000, exponent = ((bits[0] >>> 23) & 255) - 112, fraction = bits[0] & 0x7fffff;
  if (exponent === 143) return sign | 0x7c00 | (fraction ? 0x200 : 0); // infinity, NaN
  if (exponent >= 31) return sign | 0x7c00;
  if (exponent < -10) return sign;
  const whole = exponent > 0 ? (exponent << 23) | fraction : fraction | 0x800000;
  const shift = exponent > 0 ? 13 : 14 - exponent;
  const kept = whole >>> shift, rest = whole - kept * 2 ** shift, middle = 2 ** (shift - 1);
  return sign | (kept + (rest > middle || (rest === middle && kept & 1) ? 1 : 0)); // half to even; may become infinity
}

function fromHalf(half) {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >>> 10) & 31, fraction = half & 0x3ff;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * fraction * 2 ** -24;
}

const own = globalThis.Float16Array; // Chromium 135, Firefox 129, Safari 18.2

/** Numbers as the array that a float16 tensor holds. */
export const halves = (values) => (own ? own.from(values) : Uint16Array.from(values, toHalf));

/** A float16 tensor's array as single precision. */
export const singles = (data) => Float32Array.from(data, data instanceof Uint16Array ? fromHalf : undefined);

export const words = { toHalf, fromHalf };
