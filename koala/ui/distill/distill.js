// The list of runs: a click shows a run, or draws its curves over those of the shown one. The list is drawn anew while a
// run goes on; what had the focus gets it back.
let focused = null;
const key = (button) => (button.dataset.run ? ["run", button.dataset.run] : ["compared", button.dataset.compared]);
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const [kind, name] = key(button);
  trigger("click", { [kind]: name });
});
element.addEventListener("focusin", (event) => {
  const button = event.target.closest("button");
  focused = button ? key(button) : null;
});
element.addEventListener("focusout", (event) => {
  if (event.relatedTarget) focused = null; // the focus went elsewhere; it did not vanish with the old list
});
watch("value", () => {
  if (!focused) return;
  requestAnimationFrame(() => {
    if (document.activeElement !== document.body) return;
    [...element.querySelectorAll("button")].find((b) => key(b).join() === focused.join())?.focus();
  });
});
