// What stands below the picture: each section draws one answer's numbers of the chosen token.

const SECTIONS = [
  { name: "likely", title: "Probabilities", has: (run) => "likely" in run.targets[0], draw: likely },
  { name: "words", title: "Four paths from the image to the answer", has: (run) => "words" in run, draw: fourPaths },
  { name: "effects", title: "Paths into this token", has: (run) => "effects" in run, draw: effects },
  { name: "ledger", title: "Ledger: every part of the logit", has: () => true, draw: ledger },
  { name: "heads", title: "Heads", has: (run) => "heads" in run, draw: heads },
  { name: "sources", title: "Strongest source tokens", has: () => true, draw: sources },
  { name: "graph", title: "Graph of paths", has: (run) => "graph" in run, draw: graph },
  { name: "facts", title: "Which model, which text", has: () => true, draw: facts },
];
const N_SOURCES = 10;
const MOST_ARROWS = 400;
const MOST_ROWS = 20;

const note = (text) => element("p", { class: "note" }, text);

async function likely(run, view) {
  const target = run.targets[view.target(run)];
  const rows = target.likely.map(([token, p, is_own]) => {
    const label = visible(token).replace(/^ /, "␣");
    return [label, p, is_own ? "the token that is explained" : "", is_own];
  });
  const table = bars(rows, "", null);
  return [note(`“${visible(target.token)}” has probability ${probability(target.probability)}; likeliest here:`), table];
}

async function fourPaths(run, view) {
  const game = run.words.gauges[view.gauge] ?? run.words.gauges.contrast;
  const paths = run.words.paths.map((name, k) => [name, game.owen[k]]);
  const to = view.gauge === "centered" ? visible(run.words.outcome) : `${visible(run.words.outcome)} / ${visible(run.words.foil)}`;
  const gauges = [["contrast", `log-odds of “${run.words.outcome}” against “${run.words.foil}”`], ["centered", `logit of “${run.words.outcome}”, centered`]];
  return [
    menu("Measured as", gauges, view.gauge, (value) => view.set({ gauge: value })),
    bands(paths, "image", to, "four paths from the image to the answer, with their sizes in logits"),
    bars([...paths, ["all four", game.total], ["interaction of image and words", game.interaction]], "logit"),
    run.words.same ? note("Both images made the model write the same words.") : null,
    note(`${run.words.note} Partner: ${run.words.partner}.`),
  ];
}

async function effects(run, view) {
  const { sets, paths, notes } = run.effects;
  const set = sets.includes(view.source_set) ? view.source_set : sets[0];
  const k = view.target(run);
  const s = sets.indexOf(set);
  const choice = menu("Tokens that its row cannot read", sets.map((one) => [one, one]), set, (value) => view.set({ source_set: value }));
  if (!run.effects.defined[k][s]) return [choice, note("None of these tokens stands before this one.")];
  const effect = at(await unpacked(run.effects.effect), k, s);
  const sum = at(await unpacked(run.effects.total), k)[s];
  const rows = paths.map((name, p) => [name, effect[p], notes[p]]);
  return [
    choice,
    bands(rows, set, visible(run.targets[k].token), `paths from ${set} into this token, in logits`),
    bars([...rows, ["in all", sum, "the sum of the paths"]], "logit"),
    note(run.effects.note),
  ];
}

async function ledger(run, view) {
  const k = view.target(run);
  const own = run.ledger;
  const [by_layer, embed, remainder, logit] = await Promise.all([own.by_layer, own.embed, own.remainder, own.logit].map(unpacked));
  const values = at(by_layer, k);
  const n = own.columns.length;
  const sums = own.columns.map((name, c) => [name, total(values.filter((_, place) => place % n === c))]);
  const rows = [["embedding", embed.values[k]], ...sums, ["rounding", remainder.values[k], "what the parts miss of the model's own logit"], ["logit", logit.values[k]]];
  return [bars(rows, "", 2), layers(values, own.columns), note(`${own.note} Gauge: ${run.gauge}.`)];
}

