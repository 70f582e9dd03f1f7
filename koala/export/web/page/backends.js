// What computes: ONNX Runtime on the processor (WebAssembly) or on the graphics card (WebGPU).

import { load } from "./files.js";

export const WASM = "wasm", WEBGPU = "webgpu";
const MOST_THREADS = 8;
const runtimes = new Map();

/** Threads that WebAssembly may use here: one, unless the page is isolated from other origins. */
export const threads = () =>
  globalThis.crossOriginIsolated ? Math.max(1, Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1)) : 1;

/** {usable, why}: whether a graphics card can be asked for what the models are stored in. */
export async function webgpu(half) {
  if (!navigator.gpu) return { usable: false, why: "this browser has no WebGPU here" };
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) return { usable: false, why: "the browser offers no graphics card" };
  if (half && !adapter.features.has("shader-f16")) {
    return { usable: false, why: "the graphics card does not compute in half precision (shader-f16)" };
  }
  const { vendor = "", architecture = "", description = "" } = adapter.info ?? {};
  const software = adapter.isFallbackAdapter || adapter.info?.isFallbackAdapter || /swiftshader/i.test(architecture + description);
  return { usable: true, software, name: description || [vendor, architecture].filter(Boolean).join(" ") };
}

/** ONNX Runtime with this back end, loaded once. */
export function runtime(site, backend, progress) {
  if (!runtimes.has(backend)) {
    const loading = open(site, backend, progress);
    runtimes.set(backend, loading);
    loading.catch(() => runtimes.delete(backend)); // another try may do better
  }
  return runtimes.get(backend);
}

async function open(site, backend, progress) {
  const { script, glue, wasm } = site.runtime.backends[backend];
  const [binary, ort] = await Promise.all([
    load(site, wasm, progress),
    import(new URL(script, site.base).href),
  ]);
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.wasmPaths = { mjs: new URL(glue, site.base).href };
  ort.env.wasm.numThreads = threads();
  ort.env.logLevel = "error";
  return ort;
}
