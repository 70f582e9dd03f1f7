// The attention viewer of the app's tab and of the page that opens with no server. `source` answers what is asked:
// look(asked) the maps, file(kind, asked) a download. Text from outside is written with textContent alone.
function attentionViewer(element, source) {
  const $ = (selector) => element.querySelector(selector);
  const root = $(".kv"), pictures = $(".kv-pictures"), live = $("[role=status]"), steps = $(".kv-steps input[type=range]");
  const selects = [...element.querySelectorAll("select")], tune = $(".kv-tune"), play = $(".kv-play");
  const FRAME = 220, KEPT = 3000; // ms of a frame when playing; answers that are remembered
  const PENS = { box: "", brush: "Paint over patches of either picture, with pointer, finger or the arrow keys. A click or tap starts over." };
  let data = {}, answers = new Map(), flying = false, wanted = null, peek = null, playing = 0, shown = null, heard = 0;
  let state = { kind: "row", stage: "", layer: 0, head: "mean", step: 0, box: [0.5, 0.5, 0.5, 0.5],
    brush: null, pen: "box", word: 0, diagonal: true };

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const say = (text) => { clearTimeout(heard); heard = setTimeout(() => { live.textContent = text; }, 500); };
  const complain = (text) => {
    const told = $(".kv-problem");
    if (told.textContent !== (text || "")) told.textContent = text || "";
  };
  const stage = () => data.stages.find((s) => s.name === state.stage);
  const needsPatch = () => state.kind === "row";

  // --- what is asked, and the answer

  const region = () => (peek ? { box: peek } : state.brush ? { brush: state.brush } : { box: state.box });
  const asked = () => ({
    id: data.id, kind: state.kind, stage: state.stage, layer: state.layer, head: state.head, step: state.step,
    diagonal: state.diagonal, ...(needsPatch() ? region() : {}), word: state.kind === "word" ? state.word : null,
  });

  // One request at a time; of those that come meanwhile the last one counts.
  async function ask(then) {
    if (data.phase !== "done") return;
    const one = asked(), key = JSON.stringify(one);
    if (answers.has(key)) { wanted = null; paint(answers.get(key)); if (then) then(); return; }
    wanted = then || (() => {});
    if (flying) return;
    flying = true;
    let answer;
    try {
      answer = await source.look(one);
    } catch {
      answer = { problem: "The app did not answer. Is it still running?" };
    }
    flying = false;
    if (one.id !== data.id) return void ask();
    if (answer.problem) { complain(answer.problem); stop(); return; }
    complain(data.problem || "");
    if (answers.size > KEPT) answers.delete(answers.keys().next().value);
    answers.set(key, answer);
    paint(answer);
    const next = wanted;
    wanted = null;
    if (key === JSON.stringify(asked())) next();
    else ask(next);
  }

  function paint(answer) {
    shown = answer;
    const gamma = Number($(".kv-gamma").value), heat = bytes(data.table), colours = answer.kind === "colour";
    root.style.setProperty("--kv-opacity", $(".kv-opacity").value);
    root.dataset.smooth = $(".kv-smooth").checked;
    const level = Uint8Array.from({ length: 256 }, (_, v) => Math.round(255 * (v / 255) ** gamma));
    answer.sides.forEach((side, k) => {
      const figure = pictures.children[k];
      if (!figure) return;
      const canvas = figure.querySelector("canvas"), mark = figure.querySelector(".kv-mark");
      figure.querySelector(".kv-absent").textContent = side.absent || "";
      figure.querySelector(".kv-said").textContent = side.said || "";
      figure.dataset.absent = Boolean(side.absent);
      mark.hidden = canvas.hidden = Boolean(side.absent);
      if (side.absent) return;
      const [height, width] = side.grid, values = bytes(side.data);
      canvas.width = width;
      canvas.height = height;
      const pixels = canvas.getContext("2d").createImageData(width, height);
      for (let i = 0; i < width * height; i += 1) {
        const from = colours ? values : heat, at = 3 * (colours ? i : level[values[i]]);
        pixels.data.set([from[at], from[at + 1], from[at + 2], 255], 4 * i);
      }
      canvas.getContext("2d").putImageData(pixels, 0, 0);
      mark.hidden = !side.marked;
      mark.dataset.peek = Boolean(peek);
      if (side.marked) outline(mark, new Set(side.marked), width, height);
    });
    $(".kv-status").textContent = answer.said;
    if (!playing && !peek) say([answer.said, ...answer.sides.map((s, k) => `${data.models[k].title}: ${s.absent || s.said}`)].join(". "));
  }
  const again = () => shown && paint(shown);

  // --- drawing the page

  function radios(box, items, chosen, choose) {
    box.replaceChildren(...items.map((item) => {
      const button = make("button", "", item.title);
      button.type = "button";
      button.setAttribute("role", "radio");
      button.setAttribute("aria-checked", item.name === chosen);
      button.tabIndex = item.name === chosen || (!items.some((i) => i.name === chosen) && item === items[0]) ? 0 : -1;
      button.dataset.name = item.name;
      if (item.note) button.append(make("small", "", item.note));
      if (item.absent) { button.setAttribute("aria-disabled", "true"); button.title = item.absent; }
      button.addEventListener("click", () => (item.absent ? complain(item.absent) : choose(item.name)));
      button.addEventListener("keydown", (event) => {
        const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!move) return;
        event.preventDefault();
        const open = items.filter((i) => !i.absent), at = open.findIndex((i) => i.name === item.name);
        const next = open[(at + move + open.length) % open.length].name;
        choose(next);
        box.querySelector(`[data-name="${next}"]`).focus();
      });
      return button;
    }));
  }

  function options(select, items, chosen) {
    select.replaceChildren(...items.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
    select.value = chosen;
  }

  function figure(model, k) {
    const node = make("figure", "kv-side"), caption = make("figcaption"), shot = make("div", "kv-shot");
    caption.append(make("strong", "", model.title), make("span", "kv-count"));
    const image = make("img"), canvas = make("canvas"), mark = make("i", "kv-mark"), bar = make("span", "kv-progress");
    canvas.setAttribute("aria-hidden", "true");
    mark.innerHTML = '<svg preserveAspectRatio="none" aria-hidden="true"><path/><path/></svg>';
    canvas.hidden = mark.hidden = image.hidden = true;
    bar.append(make("i"));
    shot.append(image, canvas, mark, make("p", "kv-absent"), make("p", "kv-empty", "the picture appears here"), bar);
    node.append(caption, shot, make("p", "kv-said"));
    pointing(shot, k);
    return node;
  }

  function drawModels() {
    const models = data.models || [], key = models.map((m) => m.title).join("|");
    if (pictures.dataset.key !== key) {
      pictures.dataset.key = key;
      pictures.replaceChildren(...models.map(figure));
    }
    root.style.setProperty("--ratio", `${data.width || 1} / ${data.height || 1}`);
    const busy = data.phase === "running", done = data.phase === "done";
    models.forEach((model, k) => {
      const node = pictures.children[k], image = node.querySelector("img"), shot = node.querySelector(".kv-shot");
      const source = model.picture || model.preview;
      image.hidden = !source;
      if (source && image.src !== source) image.src = source;
      image.alt = `${data.prompt || ""}, drawn by ${model.title}`;
      node.querySelector(".kv-empty").hidden = Boolean(source) || busy;
      node.querySelector(".kv-count").textContent = busy && !model.picture ? (model.step ? `${model.step} / ${model.steps}` : "waiting") : "";
      node.querySelector(".kv-progress").hidden = !busy || Boolean(model.picture);
      node.querySelector(".kv-progress i").style.width = `${model.steps ? (100 * model.step) / model.steps : 0}%`;
      if (!done) {
        node.querySelectorAll("canvas, .kv-mark").forEach((n) => { n.hidden = true; });
        node.querySelectorAll(".kv-said, .kv-absent").forEach((n) => { n.textContent = ""; });
        node.dataset.absent = false;
      }
      shot.tabIndex = done ? 0 : -1;
      shot.setAttribute("role", done ? "application" : "group");
      shot.setAttribute("aria-label", done ? `Picture by ${model.title}: the arrow keys move the marked patch` : `Picture by ${model.title}`);
    });
  }

  function drawTools() {
    const one = stage();
    radios($(".kv-stages"), data.stages.map((s) => ({ name: s.name, title: s.name, absent: s.absent,
      note: s.absent ? "–" : `${s.grid[1]}×${s.grid[0]}` })), state.stage, (name) => {
      state.stage = name;
      state.layer = stage().layers.length - 1;
      changed();
    });
    radios($(".kv-kinds"), data.kinds.filter((k) => k.name !== "word"), state.kind, (name) => { state.kind = name; changed(); });
    options($("[data-state=layer]"), one.layers.map((text, k) => [k, text]), state.layer);
    $(".kv-layer").hidden = one.layers.length < 2;
    const kind = data.kinds.find((k) => k.name === state.kind), each = kind.heads.includes("each");
    const names = { mean: `mean of ${one.heads}`, max: `max of ${one.heads}`, paper: "all, side by side" };
    const heads = kind.heads.filter((h) => h !== "each").map((h) => [h, names[h]]);
    if (each) for (let k = 0; k < one.heads; k += 1) heads.push([k, `head ${k + 1}`]);
    radios($(".kv-pens"), [{ name: "box", title: "Patch or box" }, { name: "brush", title: "Brush" }], state.pen, (name) => {
      state.pen = name;
      drawTools();
    });
    $(".kv-pens").hidden = !needsPatch();
    root.dataset.pen = needsPatch() ? state.pen : "box";
    $(".kv-help").textContent = (needsPatch() && PENS[state.pen]) || kind.help;
    if (!heads.some(([h]) => h === state.head)) state.head = "mean";
    options($("[data-state=head]"), heads, state.head);
    $("[data-state=head]").closest("label").hidden = heads.length < 2;
    drawStep();
    $(".kv-diagonal").checked = !state.diagonal;
    $(".kv-diagonal").closest("label").hidden = !needsPatch();
    $(".kv-gamma").closest("label").hidden = kind.colour;
    drawWords();
  }

  function drawStep() {
    const mean = state.step === "mean";
    steps.max = data.moments.length - 1;
    if (!mean) steps.value = state.step;
    steps.disabled = mean;
    $(".kv-mean").checked = mean;
    const text = mean ? data.mean : data.moments[state.step];
    $(".kv-mean").closest("label").hidden = !data.mean;
    $(".kv-pace").textContent = data.pace || "";
    $(".kv-steps output").textContent = text;
    steps.setAttribute("aria-valuetext", text);
    element.querySelectorAll(".kv-agreement [data-step]").forEach((cell) => {
      cell.dataset.on = cell.dataset.stage === state.stage && Number(cell.dataset.step) === state.step;
    });
  }

  function drawWords() {
    const words = data.words || [], box = $(".kv-words");
    box.hidden = !words.length;
    box.replaceChildren(...words.map((word, k) => {
      const button = make("button", word.special ? "kv-special" : "", word.text);
      button.type = "button";
      button.setAttribute("aria-pressed", state.kind === "word" && state.word === k);
      button.addEventListener("click", () => {
        const off = state.kind === "word" && state.word === k;
        Object.assign(state, off ? { kind: "row" } : { kind: "word", word: k });
        changed();
        box.children[k].focus();
      });
      return button;
    }));
  }

  // The chart comes after the pictures: at full size it takes a while.
  async function drawAgreement() {
    const box = $(".kv-agreement"), id = data.id;
    box.hidden = true;
    if (!data.two) return;
    let found;
    try { found = await source.look({ id, kind: "agreement" }); } catch { return; }
    if (id !== data.id || found.problem) return;
    const { table, low, high } = agreementTable(make, found.rows, data.moments);
    $(".kv-scroll").replaceChildren(table);
    $(".kv-agreement .kv-note").textContent = `Cosine between both models' attention, patch by patch, from the first step to the last: ` +
      `faint is ${low.toFixed(2)}, full ${high.toFixed(2)}; at the right each stage's mean. Click a cell to see it.${data.pace ? " Steps pair by their noise." : ""}`;
    box.hidden = false;
    drawStep();
  }

  function drawFiles() {
    $(".kv-files").replaceChildren(...(source.files || []).map(([kind, text]) => {
      const button = make("button", "kv-file", text);
      button.type = "button";
      button.addEventListener("click", () => fetchFile(kind, text, button));
      return button;
    }));
  }

  async function fetchFile(kind, text, button) {
    if (button.disabled) return;
    button.disabled = true;
    button.textContent = "Making it …";
    try {
      const file = await source.file({ ...asked(), ...region(), file: kind, opacity: Number($(".kv-opacity").value),
        gamma: Number($(".kv-gamma").value) });
      if (file.problem) complain(file.problem);
      else {
        const link = make("a");
        link.href = file.path ? source.address(file.path) : URL.createObjectURL(new Blob([bytes(file.data)], { type: file.mime }));
        link.download = file.name;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
        complain("");
        say(`${file.name} is downloaded`);
      }
    } catch {
      complain("The app did not answer. Is it still running?");
    }
    button.disabled = false;
    button.textContent = text;
  }

  // --- what a visitor does

  const changed = () => { drawTools(); ask(); };

  function pointing(shot) {
    const at = (event) => {
      const box = shot.getBoundingClientRect(), inside = (v) => Math.min(0.9999, Math.max(0, v));
      return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
    };
    const mark = (x, y) => { state.brush = state.pen === "brush" ? [[x, y]] : null; state.box = [x, y, x, y]; };
    let from = null, pen = null, moved = 0;
    const threshold = () => 0.7 / stage().grid[1];
    shot.addEventListener("pointerdown", (event) => {
      if (data.phase !== "done" || !needsPatch() || (event.pointerType === "touch" && state.pen !== "brush")) return;
      from = pen = at(event);
      moved = 0;
      shot.setPointerCapture(event.pointerId);
    });
    shot.addEventListener("pointermove", (event) => {
      const brush = state.pen === "brush";
      if (data.phase !== "done" || !needsPatch() || playing || (event.pointerType === "touch" && !brush)) return;
      const [x, y] = at(event);
      if (from && event.buttons) {
        moved = Math.max(moved, Math.abs(x - from[0]), Math.abs(y - from[1]));
        if (moved <= threshold()) return;
        peek = null;
        if (brush) {
          state.brush = stroke(state.brush || [], pen, [x, y]);
          pen = [x, y];
        } else {
          state.brush = null;
          state.box = [Math.min(x, from[0]), Math.min(y, from[1]), Math.max(x, from[0]), Math.max(y, from[1])];
        }
      } else if (!brush) peek = [x, y, x, y];
      ask();
    });
    shot.addEventListener("pointerleave", () => { if (peek) { peek = null; ask(); } });
    shot.addEventListener("click", (event) => {
      if (data.phase !== "done") return;
      const dragged = from && moved > threshold();
      from = null;
      peek = null;
      if (!dragged) mark(...at(event));
      if (!needsPatch()) { state.kind = "row"; drawTools(); }
      ask();
    });
    shot.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!move || data.phase !== "done") return;
      event.preventDefault();
      const far = event.shiftKey ? 4 : 1, middle = [0, 1].map((k) => (state.box[k] + state.box[k + 2]) / 2);
      const here = state.brush ? state.brush.at(-1) : middle;
      const [x, y] = [0, 1].map((k) => {
        const count = stage().grid[1 - k], cell = Math.floor(here[k] * count);
        return (Math.min(count - 1, Math.max(0, cell + far * move[k])) + 0.5) / count;
      });
      peek = null;
      if (state.pen === "brush" && needsPatch()) state.brush = stroke(state.brush || [], here, [x, y]);
      else mark(x, y);
      if (!needsPatch()) { state.kind = "row"; drawTools(); }
      ask();
    });
  }

  selects.forEach((select) => select.addEventListener("change", () => {
    const value = select.value;
    state[select.dataset.state] = Number.isNaN(Number(value)) ? value : Number(value);
    changed();
  }));
  steps.addEventListener("input", () => { state.step = Number(steps.value); drawStep(); ask(); });
  $(".kv-mean").addEventListener("change", (event) => {
    stop();
    state.step = event.target.checked ? "mean" : Number(steps.value);
    drawStep();
    ask();
  });
  $(".kv-diagonal").addEventListener("change", (event) => { state.diagonal = !event.target.checked; ask(); });
  tune.addEventListener("input", again);
  $(".kv-agreement").addEventListener("click", (event) => {
    const cell = event.target.closest("[data-step]");
    if (!cell) return;
    state.stage = cell.dataset.stage;
    state.layer = stage().layers.length - 1;
    state.step = Number(cell.dataset.step);
    changed();
  });

  function stop() {
    clearTimeout(playing);
    playing = 0;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  }
  function frame() {
    const begun = performance.now();
    state.step = (state.step + 1) % data.moments.length;
    drawStep();
    ask(() => { if (playing) playing = setTimeout(frame, Math.max(0, FRAME - (performance.now() - begun))); });
  }
  play.addEventListener("click", () => {
    if (playing) return stop();
    if (state.step === "mean") state.step = Number(steps.value);
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    peek = null;
    playing = setTimeout(frame, 1);
  });

  return {
    show(value) {
      const fresh = value.phase === "done" && value.id !== data.id;
      data = value;
      root.dataset.phase = data.phase || "empty";
      drawModels();
      if (data.phase !== "done") {
        stop();
        shown = null;
        $(".kv-status").textContent = data.status || "";
        return;
      }
      if (!fresh) return;
      stop();
      answers = new Map();
      complain(data.problem || "");
      const kept = data.stages.find((s) => s.name === state.stage && !s.absent);
      if (!kept) { state.stage = data.stage; state.layer = stage().layers.length - 1; }
      state.layer = Math.min(state.layer, stage().layers.length - 1);
      const count = data.moments.length;
      state.step = Math.min(count - 1, state.step === 0 || state.step === "mean" ? Math.floor(count / 2) : state.step);
      state.word = 0;
      if (state.kind === "word") state.kind = "row";
      $(".kv-told").textContent = data.told || "";
      drawFiles();
      drawTools();
      ask();
      drawAgreement();
    },
  };
}
