// Base of the page's script: elements, text from data, packed blocks.

const byId = (id) => document.getElementById(id);

/** Creates an element. An attribute that is a function becomes a listener; one that is null or false is left out. */
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Appends text from data to a node, never as markup; characters in UNSAFE (utils/text.py) become boxed code points. */
function put(node, text) {
  const shown = text.replaceAll("\r\n", "\n");
  let from = 0;
  for (const found of shown.matchAll(UNSAFE)) {
    const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const name = found[0] === "\r" ? "CR" : `U+${code}`;
    node.append(shown.slice(from, found.index), el("span", { class: "unseen" }, name));
    from = found.index + found[0].length;
  }
  node.append(shown.slice(from));
  return node;
}

/** Appends a text of a block: a string, or its beginning and the number of characters left out. */
function putText(node, text) {
  const [shown, more] = Array.isArray(text) ? text : [text, 0];
  put(node, shown);
  if (more) node.append(el("span", { class: "cut" }, ` … ${count(more, "character")} left out`));
  return node;
}

const plain = (text) => (Array.isArray(text) ? text[0] : text);

/** The beginning of a text on one line. */
function snippet(text, width) {
  const line = plain(text).slice(0, 4 * width).replace(/\s+/g, " ").trim();
  return line.length > width ? `${line.slice(0, width).replace(/[\ud800-\udbff]$/, "")}…` : line;
}

/** Three decimals, or three digits where all decimals would be 0; with a true minus sign. */
function number(value) {
  const size = Math.abs(value);
  const digits = size === 0 || (size >= 0.001 && size < 1000) ? value.toFixed(3) : value.toPrecision(3);
  return digits.replace("-", "−");
}

/** Three digits, for the ends of a scale. */
const brief = (value) => String(Number(value.toPrecision(3))).replace("-", "−");

const count = (amount, noun) => `${amount.toLocaleString("en")} ${amount === 1 ? noun : `${noun}s`}`.replace("querys", "queries");

const unpacked = new Map();

/** A packed block, unpacked on first use. */
function block(name) {
  if (!unpacked.has(name)) unpacked.set(name, unpack(byId(`block-${name}`).textContent));
  return unpacked.get(name);
}

async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}
