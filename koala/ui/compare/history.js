// The strip of this visit's comparisons. Clicking one asks the server to put it back.
const list = element.querySelector("ol"), title = element.querySelector("h3");
function render() {
  const items = props.value || [];
  element.querySelector("section").hidden = !items.length;
  list.replaceChildren(...items.map((item) => {
    const row = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Show again: ${item.label}`);
    button.title = item.label;
    item.thumbnails.forEach((source) => {
      const image = document.createElement("img");
      image.src = source;
      image.alt = "";
      button.append(image);
    });
    button.addEventListener("click", () => trigger("click", { id: item.id }));
    row.append(button);
    return row;
  }));
}
watch("value", render);
render();
