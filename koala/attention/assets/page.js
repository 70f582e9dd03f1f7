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

  function cellsOf([x0, y0, x1, y1], [height, width]) {
    const cell = (v, n) => Math.min(n - 1, Math.floor(v * n));
    return [cell(x0, width), cell(y0, height), cell(x1, width) + 1, cell(y1, height) + 1];
  }

  function row(side, asked) {
    const cells = cellsOf(asked.box, side.grid), count = side.grid[0] * side.grid[1], patches = [];
    for (let y = cells[1]; y < cells[3]; y += 1) for (let x = cells[0]; x < cells[2]; x += 1) patches.push(y * side.grid[1] + x);
    const steps = asked.step === "mean" ? side.steps : [side.steps[asked.step]], found = new Float32Array(count);
    const heads = typeof asked.head === "number" ? [asked.head] : Array.from({ length: side.heads }, (_, h) => h);
    for (const step of steps) {
      const q = halves(step.q), k = halves(step.k);
      for (const patch of patches) {
        const all = heads.map((h) => attention(q, k, side, h, patch));
        for (let j = 0; j < count; j += 1) {
          const values = all.map((one) => one[j]);
          const joined = asked.head === "max" ? Math.max(...values) : values.reduce((a, b) => a + b, 0) / values.length;
          found[j] += joined / patches.length / steps.length;
        }
      }
    }
    const own = patches.reduce((sum, p) => sum + found[p], 0), most = Math.max(...found);
    if (!asked.diagonal) for (const patch of patches) found[patch] = 0;
    const peak = Math.max(...found) || 1;
    return { grid: side.grid, cells, data: base64(found.map((v) => Math.round((255 * v) / peak))),
      said: `${side.layer}: ${percent(own)} on itself, ${percent(most)} on the most looked at patch` };
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
      const when = asked.step === "mean" ? `mean of ${value.steps} steps` : `step ${value.numbers[asked.step]} of ${value.total}`;
      const head = typeof asked.head === "number" ? `head ${asked.head + 1} of ${one.heads}` : `${asked.head} of ${one.heads} heads`;
      return { kind: asked.kind === "pca" ? "colour" : "heat", sides, said: `${asked.stage}, ${when}, ${head}, ${one.grid[1]} × ${one.grid[0]} patches` };
    },
  };
}
const capture = JSON.parse(document.querySelector("#capture").textContent);
attentionViewer(document.querySelector("#viewer"), localSource(capture)).show(capture.value);
