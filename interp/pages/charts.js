// Charts out of elements that grow with the page: bars, parts by layer, heads, paths, arrows.

// Bars to both sides of zero; rows are [label, value, note, is_marked].
function bars(rows, unit = "", digits = 2) {
  const limit = largest(rows.map(([, value]) => (Number.isNaN(value) ? 0 : value))) || 1;
  const n_digits = digits === null ? null : digitsFor(limit, digits);
  const least = Math.min(0, ...rows.map(([, value]) => value || 0)) / limit;
  const most = Math.max(0, ...rows.map(([, value]) => value || 0)) / limit;
  const width = most - least || 1;
  const list = rows.map(([label, value, note, is_marked]) => {
    const from = (Math.min(value, 0) / limit - least) / width;
    const bar = element("span", {
      class: value < 0 ? "bar lowers" : "bar raises",
      style: { left: `${100 * from}%`, width: `${(100 * Math.abs(value || 0)) / limit / width}%` },
    });
    const zero = element("span", { class: "zero", style: { left: `${(-100 * least) / width}%` } });
    return element(
      "tr",
      { title: note || "", class: is_marked ? "marked" : null },
      element("th", { scope: "row" }, label, is_marked ? element("span", { class: "spoken" }, `, ${note}`) : null),
      element("td", { class: "track", "aria-hidden": "true" }, element("div", {}, bar, zero)),
      element("td", { class: "value" }, shownNumber(value, unit, n_digits)),
    );
  });
  return element("table", { class: "bars" }, element("tbody", {}, ...list));
}

// Parts of every layer side by side from zero; values are (layer, column).
function layers(values, columns) {
  const n = columns.length;
  const rows = Array.from({ length: values.length / n }, (_, k) => values.subarray(k * n, (k + 1) * n));
  const reach = (sign) => Math.max(...rows.map((row) => total(row.map((one) => Math.max(0, sign * one)))), 0);
  const below = reach(-1);
  const width = reach(1) + below || 1;
  const percent = (value) => `${(100 * value) / width}%`;
  const n_digits = digitsFor(width);
  const body = rows.map((row, layer) => {
    const ends = { 1: below, "-1": below };
    const parts = [];
    row.forEach((value, k) => {
      if (!value) return;
      const sign = value < 0 ? "-1" : 1;
      const from = sign === 1 ? ends[1] : ends["-1"] + value;
      ends[sign] += value;
      parts.push(
        element("span", {
          class: value < 0 ? "part lowers" : "part",
          title: `layer ${layer}, ${columns[k]}: ${number(value, n_digits + 1)} logits`,
          style: { left: percent(from), width: percent(Math.abs(value)), "background-color": PART_COLORS[columns[k]] },
        }),
      );
    });
    parts.push(element("span", { class: "zero", style: { left: percent(below) } }));
    const sum = total(row);
    const spoken = columns.map((name, k) => (row[k] ? `${name} ${number(row[k], n_digits)}` : "")).filter(Boolean);
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, String(layer)),
      element("td", { class: "track", "aria-hidden": "true" }, element("div", {}, ...parts)),
      element("td", { class: "value" }, shownNumber(sum, "", n_digits), element("span", { class: "spoken" }, `: ${spoken.join(", ")}`)),
    );
  });
  const key = columns.map((name, k) =>
    element("li", {}, element("span", { class: "swatch", style: { "background-color": PART_COLORS[name] } }), name),
  );
  return element(
    "div",
    {},
    element("ul", { class: "key" }, ...key),
    element("table", { class: "bars layers" }, element("caption", {}, "by layer"), element("tbody", {}, ...body)),
  );
}

