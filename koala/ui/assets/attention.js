// The Attention tab: the viewer, answered by this app.
const files = [["strip", "PNG strip"], ["gif", "GIF"], ["page", "Web page"], ["pca", "Figure: PCA"], ["rows", "Figure: rows"]];
const viewer = attentionViewer(element, { look: server.look, file: server.take, files });
function update() {
  const value = props.value || {};
  document.documentElement.dataset.attention = value.phase === "running" ? "running" : "idle";
  viewer.show(value);
}
watch("value", update);
update();
