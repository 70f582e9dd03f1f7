// The denoising strip under a picture: a few of its frames, and a slider that scrubs through all of them.
const TILES = 6;

class Denoising {
  // `changed` is called when another frame is shown, or none; `screen` is what lies over the picture then.
  constructor(changed) {
    this.node = make("div", "k-denoising");
    this.tiles = make("canvas", "k-tiles");
    this.range = make("input");
    this.label = make("span", "k-noise");
    this.screen = make("canvas", "k-screen");
    this.sheet = new Image();
    this.changed = changed;
    this.data = null;
    this.range.type = "range";
    this.range.min = 0;
    this.tiles.setAttribute("aria-hidden", "true");
    this.screen.setAttribute("role", "img");
    this.node.append(this.tiles, this.range, this.label);
    this.range.addEventListener("input", () => this.show());
    const jump = (event) => {
      if (event.type === "pointermove" && !event.buttons) return;
      const box = this.tiles.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      this.range.value = Math.round(Math.min(1, Math.max(0, share)) * this.last);
      this.show();
    };
    this.tiles.addEventListener("pointerdown", jump);
    this.tiles.addEventListener("pointermove", jump);
    this.sheet.addEventListener("load", () => { this.draw(); this.show(); });
    this.sheet.addEventListener("error", () => { this.ready = false; this.show(); }); // the server has dropped the file
  }

  // The strip of a finished run, or null; `first` says whether the first picture is shown, of which it is.
  set(data, title, prompt, first) {
    if ((data && data.src.url) !== (this.data && this.data.src.url) && (data || this.data)) {
      this.data = data;
      this.ready = false;
      if (data) {
        this.range.max = data.steps.length - 1;
        this.range.value = data.steps.length - 1;
        this.sheet.src = data.src.url;
      }
    }
    Object.assign(this, { title, prompt, first });
    this.say();
  }

  get last() { return this.data ? this.data.steps.length - 1 : 0; }

  // The frame that lies over the picture; null while the picture itself is shown.
  get frame() {
    return this.data && this.ready && this.first && this.range.value < this.last ? Number(this.range.value) : null;
  }

  cut(k) {
    const { width, height, columns } = this.data;
    return [this.sheet, (k % columns) * width, Math.floor(k / columns) * height, width, height];
  }

  draw() {
    const { width, height } = this.data, count = Math.min(TILES, this.last + 1);
    this.ready = true;
    this.tiles.width = count * width;
    this.tiles.height = height;
    this.node.style.setProperty("--share", `${(100 * count) / TILES}%`);
    const pen = this.tiles.getContext("2d");
    for (let j = 0; j < count; j++) {
      const k = Math.round((j * this.last) / Math.max(1, count - 1));
      pen.drawImage(...this.cut(k), j * width, 0, width, height);
    }
  }

  say() {
    this.node.hidden = !(this.data && this.ready && this.first);
    this.screen.hidden = this.frame === null;
    if (!this.data) return;
    const k = Number(this.range.value), of = this.data.steps;
    const where = `step ${of[k]} of ${of[this.last]}`;
    const text = k === this.last ? `${where}: the picture` : `${where}, noise ${this.data.noise[k]} %`;
    say(this.label, text);
    set(this.range, "aria-label", `Denoising of ${this.title}`);
    set(this.range, "aria-valuetext", text);
    set(this.screen, "aria-label", `${this.title} after ${where}: ${this.prompt}`);
  }

  show() {
    const k = this.frame;
    if (k !== null) {
      const { width, height } = this.data;
      this.screen.width = width;
      this.screen.height = height;
      this.screen.getContext("2d").drawImage(...this.cut(k), 0, 0, width, height);
    }
    this.say();
    this.changed();
  }
}

