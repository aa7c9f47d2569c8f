// The picture with a map over its patches: looked at with a pointer, or with the arrow keys.

const SHARPNESS = 640;
const MOST_OPAQUE = 0.7; // what is below shows even where the map is largest

function paint(canvas, grid, image, limit) {
  const cell = Math.max(4, Math.floor(SHARPNESS / Math.max(image.rows, image.columns)));
  canvas.width = image.columns * cell;
  canvas.height = image.rows * cell;
  const pen = canvas.getContext("2d");
  grid.forEach((value, k) => {
    const x = (k % image.columns) * cell;
    const y = Math.floor(k / image.columns) * cell;
    pen.fillStyle = shade(value, limit, MOST_OPAQUE);
    pen.fillRect(x, y, cell, cell);
    if (value < -0.05 * limit) hatch(pen, x, y, cell);
  });
}

function hatch(pen, x, y, cell) {
  pen.save();
  pen.beginPath();
  pen.rect(x, y, cell, cell);
  pen.clip();
  pen.strokeStyle = "rgba(255, 255, 255, 0.55)";
  pen.lineWidth = Math.max(1, cell / 24);
  pen.beginPath();
  for (let k = -cell; k < cell; k += Math.max(3, cell / 6)) {
    pen.moveTo(x + k, y + cell);
    pen.lineTo(x + k + cell, y);
  }
  pen.stroke();
  pen.restore();
}

function box([x0, y0, x1, y1]) {
  const percent = (value) => `${100 * value}%`;
  return element("div", {
    class: "box",
    style: { left: percent(x0), top: percent(y0), width: percent(x1 - x0), height: percent(y1 - y0) },
  });
}

// A picture that says which patch is pointed at, and hands on the one that is chosen.
function picture(image, grid, limit, { chosen, is_coloured, tell, choose, label }) {
  const ratio = image.src ? image.width / image.height : image.columns / image.rows;
  const canvas = element("canvas", { "aria-hidden": "true" });
  paint(canvas, grid, image, limit);
  const cursor = element("div", { class: "cursor", hidden: true });
  const mark = element("div", { class: "mark", hidden: true });
  const place = (one, cell) => {
    one.hidden = cell === null;
    if (cell === null) return;
    one.style.left = `${(100 * (cell % image.columns)) / image.columns}%`;
    one.style.top = `${(100 * Math.floor(cell / image.columns)) / image.rows}%`;
    one.style.width = `${100 / image.columns}%`;
    one.style.height = `${100 / image.rows}%`;
  };
  let pointed = chosen ?? 0;
  const look = (cell) => {
    pointed = cell;
    place(cursor, cell);
    tell(cell, grid[cell]);
  };
  const under = (event) => {
    const frame = host.getBoundingClientRect();
    const within = (value, n) => Math.min(n - 1, Math.max(0, Math.floor(value * n)));
    const column = within((event.clientX - frame.left) / frame.width, image.columns);
    return within((event.clientY - frame.top) / frame.height, image.rows) * image.columns + column;
  };
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -image.columns, ArrowDown: image.columns };
  const host = element(
    "div",
    {
      class: is_coloured ? "picture coloured" : "picture",
      tabindex: "0",
      role: "application",
      "aria-label": `${label}. Arrow keys move over ${image.rows} × ${image.columns} patches, Enter chooses one.`,
      style: { "aspect-ratio": String(ratio), "--ratio": String(ratio) },
      onpointermove: (event) => look(under(event)),
      onpointerleave: () => place(cursor, null),
      onclick: (event) => choose(under(event)),
      onkeydown: (event) => {
        const next = pointed + (moves[event.key] ?? 0);
        if (event.key === "Enter" || event.key === " ") choose(pointed);
        else if (event.key === "Escape") choose(null);
        else if (!(event.key in moves)) return;
        else if (next >= 0 && next < grid.length) look(next);
        event.preventDefault();
      },
    },
    image.src ? element("img", { src: image.src, alt: "", draggable: "false" }) : null,
    canvas,
    ...image.boxes.map(box),
    mark,
    cursor,
  );
  place(mark, chosen);
  return host;
}

function scale(limit, unit, is_signed) {
  return element(
    "div",
    { class: "scale", "aria-hidden": "true" },
    element("span", {}, is_signed ? number(-limit, digitsFor(limit)) : "0"),
    element("span", { class: is_signed ? "gradient" : "gradient upward" }),
    element("span", {}, `${is_signed ? "+" : ""}${number(limit, digitsFor(limit))} ${unit}`),
  );
}
