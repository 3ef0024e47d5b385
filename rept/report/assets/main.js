// Start.

startMarks();
startQueries().catch((reason) => {
  const told = typeof DecompressionStream === "undefined" ? "This browser is too old to unpack the queries" : `The queries cannot be shown (${reason.message})`;
  byId("queries").append(el("p", { class: "empty" }, `${told}; they are in results.jsonl of the run folder.`));
});
