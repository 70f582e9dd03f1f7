// The Architecture tab. All figures come from Python (koala/ui/architecture/data.py); text is written with textContent only.
const $ = (selector) => element.querySelector(selector);
const $$ = (selector) => [...element.querySelectorAll(selector)];
const live = $("[role=status]"), compress = $(".ka-compress"), made = $(".ka-made"), facts = $(".ka-detail dl");
const nets = $$(".ka-net"), presets = $$(".ka-presets [role=radio]"), ranges = $$(".ka-depths input[type=range]");
const PATIENCE = 15000; // ms until a request counts as lost
let data = {}, turn = 0, pending = {}, flying = 0, lost, cutting = 0; // the last two are timers
let pinned = "up_blocks.0.attentions.1", looked = null, spoken = "";

const make = (tag, text) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  return node;
};
const show = (name, text) => $$(`[data-show="${name}"]`).forEach((node) => {
  if (node.textContent !== text) node.textContent = text || "";
});
const parts = (path) => $$(`.ka-part[data-path="${path}"]`);

// The last answer of Python with everything that was moved since: no change waits for the answer to another.
const asked = () => {
  const moved = Object.fromEntries(Object.entries(pending).map(([name, one]) => [name, one.value]));
  return { spec: data.spec, teacher: data.teacher, side: data.side, gpu: data.gpu, ...moved, turn };
};
const wanted = (name, answered) => (name in pending ? pending[name].value : answered);
function send(name, value) {
  turn += 1;
  if (name === "spec") for (const other of ["mid", "pairs", ...Object.keys(data.stages)]) delete pending[other];
  if (name === "teacher") delete pending.side;
  pending[name] = { value, turn };
  fly();
}

// One request at a time; what is moved meanwhile is sent with the next.
function fly() {
  if (flying || !Object.keys(pending).length) return;
  flying = turn;
  trigger("input", asked());
  lost = setTimeout(() => {
    pending = {};
    flying = 0;
    render(); // the controls go back to the last answer
  }, PATIENCE);
}

function options(select, values, chosen, label) {
  const key = values.join();
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    select.replaceChildren(...values.map((value) => {
      const node = make("option", label(value));
      node.value = value;
      return node;
    }));
  }
  select.value = chosen;
}

function detail() {
  const part = (data.parts || {})[looked || pinned];
  if (!part) return;
  show("part", part.title);
  show("state", part.state);
  show("brief", part.facts.slice(0, 2).map(([, value]) => value).join(" · ")); // parameters and arithmetic, on a phone
  $(".ka-detail").dataset.state = part.state;
  facts.replaceChildren(...part.facts.flatMap(([name, value]) => {
    const row = make("div");
    row.append(make("dt", name), make("dd", value));
    return [row];
  }));
}

function drawNets() {
  for (const [path, part] of Object.entries(data.parts)) {
    for (const node of parts(path)) {
      node.dataset.state = part.depth || part.state === "kept" ? "kept" : "removed";
      if (part.state === "removed") node.dataset.state = "removed";
      node.setAttribute("aria-label", part.label);
      node.setAttribute("aria-pressed", path === pinned);
      node.setAttribute("tabindex", path === pinned ? 0 : -1);
      node.querySelectorAll("[data-cell]").forEach((cell) => {
        cell.dataset.kept = Number(cell.dataset.cell) < part.depth;
      });
    }
  }
  nets.forEach((net) => {
    net.dataset.mid = data.controls.mid;
    net.querySelectorAll(".ka-headline").forEach((node) => { node.textContent = data.title; });
    net.querySelectorAll(".ka-subline").forEach((node) => { node.textContent = data.kept; });
    for (const [stage, one] of Object.entries(data.stages)) {
      net.querySelector(`[data-stage="${stage}"] .ka-note`).textContent = one.note;
    }
  });
}

function drawStages() {
  for (const row of $$(".ka-depths li")) {
    const stage = row.dataset.stage, one = data.stages[stage];
    const [parameters, flops, parametersOf, flopsOf] = one.bars;
    row.querySelectorAll(".ka-bar").forEach((bar, k) => {
      bar.children[0].style.width = `${[parametersOf, flopsOf][k]}%`;
      bar.children[1].style.width = `${[parameters, flops][k]}%`;
    });
    const [first, second] = row.querySelectorAll("[data-sum]");
    first.textContent = `${one.parameters} of ${one.parameters_of}`;
    second.textContent = `${one.flops} of ${one.flops_of}`;
    const range = row.querySelector("input");
    if (!range || stage in pending) continue;
    const depths = one.depths, same = new Set(depths).size === 1;
    const text = same ? `${depths[0]} of ${one.most}` : `${depths.join(", ")} of ${one.most}`;
    range.value = Math.max(...depths);
    range.setAttribute("aria-valuetext", same ? `${text} blocks` : `${depths.join(", ")} blocks, of ${one.most}`);
    row.querySelector("output").textContent = text;
  }
  $(".ka-mid").value = wanted("mid", data.controls.mid);
  const depth = data.stages.MID.depths[0];
  $(".ka-mid-depth").textContent = depth ? `${depth} of ${data.stages.MID.most}` : "";
  const pairs = wanted("pairs", data.controls.pairs);
  $$(".ka-pairs input").forEach((radio) => { radio.checked = Number(radio.value) === pairs; });
}

