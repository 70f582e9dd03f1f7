// The page: its fields, what the worker says, keys, links and files.

import { encode, textOf } from "./png.js";
import { asciiJson, complaint, fragmentOf, fromFragment, metadata, parametersText, toFragment } from "./request.js";
import { Stage, make, showTimes } from "./stage.js";
import { Tokens } from "./tokens.js";

const $ = (id) => document.getElementById(id);
const MB = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const CHOICE = "koala-backend", THEME = "koala-theme"; // what is remembered of a visitor, in this browser alone
const THEMES = ["system", "light", "dark"];

const remembered = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const remember = (name, value) => { try { localStorage.setItem(name, value); } catch { /* a browser that keeps nothing */ } };

function setTheme(name) {
  document.documentElement.dataset.theme = THEMES.includes(name) ? name : THEMES[0];
  $("theme").textContent = `Theme: ${document.documentElement.dataset.theme}`;
}

class App {
  constructor(site) {
    this.site = site;
    this.models = site.models;
    this.stage = new Stage($("frame"), this.models);
    this.run = 0;
    this.running = null; // {run, requests, results}
    this.backend = { backend: "wasm", threads: 1, note: "" };
    this.fields();
    for (const model of this.models) this.state(model.name, "waiting", "waiting");
    this.tokens = new Tokens(site, $("tokens"));
    this.restore(location.hash.slice(1));
    this.listen();
    this.worker = new Worker("worker.js", { type: "module" });
    this.worker.onmessage = ({ data }) => this[`on_${data.kind}`](data);
    this.worker.onerror = (event) => this.fail(`The page's worker failed: ${event.message || "it could not be started"}. Reload the page.`);
    const wanted = remembered(CHOICE);
    if (wanted && [...$("backend").options].some((o) => o.value === wanted)) $("backend").value = wanted;
    this.worker.postMessage({ kind: "start", site, backend: $("backend").value });
  }

  // --- fields

  fields() {
    const { site } = this;
    for (const model of this.models) {
      const own = make("fieldset", {}, make("legend", { textContent: model.title }));
      for (const [name, low, high, by] of [["steps", 1, 50, 1], ["guidance", 0, 15, 0.5]]) {
        const id = `${name}-${model.name}`, value = model.defaults[name];
        const number = make("input", { type: "number", id, min: low, max: site.limits[name], step: by, value });
        const range = make("input", { type: "range", id: `${id}-range`, min: low, max: high, step: by, value });
        const called = `${name[0].toUpperCase()}${name.slice(1)}`;
        range.setAttribute("aria-label", `${called} of ${model.title}, slider`);
        number.setAttribute("aria-label", `${called} of ${model.title}`);
        range.oninput = () => { number.value = range.value; };
        number.oninput = () => { range.value = number.value; };
        own.append(make("div", { className: "slider" }, make("label", { htmlFor: id, textContent: called }), number, range));
      }
      $("models").append(own);
    }
    for (const prompt of site.examples) {
      $("chips").append(make("button", { type: "button", textContent: prompt, onclick: () => { $("prompt").value = prompt; this.counted(); } }));
    }
    $("prompt").value = site.examples[0];
    for (const [width, height] of site.sizes) this.size(width, height);
    $("scheduler").append(make("option", { value: "", textContent: "each model's own" }), ...site.samplers.map((name) => make("option", { value: name, textContent: name })));
    $("footer").append(
      `Models: ${[...new Set(this.models.map((m) => `${m.title} (${m.licence})`))].join(", ")}. Drawn by `,
      make("a", { href: site.runtime.licence, textContent: `ONNX Runtime Web ${site.runtime.version} (MIT)` }), "; ",
      make("a", { href: site.runtime.notices, textContent: "its notices" }), ". Made by KOALA ", site.made.koala, ".");
  }

  /** Choose a size, which may be a new one. */
  size(width, height) {
    const value = `${width}x${height}`;
    if (![...$("size").options].some((o) => o.value === value)) $("size").append(make("option", { value, textContent: `${width} × ${height} px` }));
    return value;
  }

  requests() {
    const [width, height] = $("size").value.split("x").map(Number), given = (text) => (text.trim() ? Number(text) : NaN);
    return this.models.map((model) => ({
      model: model.name,
      prompt: $("prompt").value,
      negative_prompt: $("negative").value,
      seed: given($("seed").value),
      steps: given($(`steps-${model.name}`).value),
      guidance: given($(`guidance-${model.name}`).value),
      scheduler: $("scheduler").value || model.defaults.scheduler,
      width,
      height,
    }));
  }

