// A PNG file of exactly these pixels, with text chunks, and the text chunks of one: the canvas has no way to add any,
// and some browsers change what is read from it.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});
const utf8 = new TextEncoder();

function crc(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = TABLE[(sum ^ byte) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

const number = (value) => new Uint8Array([value >>> 24, value >>> 16, value >>> 8, value]);

function chunk(kind, data) {
  const named = joined([utf8.encode(kind), data]);
  return joined([number(data.length), named, number(crc(named))]);
}

async function squeezed(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** A file of RGBA pixels, of which the colours are kept; `ascii` and `texts` are keyword -> text. */
export async function encode(rgba, width, height, ascii, texts) {
  const rows = new Uint8Array(height * (1 + 3 * width)); // each row begins with its filter, 0: none
  for (let y = 0, at = 0; y < height; y++) {
    at++;
    for (let x = 0; x < width; x++) for (let c = 0; c < 3; c++) rows[at++] = rgba[4 * (y * width + x) + c];
  }
  const header = joined([number(width), number(height), new Uint8Array([8, 2, 0, 0, 0])]); // 8 bits a channel, RGB
  return joined([
    new Uint8Array(SIGNATURE),
    chunk("IHDR", header),
    ...Object.entries(ascii).map(([key, text]) => chunk("tEXt", utf8.encode(`${key}\0${text}`))),
    ...Object.entries(texts).map(([key, text]) => chunk("iTXt", utf8.encode(`${key}\0\0\0\0\0${text}`))),
    chunk("IDAT", await squeezed(rows)),
    chunk("IEND", new Uint8Array()),
  ]);
}

/** The plain text of a keyword in a PNG file; null where the bytes are no PNG, or have none. */
export function textOf(bytes, keyword) {
  if (SIGNATURE.some((byte, i) => bytes[i] !== byte)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at), data = bytes.subarray(at + 8, at + 8 + length);
    if (String.fromCharCode(...bytes.subarray(at + 4, at + 8)) === "tEXt") {
      const end = data.indexOf(0);
      if (new TextDecoder("latin1").decode(data.subarray(0, end)) === keyword) {
        return new TextDecoder("latin1").decode(data.subarray(end + 1));
      }
    }
    at += 12 + length;
  }
  return null;
}
