// The site's large files: compressed on the way, checked against their hashes, kept for the next visit.

export const KEPT = "koala-files"; // the cache; a file's name holds its hash, so that an entry never grows old

const kept = () => (globalThis.caches ? caches.open(KEPT).catch(() => null) : null); // null where a browser forbids it

/** What was asked for did not arrive as it was written. */
export class FileError extends Error {}

/** The bytes of one of the site's files; `progress` hears of every compressed byte once, as numbers to be added. */
export async function load(site, name, progress = () => {}) {
  const { sent, sha256 } = site.files[name];
  const url = new URL(name, site.base).href, cache = await kept();
  const stored = cache && (await cache.match(url));
  const answer = stored ?? (await fetch(url).catch((error) => {
    throw new FileError(`${name} could not be fetched (${error.message}); check the connection and reload the page`);
  }));
  if (!answer.ok) throw new FileError(`${name} could not be fetched: the server says ${answer.status}; reload the page`);
  const packed = await bytesOf(answer, sent, progress);
  const bytes = packed[0] === 0x1f && packed[1] === 0x8b ? await unpacked(packed) : packed; // a server may have done it
  if (crypto.subtle && hex(await crypto.subtle.digest("SHA-256", bytes)) !== sha256) {
    await cache?.delete(url);
    throw new FileError(`${name} arrived damaged: its SHA-256 is not that of the site; reload the page`);
  }
  if (cache && !stored) await cache.put(url, new Response(packed)).catch(() => {}); // no room: fetched again next time
  return bytes;
}

/** Forget the files of earlier versions of the site. */
export async function tidy(site) {
  const cache = await kept();
  const own = new Set(Object.keys(site.files).map((name) => new URL(name, site.base).href));
  for (const { url } of (await cache?.keys()) ?? []) if (!own.has(url)) await cache.delete(url);
}

async function bytesOf(answer, expected, progress) {
  const parts = [];
  let told = 0, all = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    all += value.length;
    const now = Math.min(all, expected);
    progress(now - told);
    told = now;
  }
  progress(expected - told);
  const whole = new Uint8Array(all);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

async function unpacked(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer().catch(() => {
    throw new FileError("a file arrived cut off; reload the page");
  }));
}

const hex = (buffer) => Array.from(new Uint8Array(buffer), (b) => b.toString(16).padStart(2, "0")).join("");
