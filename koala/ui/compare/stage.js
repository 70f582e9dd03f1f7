// The compare stage: two to four models. Everything from outside is written with textContent and attributes, never as
// HTML.
const $ = (selector) => element.querySelector(selector);
const stage = $(".k-stage"), grid = $(".k-grid"), thumbs = $(".k-thumbs"), range = $(".k-pair input");
const flipper = $(".k-flipper"), blinking = $(".k-blink"), live = $("[role=status]"), away = $(".k-difference");
const sides = [...element.querySelectorAll(".k-side")], cells = [], denoising = [];
const views = [...element.querySelectorAll("[role=radio]")];
const BLINK = 700; // ms
let data = {}, view = "side", picture = 0, shown = 0, announced = "", pair = [0, 1], timer = null;

const titles = () => (data.models || []).map((model) => model.title);
const difference = new Difference(away, $(".k-apart"));
const zoom = new Zoom(grid, [...element.querySelectorAll("[data-zoom]")], (event) => {
  const shot = event.target.closest(".k-shot");
  return shot && shot.getBoundingClientRect();
});

function cell() {
  const node = make("div", "k-cell"), head = make("div", "k-head"), body = make("div", "k-shot");
  const own = new Denoising(render), image = make("img"), bar = make("span", "k-progress");
  head.append(make("strong", "k-title"), make("span", "k-step"), make("a", "k-png", "PNG"));
  image.hidden = true;
  image.draggable = false;
  bar.append(make("i"));
  body.append(image, own.screen, make("span", "k-empty"), bar);
  node.append(head, body, own.node);
  cells.push(node);
  denoising.push(own);
  return node;
}

function render() {
  const models = data.models || [];
  while (cells.length > models.length) { cells.pop().remove(); denoising.pop(); }
  while (cells.length < models.length) grid.insertBefore(cell(), away);
  if (Math.max(...pair) >= models.length) pair = [0, 1];
  shown = Math.min(shown, Math.max(0, models.length - 1));
  const count = Math.max(0, ...models.map((m) => m.images.length));
  picture = Math.min(picture, Math.max(0, count - 1));
  set(stage, "data-phase", data.phase || "empty");
  set(stage, "data-view", view);
  set(stage, "data-count", models.length);
  set(document.documentElement, "data-koala", data.phase === "running" ? "running" : "idle");
  stage.style.setProperty("--ratio", `${data.width || 1} / ${data.height || 1}`);
  models.forEach(renderModel);
  renderPair(models);
  say(flipper, `Showing ${titles()[shown] || ""}: flip`);
  say($(".k-status"), data.status || "");
  renderThumbs(models, count);
  renderTitle(models);
  announce();
}

// The title of the browser's tab tells how far a run is while another tab is looked at.
function renderTitle(models) {
  const [done, all] = ["step", "steps"].map((part) => models.reduce((sum, model) => sum + model[part], 0));
  const running = data.phase === "running" && all;
  const title = running ? `${Math.floor(100 * done / all)} % · KOALA` : "KOALA";
  if (document.title !== title) document.title = title;
}

// Where a model's picture lies in this view; null where it is hidden.
function place(k) {
  if (view === "side") return "alone";
  if (view === "flip") return k === shown ? "alone" : null;
  if (view === "slider") return ["left", "right"][pair.indexOf(k)] || null;
  return null;
}

function renderModel(model, k) {
  const top = cells[k].querySelector(".k-head"), body = cells[k].querySelector(".k-shot");
  const image = body.querySelector("img"), link = top.querySelector("a"), final = model.images[picture];
  const busy = data.phase === "running" && !final, where = place(k);
  const looked = Boolean(where) || (view === "difference" && pair.includes(k));
  say(top.querySelector(".k-title"), model.title);
  say(top.querySelector(".k-step"), final ? (model.seconds ? `${model.seconds} s` : "")
    : busy ? (model.step ? `${model.step} / ${model.steps}` : "waiting") : "");
  set(top, "data-shown", looked);
  set(cells[k], "data-looked", looked || data.models.length < 3);
  cells[k].style.setProperty("--turn", view === "side" ? 0 : pair.indexOf(k));
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
  set(body, "data-place", where || "away");
  set(body, "aria-hidden", where ? null : "true");
  say(body.querySelector(".k-empty"), source ? "" : busy ? "" : "the picture appears here");
  body.querySelector("i").style.width = `${model.steps ? 100 * model.step / model.steps : 0}%`;
}

// The two models of the slider and of the difference; of more than two the visitor chooses.
function renderPair(models) {
  const names = titles();
  sides.forEach((side, j) => {
    const [name, choice] = side.children, key = names.join("\n");
    name.hidden = models.length > 2;
    choice.hidden = models.length < 3;
    say(name, names[pair[j]] || "");
    if (choice.dataset.key !== key) {
      choice.dataset.key = key;
      choice.replaceChildren(...names.map((title, k) => new Option(title, k)));
    }
    choice.value = pair[j];
  });
  const [left, right] = pair.map((k) => names[k] || "");
  range.setAttribute("aria-label", `Divide the picture: ${left} left, ${right} right`);
  slide();
  const both = pair.map((k) => cells[k]).filter(Boolean);
  const drawn = pair.every((k) => models[k] && models[k].images[picture]);
  if (view === "difference") difference.show(both.map((one) => one.querySelector("img")), [left, right], drawn);
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
  grid.style.setProperty("--cut", `${range.value}%`);
  const [left, right] = pair.map((k) => titles()[k]);
  set(range, "aria-valuetext", `${range.value} percent ${left}, ${100 - range.value} percent ${right}`);
}

function choose(name, focus) {
  view = name;
  views.forEach((button) => {
    const on = button.dataset.view === name;
    set(button, "aria-checked", on);
    button.tabIndex = on ? 0 : -1;
    if (on && focus) button.focus();
  });
  blink();
  render();
}

function flip(quietly) {
  if (view !== "flip") choose("flip", false);
  shown = (shown + 1) % data.models.length;
  render();
  if (!quietly) live.textContent = `Showing ${data.models[shown].title}`;
}

function blink() {
  clearInterval(timer);
  if (view === "flip" && blinking.checked) timer = setInterval(() => element.offsetParent && flip(true), BLINK);
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
sides.forEach((side, j) => side.lastElementChild.addEventListener("change", (event) => {
  const chosen = Number(event.target.value);
  if (chosen === pair[1 - j]) pair.reverse(); // never one model against itself
  else pair[j] = chosen;
  render();
}));
range.addEventListener("input", slide);
flipper.addEventListener("click", () => flip());
blinking.addEventListener("change", blink);
grid.addEventListener("click", (event) => {
  if (view === "flip" && !zoom.moved && event.detail < 2 && event.target.closest(".k-shot")) flip();
});
const drag = (event) => {
  const shot = event.target.closest(".k-shot");
  if (view !== "slider" || !event.buttons || !shot || zoom.zoomed) return;
  const box = shot.getBoundingClientRect();
  range.value = Math.round(100 * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
  slide();
};
grid.addEventListener("pointerdown", drag);
grid.addEventListener("pointermove", drag);
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest && event.target.closest(
    "input:not([type=range], [type=checkbox]), textarea, select, [contenteditable]");
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
