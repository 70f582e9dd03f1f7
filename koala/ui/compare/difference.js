// How far two pictures lie apart, pixel by pixel: each channel's distance, four times as bright.
const BRIGHTER = 4;

class Difference {
  constructor(node, text) {
    Object.assign(this, { canvas: node.querySelector("canvas"), empty: node.querySelector(".k-empty"), text, key: "" });
  }

  // `images` are the two <img>, with their models' titles; not yet drawn pictures are named.
  show(images, titles, ready) {
    say(this.empty, ready ? "" : "the difference appears once both pictures are drawn");
    this.canvas.hidden = !ready;
    if (!ready) { this.key = ""; say(this.text, ""); return; }
    const key = images.map((image) => image.src).join("|");
    if (key === this.key) return;
    if (!images.every((image) => image.complete && image.naturalWidth)) {
      images.forEach((image) => image.addEventListener("load", () => this.show(images, titles, ready), { once: true }));
      return;
    }
    this.key = key;
    const [first, second] = images.map((image) => this.pixels(image, images[0]));
    const out = new ImageData(first.width, first.height);
    let sum = 0;
    for (let k = 0; k < first.data.length; k++) {
      const apart = Math.abs(first.data[k] - second.data[k]);
      if (k % 4 === 3) { out.data[k] = 255; continue; }
      sum += apart;
      out.data[k] = Math.min(255, BRIGHTER * apart);
    }
    this.canvas.width = first.width;
    this.canvas.height = first.height;
    this.canvas.getContext("2d").putImageData(out, 0, 0);
    const mean = (100 * sum) / (255 * 0.75 * first.data.length);
    say(this.text, `${mean.toFixed(1)} % apart on average; shown ${BRIGHTER} times as bright`);
    set(this.canvas, "aria-label", `Difference of ${titles.join(" and ")}: ${mean.toFixed(1)} percent on average`);
  }

  pixels(image, like) {
    const canvas = document.createElement("canvas");
    canvas.width = like.naturalWidth;
    canvas.height = like.naturalHeight;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    return pen.getImageData(0, 0, canvas.width, canvas.height);
  }
}

