// The source of the page that opens with no server: queries and keys are in the page, the softmax is done here.
function localSource({ frames, value, alike }) {
  const decoded = new Map();
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const base64 = (values) => btoa(Array.from(values, (v) => String.fromCharCode(v)).join(""));
  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

  // IEEE half precision, as the capture stores it.
  function halves(text) {
    if (decoded.has(text)) return decoded.get(text);
    const raw = new Uint16Array(bytes(text).buffer), found = new Float32Array(raw.length);
    raw.forEach((bits, i) => {
      const exponent = (bits >> 10) & 31, fraction = bits & 1023;
      const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : (2 ** -14 * fraction) / 1024;
      found[i] = bits & 32768 ? -size : size;
    });
    if (decoded.size > 64) decoded.clear();
    decoded.set(text, found);
    return found;
  }

  // One head's attention of one patch: softmax(q k / sqrt(d)).
  function attention(q, k, side, head, patch) {
    const { dim } = side, count = side.grid[0] * side.grid[1], from = (head * count + patch) * dim, row = new Float32Array(count);
    let top = -Infinity, sum = 0;
    for (let j = 0; j < count; j += 1) {
      let dot = 0;
      for (let d = 0; d < dim; d += 1) dot += q[from + d] * k[(head * count + j) * dim + d];
      row[j] = dot / Math.sqrt(dim);
      top = Math.max(top, row[j]);
    }
    for (let j = 0; j < count; j += 1) { row[j] = Math.exp(row[j] - top); sum += row[j]; }
    return row.map((v) => v / sum);
  }

  // The patches of a box, or those under the points of a brush, in order.
  function patchesOf({ box, brush }, [height, width]) {
    const cell = (v, n) => Math.min(n - 1, Math.floor(v * n)), found = new Set();
    if (brush) for (const [x, y] of brush) found.add(cell(y, height) * width + cell(x, width));
    else for (let y = cell(box[1], height); y <= cell(box[3], height); y += 1)
      for (let x = cell(box[0], width); x <= cell(box[2], width); x += 1) found.add(y * width + x);
    return [...found].sort((a, b) => a - b);
  }

  function row(side, asked) {
    const patches = patchesOf(asked, side.grid), count = side.grid[0] * side.grid[1];
    const steps = asked.step === "mean" ? side.steps : [side.steps[side.at[asked.step]]], found = new Float32Array(count);
    const heads = typeof asked.head === "number" ? [asked.head] : Array.from({ length: side.heads }, (_, h) => h);
    for (const step of steps) {
      const q = halves(step.q), k = halves(step.k);
      for (const patch of patches) {
        const all = heads.map((h) => attention(q, k, side, h, patch));
        const joined = all[0].map((_, j) => (asked.head === "max" ? Math.max(...all.map((one) => one[j]))
          : all.reduce((sum, one) => sum + one[j], 0) / all.length));
        if (!asked.diagonal) joined[patch] = 0;
        const whole = joined.reduce((sum, v) => sum + v, 0);
        joined.forEach((v, j) => { found[j] += v / whole / patches.length / steps.length; });
      }
    }
    const own = patches.reduce((sum, p) => sum + found[p], 0), most = Math.max(...found);
    const told = asked.diagonal ? `${percent(own)} on ${patches.length > 1 ? "the region itself" : "itself"}` : "without itself";
    return { grid: side.grid, marked: patches, data: base64(found.map((v) => Math.round((255 * v) / most))),
      said: `${side.layer}: ${told}, ${percent(most)} on the most looked at patch` };
  }

  function made(side, asked) {
    const all = side[asked.kind];
    return { grid: side.grid, ...(asked.step === "mean" ? all.mean : all.steps[asked.step]) };
  }

  return {
    async look(asked) {
      if (asked.kind === "agreement") return alike;
      const layer = frames[asked.stage][asked.layer], one = value.stages.find((s) => s.name === asked.stage);
      const sides = layer.map((side) => (side.absent ? side : asked.kind === "row" ? row(side, asked) : made(side, asked)));
      const when = asked.step === "mean" ? value.mean : value.moments[asked.step];
      const head = typeof asked.head === "number" ? `head ${asked.head + 1} of ${one.heads}` : `${asked.head} of ${one.heads} heads`;
      return { kind: asked.kind === "pca" ? "colour" : "heat", sides, said: `${asked.stage}, ${when}, ${head}, ${one.grid[1]} × ${one.grid[0]} patches` };
    },
  };
}
const capture = JSON.parse(document.querySelector("#capture").textContent);
attentionViewer(document.querySelector("#viewer"), localSource(capture)).show(capture.value);
