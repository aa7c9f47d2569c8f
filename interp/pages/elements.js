// Elements, numbers and colours. Text enters the page as text alone, never as markup.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  return filled(made, attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  return filled(made, attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, one] of Object.entries(value)) made.style.setProperty(name, one);
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((one) => one !== null && one !== undefined));
  return made;
}

// So many digits that the largest of some numbers has three that count.
function digitsFor(largest_value, least = 2) {
  if (!(largest_value > 0)) return least;
  return Math.min(6, Math.max(least, 2 - Math.floor(Math.log10(largest_value))));
}

function probability(p) {
  return p > 0 && p < 0.0005 ? p.toExponential(1).replace("-", "−") : p.toFixed(4);
}

function number(value, digits = 2) {
  if (value === null || Number.isNaN(value)) return "not defined";
  const text = value.toFixed(digits);
  return (Number(text) === 0 ? (0).toFixed(digits) : text).replace("-", "−");
}

// A number that a test, or a reader's copy, gets in full.
function shownNumber(value, unit = "", digits = 2) {
  const own = digits === null ? probability(value) : number(value, digits);
  const text = own + (unit && !Number.isNaN(value) ? ` ${unit}` : "");
  return element("span", { class: "number", "data-value": String(value), title: String(value) }, text);
}

// White space and control characters of a token, to be seen.
function visible(text) {
  const marks = text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/g, "·");
  return marks === "" ? "∅" : marks;
}

// Okabe and Ito's vermilion raises, their blue lowers; what lowers is hatched besides.
const RAISES = [213, 94, 0];
const LOWERS = [0, 114, 178];

function shade(value, limit, most = 0.85) {
  const strength = limit > 0 ? Math.min(1, Math.abs(value) / limit) : 0;
  const [red, green, blue] = value < 0 ? LOWERS : RAISES;
  return `rgba(${red}, ${green}, ${blue}, ${(most * strength).toFixed(3)})`;
}

function option(value, text, chosen) {
  return element("option", { value, selected: value === chosen }, text);
}

// Colours of the ledger's parts, by name: none is one of those that raise and lower.
const PART_COLORS = {
  "attention to image": "#009E73",
  "attention to question": "#56B4E9",
  "attention to thinking": "#CC79A7",
  "attention to answer": "#8F4E8B",
  "attention to system": "#A6A6A6",
  "attention to earlier": "#B5651D",
  "attention to template": "#6E7B8B",
  "attention to text": "#44AA99",
  "attention to padding": "#D9D9D9",
  "value biases": "#F0E442",
  FFN: "#E69F00",
};

// A menu with its label; `options` are [value, text].
function menu(label, options, chosen, changed) {
  const select = element("select", { "aria-label": label, onchange: (event) => changed(event.target.value) });
  select.append(...options.map(([value, text]) => option(value, text, chosen)));
  return element("label", { class: "menu" }, element("span", {}, label), select);
}
