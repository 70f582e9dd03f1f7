// The pictures and the times. Everything that a visitor or a link could have written becomes text, never HTML.

export const make = (tag, settings = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), settings);
  node.append(...children);
  return node;
};
export const duration = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${Math.round(ms)} ms`);

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, settings, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(settings)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** One model's place on the stage. */
class Shot {
  constructor(model) {
    this.model = model;
    this.step = make("span", { className: "step" });
    this.png = make("a", { textContent: "PNG ↓", hidden: true });
    this.canvas = make("canvas", { hidden: true });
    this.canvas.setAttribute("role", "img");
    this.empty = make("span", { textContent: "No picture yet" });
    this.bar = make("i", { hidden: true });
    this.head = make("div", { className: "head" }, make("strong", { textContent: model.title }), this.step, this.png);
    this.node = make("div", {}, this.head, make("div", { className: "shot" }, this.canvas, this.empty, this.bar));
  }

  begin(request) {
    this.request = request;
    this.png.hidden = this.canvas.hidden = true;
    this.empty.hidden = false;
    this.empty.textContent = "";
    this.step.textContent = "waiting";
    this.progress(0);
  }

  progress(share) {
    this.bar.hidden = false;
    this.bar.style.width = `${100 * share}%`;
  }

  show({ rgba, width, height }, what) {
    Object.assign(this.canvas, { width, height, hidden: false });
    this.canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
    this.canvas.setAttribute("aria-label", `${what} by ${this.model.title}: ${this.request.prompt}`);
    this.empty.hidden = true;
  }

  stepped(index, preview) {
    this.step.textContent = `${index} / ${this.request.steps}`;
    this.progress(index / this.request.steps);
    if (preview) this.show(preview, "Preview");
  }

  done(rgba, timing, file) {
    this.show({ ...this.request, rgba }, "Picture");
    this.bar.hidden = true;
    this.step.textContent = duration(timing.total_ms);
    if (this.png.href) URL.revokeObjectURL(this.png.href);
    this.png.href = URL.createObjectURL(new Blob([file], { type: "image/png" }));
    this.png.download = `koala-${this.model.name.replace(/[^\w.-]+/g, "-")}-${this.request.seed}.png`;
    this.png.setAttribute("aria-label", `Download the picture by ${this.model.title} as PNG with its settings`);
    this.png.hidden = false;
  }

  end() {
    this.bar.hidden = true;
    if (this.png.hidden) this.step.textContent = "";
    if (this.canvas.hidden) this.empty.textContent = "No picture";
    this.empty.hidden = !this.canvas.hidden;
  }
}

export class Stage {
  constructor(frame, models) {
    this.frame = frame;
    this.shots = models.map((model) => new Shot(model));
    frame.replaceChildren(...this.shots.map((shot) => shot.node));
  }

  begin(requests) {
    this.frame.style.setProperty("--ratio", `${requests[0].width} / ${requests[0].height}`);
    this.shots.forEach((shot, k) => shot.begin(requests[k]));
  }

  end() {
    this.shots.forEach((shot) => shot.end());
  }
}

function bar({ text_ms: text, unet_ms: steps, vae_ms: vae }, scale) {
  const unet = steps.reduce((a, b) => a + b, 0);
  let x = 0;
  const parts = [["text", text], ["unet", unet], ["vae", vae]].map(([kind, ms]) => {
    const rect = svg("rect", { class: kind, x, width: (100 * ms) / scale, height: 10 });
    x += (100 * ms) / scale;
    return rect;
  });
  return svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, ...parts);
}

const figure = (kind, name, value) => make("span", {},
  ...(kind ? [svg("svg", { class: "key", viewBox: "0 0 9 9", "aria-hidden": "true" }, svg("rect", { class: kind, width: 9, height: 9, rx: 2 }))] : []),
  `${name} `, make("b", { className: "mono", textContent: value }));

/** How many times faster the second is than the first: per U-Net call, by fewer calls, and in total. */
export function speedup(first, other) {
  const unet = (timing) => timing.unet_ms.reduce((a, b) => a + b, 0);
  const calls = first.unet_calls / other.unet_calls, whole = unet(first) / unet(other);
  return { per_call: whole / calls, calls, unet: whole, total: first.total_ms / other.total_ms };
}

/** Where the time of each picture went, and what the ratio is made of. */
export function showTimes(node, results, models, where) {
  const unet = (timing) => timing.unet_ms.reduce((a, b) => a + b, 0);
  const scale = Math.max(...results.map(({ timing }) => timing.text_ms + unet(timing) + timing.vae_ms));
  const rows = results.map(({ timing }, k) => make("div", {},
    make("div", { className: "line" }, make("strong", { textContent: models[k].title }), make("b", { className: "mono", textContent: duration(timing.total_ms) })),
    bar(timing, scale),
    make("p", { className: "numbers" },
      figure("text", "text", duration(timing.text_ms)),
      figure("unet", "U-Net", `${timing.unet_calls} calls × ${(unet(timing) / timing.unet_calls).toFixed(1)} ms = ${duration(unet(timing))}`),
      figure("vae", "VAE", duration(timing.vae_ms)),
      figure("", "parameters", models[k].parameters.toLocaleString("en")))));
  const ratios = results.slice(1).map(({ timing }, k) => {
    const s = speedup(results[0].timing, timing), x = (value) => `${value.toFixed(2)}×`;
    return make("p", { className: "speedup" }, make("strong", { className: "mono", textContent: x(s.total) }),
      make("span", { textContent: `${models[k + 1].title} against ${models[0].title}: ${x(s.per_call)} per U-Net call · ${x(s.calls)} by the number of calls = ${x(s.unet)} for the U-Net; ${x(s.total)} in total, with text and VAE.` }));
  });
  const note = `On ${where}. Warm-up and previews are not counted; guidance above 1 calls the U-Net twice per step. The ratio of the tiny models is their own; the real models have theirs.`;
  node.replaceChildren(make("h2", { id: "time-title", textContent: "Time" }), ...rows, ...ratios, make("p", { className: "note", textContent: note }));
  node.hidden = false;
}
