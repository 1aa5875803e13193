"use strict";
// Elements, numbers and texts. Every text of a run reaches the page as a text node, never as markup; characters that
// cannot be seen, or that reorder their neighbors, are spelled as their code points (as utils/formatting.py does).

const NBSP = "\u00a0";
const MINUS = "\u2212";
const TEXT_SHOWN = 2000;
const TEXT_MORE = 20000;
const UNSAFE = new RegExp(
  "[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u034f\\u0600-\\u0605\\u061c\\u06dd\\u070f\\u08e2\\u115f\\u1160\\u17b4" +
    "\\u17b5\\u180b-\\u180f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\uffa0\\ufff0-\\ufffb\\ufffe" +
    "\\uffff\\ud800-\\udfff\\u{110bd}\\u{110cd}\\u{1bca0}-\\u{1bca3}\\u{1d173}-\\u{1d17a}\\u{e0000}-\\u{e0fff}]",
  "gu",
);

/** @param {string} id @returns {any} */
const byId = (id) => document.getElementById(id);

/**
 * An element with properties (attributes, where a name has a hyphen or is `role`) and children.
 * @param {string} tag @param {Record<string, any>} [properties] @param {...(Node | string)} children @returns {any}
 */
function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else /** @type {any} */ (node)[name] = value;
  }
  node.append(...children);
  return node;
}

/** @param {string} character */
function codePoint(character) {
  const code = /** @type {number} */ (character.codePointAt(0));
  return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/** Text for a label or an attribute. @param {unknown} text */
function plain(text) {
  return String(text).replace(UNSAFE, codePoint);
}

/** Text for reading, what cannot be seen marked. @param {string} text */
function marked(text) {
  const pieces = document.createDocumentFragment();
  let from = 0;
  for (const found of text.matchAll(UNSAFE)) {
    pieces.append(text.slice(from, found.index));
    pieces.append(make("span", { className: "cp", title: "cannot be seen, or reorders text" }, codePoint(found[0])));
    from = found.index + found[0].length;
  }
  pieces.append(text.slice(from));
  return pieces;
}

/** The end of a piece of at most `most` characters that does not halve a surrogate pair. */
function pieceEnd(/** @type {string} */ text, /** @type {number} */ from, /** @type {number} */ most) {
  const end = Math.min(text.length, from + most);
  const halves = end < text.length && /[\udc00-\udfff]/.test(text[end]) && /[\ud800-\udbff]/.test(text[end - 1]);
  return halves ? end - 1 : end;
}

/**
 * A text that begins short: a button shows more of it, a piece at a time, so that a megabyte cannot stop the page.
 * @param {string} text @param {string} className
 */
function longText(text, className = "text") {
  const box = make("div", { className, dir: "auto" });
  let shown = pieceEnd(text, 0, TEXT_SHOWN);
  box.append(marked(text.slice(0, shown)));
  if (shown === text.length) return box;
  const more = make("button", { type: "button", className: "more" });
  const label = () => {
    const left = text.length - shown;
    more.textContent =
      left > TEXT_MORE
        ? `show ${TEXT_MORE.toLocaleString("en")} of ${left.toLocaleString("en")} more characters`
        : `show ${left.toLocaleString("en")} more characters`;
  };
  more.addEventListener("click", () => {
    const end = pieceEnd(text, shown, TEXT_MORE);
    box.append(marked(text.slice(shown, end)));
    shown = end;
    if (shown === text.length) more.remove();
    else label();
  });
  label();
  return make("div", {}, box, more);
}

/** Three significant digits with the unit, as utils/formatting.py. @param {number} value @param {string} unit */
function number(value, unit = "") {
  if (unit === "share") return `${(100 * value).toFixed(1)}${NBSP}%`.replace("-", MINUS);
  if (unit === "s" && value >= 120) return duration(value);
  const size = Math.abs(value);
  const digits =
    size >= 100
      ? Math.round(value).toLocaleString("en")
      : size < 1e-12
        ? "0"
        : size < 1e-4
          ? scientific(value)
          : String(Number(value.toPrecision(3)));
  return digits.replace("-", MINUS) + (["", "share", "rate"].includes(unit) ? "" : NBSP + unit);
}

/** @param {number} value */
function scientific(value) {
  const [mantissa, exponent] = value.toExponential(2).split("e");
  return `${Number(mantissa)}e${Number(exponent)}`.replaceAll("-", MINUS);
}

/** @param {number} seconds */
function duration(seconds) {
  const whole = Math.round(seconds);
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  if (hours) return `${hours}${NBSP}h ${String(minutes).padStart(2, "0")}${NBSP}min`;
  return minutes ? `${minutes}${NBSP}min ${String(whole % 60).padStart(2, "0")}${NBSP}s` : `${whole}${NBSP}s`;
}

/** `visible_quality_reward_func` -> `Visible quality`. @param {string} name */
function rewardTitle(name) {
  const words =
    name
      .replace(/(_reward)?(_func)?$/, "")
      .replaceAll("_", " ")
      .trim() || name;
  return plain(words[0].toUpperCase() + words.slice(1));
}

/** The data of a block: JSON, as gzip in base64. @param {Element} block @returns {Promise<any>} */
async function unpack(block) {
  const bytes = Uint8Array.from(atob((block.textContent || "").trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** Lets the browser answer its reader. */
const breathe = () => new Promise((resolve) => setTimeout(resolve));

/** The function, called once its callers have been quiet. @param {() => void} act @param {number} quietMs */
function debounced(act, quietMs) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, quietMs);
  };
}
