// The Attention tab: the viewer, answered by this app.
const files = [["strip", "PNG strip"], ["gif", "GIF"], ["page", "Web page"], ["figures", "Paper figures"], ["capture", "Capture"]];
const { root = "", api_prefix = "/gradio_api" } = window.gradio_config || {};
const address = (path) => `${root}${api_prefix}/file=${encodeURI(path)}`;
const viewer = attentionViewer(element, { look: server.look, file: server.take, files, address });
function update() {
  const value = props.value || {};
  document.documentElement.dataset.attention = value.phase === "running" ? "running" : "idle";
  viewer.show(value);
}
watch("value", update);
update();

// Each model's sliders say whose they are.
function name() {
  for (const [slot, model] of [["a", "first model"], ["b", "second model"]])
    for (const field of ["steps", "guidance"])
      document.querySelectorAll(`#kv-${field}-${slot} input`).forEach((input) =>
        input.setAttribute("aria-label", `${field[0].toUpperCase()}${field.slice(1)} of the ${model}`));
  if (!document.querySelector("#kv-guidance-b input")) setTimeout(name, 100);
}
name();
