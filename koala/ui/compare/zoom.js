// Zoom and pan, the same for all pictures. Ctrl and the wheel, a pinch, a double click, the buttons, and + - 0 zoom;
// dragging and the arrow keys pan.
const MOST = 8, ZOOM_STEP = 1.5, PAN_STEP = 0.1;

class Zoom {
  // `box` holds the pictures; `within` gives the rectangle of the picture under an event, or null.
  constructor(box, buttons, within) {
    Object.assign(this, { box, buttons, within, scale: 1, x: 0, y: 0, fingers: new Map() });
    buttons.forEach((button) => button.addEventListener("click", () => this.by(button.dataset.zoom)));
    buttons[0].parentElement.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    box.addEventListener("dblclick", (event) => this.toggle(event));
    box.addEventListener("pointerdown", (event) => this.down(event));
    box.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel", "pointerleave"])
      box.addEventListener(name, (event) => this.fingers.delete(event.pointerId));
    this.apply();
  }

  get zoomed() { return this.scale > 1; }

  // Scale to `scale`, with the point (u, v) of the picture's box, 0 to 1, where it is.
  to(scale, u = 0.5, v = 0.5) {
    const next = Math.min(MOST, Math.max(1, scale)), ratio = next / this.scale;
    this.scale = next;
    this.pan(u - (u - this.x) * ratio, v - (v - this.y) * ratio);
  }

  pan(x, y) {
    const least = 1 - this.scale;
    this.x = Math.min(0, Math.max(least, x));
    this.y = Math.min(0, Math.max(least, y));
    this.apply();
  }

  by(step) {
    this.to(step === "reset" ? 1 : this.scale * (step === "in" ? ZOOM_STEP : 1 / ZOOM_STEP));
  }

  apply() {
    this.box.style.setProperty("--zoom", this.scale);
    this.box.style.setProperty("--x", `${100 * this.x}%`);
    this.box.style.setProperty("--y", `${100 * this.y}%`);
    set(this.box, "data-zoomed", this.zoomed);
    set(this.box, "data-pixels", this.scale >= 3);
    say(this.buttons[1], `${Math.round(100 * this.scale)} %`);
    set(this.buttons[1], "aria-label", `Whole picture; now at ${Math.round(100 * this.scale)} percent`);
  }

  at(event) {
    const area = this.within(event);
    return area && [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height, area];
  }

  wheel(event) {
    const place = (event.ctrlKey || event.metaKey) && this.at(event);
    if (!place) return;
    event.preventDefault();
    this.to(this.scale * Math.exp(-event.deltaY / 200), place[0], place[1]);
  }

  toggle(event) {
    const place = this.at(event);
    if (place) this.to(this.zoomed ? 1 : 3, place[0], place[1]);
  }

  key(event) {
    const way = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    const step = { "+": "in", "=": "in", "-": "out", 0: "reset" }[event.key];
    if (step) this.by(step);
    else if (way && this.zoomed) this.pan(this.x + PAN_STEP * way[0], this.y + PAN_STEP * way[1]);
    else return;
    event.preventDefault();
  }

  down(event) {
    if (this.within(event)) this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
    this.moved = false;
  }

  move(event) {
    const before = this.fingers.get(event.pointerId), place = before && this.at(event);
    if (!place || (event.pointerType === "mouse" && !event.buttons)) return;
    const fingers = [...this.fingers.values()], [u, v, area] = place;
    const others = [...this.fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (fingers.length === 2) {
      const apart = (at) => Math.hypot(at[0] - others[0][0], at[1] - others[0][1]);
      this.to(this.scale * apart([event.clientX, event.clientY]) / Math.max(1, apart(before)), u, v);
      this.moved = true;
    } else if (this.zoomed && fingers.length === 1) {
      this.pan(this.x + (event.clientX - before[0]) / area.width, this.y + (event.clientY - before[1]) / area.height);
      this.moved = true;
    }
  }
}

