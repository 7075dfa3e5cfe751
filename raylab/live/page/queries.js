// Two systems query by query: what moved, and what each ranked for one query.
import { ask, element, fill, one, row, say, short, view } from "./parts.js";
import { Plot } from "./plots.js";
import { side } from "./ranked.js";

const plot = new Plot(one("moved-chart"), "queries");
let seen = null, begun = false, systems = null;

export async function offerSystems(state) {
  if (!state.rows || state.chart === seen) return;
  seen = state.chart;
  try {
    systems = await ask("api/systems");
  } catch {
    seen = null;
    return;
  }
  const names = systems.systems, places = systems.places.map(text);
  fill(one("compare-a"), names, view.get("a", one("compare-a").value || names[0]));
  fill(one("compare-b"), names, view.get("b", one("compare-b").value || names[names.length - 1]));
  const shown = places.find((place) => place.endsWith("nDCG@10")) || places[0];
  fill(one("compare-on"), places, view.get("on", one("compare-on").value || shown));
  if (!begun && view.get("a")) compare();
  begun = true;
}

const text = (place) => `${place.collection} ${place.split} ${place.measure}`;

function question() {
  const place = systems.places.find((known) => text(known) === one("compare-on").value);
  return new URLSearchParams({ a: one("compare-a").value, b: one("compare-b").value, ...place });
}

async function compare() {
  if (!systems) return say(one("compare-note"), "Nothing is measured yet.");
  say(one("compare-note"), "comparing");
  const asked = question();
  view.set({ a: asked.get("a"), b: asked.get("b"), on: one("compare-on").value });
  let told;
  try {
    told = await ask(`api/compare?${asked}`);
  } catch (fault) {
    return say(one("compare-note"), `This cannot be answered now (${fault.message}).`);
  }
  if (!told.moved) {
    one("moved").hidden = one("moved-chart").hidden = true;
    return say(one("compare-note"), told.note);
  }
  const same = told.queries - told.better - told.worse;
  say(one("compare-note"), `Of ${told.queries} queries ${told.better} are better in B, ${told.worse} worse, ${same} as good: ` +
    `${short(told.mean_a)} in A, ${short(told.mean_b)} in B. ${told.note}`);
  one("moved").hidden = false;
  one("moved").tBodies[0].replaceChildren(...told.moved.map(moved));
  const spec = await ask("api/chart/changes");
  await plot.draw(spec, told.changes, `${spec.description}: ${asked.get("a")} to ${asked.get("b")}`);
  if (view.get("query")) showQuery(view.get("query"));
}

function moved(query) {
  const button = element("button", query.query, { type: "button", "aria-label": `show query ${query.query}` });
  button.addEventListener("click", () => showQuery(query.query).then(() => one("one-query").focus()));
  const name = element("th", null, { scope: "row" });
  name.append(button);
  const line = row([query.a, query.b, query.b - query.a].map((value) => element("td", short(value), { class: "n" })));
  line.prepend(name);
  line.append(element("td", query.text, { class: "wrap" }));
  return line;
}

async function showQuery(query) {
  view.set({ query });
  const asked = question();
  asked.set("query", query);
  try {
    const told = await ask(`api/compare/query?${asked}`);
    one("one-query").hidden = false;
    say(one("one-query"), `${told.query}: ${told.text}`);
    one("ranked").replaceChildren(...(told.sides || []).map(side));
  } catch (fault) {
    say(one("compare-note"), `This cannot be answered now (${fault.message}).`);
  }
}

one("compare").addEventListener("submit", (event) => {
  event.preventDefault();
  view.set({ query: null });
  one("one-query").hidden = true;
  one("ranked").replaceChildren();
  compare();
});
