// A query's hits as cards.

/** A text of limited height, with a button that shows all of it. */
function clipped(node) {
  const box = el("div", { class: "clipped" }, node);
  const more = el("button", { type: "button", class: "quiet more", hidden: true, click: () => toggle() }, "Show all");
  const toggle = () => {
    const open = box.classList.toggle("whole");
    more.textContent = open ? "Show less" : "Show all";
    more.setAttribute("aria-expanded", String(open));
  };
  more.setAttribute("aria-expanded", "false");
  new ResizeObserver((_, observer) => {
    const long = node.scrollHeight > box.clientHeight + 4;
    if (!box.classList.contains("whole")) {
      more.hidden = !long;
      box.classList.toggle("long", long);
      const top = node.querySelector(".top");
      if (long && top) box.scrollTop = Math.max(0, top.offsetTop - box.clientHeight / 3);
    }
    if (!long) observer.disconnect();
  }).observe(box);
  return el("div", {}, box, more);
}

/** Prompt and response of a sample without token scores. */
function sampleText(sample) {
  const part = (name, text) => el("div", { class: "part" }, el("h4", {}, name), putText(el("p", { class: "text", dir: "auto" }), text));
  return clipped(el("div", { class: "sample" }, part("Prompt", sample.prompt), part("Response", sample.response)));
}

const sampleOf = async (row) => (await block(`rows-${page.rows[row][1]}`))[row];

const labelChip = (label) => (label === null ? null : put(el("span", { class: "label", dir: "auto" }), label));

/** One card: a hit and its near-duplicates. */
function hitCard(query, hits, open) {
  const [first, ...others] = hits;
  const body = el("div", { class: "body", id: `hit-${query.query}-${first.row}`, hidden: true });
  const name = `Hit ${first.rank}, row ${first.row}`;
  const line = el("span", { class: "line", dir: "auto" });
  const toggle = el(
    "button",
    { type: "button", class: "toggle", "aria-expanded": "false", "aria-controls": body.id, "aria-label": `${name}: show its text`, click: () => show(body.hidden) },
    el("span", { class: "rank" }, String(first.rank)), line,
  );
  const facts = el(
    "p", { class: "hit-facts" },
    el("span", {}, "row ", el("b", {}, String(first.row))), labelChip(page.rows[first.row][0]),
    el("span", {}, `score ${number(first.score)}`), ...standing(first),
  );
  const card = el("article", { class: "hit", "aria-label": name }, el("header", {}, toggle, facts, markBox(hits.map((hit) => hit.row))), body);
  if (others.length) card.append(duplicates(others));
  sampleOf(first.row).then((sample) => put(line, `${snippet(sample.prompt, 90)} → ${snippet(sample.response, 90)}`));
  function show(visible) {
    if (visible && !body.hasChildNodes()) hitBody(query, first, body);
    body.hidden = !visible;
    toggle.setAttribute("aria-expanded", String(visible));
  }
  if (open) show(true);
  return card;
}

async function hitBody(query, hit, body) {
  const [sample, pairs] = await Promise.all([sampleOf(hit.row), query.scored.includes(hit.row) ? block(`pairs-${query.query}`) : null]);
  const pair = pairs?.rows[hit.row];
  body.replaceChildren(pair ? heatPair(hit.row, query.query, pair, sample.tokens, pairs.tokens) : sampleText(sample));
}

function standing(hit) {
  const p = hit.p === undefined ? "" : ` (p = ${Number(hit.p.toPrecision(2))})`;
  return [
    hit.flagged === undefined ? null : el("span", { class: hit.flagged ? "flag" : "soft" }, hit.flagged ? `stands out${p}` : `does not stand out${p}`),
    hit.same ? el("span", { class: "flag" }, "the query itself") : null,
  ];
}

function duplicates(hits) {
  const list = el("ul", {}, ...hits.map((hit) => el("li", {}, el("span", {}, `rank ${hit.rank}, row ${hit.row}, score ${number(hit.score)}`), markBox([hit.row]))));
  return el("details", { class: "duplicates" }, el("summary", {}, `${count(hits.length, "near-duplicate")}`), list);
}

/** Everything that the page shows of a query. */
function queryDetail(query, steps) {
  const title = el("h3", { id: "detail-title", tabindex: "-1" }, `Query ${query.query}`, labelChip(query.label) ?? "");
  const part = (name, text) => el("div", { class: "part" }, el("h4", {}, name), clipped(putText(el("p", { class: "text", dir: "auto" }), text)));
  const texts = el(
    "div", { class: "query-text" }, part("Prompt", query.prompt), part(query.generated ? "The model's own response" : "Response", query.response),
  );
  const groups = new Map();
  query.hits.forEach((hit) => groups.set(hit.group, [...(groups.get(hit.group) ?? []), hit]));
  const cards = [...groups.values()].map((hits, i) => hitCard(query, hits, i === 0));
  const grouped = query.hits.length - cards.length;
  const duplicatesNote = grouped ? `; ${count(grouped, "near-duplicate")} grouped with an earlier hit` : "";
  const heading = query.hits.length ? `${count(query.hits.length, "hit")}, best first${duplicatesNote}` : `No hits: ${query.status}`;
  const nodes = [el("header", { class: "detail-head" }, title, steps), texts];
  if (query.unshown) nodes.push(el("p", { class: "none-stands-out" }, "This answer does not show the behaviour of its label."));
  if (query.hits.some((hit) => hit.flagged === false) && !standsOut(query)) nodes.push(el("p", { class: "none-stands-out" }, "No training sample stands out for this query."));
  nodes.push(el("div", { class: "hits-head" }, el("h4", {}, heading), query.scored.length ? specialSwitch() : ""), ...cards);
  if (query.lowest.length) nodes.push(el("div", { class: "hits-head" }, el("h4", {}, "Opponents: the rows that score lowest")), ...query.lowest.map((hit) => hitCard(query, [hit], false)));
  return nodes;
}

function specialSwitch() {
  const box = el("input", { type: "checkbox", change: () => byId("detail").classList.toggle("no-special", !box.checked) });
  box.checked = !byId("detail").classList.contains("no-special");
  return el("label", { class: "switch" }, box, "Special tokens");
}
