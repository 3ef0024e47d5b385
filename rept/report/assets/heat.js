// Token heat maps: two texts, shaded token by token; pointing at a token highlights those of the other text it agrees with.

const LEVELS = 8;
const STEPS = 1000; // scores are whole thousandths of a text's scale
const graphemes = Intl.Segmenter ? new Intl.Segmenter(undefined, { granularity: "grapheme" }) : null;

/** Groups tokens into cells that are shaded as one: a token that begins within a character joins the cell before. */
function cellsOf(tokens) {
  const starts = graphemes && new Set(Array.from(graphemes.segment(tokens.text), ({ index }) => index));
  const cells = [];
  let at = 0;
  tokens.lengths.forEach((length, i) => {
    const special = tokens.special[i] === "1";
    const last = cells.at(-1);
    const joins = last && last.special === special && (length === 0 || (!special && starts && !starts.has(at)));
    if (joins) {
      last.tokens.push(i);
      last.text += tokens.text.slice(at, at + length);
    } else cells.push({ tokens: [i], text: tokens.text.slice(at, at + length), special });
    at += length;
  });
  return cells;
}

/** One text of a pair; the caller sets `other`. */
function heatText(tokens, scored, name, readout) {
  const strongest = (cell) => cell.tokens.map((i) => scored.scores[i]).reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a));
  const view = { tokens, scored, name, readout, cells: cellsOf(tokens), cellOf: [], other: null };
  view.node = el("div", { class: "tokens", role: "group", "aria-label": `${name}, token by token; arrow keys move between tokens` });
  if (tokens.before) view.node.append(el("span", { class: "cut" }, `${count(tokens.before, "token")} left out … `));
  const ranked = view.cells.filter((cell) => !cell.special).map((cell) => strongest(cell)).sort((a, b) => b - a);
  const mark = Math.max(ranked[Math.min(2, ranked.length - 1)] ?? 0, 1);
  view.cells.forEach((cell, position) => {
    cell.score = strongest(cell);
    cell.tokens.forEach((i) => (view.cellOf[i] = position));
    const level = Math.max(-LEVELS, Math.min(LEVELS, Math.round((LEVELS * cell.score) / STEPS)));
    const classes = [cell.special ? "special" : "", level ? `${level > 0 ? "p" : "n"}${Math.abs(level)}` : ""];
    if (!cell.special && cell.score >= mark) classes.push("top");
    cell.node = el("span", { class: classes.join(" ").trim() || null, "data-cell": position });
    cell.text.split("\n").forEach((line, i) => {
      if (i) cell.node.append(el("span", { class: "newline", "aria-hidden": "true" }), "\n");
      put(cell.node, line);
    });
    view.node.append(cell.node);
  });
  if (tokens.after) view.node.append(el("span", { class: "cut" }, ` … ${count(tokens.after, "token")} left out`));
  listen(view);
  return view;
}

/** Shows a token's score on hover and focus. A text is one stop of the Tab key; arrow keys move within it. */
function listen(view) {
  const own = view.cells.map((cell, i) => i).filter((i) => !view.cells[i].special);
  const best = own.reduce((a, b) => (view.cells[b].score > view.cells[a].score ? b : a), own[0] ?? 0);
  let current = best;
  if (view.cells[best]) view.cells[best].node.tabIndex = 0;
  const cellAt = (event) => event.target.closest?.("[data-cell]");
  const show = (event) => {
    const node = cellAt(event);
    if (node) highlight(view, Number(node.dataset.cell));
  };
  view.node.addEventListener("pointerover", show);
  view.node.addEventListener("focusin", show);
  view.node.addEventListener("pointerleave", () => clearHighlight(view));
  view.node.addEventListener("focusout", () => clearHighlight(view));
  view.node.addEventListener("click", (event) => cellAt(event) && move(Number(cellAt(event).dataset.cell)));
  view.node.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const target = step ? own[own.indexOf(current) + step] : { Home: own[0], End: own.at(-1) }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    move(target);
  });
  function move(position) {
    view.cells[current].node.removeAttribute("tabindex");
    current = position;
    view.cells[current].node.tabIndex = 0;
    view.cells[current].node.focus();
  }
}

function clearHighlight(view) {
  for (const node of view.highlighted ?? []) node.classList.remove("on", "agrees");
  view.highlighted = [];
  view.readout.replaceChildren(view.readout.resting.cloneNode(true));
}

/** Shows a token's score and highlights the tokens of the other text that it agrees with most. */
function highlight(view, position) {
  clearHighlight(view);
  clearHighlight(view.other);
  const cell = view.cells[position];
  const strongest = cell.tokens.reduce((a, b) => (Math.abs(view.scored.scores[b]) > Math.abs(view.scored.scores[a]) ? b : a));
  const agreeing = [...new Set(view.scored.agrees[strongest].map((i) => view.other.cellOf[i]))];
  cell.node.classList.add("on");
  view.highlighted = [cell.node];
  for (const i of agreeing) {
    view.other.cells[i].node.classList.add("agrees");
    view.highlighted.push(view.other.cells[i].node);
  }
  const scores = cell.tokens.map((i) => number((view.scored.scores[i] * view.scored.scale) / STEPS));
  const pieces = scores.length > 1 ? ` (${scores.length} pieces)` : "";
  const line = el("span", {}, quoted(cell), " ", el("b", {}, scores.join(", ")), pieces);
  if (agreeing.length) line.append(" agrees most with ", ...agreeing.flatMap((i) => [quoted(view.other.cells[i]), " "]));
  else line.append(" agrees with no token there");
  view.readout.replaceChildren(line);
}

const quoted = (cell) => put(el("q", { dir: "auto" }), cell.text.trim() ? cell.text.trim() : cell.text.replaceAll("\n", "⏎").replaceAll(" ", "␣"));

/** The colours of a text's scores, with numbers. */
function legend(scale) {
  const swatches = [];
  for (let level = -LEVELS; level <= LEVELS; level += 2) swatches.push(el("i", { class: level ? `${level > 0 ? "p" : "n"}${Math.abs(level)}` : null }));
  const label = `Shades: from ${brief(-scale)} over 0 to ${brief(scale)}`;
  return el("span", { class: "legend", role: "img", "aria-label": label }, brief(-scale), el("span", { class: "swatches" }, ...swatches), `+${brief(scale)}`);
}

/** Two texts side by side. */
function heatPair(row, query, pair, rowTokens, queryTokens) {
  const readout = el("p", { class: "readout", role: "status" });
  readout.resting = el("span", {}, "Point at a token to see its score and the tokens of the other text that it agrees with most.");
  readout.append(readout.resting.cloneNode(true));
  const rowText = heatText(rowTokens, pair.train, `Training row ${row}`, readout);
  const queryText = heatText(queryTokens, pair.query, `Query ${query}`, readout);
  rowText.other = queryText;
  queryText.other = rowText;
  const column = (view) => el("section", { class: "side" }, el("h4", {}, view.name, legend(view.scored.scale)), clipped(view.node));
  return el("div", { class: "pair" }, readout, column(rowText), column(queryText));
}
