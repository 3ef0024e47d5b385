// The list of queries: search, filters, keyboard.

const page = { queries: [], rows: {}, shown: [], current: null };
const texts = new Map(); // of rows, in lower case; filled by the first search

async function startQueries() {
  Object.assign(page, await block("index"));
  for (const label of [...new Set(page.queries.map((query) => query.label))].filter((label) => label !== null)) {
    byId("label").append(put(el("option", { value: label }), label));
  }
  const best = page.queries.filter(bestOf).map((query) => bestOf(query).score);
  const [low, high] = [best.reduce((a, b) => Math.min(a, b), Infinity), best.reduce((a, b) => Math.max(a, b), -Infinity)];
  Object.assign(byId("least"), best.length ? { min: low, max: high, step: (high - low) / 200 || "any", value: low } : { disabled: true });
  byId("least").low = low;
  for (const id of ["label", "match", "flagged", "least"]) byId(id).addEventListener("input", filter);
  byId("search").addEventListener("input", search);
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  byId("list").addEventListener("click", (event) => choose(numberOf(event.target.closest("[role=option]"))));
  byId("list").addEventListener("keydown", keys);
  window.addEventListener("hashchange", openFromAddress);
  document.querySelector(".browser").hidden = false;
  filter();
  openFromAddress();
}

/** The first hit that is not the query itself. */
const bestOf = (query) => query.hits.find((hit) => !hit.same);
const standsOut = (query) => query.hits.some((hit) => hit.flagged && !hit.same);
const numberOf = (node) => (node ? Number(node.dataset.query) : null);

function openFromAddress() {
  const found = /^#query-(\d+)$/.exec(location.hash);
  const known = found && page.queries.some((query) => query.query === Number(found[1]));
  if (!known) return;
  if (!page.shown.includes(Number(found[1]))) byId("search").form.reset();
  filter();
  choose(Number(found[1]));
  byId("queries").scrollIntoView();
  byId("detail-title").focus({ preventScroll: true });
}

async function search() {
  if (!texts.size && byId("search").value) {
    const names = new Set(Object.values(page.rows).map(([, number]) => number));
    for (const part of await Promise.all([...names].map((number) => block(`rows-${number}`)))) {
      for (const [row, sample] of Object.entries(part)) texts.set(Number(row), `${plain(sample.prompt)}\n${plain(sample.response)}`.toLowerCase());
    }
  }
  filter();
}

function filter() {
  const [words, label, match, flagged] = ["search", "label", "match", "flagged"].map((id) => byId(id).value);
  const slider = byId("least");
  const least = Number(slider.value) <= slider.low + 1e-12 ? -Infinity : Number(slider.value);
  byId("least-value").textContent = least === -Infinity ? "" : number(least);
  const matches = (query) => {
    const best = bestOf(query);
    if (label && query.label !== label) return false;
    if (match && (!best || (page.rows[best.row][0] === query.label) !== (match === "own"))) return false;
    if (flagged && standsOut(query) !== (flagged === "yes")) return false;
    if (least !== -Infinity && !(best && best.score >= least)) return false;
    return !words || contains(query, words.trim().toLowerCase());
  };
  const found = page.queries.filter(matches);
  page.shown = found.map((query) => query.query);
  byId("list").replaceChildren(...found.map(item));
  byId("list").classList.toggle("many", found.length > 300); // lays out only what is in view
  byId("count").textContent = `${found.length.toLocaleString("en")} of ${count(page.queries.length, "query")}`;
  byId("bulk-queries").textContent = found.length.toLocaleString("en");
  if (!page.shown.includes(page.current)) choose(page.shown[0] ?? null);
  else select();
}

/** Whether a query or one of its hits contains the words; "row 12" finds the row of that number. */
function contains(query, words) {
  const row = /^row (\d+)$/.exec(words);
  if (row) return query.hits.some((hit) => hit.row === Number(row[1]));
  const own = `query ${query.query}\n${plain(query.prompt)}\n${plain(query.response)}\n${query.label ?? ""}`.toLowerCase();
  return own.includes(words) || query.hits.some((hit) => texts.get(hit.row)?.includes(words));
}

function item(query) {
  const best = bestOf(query);
  const facts = el("span", { class: "item-facts" }, el("b", {}, String(query.query)), labelChip(query.label), standsOut(query) ? el("span", { class: "flag" }, "stands out") : null, query.unshown ? el("span", { class: "soft" }, "not shown") : null, el("span", { class: "score" }, best ? number(best.score) : "no hit"));
  const text = put(el("span", { class: "item-text", dir: "auto" }), snippet(query.prompt, 140) || query.status);
  return el("li", { role: "option", id: `option-${query.query}`, "data-query": query.query, "aria-selected": "false" }, facts, text);
}

function choose(number) {
  if (number !== null && number === page.current && byId("detail").hasChildNodes()) return;
  page.current = number;
  const query = page.queries.find((one) => one.query === number);
  const nodes = query ? queryDetail(query, steps()) : [el("p", { class: "empty" }, "No query matches. Remove a filter.")];
  byId("detail").replaceChildren(...nodes);
  select();
}

function select() {
  const list = byId("list");
  list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
  const node = byId(`option-${page.current}`);
  if (!node) return list.removeAttribute("aria-activedescendant");
  node.setAttribute("aria-selected", "true");
  list.setAttribute("aria-activedescendant", node.id);
  if (node.offsetTop < list.scrollTop) list.scrollTop = node.offsetTop;
  else if (node.offsetTop + node.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = node.offsetTop + node.offsetHeight - list.clientHeight;
}

function step(distance) {
  const at = page.shown.indexOf(page.current) + distance;
  choose(page.shown[Math.max(0, Math.min(page.shown.length - 1, at))] ?? null);
}

function steps() {
  const button = (name, sign, distance) => el("button", { type: "button", class: "step", "aria-label": name, title: `${name} (arrow key)`, click: () => step(distance) }, sign);
  return el("span", { class: "steps" }, button("Previous query", "↑", -1), button("Next query", "↓", 1));
}

/** Arrow keys move through the list; Home and End go to its ends. */
function keys(event) {
  const distance = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
  if (!distance || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  step(distance);
}
