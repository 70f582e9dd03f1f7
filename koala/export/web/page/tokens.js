// How many tokens a prompt has, and what the text encoders do not read of it.

import { Tokenizer } from "./clip.js";
import { load } from "./files.js";
import { make } from "./stage.js";

export class Tokens {
  constructor(site, node) {
    this.node = node;
    this.text = "";
    const names = [...new Set(site.models.flatMap((model) => model.tokenizers))];
    Promise.all(names.map((name) => load(site, name))).then((files) => {
      this.tokenizers = files.map((bytes) => new Tokenizer(JSON.parse(new TextDecoder().decode(bytes))));
      this.count(this.text);
    }, () => {}); // the worker says what could not be fetched
  }

  count(text) {
    this.text = text;
    if (!this.tokenizers) return;
    const found = this.tokenizers.map((one) => one.reach(text)).reduce((a, b) => (b.end < a.end ? b : a));
    const rest = text.slice(found.end).trim();
    this.node.classList.toggle("over", Boolean(rest));
    if (rest) this.node.replaceChildren(`${found.tokens} tokens, of which the models read ${found.limit}. Not read: `, make("q", { textContent: rest }));
    else this.node.textContent = `${found.tokens} of ${found.limit} tokens`;
  }
}