  /** A link's settings into the fields; without any the defaults stay. */
  restore(fragment) {
    const { requests, complaints, seeded } = fromFragment(fragment, this.site), first = requests[0];
    if (first.prompt) $("prompt").value = first.prompt;
    $("negative").value = first.negative_prompt;
    $("seed").value = first.seed;
    if (seeded) $("random").checked = false;
    $("size").value = this.size(first.width, first.height);
    const own = requests.every((r, k) => r.scheduler === this.models[k].defaults.scheduler);
    $("scheduler").value = own ? "" : first.scheduler;
    for (const r of requests) for (const name of ["steps", "guidance"]) {
      $(`${name}-${r.model}`).value = $(`${name}-${r.model}-range`).value = r[name];
    }
    this.counted();
    if (complaints.length) this.say(`Part of this link was ignored: ${complaints.join(" ")}`, "failed");
  }

  counted() {
    this.tokens?.count($("prompt").value);
  }

  // --- what a visitor does

  listen() {
    $("ask").onsubmit = (event) => { event.preventDefault(); this.generate(); };
    $("stop").onclick = () => this.stop();
    $("link").onclick = () => this.copyLink();
    $("prompt").oninput = () => this.counted();
    $("theme").onclick = () => {
      const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
      setTheme(next);
      remember(THEME, next);
    };
    $("backend").onchange = () => {
      remember(CHOICE, $("backend").value);
      if (this.running) this.stop();
      this.worker.postMessage({ kind: "choose", backend: $("backend").value });
    };
    $("png").onchange = () => this.restorePng();
    addEventListener("hashchange", () => this.restore(location.hash.slice(1)));
    addEventListener("keydown", (event) => {
      const inText = event.target.localName === "textarea" && !event.shiftKey && !event.isComposing;
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey || inText)) { // in other fields the form does it
        event.preventDefault();
        this.generate();
      } else if (event.key === "Escape" && this.running) this.stop();
    });
  }

  generate() {
    if (this.running) this.stop();
    if ($("random").checked) $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    const requests = this.requests();
    const wrong = requests.map((r) => complaint(r, this.site)).find(Boolean);
    if (wrong) return this.fail(wrong);
    this.running = { run: ++this.run, requests, results: [] };
    this.phase("running");
    this.stage.begin(requests);
    $("time").hidden = true;
    history.replaceState(null, "", `#${toFragment(requests)}`);
    $("link").hidden = false;
    $("linkbox").hidden = true;
    this.say(this.ready ? "Reading the prompt." : "Drawing begins as soon as the first model is here.");
    this.worker.postMessage({ kind: "draw", run: this.run, requests });
    if ($("frame").getBoundingClientRect().top > innerHeight * 0.7) { // on a phone: what was asked for comes into view
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      $("states").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
    }
  }

  stop() {
    if (!this.running) return;
    this.worker.postMessage({ kind: "stop", run: this.running.run });
    this.finish("stopped", this.running.step ? `Stopped at ${this.running.step}.` : "Stopped.");
  }

  async copyLink() {
    try {
      await navigator.clipboard.writeText(location.href);
      this.say("Link copied. It restores these settings.");
    } catch { // a frame, or a browser that asks nobody
      $("linkbox").hidden = false;
      $("address").value = location.href;
      $("address").select();
    }
  }

  async restorePng() {
    const [file] = $("png").files;
    if (!file) return;
    try {
      const text = textOf(new Uint8Array(await file.arrayBuffer()), "koala");
      if (text === null) return this.fail("This file carries no KOALA settings; choose a picture that was saved here or in the app, as the file itself.");
      this.restore(fragmentOf(JSON.parse(text)));
      $("random").checked = false;
      if ($("status").parentElement.dataset.phase !== "failed") this.say("Settings restored. Generate draws the same picture again.");
    } catch {
      this.fail("The settings in this PNG are damaged; choose the original file.");
    } finally {
      $("png").value = "";
    }
  }

  // --- what the worker says

  on_progress({ model, received, total }) {
    if (received < total) this.state(model, "loading", `${MB(received)} of ${MB(total)}`, received / total);
    else this.state(model, "loading", `${MB(total)} here, being opened`);
  }

  on_ready({ model }) {
    this.ready = true;
    this.state(model, "ready", "ready");
    document.documentElement.dataset[`ready${this.models.findIndex((m) => m.name === model)}`] = String(performance.now());
  }

  on_broken({ model, text }) {
    this.state(model, "broken", text);
    if (this.running) this.finish("failed", text);
  }

  on_card(card) {
    const option = [...$("backend").options].find((o) => o.value === "webgpu");
    option.disabled = !card.usable;
    option.textContent = card.usable ? `the graphics card (WebGPU${card.name ? `, ${card.name}` : ""})` : "the graphics card (WebGPU): not here";
    this.card = card;
  }

  on_trying({ received }) {
    $("backend-note").textContent = `WebGPU is being tried against the processor${received ? ` (${MB(received)} loaded)` : ""}.`;
  }

  on_backend({ backend, note, threads, isolated }) {
    this.backend = { backend, threads };
    const cores = navigator.hardwareConcurrency || 1, parts = [note];
    if (backend === "webgpu") parts.push(`Drawn by the graphics card; text and decoding by the processor.${this.card?.software ? " This one is imitated by software, and slower than the processor itself." : ""}`);
    else parts.push(`Drawn by the processor in ${threads} thread${threads > 1 ? "s" : ""}.`);
    if (backend === "wasm" && !note && this.card && !this.card.usable) parts.push(`WebGPU cannot be chosen: ${this.card.why}.`);
    if (backend === "wasm" && !isolated && cores > 1) {
      parts.push(window.top === window
        ? `Its host does not isolate the page (COOP and COEP), so that more threads are not allowed; with them it could use ${Math.min(cores, 8)}.`
        : `In a frame one thread is allowed; in a tab of its own the page may use ${Math.min(cores, 8)}:`);
    }
    $("backend-note").replaceChildren(parts.filter(Boolean).join(" "));
    if (backend === "wasm" && !isolated && window.top !== window) {
      $("backend-note").append(" ", make("a", { href: location.href, target: "_blank", rel: "noopener", textContent: "open it outside the frame" }), ".");
    }
    for (const model of this.models) this.state(model.name, "waiting", "waiting");
    this.ready = false;
  }

  on_step({ run, position, index, preview }) {
    if (this.running?.run !== run) return;
    this.stage.shots[position].stepped(index, preview);
    this.running.step = `${this.models[position].title}: step ${index} of ${this.running.requests[position].steps}`;
    this.say(this.running.step, "running", false);
  }

  async on_picture({ run, position, rgba, timing, unread, backend, threads }) {
    if (this.running?.run !== run) return;
    const { requests, results } = this.running, request = requests[position];
    results[position] = { timing };
    const told = metadata(request, requests.length > 1 ? requests : [], { unread, backend, threads }, this.site);
    const making = encode(rgba, request.width, request.height, { koala: asciiJson(told) }, { parameters: parametersText(told) });
    results[position].made = making.then((file) => this.stage.shots[position].done(rgba, timing, file));
  }

  async on_done({ run }) {
    if (this.running?.run !== run) return;
    const { requests, results } = this.running;
    await Promise.all(results.map((one) => one.made));
    if (this.running?.run !== run) return;
    const { backend, threads } = this.backend;
    const where = backend === "webgpu" ? "the graphics card, through WebGPU" : `the processor, through WebAssembly in ${threads} thread${threads > 1 ? "s" : ""}`;
    this.last = results; // for whoever measures
    showTimes($("time"), results, this.models, where);
    this.finish("done", `Done. Seed ${requests[0].seed}.`);
  }

  on_stopped() {} // the page has said so already

  on_failed({ run, text }) {
    if (run === null || this.running?.run === run) this.finish("failed", `The run failed: ${text}`);
  }

  // --- what is shown

  state(name, kind, text, share) {
    const id = `state-${name}`, model = this.models.find((m) => m.name === name);
    const item = $(id) ?? $("states").appendChild(make("li", { id }));
    item.dataset.state = kind;
    item.replaceChildren(make("b", { textContent: model.title }), ` ${text}`);
    if (share !== undefined) {
      const bar = make("progress", { max: 1, value: share });
      bar.setAttribute("aria-label", `Download of ${model.title}`);
      item.append(bar);
    }
  }

  phase(phase) {
    document.documentElement.dataset.phase = phase;
    $("stop").disabled = phase !== "running";
  }

  finish(phase, text) {
    this.running = null;
    this.stage.end();
    this.say(text, phase);
  }

  fail(text) {
    this.say(text, "failed");
  }

  say(text, phase = document.documentElement.dataset.phase, aloud = true) {
    this.phase(phase ?? "idle");
    $("status").textContent = text;
    if (aloud) $("live").textContent = text;
  }
}

async function start() {
  const base = new URL("./", location.href).href;
  const answer = await fetch("site.json", { cache: "no-cache" });
  const site = { ...(await answer.json()), base };
  document.documentElement.koala = new App(site);
  if (navigator.serviceWorker) await navigator.serviceWorker.register(`sw.js?v=${site.version}`).catch(() => {}); // forbidden: online only
}

setTheme(remembered(THEME));
start().catch((error) => { $("status").textContent = `The page could not start: ${error.message}. Reload it.`; });
