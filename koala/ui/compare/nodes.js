// What the scripts of the stage share: new nodes, and changes that leave alone what is the same already.
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const set = (node, name, value) => {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
};
const say = (node, text) => { if (node.textContent !== text) node.textContent = text; };

