// What is marked on the pictures of the attention viewer: a brush's points, and the line around patches.
// A brush's points after it went on from one place to another: a cell of a fine grid is kept once, the last one last.
function stroke(points, start, end) {
  const FINE = 128; // over a side of the picture: a patch has a cell or more, whatever its stage
  const far = Math.max(...start.map((v, k) => Math.abs(v - end[k]))), count = Math.ceil(2 * FINE * far) || 1;
  const found = new Map(points.map((point) => [String(point), point]));
  for (let k = 0; k <= count; k += 1) {
    const point = start.map((v, i) => (Math.floor((v + ((end[i] - v) * k) / count) * FINE) + 0.5) / FINE);
    found.delete(String(point));
    found.set(String(point), point);
  }
  return [...found.values()];
}

// A frame around the marked patches; where they are no box, a line along their edge.
function outline(mark, patches, width, height) {
  const xs = [...patches].map((p) => p % width), ys = [...patches].map((p) => Math.floor(p / width));
  const left = Math.min(...xs), top = Math.min(...ys), wide = Math.max(...xs) + 1 - left, high = Math.max(...ys) + 1 - top;
  Object.assign(mark.style, { left: `${(100 * left) / width}%`, top: `${(100 * top) / height}%`,
    width: `${(100 * wide) / width}%`, height: `${(100 * high) / height}%` });
  mark.dataset.loose = patches.size < wide * high;
  const edges = [], has = (x, y) => x >= 0 && x < width && patches.has(y * width + x);
  for (const patch of mark.dataset.loose === "true" ? patches : []) {
    const x = patch % width, y = Math.floor(patch / width), [i, j] = [x - left, y - top];
    if (!has(x, y - 1)) edges.push(`M${i} ${j}h1`);
    if (!has(x, y + 1)) edges.push(`M${i} ${j + 1}h1`);
    if (!has(x - 1, y)) edges.push(`M${i} ${j}v1`);
    if (!has(x + 1, y)) edges.push(`M${i + 1} ${j}v1`);
  }
  mark.firstChild.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  mark.querySelectorAll("path").forEach((line) => line.setAttribute("d", edges.join("")));
}