// The button and the students, also from an answer that is older than the last change of the drawing.
function drawMade() {
  compress.disabled = data.complete || cutting > 0;
  compress.textContent = cutting ? "Cutting …" : "Compress Tiny SDXL";
  show("problem", data.problem);
  made.replaceChildren(...data.made.map((one) => {
    const row = make("li"), link = make("a", "Compare it with its teacher");
    link.href = location.pathname + one.link;
    link.target = "_blank";
    row.append(make("b", one.title), make("span", `${one.parameters} parameters, cut in ${one.seconds} s`), link);
    if (one.folder) row.append(make("code", one.folder));
    return row;
  }));
}

function render() {
  presets.forEach((button) => {
    const on = button.dataset.spec === (data.named || "");
    button.setAttribute("aria-checked", on);
    button.tabIndex = on ? 0 : -1;
    if (!button.dataset.spec) button.hidden = Boolean(data.named);
  });
  $('[data-send="teacher"]').value = wanted("teacher", data.teacher);
  $('[data-send="gpu"]').value = wanted("gpu", data.gpu);
  options($('[data-send="side"]'), data.sides, wanted("side", data.side), (side) => `${side} × ${side} px`);
  for (const name of ["parameters", "parameters_note", "flops", "flops_note", "time", "time_note", "memory",
    "memory_note", "command", "cut_note"]) show(name, data[name]);
  drawNets();
  drawStages();
  detail();
  if (spoken && spoken !== data.summary) live.textContent = data.summary;
  spoken = data.summary;
}

// --- events

presets.forEach((button, k) => {
  const choose = () => button.dataset.spec && send("spec", button.dataset.spec);
  button.addEventListener("click", choose);
  button.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const seen = presets.filter((b) => b.dataset.spec);
    const next = seen[(seen.indexOf(button) + move + seen.length) % seen.length];
    next.focus();
    send("spec", next.dataset.spec);
  });
});
$$("[data-send]").forEach((select) => select.addEventListener("change", () => {
  const value = select.dataset.send === "side" ? Number(select.value) : select.value;
  send(select.dataset.send, value);
}));
ranges.forEach((range) => range.addEventListener("input", () => {
  range.closest("li").querySelector("output").textContent = `${range.value} of ${range.max}`;
  send(range.closest("li").dataset.stage, Number(range.value));
}));
$(".ka-mid").addEventListener("change", (event) => send("mid", event.target.value));
$$(".ka-pairs input").forEach((radio) => radio.addEventListener("change", () => send("pairs", Number(radio.value))));
compress.addEventListener("click", () => {
  cutting = setTimeout(() => {
    cutting = 0;
    data.problem = "The app has not answered. Try again.";
    drawMade();
  }, PATIENCE);
  data.problem = "";
  drawMade();
  trigger("submit", asked());
});
$(".ka-copy").addEventListener("click", async (event) => {
  const button = event.currentTarget, code = $(".ka-command code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
    live.textContent = "Command copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  } catch {
    getSelection().selectAllChildren(code);
    live.textContent = "Command selected; press Ctrl+C to copy";
  }
});

nets.forEach((net) => {
  const order = [...net.querySelectorAll(".ka-part")];
  const pin = (node) => {
    pinned = node.dataset.path;
    looked = null;
    drawNets();
    detail();
  };
  net.addEventListener("pointerover", (event) => {
    const node = event.target.closest(".ka-part");
    if (event.pointerType === "touch" || !node) return;
    looked = node.dataset.path;
    detail();
  });
  net.addEventListener("pointerleave", () => { looked = null; detail(); });
  net.addEventListener("click", (event) => {
    const node = event.target.closest(".ka-part");
    if (node) pin(node);
  });
  net.addEventListener("focusin", (event) => {
    const node = event.target.closest(".ka-part");
    if (node) pin(node);
  });
  net.addEventListener("keydown", (event) => {
    const at = order.indexOf(event.target.closest(".ka-part"));
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0,
      End: order.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    order[Math.min(order.length - 1, Math.max(0, to))].focus();
  });
});

function update() {
  const value = props.value;
  if (!value || !value.parts) return;
  if (flying && value.turn >= flying) {
    flying = 0;
    clearTimeout(lost);
  }
  if (value.cut) {
    clearTimeout(cutting);
    cutting = 0;
  }
  if (value.turn < data.turn) {
    Object.assign(data, { made: value.made, problem: value.problem });
  } else {
    data = value;
    for (const [name, one] of Object.entries(pending)) if (one.turn <= data.turn) delete pending[name];
    render();
  }
  drawMade();
  fly();
}
watch("value", update);
update();
