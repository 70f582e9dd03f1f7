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

  // Enter in a list takes the first entry that contains the text: for "koala-700m" that is Tiny KOALA-700M. A whole name
  // is taken as it stands, as it is when the field is left.
  let typed = null;  // the list with newer text than the arrow keys' choice
  document.addEventListener("input", (event) => { typed = event.target; }, true);
  document.addEventListener("keydown", (event) => {
    if (["ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) typed = null;
    if (event.key !== "Enter" || event.target !== typed || typed.getAttribute("role") !== "combobox") return;
    const id = typed.closest(".block")?.id;
    const { props } = window.gradio_config.components.find((component) => component.props.elem_id === id) ?? {};
    if (!props?.allow_custom_value || props.multiselect) return;
    if (!props.choices.some(([, name]) => name === typed.value)) return;
    event.stopPropagation();
    typed.blur();
  }, true);

  // Each model's sliders say whose they are; those of a model that is added later, too.
  const ordinals = { a: "first", b: "second", c: "third", d: "fourth" };
  const name = () => {
    for (const [slot, ordinal] of Object.entries(ordinals))
      for (const field of ["steps", "guidance"])
        document.querySelectorAll(`#k-${field}-${slot} input`).forEach((input) => {
          const label = `${field[0].toUpperCase()}${field.slice(1)} of the ${ordinal} model`;
          if (input.getAttribute("aria-label") !== label) input.setAttribute("aria-label", label);
        });
  };
  const follow = (tries) => {
    const settings = document.querySelector(".k-settings");
    name();
    if (settings) new MutationObserver(name).observe(settings, { childList: true, subtree: true });
    else if (tries) setTimeout(follow, 100, tries - 1);
  };
  follow(100);
}
