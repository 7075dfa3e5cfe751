// Ranked passages of two systems side by side, with their terms.
import { element, short } from "./parts.js";

export function side(told) {
  const place = element("section", null, { "aria-label": told.system });
  place.append(element("h4", told.system));
  if (told.note) place.append(element("p", told.note, { class: "note" }));
  if (told.terms && told.terms.length) place.append(weights("query", told.terms));
  const list = element("ol");
  for (const one of told.passages) {
    const line = element("li", null, { class: one.grade > 0 ? "relevant" : "" });
    line.append(element("strong", one.passage), ` ${short(one.score, 4)}`, element("div", one.text.slice(0, 600)));
    if (one.terms.length) {
      const texts = one.terms.map(([term, ours, theirs]) => `${term} ${short(ours * theirs)}`);
      line.append(element("p", `matched: ${texts.join(", ")}`, { class: "terms" }));
    }
    if (one.expanded && one.expanded.length) line.append(weights("passage", one.expanded));
    list.append(line);
  }
  if (!told.passages.length && !told.note) place.append(element("p", "no passage", { class: "note" }));
  place.append(list);
  return place;
}

const weights = (of, terms) =>
  element("p", `${of}: ${terms.map(([term, weight]) => `${term} ${short(weight)}`).join(", ")}`, { class: "terms" });
