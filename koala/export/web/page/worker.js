// All that computes, away from the page, so that it never freezes: files, back ends, models, drawings.

import { WASM, WEBGPU, runtime, threads, webgpu } from "./backends.js";
import { tidy } from "./files.js";
import { Generator } from "./noise.js";
import { Pipeline, Sessions, Stopped } from "./pipeline.js";

const TRIAL = 64; // px: a call so small that every graphics card ends it at once
const CLOSE = { single: 1e-3, half: 2e-2 }; // of the output's size: how far WebGPU may be from WebAssembly

let site, current; // what is loaded now: {backend, sessions, models: name -> promise of a Pipeline}
let last = Promise.resolve(), choosing = last;
const stopped = new Set();

/** One thing at a time, in the order of asking. */
function turn(work) {
  const done = last.then(work);
  last = done.catch(() => {});
  return done;
}

const tell = (kind, values) => postMessage({ kind, ...values });
const reason = (error) => String(error?.message ?? error).split("\n")[0].slice(0, 300);

/** Begin to load all models on a back end, the smallest first. */
function begin(backend) {
  const models = new Map(), counted = new Set();
  const own = { backend, models, sessions: null };
  let before = Promise.resolve();
  for (const model of site.models.toSorted((a, b) => a.parameters - b.parameters)) {
    const names = [...Object.values(model.parts), ...model.tokenizers].filter((name) => !counted.has(name));
    names.forEach((name) => counted.add(name));
    const first = models.size === 0, wasm = site.runtime.backends[backend].wasm;
    const total = [...names, ...(first ? [wasm] : [])].reduce((sum, name) => sum + site.files[name].sent, 0);
    let received = 0;
    const progress = (bytes) => {
      received += bytes;
      if (current === own || !current) tell("progress", { model: model.name, received, total });
    };
    const waiting = before;
    const loading = (async () => {
      await waiting;
      const ort = await runtime(site, backend, first ? progress : undefined);
      own.sessions ??= new Sessions(site, ort, backend, turn);
      const pipeline = await Pipeline.open(site, model, own.sessions, progress);
      tell("ready", { model: model.name, backend });
      return pipeline;
    })();
    loading.catch((error) => tell("broken", { model: model.name, backend, text: reason(error) }));
    models.set(model.name, loading);
    before = loading.catch(() => {});
  }
  return own;
}

/** Whether WebGPU predicts what WebAssembly does, in one call of the smallest U-Net; the reason where it does not. */
async function trial(progress) {
  const ort = await runtime(site, WEBGPU, progress), model = site.models.toSorted((a, b) => a.parameters - b.parameters)[0];
  const found = {};
  for (const backend of [WASM, WEBGPU]) {
    const sessions = new Sessions(site, ort, backend, turn);
    const pipeline = await Pipeline.open(site, model, sessions, progress);
    const latents = new Generator(0).randn((4 * TRIAL * TRIAL) / 64);
    const request = { prompt: "a red circle", negative_prompt: "", guidance: 1, steps: 2, width: TRIAL, height: TRIAL };
    const plan = await pipeline.plan(request);
    found[backend] = await turn(() => pipeline.predict(plan, latents.map((v) => v * plan.sigmas[0]), 0));
    await sessions.close();
  }
  const size = (values) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));
  const apart = size(found[WASM].map((v, i) => v - found[WEBGPU][i])) / size(found[WASM]);
  if (!(apart <= (model.half ? CLOSE.half : CLOSE.single))) { // NaN is not close either
    throw new Error(`it computes something else than the processor does: ${(100 * apart).toPrecision(2)} % apart`);
  }
}

/** Choose a back end, "auto" for the best that works here, and load the models on it. */
async function choose(wanted) {
  const half = site.models.some((model) => model.half);
  const card = await webgpu(half);
  tell("card", card);
  let backend = WASM, note = "";
  if (wanted === WEBGPU || (wanted === "auto" && card.usable && !card.software)) {
    try {
      if (!card.usable) throw new Error(card.why);
      let received = 0;
      tell("trying", {});
      await trial((bytes) => tell("trying", { received: (received += bytes) }));
      backend = WEBGPU;
    } catch (error) {
      note = `WebGPU was given up: ${reason(error)}. The processor draws instead.`;
    }
  }
  await use(backend, note);
}

async function use(backend, note) {
  const before = current;
  tell("backend", { backend, note, threads: threads(), isolated: Boolean(globalThis.crossOriginIsolated) });
  current = begin(backend);
  const all = [...current.models.values()];
  await turn(() => before?.sessions?.close()).catch(() => {}); // what failed may not even end
  Promise.all(all).then(() => tidy(site), () => {});
}

async function draw({ run, requests }) {
  await choosing;
  const own = current, order = requests.map((_, k) => k).sort((a, b) => size(requests[a]) - size(requests[b]));
  try {
    for (const position of order) {
      const request = requests[position], pipeline = await own.models.get(request.model);
      const watch = {
        stopped: () => stopped.has(run),
        onStep: (index, preview) => tell("step", { run, position, index, preview }),
      };
      if (watch.stopped()) throw new Stopped();
      const found = await turn(() => pipeline.draw(request, watch));
      tell("picture", { run, position, ...found, threads: threads(), backend: own.backend });
    }
    tell("done", { run });
  } catch (error) {
    if (error instanceof Stopped) tell("stopped", { run });
    else if (own.backend === WEBGPU) {
      if (own === current) await use(WASM, `WebGPU failed while it drew: ${reason(error)}. The processor draws instead.`);
      await draw({ run, requests });
    } else tell("failed", { run, text: reason(error) });
  }
}

const size = (request) => site.models.find((model) => model.name === request.model).parameters;

const DO = {
  start(message) {
    site = message.site;
    return (choosing = choose(message.backend));
  },
  choose: ({ backend }) => (choosing = choosing.catch(() => {}).then(() => choose(backend))),
  draw,
  stop: ({ run }) => void stopped.add(run),
};

onmessage = ({ data }) => {
  Promise.resolve(DO[data.kind](data)).catch((error) => tell("failed", { run: data.run ?? null, text: reason(error) }));
};
