// Start.

startMarks();
startQueries().catch((reason) => {
  const problem = typeof DecompressionStream === "undefined" ? "This browser is too old to unpack the queries" : `The queries cannot be shown (${reason.message})`;
  byId("queries").append(el("p", { class: "empty" }, `${problem}; they are in results.jsonl of the run folder.`));
});
