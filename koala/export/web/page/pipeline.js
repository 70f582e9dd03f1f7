// Prompt and noise to picture: SDXL's pipeline as diffusers runs it, on ONNX Runtime.

import { Tokenizer } from "./clip.js";
import { clean, schedule, step } from "./euler.js";
import { halves, singles } from "./half.js";
import { load } from "./files.js";
import { Generator } from "./noise.js";

const PARTS = ["text_encoder", "text_encoder_2", "unet", "vae_decoder"];
const TOKENS = 77, FACTOR = 8, CHANNELS = 4; // px per latent, latents' channels
const MOST_PREVIEWS = 5, LEAST = 128; // a preview costs a decode; px of a side that is halved for it
const ERRORS = 3; // of the runtime's log levels; below, it tells which shapes WebGPU leaves to the processor
const now = () => performance.now();

export class Stopped extends Error {}

/** A breath in which the worker hears what it was told meanwhile; a timeout would wait for 4 ms. */
const breath = () => new Promise((go) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => { port1.close(); go(); };
  port2.postMessage(0);
});

function tensor(ort, type, data, dims) {
  if (type === "float16") return new ort.Tensor(type, halves(data), dims);
  if (type === "int64") return new ort.Tensor(type, BigInt64Array.from(data, BigInt), dims);
  return new ort.Tensor(type, Float32Array.from(data), dims);
}

function finite(values, what) {
  if (!values.every(Number.isFinite)) throw new Error(`${what} hold no numbers any more (NaN or infinity)`);
  return values;
}

/** Opened ONNX files by name, shared by the models that have them in common. */
export class Sessions {
  /** `turn` runs one thing at a time: a file is not opened, which takes the processor, in the middle of a drawing. */
  constructor(site, ort, backend, turn) {
    Object.assign(this, { site, ort, backend, turn, opened: new Map() });
  }

  /** The session of a file; what is no U-Net runs in WebAssembly, where it is exact and quick enough. */
  open(name, part, progress) {
    if (!this.opened.has(name)) {
      const executionProviders = [part === "unet" ? this.backend : "wasm"];
      const opening = load(this.site, name, progress).then((bytes) =>
        this.turn(() => this.ort.InferenceSession.create(bytes, { executionProviders, logSeverityLevel: ERRORS })));
      this.opened.set(name, opening);
      opening.catch(() => this.opened.delete(name));
    }
    return this.opened.get(name);
  }

  /** Give back what they hold. */
  async close() {
    for (const session of this.opened.values()) await (await session.catch(() => null))?.release();
    this.opened.clear();
  }
}

/** A model of the site, ready to draw. */
export class Pipeline {
  static async open(site, own, sessions, progress) {
    const found = new Pipeline();
    Object.assign(found, { own, ort: sessions.ort, sessions: {}, warm: new Set() });
    for (const part of PARTS) found.sessions[part] = await sessions.open(own.parts[part], part, progress);
    const files = await Promise.all(own.tokenizers.map((name) => load(site, name, progress)));
    found.tokenizers = files.map((bytes) => new Tokenizer(JSON.parse(new TextDecoder().decode(bytes))));
    return found;
  }

  async run(part, given) {
    const types = this.own.inputs[part], session = this.sessions[part], feeds = {};
    for (const name of session.inputNames) feeds[name] = tensor(this.ort, types[name], ...given[name]);
    const found = await session.run(feeds);
    return Object.fromEntries(Object.entries(found).map(([name, one]) => [name, { data: singles(one.data), dims: one.dims }]));
  }

  /** {words (77 x width), pooled}: the last layer but one of each encoder side by side, the second's pooled text. */
  async text(prompt) {
    const states = [];
    let pooled;
    for (const [k, part] of ["text_encoder", "text_encoder_2"].entries()) {
      const found = await this.run(part, { input_ids: [this.tokenizers[k].encode(prompt), [1, TOKENS]] });
      const layers = Object.keys(found).filter((name) => name.startsWith("hidden_states.")).length;
      states.push(found[`hidden_states.${layers - 2}`]);
      pooled = found.text_embeds?.data;
    }
    const widths = states.map((one) => one.dims[2]), width = widths[0] + widths[1];
    const words = new Float32Array(TOKENS * width);
    for (let t = 0; t < TOKENS; t++) {
      states.forEach(({ data }, k) => words.set(data.subarray(t * widths[k], (t + 1) * widths[k]), t * width + (k ? widths[0] : 0)));
    }
    return { words, pooled };
  }

  /** One prediction of the noise in `latents` at step k of a plan. */
  async predict(plan, latents, k) {
    const { width, height, rows, words, pooled } = plan, sigma = plan.sigmas[k], size = latents.length;
    const scaled = latents.map((value) => value / Math.sqrt(sigma ** 2 + 1));
    const sample = new Float32Array(rows * size);
    for (let row = 0; row < rows; row++) sample.set(scaled, row * size);
    const found = await this.run("unet", {
      sample: [sample, [rows, CHANNELS, height / FACTOR, width / FACTOR]],
      timestep: [[plan.timesteps[k]], []],
      encoder_hidden_states: [words, [rows, TOKENS, words.length / rows / TOKENS]],
      text_embeds: [pooled, [rows, pooled.length / rows]],
      time_ids: [Array(rows).fill([height, width, 0, 0, height, width]).flat(), [rows, 6]],
    });
    const out = found.out_sample.data;
    return rows === 1 ? out : out.subarray(0, size).map((away, i) => away + plan.guidance * (out[size + i] - away));
  }