async function heads(run, view) {
  const { head } = view; // what is chosen now: another choice may come meanwhile
  const which = run.images.length ? view.head_of : "all";
  const k = view.target(run);
  const rank = view.rank(run);
  const sizes = [run.heads.layers, run.heads.heads];
  const values = at(await unpacked(run.heads[which]), k);
  const limit = await view.overRuns("heads", async (one) => largest(at(await unpacked(one.heads[which]), view.target(one))));
  const is_chosen = (layer, one) => head !== null && head[0] === layer && head[1] === one;
  const choose = (layer, one) => view.set({ head: is_chosen(layer, one) ? null : [layer, one], patch: null });
  const found = [
    run.images.length ? menu("Written from", [["image", "the images"], ["all", "all tokens"]], which, (value) => view.set({ head_of: value })) : null,
    element("p", { class: "axis" }, "rows: layers from 0 · columns: heads"),
    headGrid(values, limit || 1, sizes, head, choose),
  ];
  const is_there = head !== null && head[0] < sizes[0] && head[1] < sizes[1];
  if (head !== null && !is_there) found.push(note(`This model has no head ${head[1]} in a layer ${head[0]}.`));
  if (is_there) {
    const value = values[head[0] * sizes[1] + head[1]];
    found.push(element("p", {}, `layer ${head[0]}, head ${head[1]}: `, shownNumber(value, "logit", digitsFor(Math.abs(value), 3))));
  }
  if (is_there && rank === null) {
    found.push(note(`Maps are kept of the ${run.heads.layer[k].length} strongest heads of each token; this is none of them.`));
  }
  if (rank !== null) {
    const [direct, attention] = await Promise.all([steps(run.heads.direct, k, rank), steps(run.heads.attention, k, rank)]);
    found.push(element("h4", {}, "Where it looks, and what it writes"));
    found.push(headSources(run, direct.values, attention.values));
    found.push(note("The picture shows this head's map or its attention. These numbers are rounded as colours are."));
  }
  return [...found, note(run.heads.note)];
}

function headSources(run, direct, attention) {
  const order = [...attention.keys()].sort((a, b) => attention[b] - attention[a]).slice(0, N_SOURCES).filter((p) => attention[p] > 0);
  const rows = order.map((p) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, sourceName(run, p)),
      element("td", { class: "value" }, shownNumber(attention[p], "", 3)),
      element("td", { class: "value" }, shownNumber(direct[p], "", digitsFor(largest(direct), 3))),
    ),
  );
  const head = element("tr", {}, ...["source", "attention", "logit"].map((one) => element("th", { scope: "col" }, one)));
  return element("table", { class: "plain" }, element("thead", {}, head), element("tbody", {}, ...rows));
}

function sourceName(run, p) {
  const { token, role, image, row, column } = run.sources;
  if (image[p] < 0) return `${visible(token[p])} (${role[p]}, position ${p})`;
  const which = run.images.length > 1 ? ` ${image[p]}` : "";
  return row[p] < 0 ? `image${which}, no patch` : `image${which}, row ${row[p]}, column ${column[p]}`;
}

async function sources(run, view) {
  const direct = at(await unpacked(run.sources.direct), view.target(run));
  const order = [...direct.keys()].sort((a, b) => Math.abs(direct[b]) - Math.abs(direct[a])).slice(0, N_SOURCES);
  const rest = total(direct) - total(order.map((p) => direct[p]));
  const rows = order.map((p) => [sourceName(run, p), direct[p]]);
  const others = element("p", {}, `${direct.length - order.length} others together: `, shownNumber(rest, "logit", digitsFor(Math.abs(rest), 3)));
  return [bars(rows, "logit", 3), others, note("Eq. 1, summed over layers and heads; value biases are no token's.")];
}

