// Quality against size as the report draws it, and the laws fitted so far.
import { ask, element, one, row, say, short } from "./parts.js";
import { Plot } from "./plots.js";

const plots = new Map();
let shown = null, asking = false;

export async function drawScaling(state) {
  const wanted = JSON.stringify([state.chart, state.driver.began]);
  if (state.chart === null || wanted === shown || asking) return;
  asking = true;
  try {
    const chart = await ask("api/chart/scaling");
    if (chart) {
      say(one("scaling-note"), `${chart.note} From the ${state.rows} rows that are measured so far.`);
      await plot("scaling").draw(chart.spec, null, `${chart.title}: ${chart.spec.description || ""}`);
    }
    const laws = await ask("api/chart/laws");
    if (laws) await drawLaws(laws);
    shown = wanted;
  } catch (fault) {
    say(one("scaling-note"), `The charts cannot be had now (${fault.message}); they are asked for again.`);
  } finally {
    asking = false;
  }
}

function plot(name) {
  if (!plots.has(name)) plots.set(name, new Plot(one(`${name}-chart`), name));
  return plots.get(name);
}

async function drawLaws(laws) {
  say(one("laws-note"), laws.note);
  if (laws.spec) await plot("laws").draw(laws.spec, null, `${laws.title}: ${laws.spec.description || ""}`);
  one("refused").replaceChildren(...laws.refused.map((text) => element("li", text)));
  one("refusals").hidden = !laws.refused.length;
  const table = one("forecasts");
  table.hidden = !laws.forecasts.length;
  table.tBodies[0].replaceChildren(...laws.forecasts.map((one) => {
    const interval = one.low === null ? "none" : `${short(one.low)} to ${short(one.high)}`;
    return row([`${one.head} ${one.objective}`, `${one.collection} ${one.split}`, one.measure, short(one.loss), interval], one.size);
  }));
  one("isoflops").replaceChildren(...laws.more.map((chart, number) => {
    const place = element("div", null, { class: "plot" });
    new Plot(place, chart.name).draw(chart.spec, null, `${chart.title}: ${chart.spec.description || ""}`);
    const figure = element("div");
    figure.append(element("h3", chart.title, { id: `isoflop-${number}` }), element("p", `${chart.note} ${chart.freedom}`, { class: "note" }), place);
    return figure;
  }));
}