  /** RGBA of latents. */
  async decode(latents, width, height) {
    const { scaling_factor: factor, mean, std } = this.own.latents, area = latents.length / CHANNELS;
    const own = latents.map((value, i) => {
      const channel = Math.floor(i / area);
      return (mean ? value * std[channel] : value) / factor + (mean ? mean[channel] : 0);
    });
    const { sample } = await this.run("vae_decoder", { latent_sample: [own, [1, CHANNELS, height / FACTOR, width / FACTOR]] });
    const pixels = finite(sample.data, "the pixels"), rgba = new Uint8ClampedArray(4 * width * height).fill(255);
    for (let c = 0; c < 3; c++) {
      for (let i = 0; i < width * height; i++) rgba[4 * i + c] = 255 * (pixels[c * width * height + i] / 2 + 0.5);
    }
    return rgba;
  }

  /** {rgba, width, height} of latents: a glance, at half the size, which takes a quarter of the time. */
  async preview(latents, width, height) {
    if (Math.min(width, height) < LEAST) return { rgba: await this.decode(latents, width, height), width, height };
    const w = width / FACTOR, half = new Float32Array(latents.length / 4);
    for (let i = 0; i < half.length; i++) {
      const x = i % (w / 2), row = (i - x) / (w / 2), at = 2 * (row * w + x); // all channels' rows, one below the other
      half[i] = (latents[at] + latents[at + 1] + latents[at + w] + latents[at + w + 1]) / 4;
    }
    return { rgba: await this.decode(half, width / 2, height / 2), width: width / 2, height: height / 2 };
  }

  async plan(request) {
    const guided = request.guidance > 1;
    const { words, pooled } = await this.text(request.prompt);
    const found = { ...request, rows: 1, words, pooled, ...schedule(this.own.schedule, request.steps) };
    if (!guided) return found;
    const zeros = !request.negative_prompt && this.own.zeros; // SDXL is guided away from zeros, not from the empty text
    const away = zeros ? { words: words.map(() => 0), pooled: pooled.map(() => 0) } : await this.text(request.negative_prompt);
    const both = (a, b) => Float32Array.of(...a, ...b);
    return { ...found, rows: 2, words: both(away.words, words), pooled: both(away.pooled, pooled) };
  }

  /** What the text encoders do not read of the prompts, each to its end: "" where all of it is read. */
  unread({ prompt, negative_prompt: negative, guidance }) {
    const rest = (text) => {
      const end = Math.min(...this.tokenizers.map((one) => one.reach(text).end));
      return text.slice(end).trim() ? text.slice(end) : "";
    };
    return { prompt: rest(prompt), negative_prompt: guidance > 1 ? rest(negative) : negative };
  }

  /** {rgba, timing, unread} of a request with every setting filled in. `onStep` hears of each step, with a picture now
   * and then; `stopped` is asked after each. Times are in ms; what previews take is in none of them. */
  async draw(request, { onStep, stopped }) {
    const { width, height, steps } = request;
    let begun = now();
    const plan = await this.plan(request), text = now() - begun;
    const source = new Generator(request.seed), size = (CHANNELS * width * height) / FACTOR ** 2;
    const shape = [width, height, plan.rows].join();
    if (!this.warm.has(shape)) { // the first call of a shape finds its memory, and is no measurement
      await this.predict(plan, new Float32Array(size), 0);
      this.warm.add(shape);
      begun = now() - text;
    }
    const latents = source.randn(size).map((value) => value * plan.sigmas[0]);
    const ancestral = request.scheduler === "euler-ancestral-trailing";
    const shown = new Set(Array.from({ length: MOST_PREVIEWS }, (_, k) => Math.round((steps * (k + 1)) / (MOST_PREVIEWS + 1))));
    const unet = [];
    let watching = 0;
    for (let k = 0; k < steps; k++) {
      const start = now(), sigma = plan.sigmas[k], predicted = await this.predict(plan, latents, k);
      unet.push(now() - start);
      const looking = now();
      const wanted = shown.has(k + 1) && k + 1 < steps;
      const preview = wanted ? await this.preview(clean(latents, predicted, sigma), width, height).catch(() => null) : null;
      watching += now() - looking;
      step(latents, predicted, sigma, plan.sigmas[k + 1], ancestral ? source.randn(size) : null);
      finite(latents, "the latents");
      onStep(k + 1, preview);
      const waiting = now();
      await breath();
      watching += now() - waiting;
      if (stopped()) throw new Stopped();
    }
    const last = now(), rgba = await this.decode(latents, width, height), vae = now() - last;
    const calls = steps * plan.rows;
    const timing = { text_ms: text, unet_ms: unet, unet_calls: calls, vae_ms: vae, total_ms: now() - begun - watching };
    return { rgba, timing, unread: this.unread(request) };
  }
}