async function graph(run, view) {
  const { nodes, paths, gauge, reference } = run.graph;
  const { values } = await unpacked(run.graph.logit);
  const name = view.path;
  const place = String(run.targets[view.target(run)].position + 1);
  const chosen = nodes.findIndex((one) => one.node === place);
  const menus = [
    menu("Path", [["all", "each by all its paths"], ...paths.map((one) => [one, one])], name, (value) => view.set({ path: value })),
    menu("Arrows that make up", [0.5, 0.8, 0.9, 0.99, 1].map((one) => [String(one), `${100 * one} % of each token's`]), String(view.share), (value) => view.set({ share: Number(value) })),
  ];
  if (chosen < 0) return [...menus, note("This token has no arrows.")];
  const by_target = arrowsByTarget(run.graph, values, name);
  const own = by_target.get(chosen) ?? [];
  const kept = largestArrows(own, view.share);
  const before = new Set(kept.map((one) => one.from));
  const further = [...before].flatMap((one) => largestArrows(by_target.get(one) ?? [], view.share));
  further.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const shown = [...further.slice(0, MOST_ARROWS).map((one) => ({ ...one, faint: true })), ...kept];
  const lines = shown.map((one) => ({ ...one, label: `${nodes[one.from].text} → ${nodes[one.to].text}${one.along}` }));
  const used = new Set([chosen, ...shown.flatMap((one) => [one.from, one.to])]);
  const column = nodes.map((one, k) => ({ ...one, number: k })).filter((one) => used.has(one.number));
  const choose = (k) => view.choose(run, run.targets.findIndex((one) => String(one.position + 1) === nodes[k].node));
  const rows = kept.slice(0, MOST_ROWS).map((one) => [visible(nodes[one.from].text) + one.along, one.value]);
  const undrawn = further.length - Math.min(further.length, MOST_ARROWS);
  return [
    ...menus,
    element("div", { class: "scroll" }, arcs(column, lines, chosen, choose)),
    note(`Faint: arrows into the tokens that it depends on.${undrawn ? ` ${undrawn} small ones are not drawn.` : ""}`),
    element("h4", {}, "Into the chosen token"),
    bars(rows, `logit, ${gauge}`),
    counted(kept.slice(MOST_ROWS), "more that are drawn", "listed"),
    counted(own.filter((one) => !kept.includes(one)), "left out", "left-out"),
    element("button", { type: "button", onclick: () => saveTable(run) }, "Save as a table"),
    note(`${view.data.graph_note}${reference ? ` The other image: ${reference}.` : ""}`),
  ];
}

// Some arrows as numbers. Their values do not add up: only their sizes are summed.
function counted(arrows, what, name) {
  if (!arrows.length) return null;
  const sizes = arrows.map((one) => Math.abs(one.value));
  const all = total(sizes);
  const text = `${arrows.length} ${what}: sizes together ${number(all, digitsFor(all))}, the largest ${number(largest(sizes), digitsFor(all))} logit`;
  return element("p", { class: name, "data-value": String(all) }, text);
}

// Arrows by the node at their head. Another token's content, and the words, are changed by other
// interventions than a cut of the row's own reading: their arrows are never added to those.
function arrowsByTarget({ paths, from, to }, values, name) {
  const n = paths.length;
  const found = new Map();
  const add = (k, value, along) => {
    if (!value) return;
    if (!found.has(to[k])) found.set(to[k], []);
    found.get(to[k]).push({ from: from[k], to: to[k], value, along });
  };
  const apart = ["other positions", "words"];
  const own_row = paths.flatMap((path, p) => (apart.includes(path) ? [] : [p]));
  from.forEach((_, k) => {
    const path = (one) => values[k * n + paths.indexOf(one)];
    if (name !== "all") return add(k, path(name), "");
    add(k, total(own_row.map((p) => values[k * n + p])), "");
    apart.forEach((one) => add(k, path(one), `, through ${one}`));
    return undefined;
  });
  return found;
}

// As many of the largest as make up a share of the sum of absolute values.
function largestArrows(arrows, share) {
  const sorted = [...arrows].sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const whole = total(sorted.map((one) => Math.abs(one.value)));
  let before = 0;
  return sorted.filter((one) => {
    const is_kept = before < share * whole;
    before += Math.abs(one.value);
    return is_kept;
  });
}

async function saveTable(run) {
  const { nodes, paths, from, to } = run.graph;
  const { values } = await unpacked(run.graph.logit);
  // A cell that begins like a formula would be run by a spreadsheet.
  const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replace(/"/g, '""')}"`;
  const lines = [["source", "source_text", "target", "target_text", ...paths].map(cell).join(",")];
  from.forEach((one, k) => {
    const ends = [nodes[one], nodes[to[k]]].flatMap((node) => [cell(node.node), cell(node.text)]);
    lines.push([...ends, ...values.subarray(k * paths.length, (k + 1) * paths.length)].join(","));
  });
  const address = URL.createObjectURL(new Blob([lines.join("\n")], { type: "text/csv" }));
  element("a", { href: address, download: "paths.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

async function facts(run) {
  const rows = Object.entries(run.facts).map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)),
  );
  return [element("table", { class: "plain facts" }, element("tbody", {}, ...rows))];
}
