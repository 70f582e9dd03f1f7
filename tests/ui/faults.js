// What a reader could not read on the page as it stands: what lies beyond the window, and text below WCAG AA.
() => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const read = new Map();
  const rgba = (colour) => {
    if (!read.has(colour)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
      read.set(colour, [r, g, b, a / 255]);
    }
    return read.get(colour);
  };
  const over = ([r, g, b, a], ground, opacity = 1) =>
    [r, g, b].map((v, k) => v * a * opacity + ground[k] * (1 - a * opacity));
  const luminance = (colour) => {
    const [r, g, b] = colour.map((v) => (v <= 10.3 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };

  const all = [...document.body.querySelectorAll("*")];
  const unseen = (e) => !e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || e.closest("[class$=-sr]");
  const seen = all.filter((e) => !unseen(e) && e.getClientRects().length);
  const name = (e) => {
    const text = (e.getAttribute("aria-label") || e.textContent || e.value || "").trim().replace(/\s+/g, " ");
    return `${e.localName}${e.id && `#${e.id}`}.${e.getAttribute("class") || ""} “${text.slice(0, 60)}”`;
  };
  // by keyboard, too: who cannot reach what is hidden has lost it
  const scrolls = (e) =>
    e && ((/auto|scroll/.test(getComputedStyle(e).overflowX) && e.tabIndex >= 0) || scrolls(e.parentElement));
  const clips = (e) => (!e || getComputedStyle(e).overflowX !== "visible" ? e : clips(e.parentElement));

  // what lies behind the content of an element: every background from the page to it
  const ground = (e) => {
    const behind = e.parentElement ? ground(e.parentElement) : [255, 255, 255];
    const style = getComputedStyle(e);
    return over(rgba(style.backgroundColor), behind, Number(style.opacity));
  };
  // in a drawing: the filled shapes that are painted before a text and hold its middle
  const drawn = (text) => {
    const box = text.getBoundingClientRect();
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    const svg = text.ownerSVGElement;
    const shapes = [...svg.querySelectorAll("rect, circle, path, polygon")].filter((shape) => {
      const r = shape.getBoundingClientRect();
      const before = shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING;
      return before && !unseen(shape) && r.left <= x && x <= r.right && r.top <= y && y <= r.bottom;
    });
    return shapes.reduce((behind, shape) => {
      const { fill, fillOpacity, opacity } = getComputedStyle(shape);
      return fill === "none" || fill.startsWith("url") ? behind : over(rgba(fill), behind, fillOpacity * opacity);
    }, ground(svg));
  };
  const opacity = (e) => (e ? Number(getComputedStyle(e).opacity) * opacity(e.parentElement) : 1);

  const faults = [];
  for (const animation of document.getAnimations()) {
    if (animation.effect.getComputedTiming().endTime === Infinity) animation.cancel();
    else animation.finish();
  }
  if (document.documentElement.scrollWidth > innerWidth) {
    faults.push(`the page is ${document.documentElement.scrollWidth} px wide in ${innerWidth}`);
  }
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim());
  for (const e of seen) {
    if (own(e) && !e.ownerSVGElement && e.clientWidth && e.scrollWidth > e.clientWidth + 1 && !scrolls(e)) {
      faults.push(`${e.scrollWidth} px of content in ${e.clientWidth}: ${name(e)}`);
    }
    const box = e.getBoundingClientRect();
    const edge = clips(e.parentElement)?.getBoundingClientRect().right;
    if (own(e) && /[\p{L}\p{N}]/u.test(e.textContent) && box.right > edge + 1 && !scrolls(e.parentElement)) {
      faults.push(`cut off at ${Math.round(edge)} px: ${name(e)}`);
    }
    if (box.width && (box.right > innerWidth + 1 || box.left < -1) && !scrolls(e.parentElement)) {
      faults.push(`from ${Math.round(box.left)} to ${Math.round(box.right)} px of ${innerWidth}: ${name(e)}`);
    }
  }
  const check = (e, style, what = "") => {
    const svg = e.ownerSVGElement;
    const behind = svg ? drawn(e) : ground(e);
    const ink = over(rgba(svg ? style.fill : style.color), behind, opacity(e));
    const size = parseFloat(style.fontSize);
    const needed = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    const found = contrast(ink, behind);
    if (found < needed) faults.push(`contrast ${found.toFixed(2)} of ${needed}${what}: ${name(e)}`);
  };
  for (const e of seen) {
    if (e.closest(":disabled, [aria-disabled='true']") || e.matches("label:has(:disabled)")) continue;
    const style = getComputedStyle(e);
    const typed = e.matches("textarea, select, input:not([type=range], [type=checkbox], [type=radio], [type=file])");
    if (typed && !e.value && e.placeholder) check(e, getComputedStyle(e, "::placeholder"), " as a hint");
    else if ((own(e) && !["SCRIPT", "STYLE", "TITLE"].includes(e.tagName.toUpperCase())) || typed) check(e, style);
    for (const part of ["::before", "::after"]) {
      const added = getComputedStyle(e, part);
      if (/^".*\p{L}.*"$/u.test(added.content) && added.display !== "none") check(e, added, ` ${part}`);
    }
  }
  return [...new Set(faults)];
}
