// What the reader has chosen, kept in the address behind "#": a link to it, or the way back, shows the same again.

const DEFAULTS = {
  from: "",
  to: "", // steps of the completions
  run: "",
  failure: "", // "" is any; "none" and "any" are accepted and refused
  of: "total",
  low: "",
  high: "", // the reward whose range is asked for
  text: "",
  where: "any",
  sort: "step",
  order: "up",
  page: "1",
  size: "25",
  zoom: "",
  smooth: "6",
  log: "",
  off: "", // curves: steps "a-b", per cent of a stage, keys, what is not drawn
};
/** @typedef {typeof DEFAULTS} State */

/** @type {State} */
let state = { ...DEFAULTS };
/** @type {((before: State) => void)[]} */
const listeners = [];

/** @returns {State} */
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const known = Object.keys(DEFAULTS).filter((name) => given.has(name));
  return { ...DEFAULTS, ...Object.fromEntries(known.map((name) => [name, given.get(name)])) };
}

function writeAddress() {
  const chosen = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[/** @type {keyof State} */ (name)]);
  const hash = new URLSearchParams(chosen).toString();
  if (hash !== location.hash.slice(1)) history.replaceState(null, "", `#${hash}`);
}

/** @param {Partial<State>} part */
function choose(part) {
  const before = state;
  state = { ...state, ...part };
  writeAddress();
  for (const listen of listeners) listen(before);
}

function followAddress() {
  state = readAddress();
  window.addEventListener("hashchange", () => {
    const before = state;
    state = readAddress();
    for (const listen of listeners) listen(before);
  });
}

/** A list in one word of the address. @param {string} text */
const listOf = (text) => (text ? text.split("\n") : []);

/** @param {string} text @param {string} part */
function toggled(text, part) {
  const parts = listOf(text);
  return (parts.includes(part) ? parts.filter((one) => one !== part) : [...parts, part]).join("\n");
}

/** Do two states agree in these parts? @param {State} a @param {State} b @param {(keyof State)[]} names */
const agree = (a, b, names) => names.every((name) => a[name] === b[name]);
