() => {
  // Ctrl+Enter (or Cmd+Enter) generates, Esc stops, from anywhere on the page.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const button = [...document.querySelectorAll("#k-generate, #kv-start")].find((one) => one.offsetParent);
      if (!button) return;
      event.preventDefault();
      event.stopPropagation();
      // A field hands its text over when it loses focus or after a moment; the click comes after that.
      setTimeout(() => button.click(), 120);
    }
    if (event.key !== "Escape") return;
    const runs = document.documentElement.dataset;
    if (runs.koala === "running") document.querySelector("#k-stop")?.click();
    if (runs.attention === "running") document.querySelector("#kv-stop")?.click();
  }, true);

  // Each model's sliders say whose they are.
  const name = (tries) => {
    for (const [slot, model] of [["a", "first model"], ["b", "second model"]])
      for (const field of ["steps", "guidance"])
        document.querySelectorAll(`#k-${field}-${slot} input`).forEach((input) =>
          input.setAttribute("aria-label", `${field[0].toUpperCase()}${field.slice(1)} of the ${model}`));
    if (tries && !document.querySelector("#k-guidance-b input")) setTimeout(name, 100, tries - 1);
  };
  name(100);
}
