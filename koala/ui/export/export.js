// A button copies the lines next to it and shows "Copied" for a moment.
element.addEventListener("click", async (event) => {
  const button = event.target.closest(".kx-copy");
  if (!button) return;
  const code = button.closest("figure").querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code); // a page without https may not write: the lines are marked instead
    button.textContent = "Marked";
  }
  setTimeout(() => (button.textContent = "Copy"), 1600);
});