// Bands from the image to a token, as wide as they are large; paths are [name, value].
function bands(paths, from, to, label) {
  const limit = largest(paths.map(([, value]) => value)) || 1;
  const height = 46 * paths.length + 20;
  const middle = height / 2;
  const end = (x, text, anchor) =>
    drawn("text", { x, y: middle + 4, "text-anchor": anchor, class: "end" }, shortened(text, 16));
  const place = (k) => 34 + 46 * k;
  const width = (value) => 1 + (15 * Math.abs(value)) / limit;
  const lines = paths.map(([, value], k) => {
    const y = place(k);
    const curve = `M 95 ${middle} C 150 ${middle}, 140 ${y}, 210 ${y} S 270 ${middle}, 325 ${middle}`;
    return drawn("path", { d: curve, class: value < 0 ? "band lowers" : "band raises", "stroke-width": width(value) });
  });
  const labels = paths.map(([name, value], k) =>
    drawn(
      "text",
      { x: 210, y: place(k) - width(value) / 2 - 3, "text-anchor": "middle", class: "label", "data-value": String(value) },
      `${name} ${number(value, digitsFor(limit))}`,
    ),
  );
  return drawn(
    "svg",
    { viewBox: `0 0 420 ${height}`, role: "img", class: "bands", "aria-label": label },
    ...lines,
    ...labels,
    end(88, from, "end"),
    end(332, to, "start"),
  );
}

function shortened(text, n) {
  return [...text].length > n ? `${[...text].slice(0, n - 1).join("")}…` : text;
}

// A button for every head; values are (layer, head).
function headGrid(values, limit, [n_layers, n_heads], chosen, choose) {
  const cells = [];
  for (let layer = 0; layer < n_layers; layer += 1) {
    for (let head = 0; head < n_heads; head += 1) {
      const value = values[layer * n_heads + head];
      const is_chosen = chosen && chosen[0] === layer && chosen[1] === head;
      const name = `layer ${layer}, head ${head}: ${number(value, digitsFor(limit, 3))} logits`;
      cells.push(
        element("button", {
          type: "button",
          class: value < 0 ? "head lowers" : "head",
          title: name,
          "aria-label": name,
          "aria-pressed": is_chosen ? "true" : "false",
          "data-key": `head ${layer} ${head}`,
          "data-value": String(value),
          tabindex: is_chosen || (!chosen && layer + head === 0) ? "0" : "-1",
          style: { "background-color": shade(value, limit) },
          onclick: () => choose(layer, head),
        }),
      );
    }
  }
  const grid = element("div", { class: "heads", role: "group", "aria-label": "heads, a row for each layer" }, ...cells);
  grid.style.setProperty("--heads", n_heads);
  grid.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -n_heads, ArrowDown: n_heads }[event.key];
    const next = cells[cells.indexOf(document.activeElement) + step];
    if (!next) return;
    cells.forEach((one) => one.setAttribute("tabindex", "-1"));
    next.setAttribute("tabindex", "0");
    next.focus();
    event.preventDefault();
  });
  return grid;
}

// Nodes in a column, arrows as arcs at their side; arrows are {from, to, value}, drawn with a width.
function arcs(nodes, arrows, chosen, choose) {
  const height = 22;
  const row = new Map(nodes.map((node, k) => [node.number, k]));
  const limit = largest(arrows.map((one) => one.value)) || 1;
  const y = (node) => height * row.get(node) + height / 2;
  const reach = Math.max(1, ...arrows.map((one) => Math.abs(row.get(one.to) - row.get(one.from))));
  const lines = arrows.map((one) => {
    const bend = 120 + (150 * Math.abs(row.get(one.to) - row.get(one.from))) / reach;
    const curve = `M 120 ${y(one.from)} C ${bend} ${y(one.from)}, ${bend} ${y(one.to)}, 124 ${y(one.to)}`;
    return drawn(
      "path",
      {
        d: curve,
        class: one.value < 0 ? "arc lowers" : "arc raises",
        "stroke-width": 0.5 + (7 * Math.abs(one.value)) / limit,
        "data-value": String(one.value),
        opacity: one.faint ? 0.18 : 0.85,
      },
      drawn("title", {}, `${one.label}: ${number(one.value, digitsFor(limit, 3))} logits`),
    );
  });
  const labels = nodes.map((node) => {
    const text = drawn(
      "text",
      { x: 114, y: y(node.number) + 4, "text-anchor": "end", class: node.number === chosen ? "node chosen" : "node" },
      shortened(visible(node.text), 16),
    );
    if (!node.is_target) return text;
    filled(text, { role: "button", tabindex: "0", "data-key": `node ${node.node}`, "aria-label": `arrows into ${node.text}`, onclick: () => choose(node.number) }, []);
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(node.number);
    });
    return text;
  });
  return drawn("svg", { viewBox: `0 0 290 ${height * nodes.length}`, class: "arcs", role: "group", "aria-label": "graph of paths" }, ...lines, ...labels);
}
