// The search playground: a text, and what two trained cells find for it.
import { ask, fill, one, say, view } from "./parts.js";
import { side } from "./ranked.js";

let seen = null, begun = false;

export async function offerCells(state) {
  if (!state.rows || state.chart === seen) return;
  seen = state.chart;
  let told;
  try {
    told = await ask("api/systems");
  } catch {
    seen = null;
    return;
  }
  const cells = told.trained;
  fill(one("search-a"), cells, view.get("left", one("search-a").value || cells[0]));
  fill(one("search-b"), cells, view.get("right", one("search-b").value || cells[cells.length - 1]));
  fill(one("search-in"), told.collections, view.get("in", one("search-in").value || state.collection));
  if (!begun && view.get("q")) {
    one("search-text").value = view.get("q");
    search();
  }
  begun = true;
}

async function search() {
  const q = one("search-text").value.trim(), left = one("search-a").value, right = one("search-b").value;
  const collection = one("search-in").value;
  if (!left) return say(one("search-note"), "No cell is trained and measured yet.");
  if (!q) return say(one("search-note"), "Type a query.");
  view.set({ q, left, right, in: collection });
  say(one("search-note"), "searching; the first time a model is loaded");
  const asked = new URLSearchParams([["q", q], ["collection", collection], ["cell", left], ["cell", right]]);
  try {
    const told = await ask(`api/search?${asked}`);
    one("hits").replaceChildren(...(told.sides || []).map(side));
    say(one("search-note"), told.note || `Passages for: ${told.query}`);
  } catch (fault) {
    say(one("search-note"), `This cannot be answered now (${fault.message}).`);
  }
}

one("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
