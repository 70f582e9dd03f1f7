// What the page's fields ask for: requests, the link that restores them, and what a picture carries.

const OWN = ["steps", "guidance"]; // one per model

/** A sentence for the first setting that cannot work; null where all can. `site.limits` has the bounds. */
export function complaint(request, { limits, samplers }) {
  const whole = (value, low, high) => Number.isInteger(value) && value >= low && value <= high;
  for (const name of ["prompt", "negative_prompt"]) {
    const text = request[name], called = name.replace("_", " ");
    if (/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(text)) {
      return `The ${called} holds half a character, which is not text; type it again.`;
    }
    if ([...text].length > limits.prompt) return `The ${called} has ${[...text].length} characters; shorten it to ${limits.prompt}.`;
  }
  if (!request.prompt.trim()) return "The prompt is empty; describe a picture, for example: a red circle left of a blue square.";
  if (!whole(request.seed, 0, limits.seed)) return `The seed must be a whole number from 0 to ${limits.seed}.`;
  if (!whole(request.steps, 1, limits.steps)) return `Steps must be a whole number from 1 to ${limits.steps}.`;
  if (!(request.guidance >= 0 && request.guidance <= limits.guidance)) return `Guidance must be a number from 0 to ${limits.guidance}.`;
  for (const side of ["width", "height"]) {
    if (!whole(request[side], limits.side[0], limits.side[1]) || request[side] % limits.multiple) {
      return `The ${side} must be a multiple of ${limits.multiple} from ${limits.side[0]} to ${limits.side[1]} px.`;
    }
  }
  if (!samplers.includes(request.scheduler)) return `The page has the schedulers ${samplers.join(" and ")}, not ${request.scheduler}.`;
  return null;
}

/** What follows the # of a link: the same names as in a link of the app. */
export function toFragment(requests) {
  const first = requests[0], values = new URLSearchParams();
  for (const name of ["prompt", "negative_prompt", "seed"]) if (first[name] !== "") values.set(name, first[name]);
  values.set("models", requests.map((r) => r.model).join(","));
  if (new Set(requests.map((r) => r.scheduler)).size === 1) values.set("scheduler", first.scheduler);
  for (const name of ["width", "height"]) values.set(name, first[name]);
  for (const name of OWN) values.set(name, requests.map((r) => r[name]).join(","));
  return values.toString();
}

/** A link's requests, one per model of the site, and a sentence for everything in it that cannot be used. */
export function fromFragment(text, site) {
  const values = new URLSearchParams(text), complaints = [];
  const requests = site.models.map((model) => blank(model, site));
  const named = values.has("models") ? values.get("models").split(",") : site.models.map((model) => model.name);
  for (const name of named) {
    if (!requests.some((r) => r.model === name)) complaints.push(`The link names the model ${name.slice(0, 60)}, which this page has not.`);
  }
  const take = (request, name, value) => {
    const found = complaint({ ...request, prompt: request.prompt || "a", [name]: value }, site);
    if (found && !complaints.includes(found)) complaints.push(found);
    if (!found) request[name] = value;
  };
  const number = (found) => (/^\s*[+-]?\d+(\.\d+)?\s*$/.test(found) ? Number(found) : NaN);
  for (const name of ["prompt", "negative_prompt", "scheduler", "seed", "width", "height"]) {
    if (!values.has(name)) continue;
    const given = values.get(name);
    for (const request of requests) take(request, name, ["seed", "width", "height"].includes(name) ? number(given) : given);
  }
  for (const name of OWN) {
    for (const [k, given] of (values.get(name)?.split(",") ?? []).entries()) {
      const request = requests.find((r) => r.model === named[k]);
      if (request) take(request, name, number(given));
    }
  }
  return { requests, complaints, seeded: values.has("seed") };
}

/** What a picture's metadata asks for, in the terms of a link. */
export function fragmentOf(metadata) {
  const drawn = metadata.compared?.length ? metadata.compared : [metadata.request];
  return toFragment(drawn.map((r) => ({ ...r, seed: metadata.request.seed })));
}

/** A model's own settings. */
export function blank(model, site) {
  return { model: model.name, prompt: "", negative_prompt: "", seed: 0, ...model.defaults };
}

/** Every field of a request as the app has it. */
const whole = (r) => ({
  model: r.model,
  prompt: r.prompt,
  negative_prompt: r.negative_prompt,
  seed: r.seed,
  steps: r.steps,
  guidance: r.guidance,
  scheduler: r.scheduler,
  width: r.width,
  height: r.height,
  images: 1,
  preset: "quality",
  lora: null,
  lora_strength: 1,
});

/** What a picture carries, in the app's own form: how it was drawn, and what it was compared with. */
export function metadata(request, compared, { unread, backend, threads }, site) {
  const model = site.models.find((one) => one.name === request.model);
  const device = backend === "webgpu" ? "a browser's WebGPU" : `a browser, ${threads} thread${threads > 1 ? "s" : ""}`;
  return {
    request: whole(request),
    folders: Array(1 + compared.length).fill(null),
    lora_sha256: null,
    unread,
    revision: model.revision,
    dtype: model.dtype,
    device,
    runtime: "onnx",
    versions: { ...site.made, "onnxruntime-web": site.runtime.version },
    compared: compared.map(whole),
  };
}

/** JSON in ASCII, as a plain text chunk wants it. */
export const asciiJson = (value) =>
  JSON.stringify(value).replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** The `parameters` text that other picture tools read: prompts, then one line of settings. */
export function parametersText({ request, revision, dtype, runtime, versions }) {
  const quoted = (value) => (/[,:\n]/.test(value) ? JSON.stringify(String(value)) : value);
  const settings = {
    Steps: request.steps,
    Sampler: request.scheduler,
    "CFG scale": request.guidance,
    Seed: request.seed,
    Size: `${request.width}x${request.height}`,
    Model: request.model,
    "Model revision": revision,
    Dtype: dtype,
    Runtime: runtime,
    ...Object.fromEntries(Object.entries(versions).map(([name, version]) => [`${name} version`, version])),
  };
  const negative = request.negative_prompt ? [`Negative prompt: ${request.negative_prompt}`] : [];
  const line = Object.entries(settings).map(([name, value]) => `${name}: ${quoted(value)}`).join(", ");
  return [request.prompt, ...negative, line].join("\n");
}
