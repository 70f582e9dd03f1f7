// The compare stage. Everything from outside is written with textContent and attributes, never as HTML.
const $ = (selector) => element.querySelector(selector);
const stage = $(".k-stage"), frame = $(".k-frame"), heads = $(".k-heads"), thumbs = $(".k-thumbs");
const range = $(".k-slide input"), flipper = $(".k-flipper"), live = $("[role=status]");
const strips = $(".k-strips"), denoising = [];
const views = [...element.querySelectorAll("[role=radio]")];
let data = {}, view = "side", picture = 0, shown = 0, announced = "";

const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const set = (node, name, value) => {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
};
const say = (node, text) => { if (node.textContent !== text) node.textContent = text; };

function head(k) {
  const node = make("div", "k-head");
  node.append(make("strong", "k-title"), make("span", "k-step"), make("a", "k-png", "PNG"));
  return node;
}

function shot() {
  const node = make("div", "k-shot"), own = new Denoising(render);
  denoising.push(own);
  strips.append(own.node);
  const image = make("img");
  image.hidden = true;
  const bar = make("span", "k-progress");
  bar.append(make("i"));
  node.append(image, own.screen, make("span", "k-empty"), bar);
  return node;
}

function render() {
  const models = data.models || [];
  while (heads.children.length > models.length) {
    heads.lastChild.remove();
    frame.lastChild.remove();
    strips.lastChild.remove();
    denoising.pop();
  }
  while (heads.children.length < models.length) { heads.append(head()); frame.append(shot()); }
  const count = Math.max(0, ...models.map((m) => m.images.length));
  picture = Math.min(picture, Math.max(0, count - 1));
  set(stage, "data-phase", data.phase || "empty");
  set(stage, "data-view", view);
  set(document.documentElement, "data-koala", data.phase === "running" ? "running" : "idle");
  stage.style.setProperty("--ratio", `${data.width || 1} / ${data.height || 1}`);
  models.forEach((model, k) => {
    const top = heads.children[k], body = frame.children[k];
    const image = body.querySelector("img"), link = top.querySelector("a"), final = model.images[picture];
    const busy = data.phase === "running" && !final;
    say(top.querySelector(".k-title"), model.title);
    say(top.querySelector(".k-step"), final ? (model.seconds ? `${model.seconds} s` : "")
      : busy ? (model.step ? `${model.step} / ${model.steps}` : "waiting") : "");
    set(top, "data-shown", view !== "flip" || shown === k);
    link.hidden = !final;
    if (final) {
      set(link, "href", final.src.url);
      set(link, "download", final.file);
      set(link, "aria-label", `Download the picture by ${model.title} as PNG with its settings`);
    }
    const source = final ? final.src.url : model.preview, own = denoising[k];
    own.set(final ? model.denoising || null : null, model.title, data.prompt, picture === 0);
    set(own.node, "data-title", model.title);
    image.hidden = !source;
    if (source) set(image, "src", source);
    set(image, "alt", final ? `${data.prompt}, drawn by ${model.title}` : `Preview of ${model.title}: ${data.prompt}`);
    set(image, "aria-hidden", own.frame === null ? null : "true"); // a frame of the strip lies over it
    set(body, "data-busy", busy);
    set(body, "aria-hidden", view === "flip" && shown !== k ? "true" : null);
    say(body.querySelector(".k-empty"), source ? "" : busy ? "" : "the picture appears here");
    body.querySelector("i").style.width = `${model.steps ? 100 * model.step / model.steps : 0}%`;
  });
  const names = models.map((m) => m.title);
  say($(".k-left"), names[0] || "");
  say($(".k-right"), names[1] || "");
  range.setAttribute("aria-label", `Divide the picture: ${names[0]} left, ${names[1]} right`);
  slide();
  frame.dataset.shown = shown;
  say(flipper, `Showing ${names[shown] || ""}: flip`);
  say($(".k-status"), data.status || "");
  renderThumbs(models, count);
  announce();
}

function renderThumbs(models, count) {
  thumbs.hidden = count < 2;
  if (count < 2) return;
  const key = models.map((m) => m.images.map((i) => i.src.url).join()).join("|");
  if (thumbs.dataset.key !== key) {
    thumbs.dataset.key = key;
    thumbs.replaceChildren(...Array.from({ length: count }, (_, k) => {
      const button = make("button");
      button.type = "button";
      models.forEach((m) => {
        if (!m.images[k]) return;
        const image = make("img");
        image.src = m.images[k].src.url;
        image.alt = "";
        button.append(image);
      });
      button.setAttribute("aria-label", `Picture ${k + 1} of ${count}`);
      button.addEventListener("click", () => { picture = k; render(); });
      return button;
    }));
  }
  [...thumbs.children].forEach((button, k) => set(button, "aria-pressed", k === picture));
}

// A screen reader hears a change of model, each preview and the end, not every step.
function announce() {
  const model = (data.models || []).find((m) => !m.images.length && m.step);
  const key = data.phase === "running"
    ? (model ? model.title + Math.floor(4 * model.step / model.steps) : "start") : data.phase + data.status;
  if (key === announced || !data.phase || data.phase === "empty") return;
  announced = key;
  live.textContent = data.status;
}

function slide() {
  frame.style.setProperty("--cut", `${range.value}%`);
  const names = (data.models || []).map((m) => m.title);
  set(range, "aria-valuetext", `${range.value} percent ${names[0]}, ${100 - range.value} percent ${names[1]}`);
}

function choose(name, focus) {
  view = name;
  views.forEach((button) => {
    const on = button.dataset.view === name;
    set(button, "aria-checked", on);
    button.tabIndex = on ? 0 : -1;
    if (on && focus) button.focus();
  });
  render();
}

function flip() {
  if (view !== "flip") choose("flip", false);
  shown = 1 - shown;
  render();
  live.textContent = `Showing ${data.models[shown].title}`;
}

views.forEach((button, k) => {
  button.addEventListener("click", () => choose(button.dataset.view, false));
  button.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    choose(views[(k + move + views.length) % views.length].dataset.view, true);
  });
});
range.addEventListener("input", slide);
flipper.addEventListener("click", flip);
frame.addEventListener("click", () => { if (view === "flip") flip(); });
const drag = (event) => {
  if (view !== "slider" || !event.buttons) return;
  const box = frame.getBoundingClientRect();
  range.value = Math.round(100 * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
  slide();
};
frame.addEventListener("pointerdown", drag);
frame.addEventListener("pointermove", drag);
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest && event.target.closest("input:not([type=range]), textarea, [contenteditable]");
  if (event.key.toLowerCase() !== "f" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!element.isConnected || !element.offsetParent || !(data.models || []).length) return;
  event.preventDefault();
  flip();
});

$(".k-link").addEventListener("click", async () => {
  const link = location.origin + location.pathname + (data.link || "");
  const box = $(".k-linkbox"), field = box.querySelector("input");
  try {
    await navigator.clipboard.writeText(link);
    box.hidden = true;
    live.textContent = "Link copied";
    say($(".k-link"), "Copied");
    setTimeout(() => say($(".k-link"), "Copy link"), 2000);
  } catch {
    box.hidden = false;
    field.value = link;
    field.focus();
    field.select();
  }
});

function update() {
  const before = data.phase;
  data = props.value || {};
  if (data.phase === "running" && before !== "running") {
    picture = 0;
    const box = stage.getBoundingClientRect();
    if (box.top > innerHeight * 0.7) {
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      stage.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
    }
  }
  render();
}
watch("value", update);
update();
