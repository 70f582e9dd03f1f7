// Example prompts: a click puts one into the prompt field.
element.querySelectorAll("button").forEach((button) =>
  button.addEventListener("click", () => trigger("click", { prompt: button.dataset.prompt })));
