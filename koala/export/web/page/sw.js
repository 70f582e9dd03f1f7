// Keeps the page for visits without a network. The large files are kept by files.js, under their hashes.

const VERSION = new URL(location.href).searchParams.get("v");
const KEPT = `koala-page-${VERSION}`;

addEventListener("install", (event) => {
  event.waitUntil((async () => {
    const site = await (await fetch("site.json", { cache: "no-cache" })).json();
    const cache = await caches.open(KEPT);
    await cache.addAll(["./", ...site.page].map((name) => new Request(name, { cache: "no-cache" })));
    await skipWaiting();
  })());
});

addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith("koala-page-") && name !== KEPT) await caches.delete(name);
    }
    await clients.claim();
  })());
});

/** From the network as long as there is one, so that a new version of the site shows at once. */
async function answer(request) {
  const own = await caches.open(KEPT);
  try {
    const found = await fetch(request);
    if (found.ok && found.type === "basic") await own.put(request, found.clone());
    return found;
  } catch (error) {
    const kept = await own.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}

addEventListener("fetch", (event) => {
  const { request } = event, url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== location.origin || url.pathname.includes("/files/")) return;
  event.respondWith(answer(request));
});
