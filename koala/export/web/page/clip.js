// CLIP's tokenizer: words to byte pairs (Sennrich et al. 2016), as the model's tokenizer.json has them.

const PLACES = 77; // of the text encoders, with start and end
const WORD = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;
const PIECE = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}+|[^\p{White_Space}\p{L}\p{N}]+/gu;
// What one composed character can come from: Hangul, or a letter with its marks.
const CLUSTER = /[\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff]+|\P{M}\p{M}*|\p{M}+/gu;
const END = "</w>";

/** Byte -> the character that stands for it in the vocabulary: itself if it can be seen, else one from 256 on. */
function letters() {
  const seen = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let more = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(seen(b) ? b : more++));
}

export class Tokenizer {
  /** `own` is one of the site's tokenizer files. */
  constructor(own) {
    this.own = own;
    this.rank = new Map(own.merges.map(([a, b], i) => [`${a} ${b}`, i]));
    this.letters = letters();
    this.special = new Map(Object.entries(own.special));
  }

  /** Token ids of a text (77): start, words, end, padding. What has no place is cut off before the end. */
  encode(text) {
    const { start, end, pad } = this.own;
    const ids = [start, ...this.tokens(text).slice(0, PLACES - 2).map((token) => token.id), end];
    return [...ids, ...Array(PLACES - ids.length).fill(pad)];
  }

  /** How far into a text its tokens have a place, as an index of the string, and how many tokens it has. */
  reach(text) {
    const tokens = this.tokens(text);
    const end = tokens.length > PLACES - 2 ? tokens[PLACES - 2].at : text.length;
    return { end, tokens: tokens.length, limit: PLACES - 2 };
  }

  /** Every token of a text: its id, and where it begins in the string. */
  tokens(text) {
    const found = [];
    const names = [...this.special.keys()].map((name) => name.replace(/[|\\{}()[\]^$+*?.]/g, "\\$&"));
    let at = 0;
    for (const part of names.length ? text.split(new RegExp(`(${names.join("|")})`, "u")) : [text]) {
      if (this.special.has(part)) found.push({ id: this.special.get(part), at });
      else this.words(part, at, found);
      at += part.length;
    }
    return found;
  }

  words(text, offset, found) {
    const places = []; // of each unit of the normal form, where it comes from
    let normal = "";
    for (const { 0: cluster, index } of text.matchAll(CLUSTER)) {
      for (const letter of cluster.normalize("NFC")) {
        const low = /\p{White_Space}/u.test(letter) ? " " : letter.toLowerCase();
        normal += low;
        for (let k = 0; k < low.length; k++) places.push(offset + index);
      }
    }
    for (const { 0: word, index } of normal.matchAll(WORD)) {
      for (const { 0: piece, index: inside } of word.matchAll(PIECE)) this.bytePairs(piece, index + inside, places, found);
    }
  }

  bytePairs(piece, at, places, found) {
    const encoder = new TextEncoder();
    let parts = []; // [symbol, where its first byte comes from]
    let unit = at;
    for (const letter of piece) {
      for (const byte of encoder.encode(letter)) parts.push([this.letters[byte], places[unit]]);
      unit += letter.length;
    }
    parts[parts.length - 1][0] += END;
    for (;;) {
      let best = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) best = Math.min(best, this.rankOf(parts, i));
      if (best === Infinity) break;
      const merged = [];
      for (let i = 0; i < parts.length; i++) {
        if (this.rankOf(parts, i) === best) merged.push([parts[i][0] + parts[++i][0], parts[i - 1][1]]);
        else merged.push(parts[i]);
      }
      parts = merged;
    }
    for (const [symbol, place] of parts) found.push({ id: this.own.vocab[symbol] ?? this.own.unknown, at: place });
  }

  rankOf(parts, i) {
    return i + 1 < parts.length ? (this.rank.get(`${parts[i][0]} ${parts[i + 1][0]}`) ?? Infinity) : Infinity;
  }
}
